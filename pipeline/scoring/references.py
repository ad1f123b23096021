"""References that are not stored with a run: files that say by `utt_id` what was said, or what label is right.

Forms, by extension: `.jsonl`/`.json` manifests (the keys of `pipeline.corpus.manifest`: `utt_id` or `id`, else
`audio_filepath` as the pipeline makes an id of it; `text`, `label`), `.csv`/`.tsv` and `.parquet` with columns of
those names, and anything else as the `text` file of Kaldi and the `.trans.txt` of LibriSpeech: an id, a space or tab,
the words.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.metadata import UtteranceMeta, parse_meta, split_rows
from pipeline.corpus.naming import relative_id
from pipeline.errors import AudioError, UsageError
from pipeline.storage import objects, uris

EXAMPLES: Final = 10
_NAMES: Final = frozenset(
    ["utt_id", "id", "audio_filepath", "text", "transcription", "transcript", "sentence", "label"]
)
_TABLES: Final = {".csv": ",", ".tsv": "\t"}


class _ReferenceRow(UtteranceMeta):
    audio_filepath: str | None = None


@dataclass(frozen=True)
class References:
    """One file of references.

    Attributes:
        uri: the file.
        index: row of `texts` and `labels` by utterance.
        texts: what was said; None where the file gives none.
        labels: the right label; None where the file gives none.
        duplicates: ids that the file has more than once, always with the same text and label.
    """

    uri: str
    index: dict[str, int] = field(repr=False)
    texts: tuple[str | None, ...] = field(repr=False)
    labels: tuple[str | None, ...] = field(repr=False)
    duplicates: tuple[str, ...]

    def rows_of(self, utt_ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """The row of each utterance; -1 where the file does not name it."""
        return np.fromiter((self.index.get(utt_id, -1) for utt_id in utt_ids.to_pylist()), np.int64, len(utt_ids))

    def taken(self, values: Sequence[str | None], rows: npt.NDArray[np.int64]) -> pa.Array:
        """`values` (texts or labels) of those rows; null for -1."""
        return pa.array([values[row] if row >= 0 else None for row in rows.tolist()], pa.string())


def load_references(uri: str) -> References:
    """Read a file of references.

    Raises:
        UsageError: there is no such file, a row is not to be understood, or one utterance has two different references:
            give alternatives in files of their own.
    """
    index: dict[str, int] = {}
    texts: list[str | None] = []
    labels: list[str | None] = []
    duplicates: dict[str, None] = {}
    conflicts: dict[str, None] = {}
    try:
        for utt_id, text, label in _rows(uris.absolute(uri)):
            row = index.setdefault(utt_id, len(texts))
            if row == len(texts):
                texts.append(text)
                labels.append(label)
            else:
                same = (texts[row], labels[row]) == (text, label)
                (duplicates if same else conflicts)[utt_id] = None
    except FileNotFoundError as error:
        raise UsageError(f"there are no references at {uri}") from error
    except (AudioError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UsageError(f"cannot read the references {uri}: {error}") from error
    if conflicts:
        raise UsageError(
            f"{uri} has different references for {len(conflicts)} utterances: {_named(conflicts)}; "
            "alternatives belong in files of their own (--refs A --refs B)"
        )
    if not index:
        raise UsageError(f"{uri} holds no reference")
    return References(uri, index, tuple(texts), tuple(labels), tuple(duplicates))


def _named(utt_ids: Iterable[str]) -> str:
    names = list(utt_ids)
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def _rows(uri: str) -> Iterator[tuple[str, str | None, str | None]]:
    kind = posixpath.splitext(uri)[1].lower()
    if kind == ".parquet":
        with objects.open_read(uri) as file:
            parquet = pq.ParquetFile(file)  # of which audio may be a column: only what is asked for is read
            table = parquet.read([name for name in parquet.schema_arrow.names if name in _NAMES])
        yield from _identified(_spelt(table), uri)
    elif kind in (".jsonl", ".json"):
        data = objects.fetch(uri)
        rows = (parse_meta(line, f"byte {start}", _ReferenceRow) for start, line in split_rows(data, 0))
        yield from (_identify(row, uri) for row in rows)
    elif kind in _TABLES:
        text = objects.fetch(uri).decode("utf-8-sig")
        lines = io.StringIO(text, newline="")
        yield from _identified(csv.DictReader(lines, delimiter=_TABLES[kind], strict=True), uri)
    else:
        for line in objects.fetch(uri).decode("utf-8-sig").split("\n"):  # Unicode's other line ends are text
            name, *words = re.split(r"[ \t]", line.strip(), maxsplit=1)
            if name:
                yield name, "".join(words).strip(), None


def _spelt(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(1 << 14):
        yield from batch.to_pylist()


def _identified(rows: Iterable[dict[str, Any]], uri: str) -> Iterator[tuple[str, str | None, str | None]]:
    for number, row in enumerate(rows, 1):
        if None in row:  # where csv puts them: a text with a comma and no quotes would be cut short
            raise UsageError(f"{uri}: row {number} has more fields than the header")
        given = {key: value for key, value in row.items() if value is not None}
        yield _identify(parse_meta(given, f"row {number}", _ReferenceRow), uri)


def _identify(row: _ReferenceRow, uri: str) -> tuple[str, str | None, str | None]:
    if row.utt_id is not None:
        utt_id = row.utt_id
    elif row.audio_filepath is not None:
        utt_id = relative_id(row.audio_filepath, posixpath.dirname(uri))
    else:
        raise UsageError(f"{uri}: a row has neither utt_id nor audio_filepath")
    label = row.label or None  # an empty cell of a table is a text of no words, but no label
    if row.text is None and label is None:
        raise UsageError(f"{uri}: {utt_id} has neither text nor label")
    return utt_id, row.text, label
