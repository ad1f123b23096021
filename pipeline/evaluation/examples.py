"""Transcripts to show: rows with given ids, and random samples of a run that is too large to show completely."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.evaluation.recordings import without_recordings
from pipeline.evaluation.references import RunReferences, text_references
from pipeline.runs.commit import DataFile
from pipeline.runs.recordings import IDENTITY
from pipeline.runs.run import Run, open_files
from pipeline.scoring.references import References
from pipeline.scoring.rules import SCORE_COLUMNS, Scoring, score

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
    references = text_references(run, scoring)
    ids = pa.array(utt_ids, pa.string())  # typed, for an empty list
    is_requested = pads.field("utt_id").isin(ids)
    names = ["utt_id", "text", *columns]

    def read(files: dict[str, list[DataFile]]) -> list[pa.Table]:
        sources = _scored_sources(run, files, references)
        tables = ((each.dataset.to_table(each.columns(names), filter=is_requested), each) for each in sources)
        return [each.score(rows) for rows, each in tables]

    tables = [table.select([*dict.fromkeys(names), *SCORE_COLUMNS]) for table in run.read(read)]
    table = pa.concat_tables(tables)
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
        pieces = _draw([_Source(dataset, columns, lambda group: group)], rows, seed)
        return Sample(pa.concat_tables([empty, *pieces]).slice(0, rows), sum(file.rows for file in files[table]))

    return run.read(sample)


def wrong_rows(run: Run, scoring: Scoring, rows: int, seed: int = 0) -> list[NormalizedTexts]:
    """A seeded random sample of at most `rows` utterances with errors, drawn as by `sampled_rows`.

    Raises:
        UsageError: a file of references does not exist or cannot be read.
    """
    references = text_references(run, scoring)

    def draw(files: dict[str, list[DataFile]]) -> list[pa.Table]:
        sources = _scored_sources(run, files, references)
        return _draw([_Source(each.dataset, each.columns(["utt_id"]), each.wrong) for each in sources], rows, seed)

    pieces = run.read(draw)
    texts = (zip(*(column.to_pylist() for column in piece.columns), strict=True) for piece in pieces)
    return [NormalizedTexts(*row) for row in itertools.islice(itertools.chain.from_iterable(texts), rows)]


class _Source(NamedTuple):
    """Rows to draw from: a dataset, what to read of it, and what to make of the rows that are read."""

    dataset: pads.Dataset
    columns: Sequence[str]
    select: Callable[[pa.Table], pa.Table]


class _ScoredSource(NamedTuple):
    """Transcripts and how they are scored."""

    dataset: pads.Dataset
    scoring: Scoring
    stored_normalizer: str
    references: Sequence[References]
    without: pa.Array | None

    def columns(self, names: Sequence[str]) -> list[str]:
        """What to read for `names` and the scores."""
        identity = () if self.without is None else IDENTITY
        source = self.scoring.source_columns(self.stored_normalizer, texts=True)
        return list(dict.fromkeys([*names, *identity, *source]))

    def score(self, rows: pa.Table) -> pa.Table:
        """The rows with normalised texts and counts."""
        if self.without is not None:
            rows = pa.Table.from_batches(without_recordings(rows.to_batches(), self.without), rows.schema)
        for name, values in score(rows.combine_chunks(), self.scoring, self.stored_normalizer, self.references).items():
            if name in rows.column_names:
                rows = rows.drop_columns(name)
            rows = rows.append_column(name, values)
        return rows

    def wrong(self, rows: pa.Table) -> pa.Table:
        """The ids and texts of the rows with errors."""
        table = self.score(rows)
        table = table.filter(pc.not_equal(table["normalized_reference"], table["normalized_text"]))
        return table.select(["utt_id", "normalized_reference", "normalized_text"])


def _scored_sources(run: Run, files: dict[str, list[DataFile]], references: RunReferences) -> list[_ScoredSource]:
    """The transcripts of a run: those scored by utterance, and those of recordings that are scored as wholes."""
    normalizer, recordings = run.record.normalizer, references.recordings
    transcripts = _open(run, "transcripts", files)
    keys = recordings.keys if recordings else None
    by_utterance = _ScoredSource(transcripts, references.scoring, normalizer, references.files, keys)
    if recordings is None:
        return [by_utterance]
    counted = Scoring(references.scoring.normalizer)  # the rows have their counts
    return [by_utterance, _ScoredSource(recordings.dataset(), counted, counted.normalizer, (), None)]


def _draw(sources: Sequence[_Source], rows: int, seed: int) -> list[pa.Table]:
    """At least `rows` of the rows that the sources select, if there are as many.

    First a part of each row group, so that the sample does not consist of neighbours; then, if these are too few, the
    rest of each group.
    """
    share = -(-rows // _MIN_ROW_GROUPS)
    pieces: list[pa.Table] = []
    drawn = 0
    for part in (slice(None, share), slice(share, None)):
        for number, (group, source) in enumerate(_row_groups(sources, seed)):
            if drawn >= rows:
                return pieces
            read = group.to_table(schema=source.dataset.schema, columns=list(source.columns))
            table = source.select(read)
            indices = np.random.default_rng([seed, number]).permutation(table.num_rows)[part]
            pieces.append(table.take(np.sort(indices)))
            drawn += len(indices)
    return pieces


def _row_groups(sources: Sequence[_Source], seed: int) -> Iterator[tuple[pads.Fragment, _Source]]:
    """All row groups in a seeded random order; a file is opened only when the first of its groups is needed."""
    # A dataset without files is of another class, and has no rows.
    datasets = [source for source in sources if isinstance(source.dataset, pads.FileSystemDataset)]
    files = [(file, source) for source in datasets for file in source.dataset.get_fragments()]
    rng = np.random.default_rng(seed)
    for file_index in rng.permutation(len(files)):
        file, source = files[file_index]
        groups = file.split_by_row_group()
        yield from ((groups[index], source) for index in rng.permutation(len(groups)))


def _open(run: Run, table: str, files: dict[str, list[DataFile]]) -> pads.Dataset:
    return open_files(run.uri, table, [file.path for file in files[table]])
