"""Rows to look at: named ones, and samples of a run that is too large to show whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.references import References, load_references
from pipeline.run import Run
from pipeline.scoring import Scoring, score

_BATCH: Final = 4096


def rows_by_id(run: Run, utt_ids: Sequence[str], columns: Sequence[str], scoring: Scoring) -> pa.Table:
    """The named transcripts in the order of their names, with normalised texts and counts under `scoring`.

    Args:
        run: the run.
        utt_ids: names; one that the run does not have is left out.
        columns: of `transcripts`, beside `utt_id` and `text`.
        scoring: the rules.
    """
    stored, references = run.record["config"]["normalizer"], _load(scoring)
    names = list(dict.fromkeys(["utt_id", "text", *columns, *scoring.sources(stored, texts=True)]))
    wanted = pa.array(utt_ids, pa.string())  # typed: of no names too
    found = run.dataset("transcripts").to_table(columns=names, filter=pads.field("utt_id").isin(wanted))
    table = _scored(found, scoring, stored, references)
    order = pc.index_in(wanted, table["utt_id"].combine_chunks())
    return table.take(order.drop_null())


def sampled_rows(run: Run, table: str, columns: Sequence[str], rows: int, seed: int = 0) -> tuple[pa.Table, int]:
    """A sample of about `rows` rows and the number that it was drawn from: whole row groups, in a seeded random order.

    All rows where there are no more than that. Rows that lie together are drawn together, so that the work is bounded
    by the sample and not by the run.
    """
    total = run.rows(table)
    pieces: list[pa.Table] = []
    held = 0
    for batch in _shuffled(run.dataset(table), columns, seed):
        pieces.append(pa.Table.from_batches([batch]))
        held += batch.num_rows
        if held >= rows:
            break
    found = pa.concat_tables(pieces) if pieces else run.dataset(table).schema.empty_table().select(list(columns))
    return found.slice(0, rows), total


def wrong_rows(run: Run, scoring: Scoring, rows: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(utt_id, normalised reference, normalised text) of at most `rows` utterances with errors, drawn as above."""
    stored, references = run.record["config"]["normalizer"], _load(scoring)
    columns = list(dict.fromkeys(["utt_id", *scoring.sources(stored, texts=True)]))
    found: list[tuple[str, str, str]] = []
    for batch in _shuffled(run.dataset("transcripts"), columns, seed):
        table = _scored(pa.Table.from_batches([batch]), scoring, stored, references)
        wrong = table.filter(pc.not_equal(table["normalized_reference"], table["normalized_text"]))
        texts = (wrong[name].to_pylist() for name in ("utt_id", "normalized_reference", "normalized_text"))
        found += zip(*texts, strict=True)
        if len(found) >= rows:
            break
    return found[:rows]


def _load(scoring: Scoring) -> list[References]:
    return [load_references(uri) for uri in scoring.references]


def _scored(rows: pa.Table, scoring: Scoring, stored: str, references: Sequence[References]) -> pa.Table:
    for name, values in score(rows.combine_chunks(), scoring, stored, references).items():
        if name in rows.column_names:
            rows = rows.drop_columns(name)
        rows = rows.append_column(name, values)
    return rows


def _shuffled(dataset: pads.Dataset, columns: Sequence[str], seed: int) -> Iterator[pa.RecordBatch]:
    """Batches of at most `_BATCH` rows from row groups in random order."""
    if not isinstance(dataset, pads.FileSystemDataset):  # a run without such rows
        return
    files = list(dataset.get_fragments())
    rng = np.random.default_rng(seed)
    for file in rng.permutation(len(files)):
        groups = files[file].split_by_row_group()
        for group in rng.permutation(len(groups)):
            yield from groups[group].to_batches(schema=dataset.schema, columns=list(columns), batch_size=_BATCH)
