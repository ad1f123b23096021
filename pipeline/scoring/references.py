"""Files of references, which are not stored with a run: the text or label of each utterance, by utt_id.

Formats, by extension: `.jsonl`/`.json` manifests, also as one JSON array, with the keys of `pipeline.corpus.metadata`
(`utt_id` or `id`; `text`, `label`); `.csv`/`.tsv` and `.parquet` with columns of those names; everything else like the
`text` file of Kaldi and the `.trans.txt` of LibriSpeech, each line an id, a space or tab, and the words. A `.stm` file
has the references of whole recordings (`pipeline.scoring.stm`).

A row without an id is that of the audio at its `audio_filepath`, `path`, `file_name` or another of `_PATH_KEYS`: its
utt_id is made from it as for the corpus, and an utterance of the run that has not exactly this id is found by the name
of its audio if there is only one (`References.with_names`). Names are compared in Unicode's composed form. A row
without text and label is no reference.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasChoices, Field

from pipeline.corpus.class_labels import ClassNames, class_names, with_class_names
from pipeline.corpus.metadata import UtteranceMeta, parse_meta, split_rows
from pipeline.corpus.naming import composed, relative_id, stem, suffix
from pipeline.corpus.tables.fields import SURPLUS, csv_rows, tsv_rows
from pipeline.errors import AudioError, UsageError
from pipeline.scoring.stm import ReferenceSegment, parse_stm
from pipeline.storage import objects, uris

MAX_EXAMPLES: Final = 10
"""Ids that a message names."""

_PATH_KEYS: Final = (
    *("audio_filepath", "path", "file_name", "filename", "file", "audio_path", "audio_file", "wav_filename"),
    *("wav", "audio", "name"),
)
_READ_COLUMNS: Final = frozenset(
    ["utt_id", "id", "text", "transcription", "transcript", "sentence", "label", *_PATH_KEYS]
)
_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
_BATCH_ROWS: Final = 1 << 14


class _ReferenceRow(UtteranceMeta):
    audio_filepath: str | None = Field(None, validation_alias=AliasChoices(*_PATH_KEYS))


class _Reference(NamedTuple):
    """A row; `path` is None where it has an id of its own."""

    utt_id: str
    path: str | None
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
        paths: paths of audio without extension, of the rows without an id of their own, by position.
        recordings: the segments of each recording of an STM file, by name; the other fields are then empty.
    """

    uri: str
    index: dict[str, int] = field(repr=False)
    texts: tuple[str | None, ...] = field(repr=False)
    labels: tuple[str | None, ...] = field(repr=False)
    duplicates: tuple[str, ...]
    paths: dict[int, str] = field(default_factory=dict, repr=False)
    recordings: Mapping[str, tuple[ReferenceSegment, ...]] = field(default_factory=dict, repr=False)

    @property
    def has_texts(self) -> bool:
        """Whether it has any reference transcript."""
        return bool(self.recordings) or any(text is not None for text in self.texts)

    def with_names(self, utterances: Iterable[tuple[str, str | None]]) -> References:
        """These references, in which utterances are found by the name of their audio too.

        An utterance and a row without an id of its own belong together if their paths end in the same names, as far as
        both go, and neither ends as another's does. Utterances that are found by their ids, and rows that they are
        found by, take no part.

        Args:
            utterances: utt_id, and the path of its audio where the id does not end in it, of all utterances of a run.
        """
        if not self.paths:
            return self
        taken: set[int] = set()
        others: dict[str, list[str]] = {}
        for utt_id, path in utterances:
            position = self.index.get(composed(utt_id))
            if position is None:
                others[composed(utt_id)] = names_of(stem(path) if path else utt_id)
            else:
                taken.add(position)
        rows: dict[str, list[int]] = {}
        for position, path in self.paths.items():
            if position not in taken:
                rows.setdefault(names_of(path)[-1], []).append(position)
        found: dict[int, list[str]] = {}
        for utt_id, names in others.items():
            matches = [row for row in rows.get(names[-1], ()) if agree(names_of(self.paths[row]), names)]
            if len(matches) == 1:
                found.setdefault(matches[0], []).append(utt_id)
        named = {utt_ids[0]: position for position, utt_ids in found.items() if len(utt_ids) == 1}
        return replace(self, index={**self.index, **named})

    def positions(self, utt_ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """The position of each utterance in `texts` and `labels`; -1 for one that the file does not name."""
        positions = (self.index.get(composed(utt_id), -1) for utt_id in utt_ids.to_pylist())
        return np.fromiter(positions, np.int64, len(utt_ids))

    def texts_of(self, utt_ids: pa.Array | pa.ChunkedArray) -> pa.Array:
        """The text of each utterance; null for one that the file does not name."""
        return _take(self.texts, self.positions(utt_ids))

    def labels_of(self, utt_ids: pa.Array | pa.ChunkedArray) -> pa.Array:
        """The label of each utterance; null for one that the file does not name."""
        return _take(self.labels, self.positions(utt_ids))


def names_of(path: str) -> list[str]:
    """The names of a path, without `.` and `..`; at least one."""
    return [name for name in path.split("/") if name not in ("", ".", "..")] or [path]


def agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two paths are equal from their ends on, as far as the shorter goes."""
    shorter = min(len(one), len(other))
    return list(one[-shorter:]) == list(other[-shorter:])


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
    paths: dict[int, str] = {}
    without = ""  # the first id of a row that is no reference
    try:
        if suffix(uri) == "stm":
            return _stm_references(uri)
        for utt_id, path, text, label in _read_references(uris.absolute(uri)):
            if text is None and label is None:
                without = without or utt_id
                continue
            position = index.setdefault(utt_id, len(texts))
            if position == len(texts):
                if path is not None:
                    paths[position] = path
                texts.append(text)
                labels.append(label)
            else:
                is_equal = (texts[position], labels[position]) == (text, label)
                (duplicates if is_equal else conflicts)[utt_id] = None
    except FileNotFoundError as error:
        raise UsageError(f"there are no references at {uri}") from error
    except (AudioError, ValueError, ArithmeticError, pa.ArrowException) as error:
        raise UsageError(f"cannot read the references {uri}: {error}") from error
    if conflicts:
        raise UsageError(
            f"{uri} has different references for {len(conflicts)} utterances: {_first_ids(conflicts)}; "
            "put alternatives into separate files (--refs A --refs B)"
        )
    if not index:
        raise UsageError(f"{uri} holds no references" + (f": {without} has neither text nor label" if without else ""))
    return References(uri, index, tuple(texts), tuple(labels), tuple(duplicates), paths)


def _stm_references(uri: str) -> References:
    recordings = parse_stm(objects.fetch(uris.absolute(uri)).decode("utf-8-sig"))
    if not recordings:
        raise UsageError(f"{uri} holds no references")
    named = {composed(name): segments for name, segments in recordings.items()}
    return References(uri, {}, (), (), (), recordings=named)


def _first_ids(utt_ids: Iterable[str]) -> str:
    ids = list(utt_ids)
    return ", ".join(ids[:MAX_EXAMPLES]) + (", ..." if len(ids) > MAX_EXAMPLES else "")


def _read_references(uri: str) -> Iterator[_Reference]:
    extension = posixpath.splitext(uri)[1].lower()
    if extension == ".parquet":
        with objects.open_read(uri) as file:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            # Other columns are not read: they may hold audio, as the other members of a struct `audio` do.
            names = [name for name in schema.names if name in _READ_COLUMNS and not _is_struct(schema, name)]
            inner = [f"{name}.path" for name in schema.names if name in _PATH_KEYS and _has_path(schema, name)]
            table = parquet.read(names + inner)
        yield from _from_table(_row_dicts(table, class_names(schema)), uri)
    elif extension in (".jsonl", ".json", ".ndjson"):
        data = objects.fetch(uri)
        yield from (_reference(row, uri) for row in _json_rows(data))
    elif extension in _DELIMITERS:
        text = objects.fetch(uri).decode("utf-8-sig")
        yield from _from_table(tsv_rows(text) if extension == ".tsv" else csv_rows(text), uri)
    else:
        # Split at line feeds only: the other line separators of Unicode are part of a text.
        for line in objects.fetch(uri).decode("utf-8-sig").split("\n"):
            utt_id, *words = re.split(r"[ \t]", line.strip(), maxsplit=1)
            if utt_id:
                yield _Reference(composed(utt_id), None, "".join(words).strip(), None)


def _is_struct(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind))


def _has_path(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _json_rows(data: bytes) -> Iterator[_ReferenceRow]:
    """Rows of JSON lines, or of one array of objects."""
    text = data.removeprefix(b"\xef\xbb\xbf").strip()
    if not text.startswith(b"["):
        yield from (parse_meta(line, f"byte {start}", _ReferenceRow) for start, line in split_rows(data, 0))
        return
    for number, row in enumerate(json.loads(text), 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of the JSON array is not an object")
        yield parse_meta(row, f"row {number}", _ReferenceRow)


def _row_dicts(table: pa.Table, classes: ClassNames) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(_BATCH_ROWS):
        for row in batch.to_pylist():
            for name, value in row.items():
                if name in _PATH_KEYS and isinstance(value, dict):
                    row[name] = value.get("path")
            yield with_class_names(row, classes)


def _from_table(rows: Iterable[dict[Any, Any]], uri: str) -> Iterator[_Reference]:
    for number, row in enumerate(rows, 1):
        if SURPLUS in row:  # an unquoted text with a comma would be cut
            raise UsageError(f"{uri}: row {number} has more fields than the header")
        values = {key: value for key, value in row.items() if value is not None}
        yield _reference(parse_meta(values, f"row {number}", _ReferenceRow), uri)


def _reference(row: _ReferenceRow, uri: str) -> _Reference:
    label = row.label or None  # an empty cell is a text of no words, but not a label
    if row.utt_id is not None:
        return _Reference(composed(row.utt_id), None, row.text, label)
    if row.audio_filepath:
        path = composed(row.audio_filepath)
        return _Reference(composed(relative_id(path, posixpath.dirname(uri))), stem(path), row.text, label)
    raise UsageError(f"{uri}: a row has neither utt_id nor audio_filepath, path or file_name")
