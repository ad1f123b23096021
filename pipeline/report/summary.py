"""The parts of a report that describe a whole run: its summary, coverage, error rates, and the conversion of counts."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from pipeline.evaluation import intervals
from pipeline.evaluation.results import Evaluation
from pipeline.report.model import Counts, Coverage, EngineUse, Headline, Interval, RunCost, RunSummary
from pipeline.runs.run import Run
from pipeline.scoring.counts import ErrorCounts


@dataclass(frozen=True)
class Cost:
    """Price of the machines of a run.

    Attributes:
        per_hour: of all machines together, per hour of wall time.
        currency: of the price.
    """

    per_hour: float
    currency: str = "USD"


def title_of(run: Run) -> str:
    """The last component of the run's URI."""
    return posixpath.basename(run.uri.rstrip("/")) or run.uri


def summarize_run(run: Run, cost: Cost | None = None) -> RunSummary:
    """Status, sizes, times, speed and cost of a run. A resumed run has no wall time, so no speed or cost either."""
    totals = run.totals()
    starts = [attempt.started for attempt in run.record.attempts if attempt.started]
    wall_s = run.record.wall_s
    return RunSummary(
        uri=run.uri,
        status=run.status,
        started=starts[0] if starts else None,
        finished=run.record.finished,
        wall_s=wall_s,
        audio_s=totals.audio_s,
        skipped_s=totals.skipped_s,
        compute_s=totals.compute_s,
        rtfx=totals.audio_s / wall_s if wall_s else None,
        compute_rtfx=totals.audio_s / totals.compute_s if totals.compute_s else None,
        utterances=totals.utterances,
        errors=totals.errors,
        chunks=totals.chunks,
        engines=[EngineUse(engine, transcripts) for engine, transcripts in totals.engines.items()],
        decoding=run.record.decoding,
        warnings=totals.warnings,
        attempts=len(starts),
        starts=starts,
        predicted_s=run.record.predicted_s,
        cost=None if cost is None or wall_s is None else _run_cost(cost, wall_s, totals.audio_s),
    )


def _run_cost(cost: Cost, wall_s: float, audio_s: float) -> RunCost:
    total = cost.per_hour * wall_s / 3600
    return RunCost(cost.per_hour, cost.currency, total, total / (audio_s / 3600) if audio_s else None)


def coverage_of(evaluation: Evaluation) -> Coverage:
    """How much of the corpus the error rates cover."""
    return Coverage(
        rows=evaluation.figures.utterances + evaluation.failed,
        scored=evaluation.scored,
        no_reference=evaluation.no_reference,
        failed=evaluation.failed,
        share=evaluation.coverage,
    )


def headline_of(evaluation: Evaluation) -> list[Headline]:
    """The error rates of the corpus, by metric."""
    counts, recordings = evaluation.figures.counts, evaluation.recordings
    rates = [
        Headline(
            metric=metric,
            rate=rate,
            interval=interval_of(evaluation.intervals.get(metric), evaluation.unit),
            counts=counts_of(counts[metric]) if metric in counts else None,
        )
        for metric, rate in evaluation.rates.items()
    ]
    if recordings is not None and recordings.timed is not None:
        interval = interval_of(recordings.interval, evaluation.unit)
        rates.insert(1, Headline("tcwer", evaluation.tcwer, interval, counts_of(recordings.timed)))
    return rates


def interval_of(interval: intervals.Interval | None, unit: str) -> Interval | None:
    """An interval of an evaluation together with the kind of its units."""
    if interval is None:
        return None
    return Interval(interval.low, interval.high, interval.level, interval.units, interval.method, unit)


def counts_of(counts: ErrorCounts) -> Counts:
    """Error counts together with the figures that follow from them."""
    return Counts(
        hits=counts.hits,
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
        reference=counts.reference,
        errors=counts.errors,
        rate=counts.error_rate,
    )
