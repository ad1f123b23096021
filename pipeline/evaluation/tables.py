"""The figures of an evaluation as a table, stored in `metrics/` of the run: one file for each set of scoring rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import pyarrow as pa

from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.results import Evaluation, Figures
from pipeline.runs.run import Run
from pipeline.schemas import SCHEMA_VERSION, field
from pipeline.scoring.counts import ErrorCounts
from pipeline.storage import objects, uris
from pipeline.storage.parquet import encode_table

METRICS_SCHEMA: Final = pa.schema(
    [
        field("scope", pa.string(), "corpus, or the grouping that the row's group belongs to", nullable=False),
        field("key", pa.string(), "name of the group; null for the corpus, and for the utterances without the key"),
        field("metric", pa.string(), "wer or tcwer (words), cer (characters) or ser (sentences)", nullable=False),
        field(
            "errors",
            pa.int64(),
            "substitutions + deletions + insertions",
            "words, characters or sentences",
            nullable=False,
        ),
        field("hits", pa.int64(), "recognised correctly", "words, characters or sentences", nullable=False),
        field(
            "substitutions",
            pa.int64(),
            "for ser: sentences with any word error",
            "words, characters or sentences",
            nullable=False,
        ),
        field("deletions", pa.int64(), "0 for ser", "words, characters or sentences", nullable=False),
        field("insertions", pa.int64(), "0 for ser", "words, characters or sentences", nullable=False),
        field(
            "reference",
            pa.int64(),
            "hits + substitutions + deletions",
            "words, characters or sentences",
            nullable=False,
        ),
        field("rate", pa.float64(), "errors / reference; null where reference is 0", "1"),
        field("ci_low", pa.float64(), "lower end of the rate's confidence interval; null without one", "1"),
        field("ci_high", pa.float64(), "upper end of the rate's confidence interval; null without one", "1"),
        field("ci_units", pa.int64(), "number of independent sampling units of the interval", "units"),
        field("utterances", pa.int64(), "utterances with a transcript", "utterances", nullable=False),
        field(
            "scored",
            pa.int64(),
            "utterances with transcript and reference, which the counts are over",
            "utterances",
            nullable=False,
        ),
        field("failed", pa.int64(), "rows in errors/; null for a group", "utterances"),
        field("audio_s", pa.float64(), "duration of the utterances' audio", "s", nullable=False),
        field("normalizer", pa.string(), "normalizer of reference and transcript", nullable=False),
    ],
    metadata={"sewd.table": "metrics", "sewd.schema_version": str(SCHEMA_VERSION)},
)


def metrics_table(evaluation: Evaluation) -> pa.Table:
    """The wer, cer and ser of the corpus and of each group, as `METRICS_SCHEMA`."""
    rows = list(_rows("corpus", None, evaluation.figures, evaluation.intervals, evaluation.failed))
    recordings = evaluation.recordings
    if recordings is not None and recordings.timed is not None:
        row = _row("corpus", None, "tcwer", recordings.timed, recordings.interval, evaluation.figures)
        rows.append(row | {"failed": evaluation.failed})
    for grouping in evaluation.groupings:
        for group in grouping.groups:
            rows += _rows(grouping.by, group.key, group.figures, {"wer": group.interval}, None)
    return pa.Table.from_pylist([row | {"normalizer": evaluation.scoring.normalizer} for row in rows], METRICS_SCHEMA)


def _rows(
    scope: str, key: str | None, figures: Figures, intervals: Mapping[str, Interval | None], failed: int | None
) -> Iterator[dict[str, object]]:
    """A row of `METRICS_SCHEMA` for each metric, but for its normalizer."""
    for metric, counts in figures.counts.items():
        yield _row(scope, key, metric, counts, intervals.get(metric), figures) | {"failed": failed}


def _row(
    scope: str, key: str | None, metric: str, counts: ErrorCounts, interval: Interval | None, figures: Figures
) -> dict[str, object]:
    return {
        "scope": scope,
        "key": key,
        "metric": metric,
        "errors": counts.errors,
        "hits": counts.hits,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "reference": counts.reference,
        "rate": counts.error_rate,
        "ci_low": interval and interval.low,
        "ci_high": interval and interval.high,
        "ci_units": interval and interval.units,
        "utterances": figures.utterances,
        "scored": figures.scored,
        "audio_s": figures.audio_s,
    }


def write_metrics(run: Run, evaluation: Evaluation) -> str:
    """Store the figures under `metrics/` of the run, one file for each set of rules.

    Returns:
        The URI of the file.
    """
    uri = uris.join(run.uri, "metrics", f"{evaluation.scoring.name}.parquet")
    objects.put(uri, encode_table(metrics_table(evaluation), "snappy"))
    return uri
