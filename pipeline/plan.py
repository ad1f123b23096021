"""From INPUTs to parts: what there is to read, cut into contiguous slices, without decoding any audio.

A part is the unit of planning and retry. Its id is a digest of what it reads (URI, range, size and version), so a stored
plan says exactly what was meant, and an object that has changed since is noticed when it is read.
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import AudioError, UsageError
from pipeline.manifest import ManifestRow, manifest_utt_id, parse_meta, stem
from pipeline.storage import Object

AUDIO_SUFFIXES = frozenset(
    "wav flac mp3 ogg oga opus aif aiff aifc au snd caf w64 rf64 wv sph nist voc "
    "m4a m4b mp4 aac webm mka mkv wma amr 3gp mov".split()
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MANIFEST_SUFFIXES = ("jsonl", "json", "ndjson")

MAX_PART_ITEMS = 10_000
# What a manifest row without `duration` counts for when parts are sized: ten seconds of 16-bit audio at 16 kHz.
UNKNOWN_ROW_BYTES = 320_000
BYTES_A_SECOND = 32_000

ITEM = pa.struct(
    [
        pa.field("utt_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("reference_uri", pa.string()),
    ]
)
DUPLICATE = pa.struct([pa.field("row", pa.int32(), nullable=False), pa.field("first", pa.string(), nullable=False)])
PLAN = pa.schema(
    [
        pa.field("part_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False, metadata={"meaning": "files, manifest, tar or parquet"}),
        pa.field("uri", pa.string(), metadata={"meaning": "the manifest, shard or Parquet file; null for files"}),
        pa.field("version", pa.string(), metadata={"meaning": "size and ETag or mtime of `uri`"}),
        pa.field("start", pa.int64(), metadata={"meaning": "first byte of a manifest, first row group of a Parquet file"}),
        pa.field("end", pa.int64(), metadata={"meaning": "one past the last"}),
        pa.field("items", pa.list_(ITEM), nullable=False, metadata={"meaning": "the files, where `kind` is files"}),
        pa.field("rows", pa.int64(), metadata={"meaning": "utterances in it, where known without reading it"}),
        pa.field("limit", pa.int64(), metadata={"meaning": "read no more utterances than this"}),
        pa.field("bytes", pa.int64(), nullable=False, metadata={"meaning": "size, measured or estimated", "unit": "bytes"}),
        pa.field("duplicates", pa.list_(DUPLICATE), nullable=False, metadata={"meaning": "rows whose utt_id is taken"}),
    ],
    metadata={"sewd.table": "plan"},
)


@dataclass(frozen=True)
class Part:
    """One row of the plan; see `PLAN` for the columns."""

    kind: str
    bytes: int
    uri: str | None = None
    version: str | None = None
    start: int | None = None
    end: int | None = None
    items: tuple[dict[str, Any], ...] = ()
    rows: int | None = None
    limit: int | None = None
    content: str = ""  # digest of the rows themselves, for a manifest
    keys: tuple[str, ...] = field(default=(), repr=False)  # what must be unique: one a row, where known

    @property
    def part_id(self) -> str:
        """Digest of what the part reads: 80 bits, so that a million parts collide with probability 4e-13."""
        digest = hashlib.sha256()
        for value in (self.kind, self.uri, self.version, self.start, self.end, self.limit, self.content):
            digest.update(f"{value}\0".encode())
        for item in self.items:
            digest.update("\0".join(str(item[name]) for name in ITEM.names).encode() + b"\n")
        return digest.hexdigest()[:20]


def plan(inputs: Iterable[str], part_bytes: int, limit: int | None = None) -> pa.Table:
    """List every INPUT and cut it into parts of about `part_bytes`.

    Args:
        inputs: files, directories, globs, manifests (.jsonl), tar shards, Parquet files; any fsspec URI.
        part_bytes: a part closes at this size; a shard, or a Parquet row group, is never divided.
        limit: plan only the first `limit` utterances.

    Returns:
        A table of schema `PLAN`, in the order of the inputs and of the paths below each.

    Raises:
        UsageError: an INPUT is not there, or holds no audio.
        StorageError: an INPUT cannot be reached.
    """
    parts: list[Part] = []
    left = limit
    for uri in inputs:
        before = len(parts)
        for part in _input_parts(storage.absolute(uri), part_bytes, left):
            parts.append(part)
            if left is not None:
                left -= part.rows or 0
        if left is not None and left <= 0:
            break
        if len(parts) == before:
            raise UsageError(f"no audio in {uri}: looked for audio files, .tar shards, .parquet files and .jsonl manifests")
    # An INPUT that is given twice is read once: equal ids are equal reads.
    return _table(list({part.part_id: part for part in reversed(parts)}.values())[::-1])


def _table(parts: list[Part]) -> pa.Table:
    duplicates = _duplicates(parts)
    rows = [
        {
            "part_id": part.part_id,
            "ordinal": ordinal,
            **{n: getattr(part, n) for n in ("kind", "uri", "version", "start", "end", "rows", "limit", "bytes")},
            "items": list(part.items),
            "duplicates": duplicates.get(ordinal, []),
        }
        for ordinal, part in enumerate(parts)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def _duplicates(parts: list[Part]) -> dict[int, list[dict[str, Any]]]:
    """For each part, its rows whose key an earlier row has taken, and where that row is.

    Keys are compared as 64-bit digests in one array, 8 bytes an utterance, so that millions of rows stay cheap.
    """
    digests = array("Q")
    starts = array("Q")
    for part in parts:
        starts.append(len(digests))
        digests.extend(int.from_bytes(hashlib.blake2b(k.encode(), digest_size=8).digest(), "little") for k in part.keys)
    keys = np.frombuffer(digests, dtype=np.uint64) if digests else np.zeros(0, np.uint64)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(keys)))
    offsets = np.frombuffer(starts, dtype=np.uint64) if starts else np.zeros(0, np.uint64)

    def locate(position: int) -> tuple[int, int]:
        # Parts without known keys share their start with the next part: `right` takes the last, the one that has keys.
        ordinal = int(np.searchsorted(offsets, position, side="right")) - 1
        return ordinal, position - int(offsets[ordinal])

    rows_before: list[int] = []  # rows of the same manifest in earlier parts
    totals: dict[str | None, int] = {}
    for part in parts:
        rows_before.append(totals.get(part.uri, 0))
        totals[part.uri] = rows_before[-1] + (part.rows or 0)
    found: dict[int, list[dict[str, Any]]] = {}
    for position in repeated.tolist():
        ordinal, row = locate(position)
        other, other_row = locate(int(first[inverse[position]]))
        owner = parts[other]
        where = owner.items[other_row]["uri"] if owner.items else f"{owner.uri}, row {rows_before[other] + other_row + 1}"
        found.setdefault(ordinal, []).append({"row": row, "first": where})
    return found


def suffix(path: str) -> str:
    """The extension, lower case, without its dot."""
    return posixpath.splitext(path)[1].lower().removeprefix(".")


def _input_parts(uri: str, part_bytes: int, limit: int | None) -> Iterator[Part]:
    if any(mark in uri for mark in "*?["):
        objects = storage.glob_objects(uri)
        fixed = uri[: min(uri.index(mark) for mark in "*?[" if mark in uri)]
        yield from _listed_parts(objects, posixpath.dirname(fixed), part_bytes, limit)
        return
    try:
        found = storage.stat(uri)
    except FileNotFoundError as error:
        raise UsageError(f"no such file or directory: {uri}") from error
    if found is None:
        yield from _listed_parts(storage.list_objects(uri), uri, part_bytes, limit)
    elif suffix(uri) in MANIFEST_SUFFIXES:
        yield from _manifest_parts(found, part_bytes, limit)
    elif uri.endswith(TAR_SUFFIXES) or suffix(uri) == "parquet":
        yield from _listed_parts([found], posixpath.dirname(uri), part_bytes, limit)
    else:
        directory = posixpath.dirname(found.uri)
        beside = {o.uri for o in storage.glob_objects(storage.join(directory, "*.trans.txt"))}
        beside |= {o.uri for o in storage.glob_objects(stem(found.uri) + ".txt")}
        yield from _file_parts([found], directory, beside, part_bytes, limit)


def _listed_parts(objects: list[Object], root: str, part_bytes: int, limit: int | None) -> Iterator[Part]:
    """Shards and Parquet files one by one, then the audio files; what is neither is passed over."""
    visible = [o for o in objects if not posixpath.basename(o.uri).startswith((".", "_"))]
    left = limit
    for shard in visible:
        if left is not None and left <= 0:
            return
        if shard.uri.endswith(TAR_SUFFIXES):
            found = [_tar_part(shard, left)]
        elif suffix(shard.uri) == "parquet":
            found = list(_parquet_parts(shard, part_bytes, left))
        else:
            continue
        yield from found
        left = None if left is None else left - sum(part.rows or 0 for part in found)
    files = [o for o in visible if suffix(o.uri) in AUDIO_SUFFIXES]
    yield from _file_parts(files, root, {o.uri for o in visible}, part_bytes, left)


def _file_parts(
    files: list[Object], root: str, names: set[str], part_bytes: int, limit: int | None
) -> Iterator[Part]:
    transcripts: dict[str, list[str]] = {}  # directory -> its LibriSpeech *.trans.txt
    for name in sorted(names):
        if name.endswith(".trans.txt"):
            transcripts.setdefault(posixpath.dirname(name), []).append(name)
    files = files if limit is None else files[: max(limit, 0)]
    items = [
        {
            "utt_id": stem(file.uri.removeprefix(root.rstrip("/") + "/")),
            "uri": file.uri,
            "size": file.size,
            "version": file.version,
            "reference_uri": _reference_uri(file.uri, names, transcripts),
        }
        for file in files
    ]
    for start, end in _slices([item["size"] for item in items], part_bytes):
        run = tuple(items[start:end])
        yield Part(
            kind="files",
            bytes=sum(item["size"] for item in run),
            items=run,
            rows=len(run),
            keys=tuple(item["utt_id"] for item in run),
        )


def _reference_uri(uri: str, names: set[str], transcripts: dict[str, list[str]]) -> str | None:
    """The side-car `NAME.txt`, else the LibriSpeech `*.trans.txt` whose name begins the file's, in the same directory."""
    if (sidecar := stem(uri) + ".txt") in names:
        return sidecar
    beside = transcripts.get(posixpath.dirname(uri), [])
    fitting = [name for name in beside if stem(uri).startswith(name.removesuffix(".trans.txt") + "-")]
    return max(fitting, key=len, default=None)


def _slices(sizes: list[int], part_bytes: int) -> Iterator[tuple[int, int]]:
    """Contiguous ranges, each closed as soon as it holds `part_bytes` or MAX_PART_ITEMS."""
    start = total = 0
    for index, size in enumerate(sizes):
        total += size
        if total >= part_bytes or index + 1 - start >= MAX_PART_ITEMS:
            yield start, index + 1
            start, total = index + 1, 0
    if start < len(sizes):
        yield start, len(sizes)


def _manifest_parts(manifest: Object, part_bytes: int, limit: int | None) -> Iterator[Part]:
    base = posixpath.dirname(manifest.uri)
    digest, keys, size, rows, start, end = hashlib.sha256(), [], 0, 0, 0, 0

    def close() -> Part:
        return Part(
            kind="manifest",
            bytes=size,
            uri=manifest.uri,
            start=start,
            end=end,
            rows=rows,
            content=digest.hexdigest(),
            keys=tuple(keys),
        )

    for offset, line in storage.lines(manifest.uri):
        if not line.strip():
            continue
        if rows == 0:
            start = offset
        end = offset + len(line)
        digest.update(line)
        key, bytes_ = _manifest_row(line, base, f"{offset}")
        keys.append(key)
        size += bytes_
        rows += 1
        full = size >= part_bytes or rows >= MAX_PART_ITEMS
        if limit is not None:
            limit -= 1
            full = full or limit <= 0
        if full:
            yield close()
            digest, keys, size, rows = hashlib.sha256(), [], 0, 0
            if limit is not None and limit <= 0:
                return
    if rows:
        yield close()


def _manifest_row(line: bytes, base: str, fallback: str) -> tuple[str, int]:
    """(what must be unique, estimated bytes). A line that does not parse becomes an error row when it is read."""
    try:
        row: ManifestRow = parse_meta(line, "", ManifestRow)
    except AudioError:
        return f"\0{fallback}", 0
    key = manifest_utt_id(row, base)
    if row.utt_id is None and row.span is not None:
        key = f"{key}\0{row.span}"  # pieces of one recording: their ids end in #start-end once it is read
    return key, UNKNOWN_ROW_BYTES if row.duration is None else int(row.duration * BYTES_A_SECOND)


def _tar_part(shard: Object, limit: int | None) -> Part:
    part = Part(kind="tar", bytes=shard.size, uri=shard.uri, version=shard.version)
    # Only a limit makes it worth reading a shard's headers here: they are spread over the whole object.
    return part if limit is None else replace(part, limit=limit, rows=_count_audio(shard.uri, limit))


def _count_audio(uri: str, enough: int) -> int:
    count = 0
    try:
        with storage.open_read(uri) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                count += member.isfile() and suffix(member.name) in AUDIO_SUFFIXES
                if count >= enough:
                    break
    except tarfile.TarError:
        return count  # reading it will say so in a row
    return count


def _parquet_parts(file: Object, part_bytes: int, limit: int | None) -> Iterator[Part]:
    whole = Part(kind="parquet", bytes=file.size, uri=file.uri, version=file.version)
    try:
        with storage.open_read(file.uri) as source:
            metadata = pq.ParquetFile(source).metadata
            names = set(metadata.schema.to_arrow_schema().names)
    except (pa.ArrowInvalid, OSError):
        yield whole  # reading it will say so in a row
        return
    if "audio" not in names:
        raise UsageError(f"{file.uri} has no column `audio`; its columns are {', '.join(sorted(names))}")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    for start, end in _slices([group.total_byte_size for group in groups], part_bytes):
        rows = sum(group.num_rows for group in groups[start:end])
        size = sum(group.total_byte_size for group in groups[start:end])
        part = replace(whole, start=start, end=end, rows=rows, bytes=size)
        if limit is not None:
            part = replace(part, limit=limit, rows=min(rows, limit))
            limit -= part.rows or 0
        yield part
        if limit is not None and limit <= 0:
            return
