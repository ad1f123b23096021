"""From a part of the plan to its utterances: where each one's audio is, and what its source says of it.

The one place that knows the four containers (files, manifests, tar shards, Parquet). What is wrong with one utterance is
an `AudioError` held in its `problem`, or raised when its audio is opened; what is wrong with storage is raised at once.
"""

from __future__ import annotations

import functools
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import AudioError, ErrorCode, InputChangedError
from pipeline.manifest import ManifestRow, UtteranceMeta, manifest_utt_id, parse_meta, resolve, stem
from pipeline.plan import AUDIO_SUFFIXES, suffix

# Up to this size an object is read whole, in one request; a larger one is opened and read by ranges.
WHOLE_OBJECT_BYTES = 256 * 2**20
# A member of a shard has to be held in memory, since shards are read as streams.
MAX_MEMBER_BYTES = 2 * 2**30

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
    meta: UtteranceMeta = UtteranceMeta()
    fixed_id: bool = False  # the source names it: no #start-end is added
    problem: AudioError | None = None


def read_part(part: dict[str, Any]) -> Iterator[Utterance]:
    """The utterances of a part, in order; `part` is a row of `pipeline.plan.PLAN`.

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
            earlier = first.get(utterance.utt_id)
            first.setdefault(utterance.utt_id, _place(utterance))
        if earlier is not None and utterance.problem is None:
            message = f"{utterance.utt_id} names both {earlier} and {_place(utterance)}"
            yield replace(utterance, problem=AudioError(ErrorCode.DUPLICATE_ID, message))
        else:
            yield utterance


def _place(utterance: Utterance) -> str:
    if utterance.byte_start is None:
        return utterance.uri
    return f"{utterance.uri}[{utterance.byte_start}:{utterance.byte_end}]"


def _open_object(uri: str, version: str | None = None) -> bytes | BinaryIO:
    """The object's bytes, or a file over it where it is large.

    Raises:
        AudioError: MISSING.
        InputChangedError: `version` is given, and it is not that one.
    """
    try:
        found = storage.stat(uri)
        if found is None:
            raise AudioError(ErrorCode.MISSING, f"{uri} is a directory")
        if version is not None and found.version != version:
            raise InputChangedError(f"{uri} has changed since it was planned: {version} then, {found.version} now")
        return storage.fetch(uri) if found.size <= WHOLE_OBJECT_BYTES else storage.open_read(uri)
    except FileNotFoundError as error:
        raise AudioError(ErrorCode.MISSING, f"no such object: {uri}") from error


def _check_version(part: dict[str, Any]) -> None:
    try:
        found = storage.stat(part["uri"])
    except FileNotFoundError:
        found = None
    now = found.version if found else "gone"
    if part["version"] is not None and now != part["version"]:
        raise InputChangedError(f"{part['uri']} has changed since it was planned: {part['version']} then, {now} now")


def _files(part: dict[str, Any]) -> Iterator[Utterance]:
    for item in part["items"]:
        utterance = Utterance(
            utt_id=item["utt_id"],
            uri=item["uri"],
            open=functools.partial(_open_object, item["uri"], item["version"]),
            size=item["size"],
        )
        try:
            text = _reference(item["reference_uri"], posixpath.basename(stem(item["uri"])))
        except AudioError as error:
            yield replace(utterance, problem=error)
        else:
            yield replace(utterance, meta=UtteranceMeta(text=text))


def _reference(uri: str | None, name: str) -> str | None:
    if uri is None:
        return None
    if uri.endswith(".trans.txt"):
        return _trans_txt(uri).get(name)
    return _text(storage.fetch(uri), uri)


@functools.lru_cache(maxsize=64)
def _trans_txt(uri: str) -> dict[str, str]:
    """LibriSpeech's `ID TEXT` lines of one chapter."""
    rows = (line.partition(" ") for line in _text(storage.fetch(uri), uri).splitlines())
    return {name: text.strip() for name, _, text in rows}


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise AudioError(ErrorCode.BAD_ROW, f"{where}: {error}") from error


def _manifest(part: dict[str, Any]) -> Iterator[Utterance]:
    base = posixpath.dirname(part["uri"])
    try:
        data = storage.fetch(part["uri"], part["start"], part["end"])
    except FileNotFoundError as error:
        raise InputChangedError(f"{part['uri']} is gone") from error
    rows = [line for line in data.splitlines(keepends=True) if line.strip()]
    size = part["bytes"] // max(len(rows), 1)
    start = part["start"]
    for line in rows:
        end = start + len(line)
        where = f"{part['uri']}[{start}:{end}]"
        try:
            row: ManifestRow = parse_meta(line, where, ManifestRow)
        except AudioError as error:
            yield Utterance(where, part["uri"], bytes, size, start, end, problem=error)
        else:
            uri = resolve(row.audio_filepath, base)
            opener = functools.partial(_open_object, uri)
            yield Utterance(
                manifest_utt_id(row, base), uri, opener, size, meta=row, fixed_id=row.utt_id is not None
            )
        start = end


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
        with storage.open_read(uri) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for sample in _samples(tar):
                for utterance in _sample_utterances(sample, uri):
                    yield replace(utterance, size=(utterance.byte_end or 0) - done)
                    done = utterance.byte_end or done
    except (tarfile.TarError, EOFError) as error:
        problem = AudioError(ErrorCode.BAD_ARCHIVE, str(error) or type(error).__name__)
        yield Utterance(stem(posixpath.basename(uri)), uri, bytes, max(part["bytes"] - done, 0), problem=problem)


def _samples(tar: tarfile.TarFile) -> Iterator[_Sample]:
    """WebDataset's rule: neighbours whose names are equal but for the extension are one sample."""
    sample = _Sample("", [])
    for member in tar:
        if not member.isfile() or posixpath.basename(member.name).startswith((".", "_")):
            continue
        key, kind = stem(member.name.removeprefix("./")), suffix(member.name)
        if key != sample.key:
            if sample.audio:
                yield sample
            sample = _Sample(key, [])
        if kind in AUDIO_SUFFIXES:
            start = member.offset_data
            sample.audio.append((kind, _member(tar, member), start, start + member.size))
        elif kind == "txt":
            sample.text = _bytes(tar, member)
        elif kind == "json":
            sample.meta = _bytes(tar, member)
    if sample.audio:
        yield sample


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"unexpected end of data in {member.name}")
    return data


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> AudioOpener:
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
    base = posixpath.dirname(uri)
    try:
        with storage.open_read(uri) as file:
            table = pq.ParquetFile(file)
            groups = range(part["start"] or 0, table.num_row_groups if part["end"] is None else part["end"])
            row = sum(table.metadata.row_group(index).num_rows for index in range(part["start"] or 0))
            for batch in table.iter_batches(batch_size=64, row_groups=list(groups)):
                for values in batch.to_pylist():
                    yield _parquet_row(values, uri, base, row, part["bytes"] // max(part["rows"] or 1, 1))
                    row += 1
    except (pa.ArrowInvalid, OSError) as error:  # Arrow's words for a broken file; storage raises StorageError
        problem = AudioError(ErrorCode.BAD_ARCHIVE, str(error))
        yield Utterance(stem(posixpath.basename(uri)), uri, bytes, problem=problem)


def _parquet_row(values: dict[str, Any], uri: str, base: str, row: int, size: int) -> Utterance:
    where = f"{uri}, row {row}"
    audio = values.pop("audio")
    path, data = (audio, None) if isinstance(audio, str) else ((audio or {}).get("path"), (audio or {}).get("bytes"))
    fallback = stem(path) if path else f"{stem(posixpath.basename(uri))}/{row}"
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
    return Utterance(meta.utt_id or fallback, uri, opener, size, meta=meta, fixed_id=meta.utt_id is not None)


_READERS: dict[str, Callable[[dict[str, Any]], Iterator[Utterance]]] = {
    "files": _files,
    "manifest": _manifest,
    "tar": _tar,
    "parquet": _parquet,
}
