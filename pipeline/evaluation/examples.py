"""Rows to look at: named ones, and samples of a run that is too large to show whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run, open_files
from pipeline.scoring.references import References, load_references
from pipeline.scoring.rules import Scoring, score

_GROUPS: Final = 16
"""Row groups that a sample is drawn from, at least, where there are so many."""


def rows_by_id(run: Run, utt_ids: Sequence[str], columns: Sequence[str], scoring: Scoring) -> pa.Table:
    """The named transcripts in the order of their names, with normalised texts and counts under `scoring`.

    Args:
        run: the run.
        utt_ids: names; one that the run has not scored is left out, and of one that it has twice the first is taken.
        columns: of `transcripts`, beside `utt_id` and `text`.
        scoring: the rules.
    """
    stored, references = run.record["config"]["normalizer"], _load(scoring)
    names = list(dict.fromkeys(["utt_id", "text", *columns, *scoring.sources(stored, texts=True)]))
    wanted = pa.array(utt_ids, pa.string())  # typed: of no names too
    named = pads.field("utt_id").isin(wanted)
    found = run.read(lambda files: _open(run, "transcripts", files).to_table(columns=names, filter=named))
    table = _scored(found, scoring, stored, references)
    table = table.filter(pc.is_valid(table["normalized_reference"]))
    order = pc.index_in(wanted, table["utt_id"].combine_chunks())
    return table.take(pc.unique(order.drop_null()))


def sampled_rows(run: Run, table: str, columns: Sequence[str], rows: int, seed: int = 0) -> tuple[pa.Table, int]:
    """A seeded sample of `rows` rows, and the number that it was drawn from; all of them where there are no more.

    Random rows of a few random row groups: the work is bounded by the sample and not by the run.
    """

    def drawn(files: dict[str, list[DataFile]]) -> tuple[pa.Table, int]:
        dataset = _open(run, table, files)
        found = [dataset.schema.empty_table().select(list(columns))]
        found += _drawn(dataset, columns, rows, seed, lambda drawn: drawn)
        return pa.concat_tables(found).slice(0, rows), sum(file.rows for file in files[table])

    return run.read(drawn)


def wrong_rows(run: Run, scoring: Scoring, rows: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(utt_id, normalised reference, normalised text) of at most `rows` utterances with errors, drawn as above."""
    stored, references = run.record["config"]["normalizer"], _load(scoring)
    columns = list(dict.fromkeys(["utt_id", *scoring.sources(stored, texts=True)]))

    def wrong(drawn: pa.Table) -> pa.Table:
        table = _scored(drawn, scoring, stored, references)
        table = table.filter(pc.not_equal(table["normalized_reference"], table["normalized_text"]))
        return table.select(["utt_id", "normalized_reference", "normalized_text"])

    found = run.read(lambda files: _drawn(_open(run, "transcripts", files), columns, rows, seed, wrong))
    texts = (zip(*(column.to_pylist() for column in table.columns), strict=True) for table in found)
    return list(itertools.chain.from_iterable(texts))[:rows]


def _drawn(
    dataset: pads.Dataset, columns: Sequence[str], rows: int, seed: int, keep: Callable[[pa.Table], pa.Table]
) -> list[pa.Table]:
    """Rows that `keep` keeps, `rows` of them or somewhat more: a share of each row group at first, so that a sample is
    not a run of neighbours, then what is left of them."""
    share = -(-rows // _GROUPS)
    found: list[pa.Table] = []
    held = 0
    for part in (slice(None, share), slice(share, None)):
        for number, group in enumerate(_row_groups(dataset, seed)):
            if held >= rows:
                return found
            table = keep(group.to_table(schema=dataset.schema, columns=list(columns)))
            at = np.random.default_rng([seed, number]).permutation(table.num_rows)[part]
            found.append(table.take(np.sort(at)))
            held += len(at)
    return found


def _row_groups(dataset: pads.Dataset, seed: int) -> Iterator[Any]:
    """All row groups in a seeded random order; files are opened as they come."""
    files = list(dataset.get_fragments()) if isinstance(dataset, pads.FileSystemDataset) else []  # else it has no rows
    rng = np.random.default_rng(seed)
    for file in rng.permutation(len(files)):
        groups = files[file].split_by_row_group()
        yield from (groups[at] for at in rng.permutation(len(groups)))


def _open(run: Run, table: str, files: dict[str, list[DataFile]]) -> pads.Dataset:
    return open_files(run.uri, table, [file.path for file in files[table]])


def _load(scoring: Scoring) -> list[References]:
    return [load_references(uri) for uri in scoring.references]


def _scored(rows: pa.Table, scoring: Scoring, stored: str, references: Sequence[References]) -> pa.Table:
    for name, values in score(rows.combine_chunks(), scoring, stored, references).items():
        if name in rows.column_names:
            rows = rows.drop_columns(name)
        rows = rows.append_column(name, values)
    return rows
