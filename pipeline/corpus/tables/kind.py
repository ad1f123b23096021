"""What a kind of table is, and the texts that its files hold."""

from __future__ import annotations

import gzip
import io
import posixpath
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import AudioError, UsageError
from pipeline.storage import objects, uris

Row = dict[str, Any] | AudioError
"""The values of an utterance by the keys of a manifest, or what is wrong with the row."""

CHANNEL: Final = "_channel"
"""The key of the channel that a format names: a column `channel` of a user's table is a tag like any other."""

MAX_TABLE_BYTES = 4 * 2**30  # decompressed: a table is held in memory while it is planned
_HEAD_BYTES = 2**20  # a line of lhotse's may hold the times of thousands of words
_PARENTS = 4  # directories above a table in which its relative paths may begin


@dataclass(frozen=True)
class TableKind:
    """One kind of table.

    Attributes:
        key: its name for `--input-format`.
        name: as messages call it.
        recognises: (name of the object in lower case, without `.gz`; its first bytes, decompressed) -> is it one?
        rows: the rows of the table at a URI, in order. They have paths as the table writes them.
        fallback_to_parents: relative paths may begin in a directory above the table.
    """

    key: str
    name: str
    recognises: Callable[[str, bytes], bool]
    rows: Callable[[str], Iterator[Row]]
    fallback_to_parents: bool = True


def table_name(uri: str) -> str:
    """The name of an object in lower case, without `.gz`."""
    return posixpath.basename(uri).lower().removesuffix(".gz")


def read_text(uri: str) -> str:
    """The text of an object, decompressed if its name ends with `.gz`.

    Raises:
        UsageError: it does not exist, is not UTF-8, not a gzip file, or too large.
        StorageError: it could not be reached.
    """
    try:
        data = objects.fetch(uri)
        if uri.lower().endswith(".gz"):
            data = _decompressed(data, uri)
        return data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"cannot read {uri}: {error}") from error
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"cannot read {uri}: {error}") from error


def _decompressed(data: bytes, uri: str) -> bytes:
    with gzip.open(io.BytesIO(data)) as file:
        text = file.read(MAX_TABLE_BYTES + 1)
    if len(text) > MAX_TABLE_BYTES:
        raise UsageError(f"{uri} is larger than {MAX_TABLE_BYTES >> 30} GiB when decompressed")
    return text


def head_of(uri: str, size: int) -> bytes:
    """The first bytes of an object, decompressed if its name ends with `.gz`; fewer where it is damaged."""
    data = objects.fetch(uri, 0, min(size, _HEAD_BYTES)) if size else b""
    if not uri.lower().endswith(".gz"):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, _HEAD_BYTES)
    except zlib.error:
        return b""


def audio_base(uri: str, paths: Iterator[str], kind: TableKind) -> str:
    """The directory in which the relative paths of a table begin: its own, `clips` in it, or one above it.

    The first of them in which the audio of the first row with a relative path exists; the table's own if none has it.
    """
    own = posixpath.dirname(uri)
    path = next((path for path in paths if "://" not in path and not posixpath.isabs(path)), None)
    if path is None:
        return own
    candidates = [own, uris.join(own, "clips")]
    above = own
    for _ in range(_PARENTS if kind.fallback_to_parents else 0):
        above = posixpath.dirname(above)
        if not above or above.endswith(("/", ":")):
            break
        candidates.append(above)
    return next((base for base in candidates if objects.exists(uris.join(base, path))), own)
