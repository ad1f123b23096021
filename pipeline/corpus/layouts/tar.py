"""WebDataset tar shards, compressed or not: neighbouring members with one name but for the extension are one sample.

`KEY.wav` (or any audio extension) with `KEY.txt`, its reference, and `KEY.json`, its metadata. Where only one of the
neighbours that are equal up to the first dot of their names is audio, they are one sample too, as WebDataset has it,
if what stands between the dots is a role: `KEY.audio.wav` with `KEY.meta.json`.

A shard is read as a stream. A large one that is not compressed is cut into parts between its samples, so that several
tasks can read it. Where its samples begin is found by reading its headers, from the first one on, when the run is
planned: bytes in the middle of an archive may look like a header and not be one (audio, or an archive in an archive),
so a search from the middle would be a guess. What a part depends on besides its bytes is stored with it (`_Start`), so
that the parts together give the rows that the whole shard gives.
"""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import json
import posixpath
import re
import tarfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from tarfile import HeaderError, ReadError
from typing import Any, BinaryIO, NamedTuple, Self, cast

import pyarrow as pa

from pipeline.corpus.layout import Layout, Listing, chain_parts
from pipeline.corpus.metadata import UtteranceMeta, parse_meta, unique_key
from pipeline.corpus.naming import AUDIO_SUFFIXES, composed, is_hidden, relative_path, stem, suffix
from pipeline.corpus.parts import Part, key_digest
from pipeline.corpus.utterances import (
    MAX_TEXT_BYTES,
    AudioOpener,
    Utterance,
    broken_utterance,
    decode_text,
    failing_opener,
    open_planned,
)
from pipeline.errors import AudioError, ErrorCode
from pipeline.storage import objects
from pipeline.storage.concurrently import ordered_map
from pipeline.storage.forward import ForwardReader
from pipeline.storage.reads import Object

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
TAR_BUFFER_BYTES = 2**20
HEADER_BUFFER_BYTES = 4096
# Shards of at least this many parts are cut, unless there are so many shards that their number keeps workers busy: to
# find the samples costs a request for each, or where they are small as much as reading the shard.
CUT_PARTS = 32
CUT_SHARDS = 128
SHARDS_AT_A_TIME = 4
MAX_STATE_BYTES = 64 * 2**10  # of a part, in the plan
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
    """A part for each shard, or several for a large one; see `Layout.plan`."""
    least_cut = CUT_PARTS * part_bytes if len(listing.objects) <= CUT_SHARDS else _MAX_FILE_BYTES

    def plan_shard(shard: Object, limit: int | None) -> Iterator[Part]:
        name = stem(relative_path(shard.uri, listing.root))
        whole = Part(TAR.kind, shard.size, shard.uri, name, shard.version, limit=limit)
        return _cut(whole, part_bytes) if shard.size >= least_cut else iter([_counted(whole)])

    if limit is None:
        width = SHARDS_AT_A_TIME if any(shard.size >= least_cut for shard in listing.objects) else 0
        for parts in ordered_map(lambda shard: list(plan_shard(shard, None)), listing.objects, width):
            yield from parts
    else:
        yield from chain_parts((functools.partial(plan_shard, shard) for shard in listing.objects), limit)


def _counted(shard: Part) -> Part:
    """The part with its number of rows, error rows included, up to its limit; without a limit they are not counted."""
    if shard.limit is None:
        return shard
    count = 0
    unused = _Unused()
    try:
        with _open_headers(shard) as file, open_tar(file, HEADER_BUFFER_BYTES).archive as archive:
            for group in _groups(archive, _Start(), load=False):
                for sample in group.samples:
                    count += len(sample.audio)
                    unused.add(sample)
                if count >= shard.limit:
                    break
        count += unused.problem is not None
    except (*TAR_ERRORS, FileNotFoundError):
        count += 1
    return replace(shard, rows=min(count, shard.limit))


def _open_headers(shard: Part) -> BinaryIO:
    """The shard as a file whose headers are read, with as little as possible of what is between them."""
    if "://" not in shard.uri:
        return objects.open_read(shard.uri, shard.version)
    return cast(BinaryIO, ForwardReader(shard.uri, shard.bytes, shard.version))


def _cut(shard: Part, part_bytes: int) -> Iterator[Part]:
    """Parts of at least `part_bytes`, between samples, up to the limit of rows; the whole shard if it is compressed."""
    planned = _PlannedPart(shard, _Start(), _Unused(), shard.limit)
    try:
        with _open_headers(shard) as file:
            archive, compressed = open_tar(file, HEADER_BUFFER_BYTES)
            with archive:
                for group in () if compressed else _groups(archive, _Start(), load=False):
                    if group.start.offset - planned.start.offset >= part_bytes:
                        following = planned.following(group.start)
                        if len(following.state) <= MAX_STATE_BYTES:
                            yield planned.part(group.start.offset)
                            planned = following
                            if planned.limit == 0:
                                return
                    planned.add(group)
        damaged = False
    except (*TAR_ERRORS, FileNotFoundError):
        damaged = True
    if planned.start.offset:
        yield planned.last_part(damaged)
    else:
        yield _counted(shard)


@dataclass(frozen=True)
class _Start:
    """A place between two samples, from which a shard can be read.

    Attributes:
        offset: its byte.
        pax_headers: the global headers before it, which hold for all members behind them.
        several: dots in the names divide recordings; see `_groups`.
    """

    offset: int = 0
    pax_headers: dict[str, str] = field(default_factory=dict)
    several: bool = False

    @staticmethod
    def of(part: Part) -> _Start:
        """Where a part begins."""
        state = json.loads(part.state) if part.state else {}
        return _Start(part.start or 0, state.get("pax_headers", {}), state.get("several", False))


class _PlannedPart:
    """A part of a shard while its samples are found."""

    def __init__(self, shard: Part, start: _Start, before: _Unused, limit: int | None) -> None:
        self.start, self.limit = start, limit
        self.state = _state(start, before)
        self._shard, self._unused = shard, replace(before, names=[*before.names])
        self._keys, self._ranges = array("Q"), array("Q")

    def add(self, group: _Group) -> None:
        for sample in group.samples:
            self._unused.add(sample)
            for utterance in _sample_utterances(sample, self._shard.uri):
                # With the shard's name: equal ids are found within a shard only, as if it was read whole.
                key = unique_key(utterance.utt_id, utterance.meta)
                self._keys.append(key_digest(f"{self._shard.uri}\0{key}"))
                self._ranges.extend((utterance.byte_start or 0, utterance.byte_end or 0))

    def part(self, end: int | None, more_rows: int = 0) -> Part:
        rows = len(self._keys) + more_rows
        return replace(
            self._shard,
            bytes=(self._shard.bytes if end is None else end) - self.start.offset,
            start=self.start.offset,
            end=end,
            state=self.state,
            rows=rows if self.limit is None else min(rows, self.limit),
            limit=self.limit,
            keys=self._keys,
            ranges=self._ranges,
            part_id="",
        )

    def last_part(self, damaged: bool) -> Part:
        return self.part(None, more_rows=damaged or self._unused.problem is not None)

    def following(self, start: _Start) -> _PlannedPart:
        limit = None if self.limit is None else max(0, self.limit - len(self._keys))
        return _PlannedPart(self._shard, start, self._unused, limit)


def _state(start: _Start, before: _Unused) -> str:
    """What reading from `start` depends on besides the bytes there, as JSON."""
    return json.dumps({"pax_headers": start.pax_headers, "several": start.several, "unused": asdict(before)})


class _ForwardFile:
    """A file that `tarfile` reads from its start to its end; it may look ahead, but never goes back."""

    def __init__(self, file: BinaryIO, size: int | None, position: int = 0) -> None:
        """`size` is that of the file; None for a compressed one, in which skipping is reading."""
        self._file, self.size = file, size
        self._ahead = b""
        self._position = position

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
        if self.size is not None and position > self._position + len(self._ahead):
            self._ahead = b""
            self._position = min(position, self.size)
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


def open_tar(file: BinaryIO, buffer_bytes: int = TAR_BUFFER_BYTES, start: _Start | None = None) -> OpenShard:
    """Open the shard in `file` as a stream. The caller closes the archive.

    Args:
        file: the shard.
        buffer_bytes: read from `file` at a time; `tarfile` reads 10 KiB or less.
        start: where to begin in a shard that is not compressed; None: at its first byte.

    Raises:
        tarfile.TarError: it is not a tar archive.
    """
    start = start or _Start()
    magic = b"" if start.offset else file.read(4)
    compressed = magic[:2] == _GZIP or magic == _ZSTD
    size = file.seek(0, io.SEEK_END)
    file.seek(start.offset)
    buffered = io.BufferedReader(file, buffer_bytes)  # type: ignore[type-var]
    plain: Any = buffered
    if compressed:
        plain = gzip.GzipFile(fileobj=buffered, mode="rb") if magic != _ZSTD else _ZstdFile(buffered)
    forward: Any = _ForwardFile(cast(BinaryIO, plain), None if compressed else size, start.offset)
    archive = tarfile.open(  # noqa: SIM115 - the caller closes it
        fileobj=forward,  # it has all that tarfile calls
        mode="r:",
        tarinfo=_StrictTarInfo,
        encoding="utf-8",
        errors="backslashreplace",  # of a name that is not UTF-8: Arrow holds UTF-8 only
        format=tarfile.PAX_FORMAT,  # with another one `pax_headers` are ignored
        pax_headers=dict(start.pax_headers),
    )
    return OpenShard(archive, compressed)


def tar_members(archive: tarfile.TarFile, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """The members that are neither directories nor hidden, in order, up to the one that begins at byte `end`.

    Raises:
        tarfile.TarError: the archive is damaged or truncated.
    """
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all: 1 GB for a shard of a million
        if not member.isdir() and not is_hidden(member.name):
            yield member
        if end is not None and archive.offset >= end:
            return


def read_shard(part: Part) -> Iterator[Utterance]:
    """The utterances of a shard or of a part of one; see `Layout.read`.

    Members that belong to no audio are one error row, at the end of the shard.
    """
    read_bytes = part.start or 0
    unused = _Unused.before(part)
    damage: AudioError | None = None
    try:
        with open_planned(part) as file:
            archive, compressed = open_tar(file, start=_Start.of(part))
            with archive:
                for sample in _samples(archive, part):
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
    except AudioError as error:  # of open_planned
        damage = error
    except TAR_ERRORS as error:
        damage = AudioError(ErrorCode.BAD_ARCHIVE, str(error) or type(error).__name__)
    problem = unused.problem if part.end is None else None
    if damage is not None:
        problem = (
            damage
            if not unused.members or problem is None
            else AudioError(damage.code, f"{damage.message}; before it: {problem.message}")
        )
    if problem is not None and (damage is not None or not part.earlier_rules):
        rest = max((part.start or 0) + part.bytes - read_bytes, 0)
        yield broken_utterance(part.name, part.uri, problem, size=rest)


@dataclass
class _Unused:
    """Counts the members of a shard that belong to no audio, and names the first.

    Attributes:
        audio: audio files, to which members may belong.
        members: those that belong to none.
        texts: the texts among them.
        names: the first of them.
    """

    audio: int = 0
    members: int = 0
    texts: int = 0
    names: list[str] = field(default_factory=list)

    @staticmethod
    def before(part: Part) -> _Unused:
        """The count at the start of a part."""
        return _Unused(**json.loads(part.state)["unused"]) if part.state else _Unused()

    def add(self, sample: _Sample) -> None:
        self.audio += len(sample.audio)
        if sample.audio:
            return
        self.members += len(sample.names)
        self.texts += sum(suffix(name) == "txt" for name in sample.names)
        self.names += sample.names[: NAMED - len(self.names)]

    @property
    def problem(self) -> AudioError | None:
        """What is wrong, once the shard is read; None if there is audio, and all belongs to it."""
        if not self.members:
            return None if self.audio else AudioError(ErrorCode.MISSING, "no audio in the shard: it is empty")
        names = ", ".join(self.names) + (", ..." if self.members > len(self.names) else "")
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
            opener = member_opener(archive, member, load)
            self.audio.append(_AudioMember(_normal_stem(member.name), opener, start, start + member.size))
        elif kind == "txt" and member.isfile():
            self.text = _text_bytes(archive, member, load)
        elif kind == "json" and member.isfile():
            self.meta = _text_bytes(archive, member)
        self.names.append(member.name)


def _normal_stem(name: str) -> str:
    return posixpath.normpath(stem(name)).lstrip("/")


class _Group(NamedTuple):
    """Samples that are read together: their members may be mixed. A shard can be cut at their start."""

    start: _Start
    samples: list[_Sample]


def _samples(archive: tarfile.TarFile, part: Part) -> Iterator[_Sample]:
    """The samples of a part; raises as `_groups`."""
    groups = _groups(archive, _Start.of(part), part.end, merges=not part.earlier_rules)
    return itertools.chain.from_iterable(group.samples for group in groups)


def _groups(
    archive: tarfile.TarFile, start: _Start, end: int | None = None, load: bool = True, merges: bool = True
) -> Iterator[_Group]:
    """The samples: neighbouring members whose names are equal but for the last extension, or as `_merged` says.

    Args:
        archive: the open shard.
        start: where it was opened.
        end: where the part ends; None: with the shard.
        load: read audio and texts; else only what is where, and metadata, which may hold ids.
        merges: as `_merged` says; else only members whose names are equal but for the last extension are one sample.

    Raises:
        tarfile.TarError: the archive is damaged or truncated; raised after the last sample before that place.
    """
    group: list[_Sample] = []
    prefix: str | None = None
    several = start.several or not merges  # the dots of these names divide recordings, not the members of one
    damage: Exception | None = None
    members = tar_members(archive, end)
    try:
        while True:
            offset, pax_headers = archive.offset, dict(archive.pax_headers)
            if (member := next(members, None)) is None:
                break
            key = composed(_normal_stem(member.name))
            if prefix is not None and _first_dot(key) != prefix:
                yield _Group(start, _merged(group, several))
                group, several = [], not merges
            sample = next((sample for sample in group if sample.key == key), None)
            if sample is None:
                several = several or sum(bool(sample.audio) for sample in group) > 1 or len(group) >= MAX_GROUP
                if several and group:
                    yield _Group(start, group)
                    group = []
                if not group and prefix is not None:
                    start = _Start(offset, pax_headers, several)
                sample = _Sample(key)
                group.append(sample)
            prefix = _first_dot(key)
            sample.add(archive, member, load)
    except TAR_ERRORS as error:
        damage = error
    if group:
        yield _Group(start, _merged(group, several))
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


def _text_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo, load: bool = True) -> bytes | AudioError:
    if member.size > MAX_TEXT_BYTES:
        message = f"{member.name} has {member.size} bytes, and a text may have {MAX_TEXT_BYTES}"
        return AudioError(ErrorCode.BAD_ROW, message)
    return _member_bytes(archive, member, load)


def _member_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo, load: bool) -> bytes:
    """The bytes of a member; where they are not to be loaded only whether they are there."""
    data = b""
    if load:
        file = archive.extractfile(member)
        data = file.read() if file else b""
        is_whole = len(data) == member.size
    else:
        size = cast(_ForwardFile, archive.fileobj).size
        is_whole = size is None or member.issparse() or member.offset_data + member.size <= size
    if not is_whole:
        raise tarfile.ReadError(f"unexpected end of data in {member.name}")
    return data


def member_opener(archive: tarfile.TarFile, member: tarfile.TarInfo, load: bool = True) -> AudioOpener:
    """How the audio of the member is opened, at which the archive is; its bytes are read now, if `load`."""
    if not member.isfile():
        is_link = member.islnk() or member.issym()
        kind = f"a link to {member.linkname}: links cannot be followed in a stream" if is_link else "no regular file"
        message = f"{member.name} is {kind}"
        return failing_opener(AudioError(ErrorCode.UNSUPPORTED, message))
    if member.size > MAX_MEMBER_BYTES:
        message = f"{member.name} has {member.size} bytes, and a member of a shard may have {MAX_MEMBER_BYTES}"
        return failing_opener(AudioError(ErrorCode.TOO_LARGE, message))
    return functools.partial(bytes, _member_bytes(archive, member, load))


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
