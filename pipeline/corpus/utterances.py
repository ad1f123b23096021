"""An utterance as its source describes it, and how its audio is opened."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from pipeline.corpus.metadata import ManifestRow, UtteranceMeta, manifest_utt_id
from pipeline.corpus.naming import resolve, spellings
from pipeline.corpus.parts import Part, byte_range_location
from pipeline.errors import AudioError, ErrorCode, InputChangedError, StorageError
from pipeline.storage import objects, uris
from pipeline.storage.reads import Object, size_of

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
    """Fetch the object, or open it if it is larger than `WHOLE_OBJECT_BYTES`; never a mixture of two versions.

    Args:
        uri: the object.
        version: the version that was planned; None accepts the one that is there.

    Raises:
        AudioError: MISSING, or BAD_ROW if no file system serves the URI's scheme.
        InputChangedError: the object is not the planned version; from a file's `read`, that it is no longer.
        StorageError: the object could not be reached, or its local directory is missing.
    """
    return ObjectOpener(uri, version)()


def find_object(uri: str) -> Object:
    """The object, under the Unicode form of its name in which it is stored; raises AudioError as `open_object`."""
    with _bad_uris(uri):
        found = _stat_in_any_spelling(uri)
    if found is None:
        raise AudioError(ErrorCode.MISSING, f"{uri} is a directory")
    return found


def _stat_in_any_spelling(uri: str) -> Object | None:
    try:
        return objects.stat(uri)
    except FileNotFoundError:
        for other in spellings(uri):
            with contextlib.suppress(FileNotFoundError):
                return objects.stat(other)
        raise


def _open_found(found: Object, whole_bytes: int) -> bytes | BinaryIO:
    with _bad_uris(found.uri):
        try:
            if found.size <= whole_bytes:
                return objects.fetch(found.uri, version=found.version)
            return objects.open_read(found.uri, found.version)
        except FileNotFoundError as error:
            if found.version != objects.ABSENT and not uris.parent_exists(found.uri):
                # A single missing file is bad data. A whole directory that was listed and is missing is a lost mount.
                directory = posixpath.dirname(found.uri)
                raise StorageError(
                    f"{directory} existed when it was listed, and is missing now: is it mounted?"
                ) from error
            raise


@contextlib.contextmanager
def _bad_uris(uri: str) -> Iterator[None]:
    """Raise AudioError for what is no object, or is at no URI."""
    try:
        yield
    except FileNotFoundError as error:
        why = f"{uri} is a dangling link or not a regular file" if uris.is_irregular(uri) else f"no such object: {uri}"
        raise AudioError(ErrorCode.MISSING, why) from error
    except uris.UnknownSchemeError as error:
        raise AudioError(ErrorCode.BAD_ROW, str(error)) from error


@dataclass(frozen=True)
class ObjectOpener:
    """Opens the audio of one object, in two steps, so that its size is known between them.

    Openers that are equal open the same recording.

    Attributes:
        uri: the object.
        version: the version that was planned; None accepts any.
    """

    uri: str
    version: str | None = None

    def find(self) -> Object:
        """The object; raises as `open_object`. One that was planned is not looked up.

        Its size is in its version, and the read compares the rest.
        """
        if self.version is None:
            return find_object(self.uri)
        return Object(self.uri, size_of(self.version), self.version)

    def read(self, found: Object, whole_bytes: int | None = None) -> bytes | BinaryIO:
        """What `open_object` returns of the object that was found; raises as it.

        Args:
            found: the object.
            whole_bytes: up to this size it is fetched whole; None: `WHOLE_OBJECT_BYTES`.
        """
        return _open_found(found, WHOLE_OBJECT_BYTES if whole_bytes is None else whole_bytes)

    def __call__(self) -> bytes | BinaryIO:
        """Both steps."""
        return self.read(self.find())


def row_utterance(row: ManifestRow, base: str, size: int, location: str) -> Utterance:
    """The utterance of a row of a manifest or table.

    Args:
        row: the row.
        base: the directory that relative paths and ids begin in.
        size: planned bytes.
        location: where the row is, in words.
    """
    uri = resolve(row.audio_filepath, base)
    return Utterance(
        utt_id=manifest_utt_id(row, base),
        uri=uri,
        open=ObjectOpener(uri),
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


def open_planned(part: Part) -> BinaryIO:
    """Open the container of `part`, as it was planned; a `read` raises InputChangedError too.

    Raises:
        AudioError: MISSING: it could not be read when it was planned either: a dangling link, a pipe, a device.
        InputChangedError: it has changed, or is missing.
        StorageError: it could not be reached.
    """
    if part.version == objects.ABSENT:
        raise AudioError(ErrorCode.MISSING, f"{part.uri} is a dangling link or not a regular file")
    try:
        return objects.open_read(part.uri, part.version)
    except FileNotFoundError as error:
        raise InputChangedError(f"{part.uri} existed when the run was planned, and is missing now") from error


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
