"""Scanning the tables of a run by columns, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa

from pipeline.runs.run import open_files
from sewd_model.grouping import grouped

BATCH_ROWS: Final = 1 << 20
SCAN_OPTIONS: Final[Mapping[str, int]] = {"batch_size": 1 << 16, "batch_readahead": 8, "fragment_readahead": 4}
"""Options of Arrow's scanner: its default read-ahead would load a large part of a large run into memory."""


def scan_batches(run_uri: str, table: str, paths: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The given columns of some files of a table (`transcripts`, `labels`, `errors`), batch by batch."""
    yield from open_files(run_uri, table, paths).to_batches(columns=list(columns), **SCAN_OPTIONS)


def rebatch(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join or cut batches to about `BATCH_ROWS` rows: for small files the overhead per batch would dominate.

    Yields:
        Non-empty tables of one chunk per column.
    """
    for group in grouped(batches, lambda batch: batch.num_rows, at_least=BATCH_ROWS):
        yield from _cut(group)


def _cut(batches: list[pa.RecordBatch]) -> Iterator[pa.Table]:
    table = pa.Table.from_batches(batches)
    rows = BATCH_ROWS if table.num_rows >= 2 * BATCH_ROWS else max(table.num_rows, 1)  # avoids a tail of a few rows
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows).combine_chunks()
