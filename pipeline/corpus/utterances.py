"""An utterance as its source describes it, and how its audio is opened."""

from __future__ import annotations

import contextlib
import functools
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from pipeline.corpus.metadata import ManifestRow, UtteranceMeta, manifest_utt_id
from pipeline.corpus.naming import resolve, spellings
from pipeline.corpus.parts import Part, byte_range_location
from pipeline.errors import AudioError, ErrorCode, InputChangedError
from pipeline.storage import objects, uris
from pipeline.storage.objects import Object

# Up to this size an object is fetched whole, in one request; a larger one is opened and read by ranges.
WHOLE_OBJECT_BYTES = 256 * 2**20
# A text beside audio that is larger is none: it would be held in memory, scored and stored as one row.
MAX_TEXT_BYTES = 16 * 2**20

AudioOpener = Callable[[], bytes | BinaryIO]
"""Returns the encoded audio, or a seekable file over it; raises AudioError where there is no audio."""


@dataclass(frozen=True)
class Utterance:
    """One utterance as its source describes it, before its audio is opened.

    Attributes:
        utt_id: its id, to which a segment or channel adds `#...`.
        uri: the object that holds the audio.
        open: returns the audio.
        size: planned bytes, for progress.
        byte_start: first byte of the audio in the object, if it is a range of one; or of a row without audio.
        byte_end: one past the last byte.
        meta: what the source states about it.
        fixed_id: the source gives the id, so that no #start-end is added to it.
        problem: what is wrong with it, if the source already shows it; then `open` is not called.
        channel: the channel that the source names, from 0; None: those that the run reads.
        source_location: where the source describes it, if that is not the audio itself: "m.jsonl, row at byte 0".
        row: its number in the part as planned; None: the utterances of the part are read in the order of the plan.
    """

    utt_id: str
    uri: str
    open: AudioOpener
    size: int = 0
    byte_start: int | None = None
    byte_end: int | None = None
    meta: UtteranceMeta = field(default_factory=UtteranceMeta)
    fixed_id: bool = False
    problem: AudioError | None = None
    channel: int | None = None
    source_location: str = ""
    row: int | None = None

    @property
    def where(self) -> str:
        """Where it is found, for messages."""
        if self.source_location or self.byte_start is None or self.byte_end is None:
            return self.source_location or self.uri
        return byte_range_location(self.uri, self.byte_start, self.byte_end)


def broken_utterance(utt_id: str, uri: str, problem: AudioError, size: int = 0) -> Utterance:
    """An utterance that cannot be opened: it becomes one error row."""
    return Utterance(utt_id, uri, failing_opener(problem), size, problem=problem)


def failing_opener(problem: AudioError) -> AudioOpener:
    """An opener that raises `problem`."""

    def fail() -> NoReturn:
        raise problem

    return fail


def open_object(uri: str, version: str | None = None) -> bytes | BinaryIO:
    """Fetch the object, or open it if it is larger than `WHOLE_OBJECT_BYTES`.

    Args:
        uri: the object.
        version: the version that was planned; None accepts any.

    Raises:
        AudioError: MISSING, or BAD_ROW if no file system serves the URI's scheme.
        InputChangedError: the object is not the planned version, or its local directory is missing.
        StorageError: the object could not be reached.
    """
    try:
        uri, found = _stat_in_any_spelling(uri)
        if found is None:
            raise AudioError(ErrorCode.MISSING, f"{uri} is a directory")
        if version is not None and found.version != version:
            raise InputChangedError(f"{uri} has changed since it was planned: {version} then, {found.version} now")
        return objects.fetch(uri) if found.size <= WHOLE_OBJECT_BYTES else objects.open_read(uri)
    except FileNotFoundError as error:
        if version not in (None, objects.ABSENT) and not uris.parent_exists(uri):
            # A single missing file is bad data. A whole directory that was listed and is missing is a lost mount.
            raise InputChangedError(
                f"{posixpath.dirname(uri)} existed when it was listed, and is missing now: is it mounted?"
            ) from error
        why = f"{uri} is a dangling link or not a regular file" if uris.is_irregular(uri) else f"no such object: {uri}"
        raise AudioError(ErrorCode.MISSING, why) from error
    except uris.UnknownSchemeError as error:
        raise AudioError(ErrorCode.BAD_ROW, str(error)) from error


def _stat_in_any_spelling(uri: str) -> tuple[str, Object | None]:
    """The object, under the Unicode form of its name in which it is stored, as `objects.stat` returns it."""
    try:
        return uri, objects.stat(uri)
    except FileNotFoundError:
        for other in spellings(uri):
            with contextlib.suppress(FileNotFoundError):
                return other, objects.stat(other)
        raise


class ObjectCache:
    """`open_object` that keeps the bytes of the last object: neighbouring rows are often segments of one recording."""

    def __init__(self) -> None:
        self._uri = ""
        self._data: bytes | None = None

    def open(self, uri: str) -> bytes | BinaryIO:
        """Fetch or open the object, unless it is the one opened before; raises as `open_object`."""
        if uri == self._uri and self._data is not None:
            return self._data
        self._data = None  # free it first: two large recordings need not fit into memory
        opened = open_object(uri)
        if isinstance(opened, bytes):
            self._uri, self._data = uri, opened
        return opened


def row_utterance(row: ManifestRow, base: str, cache: ObjectCache, size: int, location: str) -> Utterance:
    """The utterance of a row of a manifest or table.

    Args:
        row: the row.
        base: the directory that relative paths and ids begin in.
        cache: opens the audio.
        size: planned bytes.
        location: where the row is, in words.
    """
    uri = resolve(row.audio_filepath, base)
    return Utterance(
        utt_id=manifest_utt_id(row, base),
        uri=uri,
        open=functools.partial(cache.open, uri),
        size=size,
        meta=row,
        fixed_id=row.utt_id is not None,
        source_location=location,
    )


def fetch_planned(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """Fetch bytes `start` to `end` of an object that existed when the run was planned.

    Raises:
        InputChangedError: the object is missing now.
        StorageError: it could not be reached.
    """
    try:
        return objects.fetch(uri, start, end)
    except FileNotFoundError as error:
        raise InputChangedError(f"{uri} existed when the run was planned, and is missing now") from error


def check_version(part: Part) -> None:
    """Check that the container of `part` is the version that was planned.

    Raises:
        AudioError: MISSING: it could not be read when it was planned either: a dangling link, a pipe, a device.
        InputChangedError: it has changed, or is missing.
        StorageError: it could not be reached.
    """
    if part.version == objects.ABSENT:
        raise AudioError(ErrorCode.MISSING, f"{part.uri} is a dangling link or not a regular file")
    try:
        found = objects.stat(part.uri)
    except FileNotFoundError:
        found = None
    now = found.version if found else "missing"
    if part.version is not None and now != part.version:
        raise InputChangedError(f"{part.uri} has changed since it was planned: {part.version} then, {now} now")


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 text without a byte-order mark and outer white space.

    Raises:
        AudioError: BAD_ROW: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise AudioError(ErrorCode.BAD_ROW, f"{where}: {error}") from error


def share(total: int, index: int, count: int) -> int:
    """The `index`-th of `count` nearly equal integer shares of `total`; together they are `total`."""
    return total * (index + 1) // count - total * index // count
