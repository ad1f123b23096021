"""WebDataset tar shards, compressed or not: neighbouring members with one name but for the extension are one sample.

`KEY.wav` (or any audio extension) with `KEY.txt`, its reference, and `KEY.json`, its metadata. Where only one of the
neighbours that are equal up to the first dot of their names is audio, they are one sample too, as WebDataset has it,
if what stands between the dots is a role: `KEY.audio.wav` with `KEY.meta.json`. A shard is read as a stream, from its
start, and never divided: its headers are spread over the whole object.
"""

from __future__ import annotations

import functools
import gzip
import io
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from tarfile import HeaderError, ReadError
from typing import Any, BinaryIO, NamedTuple, Self, cast

import pyarrow as pa

from pipeline.corpus.layout import Layout, Listing, chain_parts
from pipeline.corpus.metadata import UtteranceMeta, parse_meta
from pipeline.corpus.naming import AUDIO_SUFFIXES, composed, is_hidden, relative_path, stem, suffix
from pipeline.corpus.parts import Part
from pipeline.corpus.utterances import (
    MAX_TEXT_BYTES,
    AudioOpener,
    Utterance,
    broken_utterance,
    check_version,
    decode_text,
    failing_opener,
)
from pipeline.errors import AudioError, ErrorCode
from pipeline.storage import objects
from pipeline.storage.objects import Object

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
TAR_BUFFER_BYTES = 2**20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# Members are held in memory, since shards are read as streams.
MAX_MEMBER_BYTES = 2 * 2**30

# Names of files and sparse maps take kilobytes. `tarfile` reads a whole extended header, of any size, into memory.
MAX_HEADER_BYTES = 2**20
MAX_DIGITS = 1000  # in a row: `tarfile` searches PAX headers in time that grows with their square
MAX_GROUP = 100  # samples that may become one
NAMED = 10  # members that a message names
# What may stand between the first and the last dot. Any other word or number may be a part of the recording's name:
# `v1.0001.wav` and `v1.0002.txt`.
_ROLES_OF_AUDIO = ("", "audio", "speech", "sound", "recording", "wav", "flac", "mp3")
_ROLES_OF_TEXTS = (
    *("", "text", "txt", "words", "transcript", "transcription", "trans", "sentence", "caption", "label"),
    *("norm", "normalized", "raw", "orig", "ref", "reference", "meta", "metadata", "info", "json"),
)

# Raised while reading a shard that is damaged or not a tar archive.
TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
# Raised by `tarfile` for headers that hold numbers, texts or nesting that it does not expect.
_HEADER_ERRORS = (ValueError, ArithmeticError, LookupError, MemoryError, RecursionError, TypeError)
_EXTENDED_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_PAX_HEADERS = _EXTENDED_HEADERS[:3]


def plan_shards(listing: Listing, part_bytes: int, limit: int | None) -> Iterator[Part]:
    """A part for each shard; see `Layout.plan`."""
    planners = (functools.partial(_plan_shard, shard, listing.root) for shard in listing.objects)
    return chain_parts(planners, limit)


def _plan_shard(shard: Object, root: str, limit: int | None) -> Iterator[Part]:
    # The number of utterances is needed under a limit only: to count them, the whole object has to be read.
    rows = None if limit is None else _count_audio(shard.uri, limit)
    name = stem(relative_path(shard.uri, root))
    yield Part(TAR.kind, shard.size, shard.uri, name, shard.version, rows=rows, limit=limit)


def _count_audio(uri: str, enough: int) -> int:
    """Number of rows that a shard makes, error rows included, counted up to `enough`."""
    count = 0
    unused = _Unused()
    try:
        with objects.open_read(uri) as file, open_tar(file).archive as archive:
            for sample in _samples(archive, load=False):
                count += len(sample.audio)
                unused.add(sample)
                if count >= enough:
                    return enough
    except (*TAR_ERRORS, FileNotFoundError):
        return min(count + 1, enough)
    return min(count + (unused.problem is not None), enough)


class _ForwardFile:
    """A file that `tarfile` reads from its start to its end; it may look ahead, but never goes back."""

    def __init__(self, file: BinaryIO, size: int | None) -> None:
        """`size` is that of the file; None for a compressed one, in which skipping is reading."""
        self._file, self._size = file, size
        self._ahead = b""
        self._position = 0

    def tell(self) -> int:
        return self._position

    def peek(self, size: int) -> bytes:
        """The next bytes, without moving."""
        if len(self._ahead) < size:
            self._ahead += self._file.read(size - len(self._ahead))
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(data) < size:
            data += self._file.read(size - len(data))
        self._position += len(data)
        return data

    def seek(self, position: int) -> None:
        if position < self._position:
            raise ReadError(f"a header at byte {self._position} leads back to byte {position}")
        if self._size is not None and position > self._position + len(self._ahead):
            self._ahead = b""
            self._position = min(position, self._size)
            self._file.seek(self._position)
        while self._position < position and self.read(min(position - self._position, TAR_BUFFER_BYTES)):
            pass


class _StrictTarInfo(tarfile.TarInfo):
    """Ends an archive at its end mark only, and fails at a header that it cannot read, in bounded time and memory.

    `tarfile` also takes a broken, cut or missing header for the end.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # missing in typeshed
            raise
        except HeaderError as error:
            raise ReadError(f"truncated or damaged at byte {archive.offset}: {error}") from error
        except _HEADER_ERRORS as error:
            raise ReadError(f"damaged header at byte {archive.offset}: {type(error).__name__} {error}") from error

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        if self.type in _EXTENDED_HEADERS and not 0 <= self.size <= MAX_HEADER_BYTES:
            raise ReadError(f"an extended header of {self.size} bytes at byte {self.offset}")
        if self.type in _PAX_HEADERS:
            ahead = cast(_ForwardFile, archive.fileobj).peek(self.size)
            if re.search(rb"[0-9]{%d}" % MAX_DIGITS, ahead):
                raise ReadError(f"a number of over {MAX_DIGITS} digits in the header at byte {self.offset}")
        member: Self = super()._proc_member(archive)  # type: ignore[misc]  # missing in typeshed
        if not 0 <= member.size < _MAX_FILE_BYTES or not 0 <= archive.offset < _MAX_FILE_BYTES:
            raise ReadError(f"a member of {member.size} bytes at byte {self.offset}")
        return member


_MAX_FILE_BYTES = 2**62


class _ZstdFile:
    """What zstd compressed, read from its start."""

    def __init__(self, file: Any) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except OSError as error:
            raise ReadError(f"damaged or truncated: {error}") from error


class OpenShard(NamedTuple):
    """An open shard, and whether it is compressed."""

    archive: tarfile.TarFile
    compressed: bool


def open_tar(file: BinaryIO) -> OpenShard:
    """Open the shard in `file` as a stream. The caller closes the archive.

    Raises:
        tarfile.TarError: it is not a tar archive.
    """
    magic = file.read(4)
    compressed = magic[:2] == _GZIP or magic == _ZSTD
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    buffered = io.BufferedReader(file, TAR_BUFFER_BYTES)  # type: ignore[type-var]  # tarfile reads 10 KiB at a time
    plain: Any = buffered
    if compressed:
        plain = gzip.GzipFile(fileobj=buffered, mode="rb") if magic != _ZSTD else _ZstdFile(buffered)
    forward: Any = _ForwardFile(cast(BinaryIO, plain), None if compressed else size)  # it has all that tarfile calls
    archive = tarfile.open(  # noqa: SIM115 - the caller closes it
        fileobj=forward,
        mode="r:",
        tarinfo=_StrictTarInfo,
        encoding="utf-8",
        errors="backslashreplace",  # of a name that is not UTF-8: Arrow holds UTF-8 only
    )
    return OpenShard(archive, compressed)


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that are neither directories nor hidden, in order.

    Raises:
        tarfile.TarError: the archive is damaged or truncated.
    """
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all: 1 GB for a shard of a million
        if not member.isdir() and not is_hidden(member.name):
            yield member


def read_shard(part: Part) -> Iterator[Utterance]:
    """The utterances of a shard; see `Layout.read`. Members that belong to no audio are one error row, at the end."""
    read_bytes = 0
    unused = _Unused()
    damage: AudioError | None = None
    try:
        check_version(part)
        with objects.open_read(part.uri) as file:
            archive, compressed = open_tar(file)
            with archive:
                for sample in _samples(archive, merges=not part.earlier_rules):
                    unused.add(sample)
                    for utterance in _sample_utterances(sample, part.uri):
                        end = utterance.byte_end or read_bytes
                        if compressed:
                            # Offsets in the decompressed stream are not offsets in the object, and show no progress.
                            location = f"{part.uri}: {utterance.utt_id}"
                            yield replace(utterance, byte_start=None, byte_end=None, source_location=location)
                        else:
                            yield replace(utterance, size=end - read_bytes)
                        read_bytes = end
    except AudioError as error:  # of check_version
        damage = error
    except TAR_ERRORS as error:
        damage = AudioError(ErrorCode.BAD_ARCHIVE, str(error) or type(error).__name__)
    problem = unused.problem
    if damage is not None:
        problem = (
            damage
            if not unused.members or problem is None
            else AudioError(damage.code, f"{damage.message}; before it: {problem.message}")
        )
    if problem is not None and (damage is not None or not part.earlier_rules):
        yield broken_utterance(part.name, part.uri, problem, size=max(part.bytes - read_bytes, 0))


class _Unused:
    """Counts the members of a shard that belong to no audio, and names the first."""

    def __init__(self) -> None:
        self.audio = self.members = self.texts = 0
        self._names: list[str] = []

    def add(self, sample: _Sample) -> None:
        self.audio += len(sample.audio)
        if sample.audio:
            return
        self.members += len(sample.names)
        self.texts += sum(suffix(name) == "txt" for name in sample.names)
        self._names += sample.names[: NAMED - len(self._names)]

    @property
    def problem(self) -> AudioError | None:
        """What is wrong, once the shard is read; None if there is audio, and all belongs to it."""
        if not self.members:
            return None if self.audio else AudioError(ErrorCode.MISSING, "no audio in the shard: it is empty")
        names = ", ".join(self._names) + (", ..." if self.members > len(self._names) else "")
        what = f"{self.texts:,} texts and {self.members - self.texts:,} other members"
        if not self.audio:
            return AudioError(ErrorCode.MISSING, f"no audio in the shard: it holds {what}: {names}")
        return AudioError(ErrorCode.MISSING, f"{what} belong to no audio, or several to one: {names}")


class _AudioMember(NamedTuple):
    """An audio file of a shard: its name without extension, how to open it, its first byte, and one past its last."""

    name: str
    open: AudioOpener
    start: int
    end: int


@dataclass(eq=False)
class _Sample:
    """Members of a shard that share a key."""

    key: str
    audio: list[_AudioMember] = field(default_factory=list)
    text: bytes | AudioError | None = None
    meta: bytes | AudioError | None = None
    names: list[str] = field(default_factory=list)

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo, load: bool) -> None:
        kind = suffix(member.name)
        if kind in AUDIO_SUFFIXES:
            start = member.offset_data
            opener = _member_opener(archive, member) if load else bytes
            self.audio.append(_AudioMember(_normal_stem(member.name), opener, start, start + member.size))
        elif kind == "txt" and member.isfile():
            self.text = _text_bytes(archive, member) if load else b""
        elif kind == "json" and member.isfile():
            self.meta = _text_bytes(archive, member) if load else b""
        self.names.append(member.name)


def _normal_stem(name: str) -> str:
    return posixpath.normpath(stem(name)).lstrip("/")


def _samples(archive: tarfile.TarFile, load: bool = True, merges: bool = True) -> Iterator[_Sample]:
    """The samples: neighbouring members whose names are equal but for the last extension, or as `_merged` says.

    Args:
        archive: the open shard.
        load: read the members; else only what is where.
        merges: as `_merged` says; else only members whose names are equal but for the last extension are one sample.

    Raises:
        tarfile.TarError: the archive is damaged or truncated; raised after the last sample before that place.
    """
    group: list[_Sample] = []
    prefix = ""
    several = not merges
    damage: Exception | None = None
    try:
        for member in tar_members(archive):
            key = composed(_normal_stem(member.name))
            if _first_dot(key) != prefix:
                yield from _merged(group, several)
                group, prefix, several = [], _first_dot(key), not merges
            sample = next((sample for sample in group if sample.key == key), None)
            if sample is None:
                # The dots of these names divide recordings, not the members of one.
                several = several or sum(bool(sample.audio) for sample in group) > 1 or len(group) >= MAX_GROUP
                if several:
                    yield from group
                    group = []
                sample = _Sample(key)
                group.append(sample)
            sample.add(archive, member, load)
    except TAR_ERRORS as error:
        damage = error
    yield from _merged(group, several)
    if damage is not None:
        raise damage


def _first_dot(key: str) -> str:
    """The key as WebDataset has it: up to the first dot of the name."""
    directory, name = posixpath.split(key)
    return posixpath.join(directory, name.partition(".")[0])


def _merged(group: list[_Sample], several: bool) -> list[_Sample]:
    """The samples of a group, which are one if only one of them is audio and what is between their dots are roles.

    A text or metadata that does not become that of the audio, although it has none, stays a sample of its own.
    """
    audio = [sample for sample in group if sample.audio]
    if several or len(audio) != 1 or len(group) == 1:
        return group
    (sample,) = audio
    role = _role(sample.key)
    if role not in _ROLES_OF_AUDIO and not role.isdigit():  # `KEY.0.wav` is one of several channels or cuts
        return group
    with_role = [other for other in group if other is not sample and _role(other.key) in _ROLES_OF_TEXTS]
    texts = [other for other in with_role if other.text is not None]
    metas = [other for other in with_role if other.meta is not None]
    belong = {sample, *(other for other in group if other.text is other.meta is None)}
    if sample.text is not None or len(texts) == 1:
        sample.text = texts[0].text if sample.text is None else sample.text
        belong.update(texts)
    if sample.meta is not None or len(metas) == 1:
        sample.meta = metas[0].meta if sample.meta is None else sample.meta
        belong.update(metas)
    return [sample, *(other for other in group if other not in belong)]


def _role(key: str) -> str:
    """What stands between the first and the last dot of a name, in lower case; empty where there is nothing."""
    return posixpath.basename(key).partition(".")[2].lower()


def _text_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | AudioError:
    if member.size > MAX_TEXT_BYTES:
        message = f"{member.name} has {member.size} bytes, and a text may have {MAX_TEXT_BYTES}"
        return AudioError(ErrorCode.BAD_ROW, message)
    return _member_bytes(archive, member)


def _member_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"unexpected end of data in {member.name}")
    return data


def _member_opener(archive: tarfile.TarFile, member: tarfile.TarInfo) -> AudioOpener:
    if not member.isfile():
        is_link = member.islnk() or member.issym()
        kind = f"a link to {member.linkname}: links cannot be followed in a stream" if is_link else "no regular file"
        message = f"{member.name} is {kind}"
        return failing_opener(AudioError(ErrorCode.UNSUPPORTED, message))
    if member.size > MAX_MEMBER_BYTES:
        message = f"{member.name} has {member.size} bytes, and a member of a shard may have {MAX_MEMBER_BYTES}"
        return failing_opener(AudioError(ErrorCode.TOO_LARGE, message))
    return functools.partial(bytes, _member_bytes(archive, member))


def _sample_utterances(sample: _Sample, uri: str) -> Iterator[Utterance]:
    problem: AudioError | None = None
    meta = UtteranceMeta()
    try:
        for content in (sample.meta, sample.text):
            if isinstance(content, AudioError):
                raise content
        if isinstance(sample.meta, bytes):
            meta = parse_meta(sample.meta, f"{uri}: {sample.key}.json", UtteranceMeta)
        if isinstance(sample.text, bytes):
            meta = meta.model_copy(update={"text": decode_text(sample.text, f"{uri}: {sample.key}.txt")})
    except AudioError as error:
        problem = error
    for audio in sample.audio:
        yield Utterance(
            utt_id=meta.utt_id or audio.name,
            uri=uri,
            open=audio.open,
            byte_start=audio.start,
            byte_end=audio.end,
            meta=meta,
            fixed_id=meta.utt_id is not None,
            problem=problem,
        )


TAR = Layout(
    kind="tar",
    claims=lambda uri: uri.lower().endswith(TAR_SUFFIXES),
    plan=plan_shards,
    read=read_shard,
)
