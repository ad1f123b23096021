"""From a part of the plan to its utterances: where each one's audio is, and what its source says of it.

The one place that knows the four containers (files, manifests, tar shards, Parquet). What is wrong with one utterance
is an `AudioError` held in its `problem`, or raised when its audio is opened; storage's troubles are raised at once.
"""

from __future__ import annotations

import functools
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.manifest import (
    ManifestRow,
    UtteranceMeta,
    manifest_utt_id,
    parse_meta,
    relative_id,
    resolve,
    split_rows,
    stem,
    unique_key,
)
from pipeline.corpus.plan import (
    AUDIO_SUFFIXES,
    TAR_ERRORS,
    Part,
    manifest_content,
    open_tar,
    row_place,
    suffix,
    tar_members,
)
from pipeline.errors import AudioError, ErrorCode, InputChangedError
from pipeline.storage import objects, uris

# Up to this size an object is read whole, in one request; a larger one is opened and read by ranges.
WHOLE_OBJECT_BYTES = 256 * 2**20
# A member of a shard has to be held in memory, since shards are read as streams.
MAX_MEMBER_BYTES = 2 * 2**30
PARQUET_BATCH_ROWS = 64

AudioOpener = Callable[[], bytes | BinaryIO]


@dataclass(frozen=True)
class Utterance:
    """One utterance as its container describes it, before its audio is touched."""

    utt_id: str
    uri: str
    open: AudioOpener  # raises AudioError where the audio is not there
    size: int = 0  # planned bytes, for progress
    byte_start: int | None = None
    byte_end: int | None = None
    meta: UtteranceMeta = field(default_factory=UtteranceMeta)
    fixed_id: bool = False  # the source names it: no #start-end is added
    problem: AudioError | None = None
    place: str = ""  # where its source describes it, where that is not the audio itself

    @property
    def where(self) -> str:
        """Where it is found, for messages."""
        if self.place or self.byte_start is None:
            return self.place or self.uri
        return f"{self.uri}[{self.byte_start}:{self.byte_end}]"


def read_part(part: dict[str, Any]) -> Iterator[Utterance]:
    """The utterances of a part, in order; `part` is a row of `pipeline.corpus.plan.PLAN`.

    Raises:
        StorageError: the container could not be reached.
        InputChangedError: it is not the object that was planned.
    """
    utterances = _READERS[part["kind"]](part)
    taken = {duplicate["row"]: duplicate["first"] for duplicate in part["duplicates"]}
    first: dict[str, str] = {}
    for row, utterance in enumerate(utterances):
        if part["limit"] is not None and row >= part["limit"]:
            return
        earlier = taken.get(row)
        if earlier is None and part["kind"] in ("tar", "parquet"):
            # Their ids are not known to the plan; within the part they are told apart here.
            key = unique_key(utterance.utt_id, utterance.meta)
            earlier = first.get(key)
            first.setdefault(key, utterance.where)
        if earlier is not None and utterance.problem is None:
            message = f"{utterance.utt_id} names both {earlier} and {utterance.where}"
            yield replace(utterance, problem=AudioError(ErrorCode.DUPLICATE_ID, message))
        else:
            yield utterance


def _open_object(uri: str, version: str | None = None) -> bytes | BinaryIO:
    """The object's bytes, or a file over it where it is large.

    Raises:
        AudioError: MISSING, or BAD_ROW where the URI's scheme is none.
        InputChangedError: `version` is given, and it is not that one.
    """
    try:
        found = objects.stat(uri)
        if found is None:
            raise AudioError(ErrorCode.MISSING, f"{uri} is a directory")
        if version is not None and found.version != version:
            raise InputChangedError(f"{uri} has changed since it was planned: {version} then, {found.version} now")
        return objects.fetch(uri) if found.size <= WHOLE_OBJECT_BYTES else objects.open_read(uri)
    except FileNotFoundError as error:
        if version is not None and not uris.parent_exists(uri):
            # One file that went is bad data. A whole directory that was listed and is not here is a mount that is lost.
            raise InputChangedError(f"{posixpath.dirname(uri)} was listed, and is not there: is it mounted?") from error
        raise AudioError(ErrorCode.MISSING, f"no such object: {uri}") from error
    except uris.UnknownSchemeError as error:
        raise AudioError(ErrorCode.BAD_ROW, str(error)) from error


def _opener() -> Callable[[str], bytes | BinaryIO]:
    """`_open_object` that keeps the bytes of the object before: rows in a row are often parts of one recording."""
    kept: dict[str, bytes] = {}

    def open_object(uri: str) -> bytes | BinaryIO:
        if uri in kept:
            return kept[uri]
        kept.clear()
        found = _open_object(uri)
        if isinstance(found, bytes):
            kept[uri] = found
        return found

    return open_object


def _check_version(part: dict[str, Any]) -> None:
    try:
        found = objects.stat(part["uri"])
    except FileNotFoundError:
        found = None
    now = found.version if found else "gone"
    if part["version"] is not None and now != part["version"]:
        raise InputChangedError(f"{part['uri']} has changed since it was planned: {part['version']} then, {now} now")


def _files(part: dict[str, Any]) -> Iterator[Utterance]:
    trans_txt = functools.cache(_trans_txt)  # for this part alone: another run may find other words in the same file
    for item in part["items"]:
        utterance = Utterance(
            utt_id=item["utt_id"],
            uri=item["uri"],
            open=functools.partial(_open_object, item["uri"], item["version"]),
            size=item["size"],
        )
        try:
            text = _reference(item["reference_uri"], posixpath.basename(stem(item["uri"])), trans_txt)
        except AudioError as error:
            yield replace(utterance, problem=error)
        else:
            yield replace(utterance, meta=UtteranceMeta(text=text))


def _reference(uri: str | None, name: str, trans_txt: Callable[[str], dict[str, str]]) -> str | None:
    if uri is None:
        return None
    return trans_txt(uri).get(name) if uri.endswith(".trans.txt") else _text(_planned(uri), uri)


def _trans_txt(uri: str) -> dict[str, str]:
    """LibriSpeech's `ID TEXT` lines of one chapter."""
    rows = (line.strip().partition(" ") for line in _text(_planned(uri), uri).split("\n"))
    return {name: text.strip() for name, _, text in rows}


def _planned(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    try:
        return objects.fetch(uri, start, end)
    except FileNotFoundError as error:
        raise InputChangedError(f"{uri} was there when the run was planned, and is gone") from error


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise AudioError(ErrorCode.BAD_ROW, f"{where}: {error}") from error


def _manifest(part: dict[str, Any]) -> Iterator[Utterance]:
    base = posixpath.dirname(part["uri"])
    open_object = _opener()
    rows = list(split_rows(_planned(part["uri"], part["start"], part["end"]), part["start"]))
    _check_rows(part, (line for _, line in rows))
    for index, (start, line) in enumerate(rows):
        end = start + len(line)
        size = _share(part["bytes"], index, len(rows))
        place = row_place(part["uri"], start)
        try:
            row: ManifestRow = parse_meta(line, place, ManifestRow)
        except AudioError as error:
            yield Utterance(f"{part['uri']}[{start}:{end}]", part["uri"], bytes, size, start, end, problem=error)
            continue
        uri = resolve(row.audio_filepath, base)
        opener = functools.partial(open_object, uri)
        named = row.utt_id is not None
        yield Utterance(manifest_utt_id(row, base), uri, opener, size, meta=row, fixed_id=named, place=place)


def _check_rows(part: dict[str, Any], rows: Iterable[bytes]) -> None:
    """Are they the rows that were planned? A line added further down changes nothing here."""
    planned = Part("manifest", 0, part["uri"], start=part["start"], end=part["end"], content=manifest_content(rows))
    if planned.part_id != part["part_id"]:
        raise InputChangedError(
            f"{part['uri']}, bytes {part['start']} to {part['end']}: changed since they were planned"
        )


def _share(total: int, index: int, count: int) -> int:
    """The `index`-th of `count` near-equal shares, which sum up to `total`."""
    return total * (index + 1) // count - total * index // count


@dataclass
class _Sample:
    """Members of a shard that share a key."""

    key: str
    audio: list[tuple[str, AudioOpener, int, int]]  # suffix, opener, first byte, one past the last
    text: bytes | None = None
    meta: bytes | None = None


def _tar(part: dict[str, Any]) -> Iterator[Utterance]:
    _check_version(part)
    uri = part["uri"]
    done = 0
    try:
        with objects.open_read(uri) as file:
            tar, compressed = open_tar(file)
            with tar:
                for sample in _samples(tar):
                    for utterance in _sample_utterances(sample, uri):
                        end = utterance.byte_end or done
                        if compressed:
                            # Its places in the decompressed stream are none in the object, and say little of progress.
                            place = f"{uri}: {sample.key}"
                            yield replace(utterance, byte_start=None, byte_end=None, place=place)
                        else:
                            yield replace(utterance, size=end - done)
                        done = end
    except TAR_ERRORS as error:
        problem = AudioError(ErrorCode.BAD_ARCHIVE, str(error) or type(error).__name__)
        yield Utterance(part["name"], uri, bytes, max(part["bytes"] - done, 0), problem=problem)


def _samples(tar: tarfile.TarFile) -> Iterator[_Sample]:
    """Neighbours whose names are equal but for the extension are one sample, as in WebDataset.

    Raises:
        tarfile.TarError: the archive breaks off; the sample before has been given.
    """
    sample = _Sample("", [])
    broken: Exception | None = None
    try:
        for member in tar_members(tar):
            key = posixpath.normpath(stem(member.name)).lstrip("/")
            if key != sample.key:
                if sample.audio:
                    yield sample
                sample = _Sample(key, [])
            _add(sample, tar, member)
    except TAR_ERRORS as error:
        broken = error
    if sample.audio:
        yield sample
    if broken is not None:
        raise broken


def _add(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    kind = suffix(member.name)
    if kind in AUDIO_SUFFIXES:
        start = member.offset_data
        sample.audio.append((kind, _member(tar, member), start, start + member.size))
    elif kind == "txt" and member.isfile():
        sample.text = _bytes(tar, member)
    elif kind == "json" and member.isfile():
        sample.meta = _bytes(tar, member)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"unexpected end of data in {member.name}")
    return data


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> AudioOpener:
    if not member.isfile():
        message = f"{member.name} is a link to {member.linkname}, and shards are read as streams"
        return functools.partial(_raise, AudioError(ErrorCode.UNSUPPORTED, message))
    if member.size > MAX_MEMBER_BYTES:
        message = f"{member.size} bytes in one member of a shard, at most {MAX_MEMBER_BYTES}"
        return functools.partial(_raise, AudioError(ErrorCode.TOO_LARGE, message))
    return functools.partial(bytes, _bytes(tar, member))


def _raise(error: AudioError) -> bytes:
    raise error


def _sample_utterances(sample: _Sample, uri: str) -> Iterator[Utterance]:
    problem: AudioError | None = None
    meta = UtteranceMeta()
    try:
        if sample.meta is not None:
            meta = parse_meta(sample.meta, f"{uri}: {sample.key}.json")
        if sample.text is not None:
            meta = meta.model_copy(update={"text": _text(sample.text, f"{uri}: {sample.key}.txt")})
    except AudioError as error:
        problem = error
    for _, opener, start, end in sample.audio:
        yield Utterance(
            meta.utt_id or sample.key,
            uri,
            opener,
            byte_start=start,
            byte_end=end,
            meta=meta,
            fixed_id=meta.utt_id is not None,
            problem=problem,
        )


def _parquet(part: dict[str, Any]) -> Iterator[Utterance]:
    _check_version(part)
    uri = part["uri"]
    first = part["start"] or 0
    row, done = 0, 0
    try:
        with objects.open_read(uri) as file:
            table = pq.ParquetFile(file)
            metadata = table.metadata
            end = metadata.num_row_groups if part["end"] is None else part["end"]
            row = sum(metadata.row_group(index).num_rows for index in range(first))
            count = sum(metadata.row_group(index).num_rows for index in range(first, end))
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, row_groups=list(range(first, end))):
                for index in range(batch.num_rows):
                    size = _share(part["bytes"], done, count)
                    yield _parquet_row(batch.slice(index, 1), part, row + done, size)
                    done += 1
    except (pa.ArrowException, OSError) as error:  # Arrow's words for a broken file; storage raises StorageError
        problem = AudioError(ErrorCode.BAD_ARCHIVE, f"after {done} rows: {error}")
        yield Utterance(part["name"], uri, bytes, problem=problem)


def _parquet_row(batch: pa.RecordBatch, part: dict[str, Any], row: int, size: int) -> Utterance:
    uri = part["uri"]
    where = f"{uri}, row {row}"
    nameless = f"{part['name']}/{row}"
    try:
        values = batch.to_pylist()[0]
    except UnicodeDecodeError as error:  # Arrow does not look whether strings are UTF-8 until they are taken out
        return Utterance(nameless, uri, bytes, size, problem=AudioError(ErrorCode.BAD_ROW, f"{where}: {error}"))
    path, data = _path_and_bytes(values.pop("audio"))
    base = posixpath.dirname(uri)
    fallback = nameless
    if path:
        # Beside bytes a path is but a name, and leads nowhere.
        fallback = relative_id(path, base) if data is None else stem(posixpath.normpath(path))
    try:
        meta: UtteranceMeta = parse_meta({k: v for k, v in values.items() if v is not None}, where)
    except AudioError as error:
        return Utterance(fallback, uri, bytes, size, problem=error)
    opener: AudioOpener
    if data is not None:
        opener = functools.partial(bytes, data)
    elif path:
        uri = resolve(path, base)
        opener = functools.partial(_open_object, uri)
    else:
        opener = functools.partial(_raise, AudioError(ErrorCode.MISSING, f"{where}: neither bytes nor path"))
    named = meta.utt_id is not None
    return Utterance(meta.utt_id or fallback, uri, opener, size, meta=meta, fixed_id=named, place=where)


def _path_and_bytes(audio: str | bytes | dict[str, Any] | None) -> tuple[str | None, bytes | None]:
    """What the `audio` column holds: a path, the bytes, or both."""
    if isinstance(audio, dict):
        return audio.get("path"), audio.get("bytes")
    return (audio, None) if isinstance(audio, str) else (None, audio)


_READERS: dict[str, Callable[[dict[str, Any]], Iterator[Utterance]]] = {
    "files": _files,
    "manifest": _manifest,
    "tar": _tar,
    "parquet": _parquet,
}
