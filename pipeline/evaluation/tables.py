"""The figures of an evaluation as a table: what stands in `metrics/` of a run, one file for each set of rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.results import Evaluation, Figures
from pipeline.runs.run import Run
from pipeline.schemas import SCHEMA_VERSION, field
from pipeline.scoring.counts import ErrorCounts
from pipeline.storage import objects, uris

METRICS_SCHEMA: Final = pa.schema(
    [
        field("scope", pa.string(), "what the row sums over: corpus, or a grouping", nullable=False),
        field(
            "key", pa.string(), "the group within the scope; null for the corpus, and for utterances without the key"
        ),
        field("metric", pa.string(), "wer (words), cer (characters) or ser (sentences)", nullable=False),
        field("errors", pa.int64(), "substitutions + deletions + insertions", "units of the metric", nullable=False),
        field("hits", pa.int64(), "units recognised", "units of the metric", nullable=False),
        field(
            "substitutions", pa.int64(), "for ser: sentences with any word error", "units of the metric", nullable=False
        ),
        field("deletions", pa.int64(), "0 for ser", "units of the metric", nullable=False),
        field("insertions", pa.int64(), "0 for ser", "units of the metric", nullable=False),
        field("reference", pa.int64(), "hits + substitutions + deletions", "units of the metric", nullable=False),
        field("rate", pa.float64(), "errors / reference; null where reference is 0", "1"),
        field("ci_low", pa.float64(), "lower end of the rate's confidence interval; null: there is none", "1"),
        field("ci_high", pa.float64(), "upper end of the rate's confidence interval; null: there is none", "1"),
        field("ci_units", pa.int64(), "units that the interval draws from", "units"),
        field("utterances", pa.int64(), "utterances with a transcript", "utterances", nullable=False),
        field(
            "scored",
            pa.int64(),
            "utterances with transcript and reference: those of the counts",
            "utterances",
            nullable=False,
        ),
        field("failed", pa.int64(), "rows in errors/; null for a group", "utterances"),
        field("audio_s", pa.float64(), "audio of the utterances", "s", nullable=False),
        field("normalizer", pa.string(), "normaliser of both texts", nullable=False),
    ],
    metadata={"sewd.table": "metrics", "sewd.schema_version": str(SCHEMA_VERSION)},
)


def metrics_table(evaluation: Evaluation) -> pa.Table:
    """Corpus and groups, as `METRICS_SCHEMA`: wer, cer and ser of each."""
    rows = list(_rows("corpus", None, evaluation.figures, dict(evaluation.intervals), evaluation.failed))
    for grouping in evaluation.groupings:
        for group in grouping.groups:
            rows += _rows(grouping.by, group.key, group.figures, {"wer": group.interval}, None)
    return pa.Table.from_pylist([row | {"normalizer": evaluation.scoring.normalizer} for row in rows], METRICS_SCHEMA)


def _rows(
    scope: str, key: str | None, figures: Figures, intervals: dict[str, Interval | None], failed: int | None
) -> Iterator[dict[str, Any]]:
    for metric, counts in figures.counts.items():
        interval = intervals.get(metric)
        yield {
            "scope": scope,
            "key": key,
            "metric": metric,
            **_counts(counts),
            "ci_low": interval and interval.low,
            "ci_high": interval and interval.high,
            "ci_units": interval and interval.units,
            "utterances": figures.utterances,
            "scored": figures.sentences,
            "failed": failed,
            "audio_s": figures.audio_s,
        }


def _counts(counts: ErrorCounts) -> dict[str, Any]:
    return {
        "errors": counts.errors,
        "hits": counts.hits,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "reference": counts.reference,
        "rate": counts.error_rate,
    }


def write_metrics(run: Run, evaluation: Evaluation) -> str:
    """Put the figures under `metrics/`, one file for each set of rules, and give its URI."""
    sink = pa.BufferOutputStream()
    pq.write_table(metrics_table(evaluation), sink)
    uri = uris.join(run.uri, "metrics", f"{evaluation.scoring.name}.parquet")
    objects.put(uri, sink.getvalue().to_pybytes())
    return uri
