"""Transcripts to show: rows with given ids, and random samples of a run that is too large to show completely."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.evaluation.references import text_references
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run, open_files
from pipeline.scoring.references import References
from pipeline.scoring.rules import Scoring, score

_MIN_ROW_GROUPS: Final = 16
"""A sample comes from at least this many row groups, if there are as many."""


class Sample(NamedTuple):
    """A random sample of a table of a run.

    Attributes:
        rows: the sampled rows.
        total: number of rows in the table.
    """

    rows: pa.Table
    total: int


class NormalizedTexts(NamedTuple):
    """The texts of an utterance as they are compared."""

    utt_id: str
    reference: str
    hypothesis: str


def rows_by_id(run: Run, utt_ids: Sequence[str], columns: Sequence[str], scoring: Scoring) -> pa.Table:
    """The transcripts with these ids, in the order of `utt_ids`, with normalised texts and counts under `scoring`.

    Args:
        run: the run.
        utt_ids: ids. One that the run has no scored utterance for is left out; of a repeated one the first row is
            returned.
        columns: columns of `transcripts`, besides `utt_id` and `text`.
        scoring: the rules.

    Raises:
        UsageError: a file of references does not exist or cannot be read.
    """
    stored_normalizer = run.record.normalizer
    references, scoring = text_references(run, scoring)
    names = list(dict.fromkeys(["utt_id", "text", *columns, *scoring.source_columns(stored_normalizer, texts=True)]))
    ids = pa.array(utt_ids, pa.string())  # typed, for an empty list
    is_requested = pads.field("utt_id").isin(ids)
    rows = run.read(lambda files: _open(run, "transcripts", files).to_table(columns=names, filter=is_requested))
    table = _scored(rows, scoring, stored_normalizer, references)
    table = table.filter(pc.is_valid(table["normalized_reference"]))
    order = pc.index_in(ids, table["utt_id"].combine_chunks())
    return table.take(pc.unique(order.drop_null()))


def sampled_rows(run: Run, table: str, columns: Sequence[str], rows: int, seed: int = 0) -> Sample:
    """A seeded random sample of a table of a run.

    Random rows of a few random row groups: the work is bounded by the sample and not by the run.

    Args:
        run: the run.
        table: `transcripts`, `labels` or `errors`.
        columns: columns to read.
        rows: size of the sample; all rows where the table has fewer.
        seed: of the sample.
    """

    def sample(files: dict[str, list[DataFile]]) -> Sample:
        dataset = _open(run, table, files)
        empty = dataset.schema.empty_table().select(list(columns))
        pieces = _draw(dataset, columns, rows, seed, lambda group: group)
        return Sample(pa.concat_tables([empty, *pieces]).slice(0, rows), sum(file.rows for file in files[table]))

    return run.read(sample)


def wrong_rows(run: Run, scoring: Scoring, rows: int, seed: int = 0) -> list[NormalizedTexts]:
    """A seeded random sample of at most `rows` utterances with errors, drawn as by `sampled_rows`.

    Raises:
        UsageError: a file of references does not exist or cannot be read.
    """
    stored_normalizer = run.record.normalizer
    references, scoring = text_references(run, scoring)
    columns = list(dict.fromkeys(["utt_id", *scoring.source_columns(stored_normalizer, texts=True)]))

    def only_wrong(group: pa.Table) -> pa.Table:
        table = _scored(group, scoring, stored_normalizer, references)
        table = table.filter(pc.not_equal(table["normalized_reference"], table["normalized_text"]))
        return table.select(["utt_id", "normalized_reference", "normalized_text"])

    pieces = run.read(lambda files: _draw(_open(run, "transcripts", files), columns, rows, seed, only_wrong))
    texts = (zip(*(column.to_pylist() for column in piece.columns), strict=True) for piece in pieces)
    return [NormalizedTexts(*row) for row in itertools.islice(itertools.chain.from_iterable(texts), rows)]


def _draw(
    dataset: pads.Dataset, columns: Sequence[str], rows: int, seed: int, select: Callable[[pa.Table], pa.Table]
) -> list[pa.Table]:
    """At least `rows` of the rows that `select` keeps, if there are as many.

    First a part of each row group, so that the sample does not consist of neighbours; then, if these are too few, the
    rest of each group.
    """
    share = -(-rows // _MIN_ROW_GROUPS)
    pieces: list[pa.Table] = []
    drawn = 0
    for part in (slice(None, share), slice(share, None)):
        for number, group in enumerate(_row_groups(dataset, seed)):
            if drawn >= rows:
                return pieces
            table = select(group.to_table(schema=dataset.schema, columns=list(columns)))
            indices = np.random.default_rng([seed, number]).permutation(table.num_rows)[part]
            pieces.append(table.take(np.sort(indices)))
            drawn += len(indices)
    return pieces


def _row_groups(dataset: pads.Dataset, seed: int) -> Iterator[pads.Fragment]:
    """All row groups in a seeded random order; a file is opened only when the first of its groups is needed."""
    # A dataset without files is of another class, and has no rows.
    files = list(dataset.get_fragments()) if isinstance(dataset, pads.FileSystemDataset) else []
    rng = np.random.default_rng(seed)
    for file_index in rng.permutation(len(files)):
        groups = files[file_index].split_by_row_group()
        yield from (groups[index] for index in rng.permutation(len(groups)))


def _open(run: Run, table: str, files: dict[str, list[DataFile]]) -> pads.Dataset:
    return open_files(run.uri, table, [file.path for file in files[table]])


def _scored(rows: pa.Table, scoring: Scoring, stored_normalizer: str, references: Sequence[References]) -> pa.Table:
    """The rows with normalised texts and counts under `scoring`."""
    for name, values in score(rows.combine_chunks(), scoring, stored_normalizer, references).items():
        if name in rows.column_names:
            rows = rows.drop_columns(name)
        rows = rows.append_column(name, values)
    return rows
