"""Builds the content of a report from a run.

Counts and rates are over all rows; what is cut or sampled records how much of it there is.
"""

from __future__ import annotations

import importlib.metadata
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pipeline.evaluation import label_scores
from pipeline.evaluation.compare import shared_scoring
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.examples import rows_by_id, wrong_rows
from pipeline.evaluation.gate import Verdict
from pipeline.evaluation.group_keys import RATE_EDGES
from pipeline.evaluation.label_counts import ClassScore
from pipeline.evaluation.labels import LabelEvaluation, evaluate_labels
from pipeline.evaluation.results import Evaluation, Figures, Group, Grouping, IdSummary, RecordingFigures
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.report import clips
from pipeline.report.comparison import compare_with
from pipeline.report.corpus import describe_corpus, describe_errors
from pipeline.report.model import (
    AudioMode,
    CalibrationBin,
    ClassificationTask,
    ClassScores,
    Clip,
    ConfidenceBin,
    ConfusionMatrix,
    Confusions,
    GateResult,
    GroupingTable,
    GroupRates,
    Histogram,
    Lineage,
    Listening,
    RecordingRates,
    Recordings,
    ReferenceProblem,
    ReferenceProblems,
    Reliability,
    ReportContent,
    ScoreCalibration,
    ScoringRules,
    WordConfusion,
    WorstUtterance,
    WorstUtterances,
)
from pipeline.report.summary import (
    Cost,
    counts_of,
    coverage_of,
    headline_of,
    interval_of,
    summarize_run,
    title_of,
)
from pipeline.runs.run import Run, now
from pipeline.scoring.alignment import Confusion, align, confusions
from pipeline.scoring.counts import ErrorCounts
from pipeline.scoring.normalize import label
from pipeline.secrets import without_secrets
from sewd_model.grouping import grouped

WORST: Final = 300
GROUPS_SHOWN: Final = 200
CONFUSIONS_SHOWN: Final = 50
WRONG_SAMPLED: Final = 10_000
SHOWN_CHARACTERS: Final = 400_000
"""Limit on the summed length of the references of the worst utterances, which keeps a page of very long texts small."""
_DEFAULT_GROUPINGS: Final = ("speaker", "duration", "confidence")


@dataclass(frozen=True)
class ReportSettings:
    """What to report.

    Attributes:
        evaluation: scoring rules, unit and level; its groupings come before the default ones (speaker, duration,
            confidence).
        corpus: only describe the corpus, as if there were no references.
        cost: price of the machines, if known.
        audio: of the worst utterances: short clips, links to the objects, or none.
    """

    evaluation: EvaluationSettings = EvaluationSettings()  # noqa: RUF009  # frozen
    corpus: bool = False
    cost: Cost | None = None
    audio: AudioMode = "embed"


def build_report(
    run: Run,
    baseline: Run | None = None,
    settings: ReportSettings | None = None,
    gate: Sequence[Verdict] = (),
) -> ReportContent:
    """Evaluate a run, and compare it with a baseline if there is one.

    Args:
        run: the run; if it is not done, what it has committed is reported.
        baseline: another run over the same corpus.
        settings: what to report.
        gate: judged conditions of `--fail-if`.

    Raises:
        UsageError: the runs have no scoring rules, or no utterance, in common.
    """
    settings = settings or ReportSettings()
    wanted = settings.evaluation
    if baseline is not None:
        wanted = replace(wanted, scoring=shared_scoring(run, baseline, wanted.scoring))
    by = tuple(dict.fromkeys([*wanted.by, *_DEFAULT_GROUPINGS]))
    wanted = replace(wanted, by=by, num_worst=WORST)
    evaluation = evaluate_run(run, wanted)
    scored = bool(evaluation.scored) and not settings.corpus
    return ReportContent(
        title=title_of(run),
        generated=now(),
        version=importlib.metadata.version("sewd-pipeline"),
        run=summarize_run(run, settings.cost),
        coverage=coverage_of(evaluation),
        scoring=_scoring_rules(evaluation, wanted),
        headline=headline_of(evaluation) if scored else [],
        reference_problems=_reference_problems(evaluation) if scored else None,
        distribution=Histogram([*RATE_EDGES, None], evaluation.rate_histogram) if scored else None,
        groups=[_grouping_table(each) for each in evaluation.groupings if _has_keys(each)] if scored else [],
        confidence=_reliability(evaluation) if scored else None,
        confusions=_confusions(run, evaluation) if scored else None,
        worst=_worst_utterances(run, evaluation, settings.audio) if scored else None,
        classification=[] if settings.corpus else [_classification_task(task) for task in evaluate_labels(run, wanted)],
        errors=describe_errors(run, evaluation.failed),
        corpus=describe_corpus(run),
        lineage=_lineage(run),
        gate=[GateResult(each.condition, each.value, each.limit, each.failed) for each in gate],
        comparison=None if baseline is None or settings.corpus else compare_with(baseline, run, wanted),
        recordings=_recordings(evaluation.recordings) if scored and evaluation.recordings else None,
    )


def _recordings(figures: RecordingFigures) -> Recordings:
    return Recordings(
        scored=figures.scored,
        unscored=_reference_problem(figures.unscored),
        reference_words=figures.reference_words,
        scored_words=figures.scored_words,
        coverage=figures.coverage,
        collar_s=figures.collar_s,
        rows=[
            RecordingRates(
                each.name, each.speaker, counts_of(each.words), None if each.timed is None else counts_of(each.timed)
            )
            for each in figures.worst
        ],
    )


def _scoring_rules(evaluation: Evaluation, settings: EvaluationSettings) -> ScoringRules:
    names = [posixpath.basename(uri) for uri in evaluation.scoring.references]
    return ScoringRules(
        normalizer=label(evaluation.scoring.normalizer),
        references=", ".join(names) or "stored with the run",
        compounds=evaluation.scoring.compounds,
        unit=evaluation.unit,
        level=settings.level,
    )


def _reference_problems(evaluation: Evaluation) -> ReferenceProblems | None:
    if evaluation.problems is None:
        return None
    problems = evaluation.problems
    return ReferenceProblems(
        missing=_reference_problem(problems.missing),
        unknown=_reference_problem(problems.unknown),
        duplicate=_reference_problem(problems.duplicate),
    )


def _reference_problem(ids: IdSummary) -> ReferenceProblem:
    return ReferenceProblem(ids.total, ids.examples)


# --- Groups and confidence


def _has_keys(grouping: Grouping) -> bool:
    """Whether any scored utterance has a key: a table of one row without a key shows nothing."""
    return any(group.key is not None and group.figures.scored for group in grouping.groups)


def _grouping_table(grouping: Grouping) -> GroupingTable:
    groups: Sequence[Group] = [group for group in grouping.groups if group.figures.scored]
    unscored = len(grouping.groups) - len(groups)
    if not grouping.ordered:
        groups = sorted(groups, key=lambda group: (-group.figures.words.errors, group.key or ""))
    return GroupingTable(
        by=grouping.by,
        ordered=grouping.ordered,
        unit=grouping.unit,
        total=len(groups),
        shown=min(len(groups), GROUPS_SHOWN),
        groups=[_group_rates(group, grouping.unit) for group in groups[:GROUPS_SHOWN]],
        unscored=unscored,
    )


def _group_rates(group: Group, unit: str) -> GroupRates:
    return GroupRates(
        key=group.key,
        utterances=group.figures.utterances,
        audio_s=group.figures.audio_s,
        words=counts_of(group.figures.words),
        chars=counts_of(group.figures.chars),
        sentences=counts_of(group.figures.sentence_counts),
        interval=interval_of(group.interval, unit),
    )


def _reliability(evaluation: Evaluation) -> Reliability | None:
    deciles = [group for each in evaluation.groupings if each.by == "confidence" for group in each.groups]
    bins = [
        _confidence_bin(group.key, group.figures)
        for group in deciles
        if group.key is not None and group.figures.words.reference
    ]
    found = evaluation.confidence
    if found is None:
        return Reliability(bins) if bins else None
    return Reliability(bins, found.ece, found.risk_area, found.curve)


def _confidence_bin(key: str, figures: Figures) -> ConfidenceBin:
    low, high = key.split("-")
    rate = figures.rates["wer"]
    return ConfidenceBin(
        low=float(low),
        high=float(high),
        utterances=figures.utterances,
        confidence=figures.mean_confidence,
        accuracy=None if rate is None else 1 - rate,
    )


# --- Errors in the texts


def _confusions(run: Run, evaluation: Evaluation) -> Confusions | None:
    if not evaluation.figures.sentence_errors:
        return None
    rows = wrong_rows(run, evaluation.scoring, WRONG_SAMPLED)
    by_kind = confusions(rows, CONFUSIONS_SHOWN)
    return Confusions(
        sampled=len(rows),
        of=evaluation.figures.sentence_errors,
        substitutions=_word_confusions(by_kind["substitute"]),
        deletions=_word_confusions(by_kind["delete"]),
        insertions=_word_confusions(by_kind["insert"]),
    )


def _word_confusions(kind: Sequence[Confusion]) -> list[WordConfusion]:
    return [WordConfusion(each.reference, each.hypothesis, each.count, each.examples) for each in kind]


def _worst_utterances(run: Run, evaluation: Evaluation, audio: AudioMode) -> WorstUtterances | None:
    if not evaluation.worst_utterances:
        return None
    columns = list(dict.fromkeys(["speaker", "confidence", *clips.COLUMNS]))
    rows = rows_by_id(run, evaluation.worst_utterances, columns, evaluation.scoring).to_pylist()
    first = grouped(rows, lambda row: len(row["normalized_reference"]), at_most=SHOWN_CHARACTERS)
    shown = next(first, [])
    played = clips.clips_of(run, shown[: clips.CLIPS], audio)
    return WorstUtterances(
        shown=len(shown),
        of=evaluation.figures.sentence_errors,
        rows=[_worst_utterance(row, played.by_id.get(row["utt_id"])) for row in shown],
        listening=None
        if audio == "none"
        else Listening(audio, min(len(shown), clips.CLIPS), len(played.by_id), dict(played.left_out.most_common())),
    )


def _worst_utterance(row: Mapping[str, Any], clip: Clip | None) -> WorstUtterance:
    return WorstUtterance(
        utt_id=row["utt_id"],
        uri=without_secrets(row["uri"]),
        start_s=row["start_s"],
        duration_s=row["duration_s"],
        speaker=row["speaker"],
        confidence=row["confidence"],
        reference=row["normalized_reference"],
        text=row["text"],
        counts=counts_of(ErrorCounts(row["hits"], row["substitutions"], row["deletions"], row["insertions"])),
        alignment=align(row["normalized_reference"], row["normalized_text"]),
        clip=clip,
    )


# --- Classifiers and lineage


def _classification_task(labels: LabelEvaluation) -> ClassificationTask:
    counts = labels.counts
    aurocs = {label: scores.auroc for label, scores in labels.scores.items()}
    return ClassificationTask(
        task=labels.task,
        scored=counts.rows,
        no_reference=labels.no_reference,
        unknown_label=labels.unknown_label,
        other_label=labels.other_label,
        accuracy=counts.accuracy,
        interval=interval_of(labels.interval, labels.unit),
        balanced_accuracy=counts.balanced_accuracy,
        macro_f1=counts.macro_f1,
        micro_f1=counts.micro_f1,
        classes=[_class_scores(scores, aurocs.get(scores.label)) for scores in counts.classes],
        confusion=ConfusionMatrix(list(counts.labels), list(counts.labels), counts.confusion.tolist()),
        calibration=ScoreCalibration(
            ece=labels.calibration.expected_calibration_error,
            bins=_calibration_bins(labels.calibration.bins),
            plotted=_calibration_bins(labels.calibration.plotted_bins),
        ),
    )


def _calibration_bins(bins: Sequence[label_scores.CalibrationBin]) -> list[CalibrationBin]:
    return [CalibrationBin(each.low, each.high, each.rows, each.confidence, each.accuracy) for each in bins]


def _class_scores(scores: ClassScore, auroc: float | None) -> ClassScores:
    return ClassScores(
        label=scores.label,
        precision=scores.precision,
        recall=scores.recall,
        f1=scores.f1,
        support=scores.support,
        predicted=scores.predicted,
        auroc=auroc,
    )


def _lineage(run: Run) -> Lineage:
    config = run.record.config
    return Lineage(
        model=config["model"],
        classifiers=list(config.get("classifiers", ())),
        inputs=list(config.get("inputs", ())),
        fingerprint=run.record.fingerprint,
        config=config,
        versions=run.record.attempts[-1].versions if run.record.attempts else {},
    )
