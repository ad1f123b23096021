"""The comparison with a baseline: differences, tests, and aligned transcripts of the utterances that changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.evaluation.compare import Comparison, compare_runs, shared_scoring
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.examples import rows_by_id
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.report.model import (
    BaselineSummary,
    ChangedText,
    ChangedUtterance,
    Changes,
    ComparisonSection,
    MetricDifference,
    Pairing,
    Significance,
)
from pipeline.report.summary import coverage_of, headline_of, interval_of, summarize_run, title_of
from pipeline.runs.run import Run
from pipeline.scoring.alignment import align
from pipeline.scoring.rules import Scoring


def compare_with(baseline: Run, run: Run, settings: EvaluationSettings) -> ComparisonSection:
    """Compare a run with a baseline.

    Raises:
        UsageError: the runs have no scoring rules, or no utterance, in common.
    """
    scoring = shared_scoring(run, baseline, settings.scoring)
    compared = compare_runs(run, baseline, scoring, unit=settings.unit, level=settings.level)
    evaluation = evaluate_run(baseline, replace(settings, by=(), num_worst=0, scoring=scoring))
    return ComparisonSection(
        baseline=BaselineSummary(
            uri=baseline.uri,
            title=title_of(baseline),
            model=baseline.record.config["model"],
            headline=headline_of(evaluation),
            coverage=coverage_of(evaluation),
            run=summarize_run(baseline),
        ),
        paired=Pairing(
            compared.utterances, compared.only_in_run, compared.only_in_baseline, compared.reference_differs
        ),
        metrics=_differences(compared),
        tests=[Significance(test.name, test.statistic, test.p_value, test.n, test.detail) for test in compared.tests],
        changes=Changes(compared.better, compared.worse, compared.utterances - compared.better - compared.worse),
        better=changed_utterances(run, baseline, compared.most_improved, scoring),
        worse=changed_utterances(run, baseline, compared.most_worsened, scoring),
    )


def _differences(compared: Comparison) -> list[MetricDifference]:
    return [
        MetricDifference(
            metric=metric,
            here=here,
            baseline=baseline,
            difference=compared.bootstraps[metric].difference,
            interval=interval_of(compared.bootstraps[metric].interval, compared.unit),
            probability_of_improvement=compared.bootstraps[metric].probability_of_improvement,
        )
        for metric, (here, baseline) in compared.rates.items()
    ]


def changed_utterances(run: Run, baseline: Run, utt_ids: Sequence[str], scoring: Scoring) -> list[ChangedUtterance]:
    """The transcripts of both runs, aligned with the reference, in the order of `utt_ids`.

    Args:
        run: the run.
        baseline: the run that it is compared with.
        utt_ids: utterances that both runs have.
        scoring: the rules that both are scored under.
    """
    if not utt_ids:
        return []
    rows, baseline_rows = (rows_by_id(each, utt_ids, ["duration_s"], scoring).to_pylist() for each in (run, baseline))
    return [
        ChangedUtterance(
            utt_id=row["utt_id"],
            duration_s=row["duration_s"],
            reference=row["normalized_reference"],
            difference=_errors(row) - _errors(baseline_row),
            here=_changed_text(row),
            baseline=_changed_text(baseline_row),
        )
        for row, baseline_row in zip(rows, baseline_rows, strict=True)
    ]


def _errors(row: Mapping[str, Any]) -> int:
    return int(row["substitutions"] + row["deletions"] + row["insertions"])


def _changed_text(row: Mapping[str, Any]) -> ChangedText:
    alignment = align(row["normalized_reference"], row["normalized_text"])
    return ChangedText(text=row["text"], errors=_errors(row), alignment=alignment)
