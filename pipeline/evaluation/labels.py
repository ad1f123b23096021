"""Evaluation of the classifiers of a run: label counts, calibration and ranking, from sums over rows of `labels`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.context import DEFAULT_CONTEXT, RunContext, run_context
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.label_counts import LabelCounts, count_labels
from pipeline.evaluation.label_scores import Calibration, Floats, ScoreHistogram, calibration_sums, score_histogram
from pipeline.evaluation.reading import rebatch, scan_batches
from pipeline.evaluation.references import run_references
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.sums import merge_sums, sum_by_key
from pipeline.evaluation.units import describe_units, row_units, unit_columns, unit_interval, unit_keys
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run
from pipeline.scoring.references import References

MAX_LABELS: Final = 1000
OTHER_LABELS: Final = "(other labels)"
REGRESSION_LABEL: Final = "score"
"""Name of the only value of a regression head (`pipeline.schemas.LABELS`): not a label, and not evaluated."""


@dataclass(frozen=True)
class LabelEvaluation:
    """Result of the evaluation of one classifier.

    Attributes:
        task: name of the classifier.
        counts: rows with a reference label, by reference and predicted label.
        no_reference: rows without a reference label.
        other_label: rows whose reference label another classifier of the run has and this one has not: they are meant
            for that one, and not scored.
        known_labels: labels that the classifier predicted or scored.
        calibration: of the score of the predicted label.
        scores: histogram of each label's scores against the rest. Only for labels that have a score in every row: the
            classifier must not have more labels than the run stores scores of.
        interval: confidence interval of the accuracy; None where there are too few units.
        unit: sampling unit of the interval.
    """

    task: str
    counts: LabelCounts
    no_reference: int
    other_label: int
    known_labels: frozenset[str]
    calibration: Calibration
    scores: Mapping[str, ScoreHistogram]
    interval: Interval | None
    unit: str

    @property
    def unknown_label(self) -> int:
        """Scored rows whose reference label no classifier of the run has: they count as wrong."""
        support = zip(self.counts.labels, self.counts.support.tolist(), strict=True)
        return sum(rows for label, rows in support if label not in self.known_labels)


@dataclass
class _TaskSums:
    """Sums over the batches of one task."""

    counts: LabelCounts = field(default_factory=LabelCounts.zero)
    no_reference: int = 0
    other_label: int = 0
    predicted_labels: set[str] = field(default_factory=set)
    known_labels: set[str] = field(default_factory=set)
    calibration: Calibration = field(default_factory=Calibration.zero)
    scores: dict[str, ScoreHistogram] = field(default_factory=dict)
    incomplete_labels: set[str] = field(default_factory=set)  # labels without a score in some row
    unit_sums: list[pa.Table] = field(default_factory=list)

    def add(
        self, rows: pa.Table, settings: EvaluationSettings, context: RunContext, labels_of_others: pa.Array
    ) -> None:
        """Add a batch of rows of this task, without those whose reference label is one of `labels_of_others`."""
        self.predicted_labels |= set(pc.unique(rows["label"]).to_pylist())
        for_others = pc.is_in(rows["reference_label"], labels_of_others)
        self.other_label += pc.sum(for_others, min_count=0).as_py()
        rows = rows.filter(pc.invert(for_others))
        has_reference = pc.is_valid(rows["reference_label"])
        self.no_reference += rows.num_rows - pc.sum(has_reference, min_count=0).as_py()
        scored = _limit_labels(rows.filter(has_reference).combine_chunks())
        pairs = scored.group_by(["reference_label", "label"]).aggregate([([], "count_all")])
        self.counts += count_labels(*(pairs[name].to_pylist() for name in pairs.column_names))
        correct = pc.equal(scored["reference_label"], scored["label"])
        self.calibration += calibration_sums(_probabilities(scored["score"]), correct.to_numpy())
        self._add_scores(scored)
        errors = pc.invert(correct).cast(pa.int64())
        ones = pa.repeat(pa.scalar(1, pa.int64()), len(scored))
        keys = unit_keys(row_units(scored, settings.unit, context.objects_are_recordings), errors, ones)
        self.unit_sums.append(sum_by_key(pa.table({"errors": errors, "rows": ones}), keys, ("errors", "rows")))

    def _add_scores(self, scored: pa.Table) -> None:
        """Add one-vs-rest scores of each label, from lists of the scores of all labels or only the likeliest."""
        if not scored.num_rows:  # otherwise every label would be missing from this batch
            return
        lists = scored["top_k"].combine_chunks()
        row_indices = pc.list_parent_indices(lists).to_numpy()
        flat = pc.list_flatten(lists)
        labels = pc.struct_field(flat, "label").dictionary_encode()
        codes = labels.indices.to_numpy()
        scores = _probabilities(pa.chunked_array([pc.struct_field(flat, "score")]))
        references = scored["reference_label"]
        batch_labels = set(labels.dictionary.to_pylist())
        # A label that is in earlier batches but not in this one, or the reverse, has rows without a score.
        self.incomplete_labels |= (self.known_labels ^ batch_labels) if self.counts.rows > scored.num_rows else set()
        self.known_labels |= batch_labels | set(scored["label"].to_pylist())
        for code, label in enumerate(labels.dictionary.to_pylist()):
            is_label = codes == code
            if is_label.sum() < scored.num_rows:
                self.incomplete_labels.add(label)
            if label not in self.incomplete_labels:
                positive = pc.equal(references, label).to_numpy()[row_indices[is_label]]
                histogram = score_histogram(scores[is_label], positive)
                self.scores[label] = self.scores.get(label, ScoreHistogram.zero()) + histogram

    def evaluation(self, task: str, level: float) -> LabelEvaluation:
        """The figures of the task, with an interval of nominal coverage `level`."""
        units = merge_sums(self.unit_sums)
        error_rate = unit_interval(units, "errors", "rows", "rows", level)
        return LabelEvaluation(
            task=task,
            counts=self.counts,
            no_reference=self.no_reference,
            other_label=self.other_label,
            known_labels=frozenset(self.known_labels),
            calibration=self.calibration,
            scores={label: scores for label, scores in self.scores.items() if label not in self.incomplete_labels},
            interval=error_rate and replace(error_rate, low=1 - error_rate.high, high=1 - error_rate.low),
            unit=describe_units(units["key_unit_kind"]),
        )


def evaluate_labels(run: Run, settings: EvaluationSettings | None = None) -> tuple[LabelEvaluation, ...]:
    """Evaluate every classifier of a run over its committed rows.

    Args:
        run: the run.
        settings: only unit, level and reference files are used. The `label` in a file replaces the stored reference
            label; of several files the first that contains the utterance is used.

    Returns:
        One evaluation per classifier, in the order of their names.

    Raises:
        UsageError: a file of references does not exist or cannot be read.
    """
    settings = settings or EvaluationSettings()
    references = run_references(run, settings.scoring.references) if settings.scoring else []

    def evaluate_files(files: dict[str, list[DataFile]]) -> tuple[LabelEvaluation, ...]:
        context = run_context(run, files["labels"], replace(settings, by=()))
        columns = ["task", "label", "score", "top_k", "reference_label"]
        columns += [*unit_columns(settings.unit, context.objects_are_recordings), *(["utt_id"] if references else [])]
        paths = [file.path for file in files["labels"]]
        batches = scan_batches(run.uri, "labels", paths, list(dict.fromkeys(columns)))
        return evaluate_label_rows(batches, settings, references, context, labels_of_others(run, files["labels"]))

    return run.read(evaluate_files)


def labels_of_others(run: Run, files: Sequence[DataFile]) -> dict[str, frozenset[str]]:
    """For each classifier, the labels that another classifier of the run has, and it has not.

    A row whose reference label is one of them is meant for the other classifier. A classifier has the labels that it
    predicted or scored in any row.

    Args:
        run: the run. If it has one classifier, its rows are not read, and the result is empty.
        files: its files of `labels`.
    """
    if len(run.record.config.get("classifiers", ())) == 1:
        return {}
    known: dict[str, set[str]] = {}
    for rows in rebatch(scan_batches(run.uri, "labels", [file.path for file in files], ["task", "label", "top_k"])):
        for task in pc.unique(rows["task"]).to_pylist():
            of_task = rows.filter(pc.equal(rows["task"], task)).combine_chunks()
            scored = pc.struct_field(pc.list_flatten(of_task["top_k"].combine_chunks()), "label")
            found = {*pc.unique(of_task["label"]).to_pylist(), *pc.unique(scored).to_pylist()}
            known.setdefault(task, set()).update(found)
    return {task: frozenset(set().union(*known.values()) - labels) for task, labels in known.items()}


def evaluate_label_rows(
    batches: Iterable[pa.RecordBatch],
    settings: EvaluationSettings,
    references: Sequence[References] = (),
    context: RunContext = DEFAULT_CONTEXT,
    of_others: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> tuple[LabelEvaluation, ...]:
    """Evaluate every classifier in rows of `labels`; see `evaluate_labels`. Regression heads are skipped.

    `of_others` is the result of `labels_of_others`.
    """
    sums: dict[str, _TaskSums] = {}
    for rows in rebatch(batches):
        position = rows.column_names.index("reference_label")
        table = rows.set_column(position, "reference_label", _reference_labels(rows, references))
        for task in pc.unique(table["task"]).to_pylist():
            task_rows = table.filter(pc.equal(table["task"], task)).combine_chunks()
            foreign = pa.array(sorted(of_others.get(task, ())), pa.string())
            sums.setdefault(task, _TaskSums()).add(task_rows, settings, context, foreign)
    classifiers = [task for task in sorted(sums) if sums[task].predicted_labels != {REGRESSION_LABEL}]
    return tuple(sums[task].evaluation(task, settings.level) for task in classifiers)


def _reference_labels(rows: pa.Table, references: Sequence[References]) -> pa.Array:
    """Labels from the reference files that have labels; without such a file, the stored reference labels."""
    labels = [file.labels_of(rows["utt_id"]) for file in references if any(file.labels)]
    return pc.coalesce(*labels) if labels else rows["reference_label"].combine_chunks()


def _limit_labels(scored: pa.Table) -> pa.Table:
    """Merge the reference labels that were never predicted, where there are more than any classifier has.

    Such a column holds texts and not labels, and its confusion matrix would be too large.
    """
    references = scored["reference_label"].combine_chunks()
    if pc.count_distinct(references).as_py() <= MAX_LABELS:
        return scored
    is_predicted = pc.is_in(references, pc.unique(scored["label"]))
    position = scored.column_names.index("reference_label")
    return scored.set_column(position, "reference_label", pc.if_else(is_predicted, references, OTHER_LABELS))


def _probabilities(scores: pa.ChunkedArray) -> Floats:
    probabilities: Floats = np.clip(scores.to_numpy(), 0, 1)  # a float32 softmax can be slightly above 1
    return probabilities
