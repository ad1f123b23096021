"""WebDataset tar shards, compressed or not: neighbouring members with one name but for the extension are one sample.

`KEY.wav` (or any audio extension) with `KEY.txt`, its reference, and `KEY.json`, its metadata. A shard is read as a
stream, from its start, and never divided: its headers are spread over the whole object.
"""

from __future__ import annotations

import functools
import io
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from tarfile import HeaderError, ReadError
from typing import BinaryIO, NamedTuple, Self

from pipeline.corpus.layout import Layout, Listing, chain_parts
from pipeline.corpus.metadata import UtteranceMeta, parse_meta
from pipeline.corpus.naming import AUDIO_SUFFIXES, is_hidden, relative_path, stem, suffix
from pipeline.corpus.parts import Part
from pipeline.corpus.utterances import (
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

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TAR_BUFFER_BYTES = 2**20
# Members are held in memory, since shards are read as streams.
MAX_MEMBER_BYTES = 2 * 2**30

# Raised while reading a shard that is damaged or not a tar archive.
TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error)


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
    """Number of audio members, counted up to `enough`; an archive that breaks off counts as one more, its error row."""
    count = 0
    try:
        with objects.open_read(uri) as file, open_tar(file).archive as archive:
            for member in tar_members(archive):
                count += suffix(member.name) in AUDIO_SUFFIXES
                if count >= enough:
                    break
    except TAR_ERRORS:
        return min(count + 1, enough)
    return count


class _StrictTarInfo(tarfile.TarInfo):
    """Ends an archive at its end mark only. `tarfile` also takes a broken, cut or missing header for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # missing in typeshed
            raise
        except HeaderError as error:
            raise ReadError(f"truncated or damaged at byte {archive.offset}: {error}") from error


class OpenShard(NamedTuple):
    """An open shard, and whether it is compressed."""

    archive: tarfile.TarFile
    compressed: bool


def open_tar(file: BinaryIO) -> OpenShard:
    """Open the shard in `file` as a stream. The caller closes the archive.

    Raises:
        tarfile.TarError: it is not a tar archive.
    """
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    buffered = io.BufferedReader(file, TAR_BUFFER_BYTES)  # type: ignore[type-var]  # tarfile reads 10 KiB at a time
    archive = tarfile.open(  # noqa: SIM115 - the caller closes it
        fileobj=buffered,
        mode="r|gz" if compressed else "r|",
        tarinfo=_StrictTarInfo,
        encoding="utf-8",
        errors="backslashreplace",  # of a name that is not UTF-8: Arrow holds UTF-8 only
    )
    return OpenShard(archive, compressed)


def tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files and links that are not hidden, in order.

    Raises:
        tarfile.TarError: the archive is damaged or truncated.
    """
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all: 1 GB for a shard of a million
        if (member.isfile() or member.islnk() or member.issym()) and not is_hidden(member.name):
            yield member


def read_shard(part: Part) -> Iterator[Utterance]:
    """The utterances of a shard; see `Layout.read`."""
    check_version(part)
    read_bytes = 0
    try:
        with objects.open_read(part.uri) as file:
            archive, compressed = open_tar(file)
            with archive:
                for sample in _samples(archive):
                    for utterance in _sample_utterances(sample, part.uri):
                        end = utterance.byte_end or read_bytes
                        if compressed:
                            # Offsets in the decompressed stream are not offsets in the object, and show no progress.
                            location = f"{part.uri}: {sample.key}"
                            yield replace(utterance, byte_start=None, byte_end=None, source_location=location)
                        else:
                            yield replace(utterance, size=end - read_bytes)
                        read_bytes = end
    except TAR_ERRORS as error:
        problem = AudioError(ErrorCode.BAD_ARCHIVE, str(error) or type(error).__name__)
        yield broken_utterance(part.name, part.uri, problem, size=max(part.bytes - read_bytes, 0))


class _AudioMember(NamedTuple):
    """An audio file of a shard: how to open it, its first byte, and one past its last."""

    open: AudioOpener
    start: int
    end: int


@dataclass
class _Sample:
    """Members of a shard that share a key."""

    key: str
    audio: list[_AudioMember] = field(default_factory=list)
    text: bytes | None = None
    meta: bytes | None = None

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        kind = suffix(member.name)
        if kind in AUDIO_SUFFIXES:
            start = member.offset_data
            self.audio.append(_AudioMember(_member_opener(archive, member), start, start + member.size))
        elif kind == "txt" and member.isfile():
            self.text = _member_bytes(archive, member)
        elif kind == "json" and member.isfile():
            self.meta = _member_bytes(archive, member)


def _samples(archive: tarfile.TarFile) -> Iterator[_Sample]:
    """The samples that hold audio: neighbouring members whose names are equal but for the last extension.

    Raises:
        tarfile.TarError: the archive is damaged or truncated; raised after the last sample before that place.
    """
    sample = _Sample("")
    damage: Exception | None = None
    try:
        for member in tar_members(archive):
            key = posixpath.normpath(stem(member.name)).lstrip("/")
            if key != sample.key:
                if sample.audio:
                    yield sample
                sample = _Sample(key)
            sample.add(archive, member)
    except TAR_ERRORS as error:
        damage = error
    if sample.audio:
        yield sample
    if damage is not None:
        raise damage


def _member_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"unexpected end of data in {member.name}")
    return data


def _member_opener(archive: tarfile.TarFile, member: tarfile.TarInfo) -> AudioOpener:
    if not member.isfile():
        message = f"{member.name} is a link to {member.linkname}: links cannot be followed in a stream"
        return failing_opener(AudioError(ErrorCode.UNSUPPORTED, message))
    if member.size > MAX_MEMBER_BYTES:
        message = f"{member.name} has {member.size} bytes, and a member of a shard may have {MAX_MEMBER_BYTES}"
        return failing_opener(AudioError(ErrorCode.TOO_LARGE, message))
    return functools.partial(bytes, _member_bytes(archive, member))


def _sample_utterances(sample: _Sample, uri: str) -> Iterator[Utterance]:
    problem: AudioError | None = None
    meta = UtteranceMeta()
    try:
        if sample.meta is not None:
            meta = parse_meta(sample.meta, f"{uri}: {sample.key}.json", UtteranceMeta)
        if sample.text is not None:
            meta = meta.model_copy(update={"text": decode_text(sample.text, f"{uri}: {sample.key}.txt")})
    except AudioError as error:
        problem = error
    for audio in sample.audio:
        yield Utterance(
            utt_id=meta.utt_id or sample.key,
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
