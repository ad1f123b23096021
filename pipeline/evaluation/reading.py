"""How rows of a run are read for evaluation: settings, batches, and what has to be known of all rows beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.evaluation.tally import (
    UNITS,
    key_of,
)
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run, open_files
from pipeline.scoring.rules import Scoring

BATCH_ROWS: Final = 1 << 20
READING: Final[Mapping[str, int]] = {"batch_size": 1 << 16, "batch_readahead": 8, "fragment_readahead": 4}
_DECILES: Final = 10


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate.

    Attributes:
        scoring: the rules that texts are compared under; None: those of the run, whose counts are stored.
        by: groupings, see `pipeline.evaluation.tally.key_of`.
        unit: what intervals draw from: `auto`, `speaker`, `recording` or `utterance`.
        level: of the intervals.
        worst: how many utterances with the most word errors to name.

    Raises:
        UsageError: no such grouping or unit, or a level or number that makes no sense.
    """

    scoring: Scoring | None = None
    by: tuple[str, ...] = ()
    unit: str = "auto"
    level: float = 0.95
    worst: int = 0

    def __post_init__(self) -> None:
        for by in self.by:
            key_of(by)
        if self.unit not in ("auto", *UNITS):
            raise UsageError(f"there is no unit {self.unit!r}: choose one of auto, {', '.join(UNITS)}")
        if not 0.5 <= self.level < 1 or self.worst < 0:
            raise UsageError(
                f"a level lies between 0.5 and 1, and a number is not negative: {self.level}, {self.worst}"
            )


@dataclass(frozen=True)
class RunFacts:
    """What a row's keys depend on beside the row.

    Attributes:
        confidence_edges: ends of the bins of `confidence`, see `confidence_deciles`.
        by_object: some utterance begins inside the object that holds it, so objects are recordings (`units_of`).
    """

    confidence_edges: tuple[float, ...] = (0.0, 1.0)
    by_object: bool = False


ANY_RUN: Final = RunFacts()


def regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches joined or cut to about `BATCH_ROWS` rows: small files would drown the work in overhead."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.num_rows
        if size >= BATCH_ROWS:
            yield from _cut(held)
            held, size = [], 0
    if size:
        yield from _cut(held)


def _cut(batches: list[pa.RecordBatch]) -> Iterator[pa.Table]:
    table = pa.Table.from_batches(batches)
    rows = BATCH_ROWS if table.num_rows >= 2 * BATCH_ROWS else max(table.num_rows, 1)  # no tail of a few rows
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows).combine_chunks()


def unit_name(kinds: pa.ChunkedArray) -> str:
    """The kinds of unit in words, from a column of them."""
    return " or ".join(UNITS[kind] for kind in sorted(pc.unique(kinds).drop_null().to_pylist())) or "utterance"


def facts_of(run: Run, files: Sequence[DataFile], settings: EvaluationSettings) -> RunFacts:
    """What `settings` needs to know of all rows of `transcripts`, or `labels`, before any is tallied.

    Reads a column for each fact.
    """
    dataset = open_files(run.uri, files[0].table if files else "transcripts", [file.path for file in files])
    by_object = False
    if settings.unit in ("auto", "recording"):
        starts = (batch["start_s"] for batch in dataset.to_batches(columns=["start_s"], **READING))
        by_object = any((pc.max(start).as_py() or 0.0) > 0 for start in starts)
    return RunFacts(confidence_deciles(run, files) if "confidence" in settings.by else (0.0, 1.0), by_object)


def confidence_deciles(run: Run, files: Sequence[DataFile]) -> tuple[float, ...]:
    """Ends of the tenths of a run's utterances by confidence, rising; fewer where many are equal.

    Reads that one column, and holds it: four bytes an utterance.
    """
    dataset = open_files(run.uri, "transcripts", [file.path for file in files])
    batches = dataset.to_batches(columns=["confidence"], **READING)
    values = np.concatenate([np.zeros(0, np.float32), *(b["confidence"].drop_null().to_numpy() for b in batches)])
    if not len(values):
        return 0.0, 1.0
    edges: list[float] = np.unique(np.quantile(values, np.linspace(0, 1, _DECILES + 1), overwrite_input=True)).tolist()
    return tuple(edges if len(edges) > 1 else edges * 2)
