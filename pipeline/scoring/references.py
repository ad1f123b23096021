"""Files of references, which are not stored with a run: the text or label of each utterance, by utt_id.

Formats, by extension: `.jsonl`/`.json` manifests, with the keys of `pipeline.corpus.metadata` (`utt_id` or `id`, else
`audio_filepath`, from which the utt_id is made as for the corpus; `text`, `label`); `.csv`/`.tsv` and `.parquet` with
columns of those names; everything else like the `text` file of Kaldi and the `.trans.txt` of LibriSpeech, each line an
id, a space or tab, and the words.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.metadata import UtteranceMeta, parse_meta, split_rows
from pipeline.corpus.naming import relative_id
from pipeline.errors import AudioError, UsageError
from pipeline.storage import objects, uris

MAX_EXAMPLES: Final = 10
"""Ids that a message names."""

_READ_COLUMNS: Final = frozenset(
    ["utt_id", "id", "audio_filepath", "text", "transcription", "transcript", "sentence", "label"]
)
_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
_BATCH_ROWS: Final = 1 << 14


class _ReferenceRow(UtteranceMeta):
    audio_filepath: str | None = None


class _Reference(NamedTuple):
    utt_id: str
    text: str | None
    label: str | None


@dataclass(frozen=True)
class References:
    """One file of references.

    Attributes:
        uri: the file.
        index: position in `texts` and `labels`, by utt_id.
        texts: reference transcripts; None for an utterance that has a label only.
        labels: reference labels; None for an utterance that has a text only.
        duplicates: ids that the file has more than once, always with the same text and label.
    """

    uri: str
    index: dict[str, int] = field(repr=False)
    texts: tuple[str | None, ...] = field(repr=False)
    labels: tuple[str | None, ...] = field(repr=False)
    duplicates: tuple[str, ...]

    def positions(self, utt_ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """The position of each utterance in `texts` and `labels`; -1 for one that the file does not name."""
        return np.fromiter((self.index.get(utt_id, -1) for utt_id in utt_ids.to_pylist()), np.int64, len(utt_ids))

    def texts_of(self, utt_ids: pa.Array | pa.ChunkedArray) -> pa.Array:
        """The text of each utterance; null for one that the file does not name."""
        return _take(self.texts, self.positions(utt_ids))

    def labels_of(self, utt_ids: pa.Array | pa.ChunkedArray) -> pa.Array:
        """The label of each utterance; null for one that the file does not name."""
        return _take(self.labels, self.positions(utt_ids))


def _take(values: Sequence[str | None], positions: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array([values[position] if position >= 0 else None for position in positions.tolist()], pa.string())


def load_references(uri: str) -> References:
    """Read a file of references.

    Raises:
        UsageError: there is no such file, a row cannot be read, or an utterance has two different references:
            alternatives belong in separate files.
        StorageError: the file could not be reached.
    """
    index: dict[str, int] = {}
    texts: list[str | None] = []
    labels: list[str | None] = []
    duplicates: dict[str, None] = {}
    conflicts: dict[str, None] = {}
    try:
        for utt_id, text, label in _read_references(uris.absolute(uri)):
            position = index.setdefault(utt_id, len(texts))
            if position == len(texts):
                texts.append(text)
                labels.append(label)
            else:
                is_equal = (texts[position], labels[position]) == (text, label)
                (duplicates if is_equal else conflicts)[utt_id] = None
    except FileNotFoundError as error:
        raise UsageError(f"there are no references at {uri}") from error
    except (AudioError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UsageError(f"cannot read the references {uri}: {error}") from error
    if conflicts:
        raise UsageError(
            f"{uri} has different references for {len(conflicts)} utterances: {_first_ids(conflicts)}; "
            "put alternatives into separate files (--refs A --refs B)"
        )
    if not index:
        raise UsageError(f"{uri} holds no references")
    return References(uri, index, tuple(texts), tuple(labels), tuple(duplicates))


def _first_ids(utt_ids: Iterable[str]) -> str:
    ids = list(utt_ids)
    return ", ".join(ids[:MAX_EXAMPLES]) + (", ..." if len(ids) > MAX_EXAMPLES else "")


def _read_references(uri: str) -> Iterator[_Reference]:
    extension = posixpath.splitext(uri)[1].lower()
    if extension == ".parquet":
        with objects.open_read(uri) as file:
            parquet = pq.ParquetFile(file)
            # Other columns are not read: they may hold audio.
            table = parquet.read([name for name in parquet.schema_arrow.names if name in _READ_COLUMNS])
        yield from _from_table(_row_dicts(table), uri)
    elif extension in (".jsonl", ".json"):
        data = objects.fetch(uri)
        rows = (parse_meta(line, f"byte {start}", _ReferenceRow) for start, line in split_rows(data, 0))
        yield from (_reference(row, uri) for row in rows)
    elif extension in _DELIMITERS:
        text = objects.fetch(uri).decode("utf-8-sig")
        lines = io.StringIO(text, newline="")
        yield from _from_table(csv.DictReader(lines, delimiter=_DELIMITERS[extension], strict=True), uri)
    else:
        # Split at line feeds only: the other line separators of Unicode are part of a text.
        for line in objects.fetch(uri).decode("utf-8-sig").split("\n"):
            utt_id, *words = re.split(r"[ \t]", line.strip(), maxsplit=1)
            if utt_id:
                yield _Reference(utt_id, "".join(words).strip(), None)


def _row_dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(_BATCH_ROWS):
        yield from batch.to_pylist()


def _from_table(rows: Iterable[dict[str, Any]], uri: str) -> Iterator[_Reference]:
    for number, row in enumerate(rows, 1):
        if None in row:  # the key of surplus fields in `csv`: an unquoted text with a comma would be cut
            raise UsageError(f"{uri}: row {number} has more fields than the header")
        values = {key: value for key, value in row.items() if value is not None}
        yield _reference(parse_meta(values, f"row {number}", _ReferenceRow), uri)


def _reference(row: _ReferenceRow, uri: str) -> _Reference:
    if row.utt_id is not None:
        utt_id = row.utt_id
    elif row.audio_filepath is not None:
        utt_id = relative_id(row.audio_filepath, posixpath.dirname(uri))
    else:
        raise UsageError(f"{uri}: a row has neither utt_id nor audio_filepath")
    label = row.label or None  # an empty cell is a text of no words, but not a label
    if row.text is None and label is None:
        raise UsageError(f"{uri}: {utt_id} has neither text nor label")
    return _Reference(utt_id, row.text, label)
