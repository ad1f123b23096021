"""From INPUTs to parts: what there is to read, cut into contiguous slices, without decoding any audio.

A part is the unit of planning and retry. Its id is a digest of what it reads (URI, range, size and version), so a
stored plan says exactly what was meant, and an object that has changed since is noticed when it is read.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import posixpath
import tarfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from tarfile import HeaderError, ReadError
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.manifest import ManifestRow, manifest_utt_id, parse_meta, stem, unique_key
from pipeline.errors import AudioError, UsageError
from pipeline.storage import globs, objects, uris
from pipeline.storage.objects import Object

_AUDIO_SUFFIXES = """
    wav flac mp3 ogg oga opus aif aiff aifc au snd caf w64 rf64 wv sph nist voc
    m4a m4b mp4 aac webm mka mkv wma amr 3gp mov
"""
AUDIO_SUFFIXES = frozenset(_AUDIO_SUFFIXES.split())
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MANIFEST_SUFFIXES = ("jsonl", "json", "ndjson")

MAX_PART_ITEMS = 10_000
TAR_BUFFER_BYTES = 2**20
# What a manifest row without `duration` counts for when parts are sized: ten seconds of 16-bit audio at 16 kHz.
UNKNOWN_ROW_BYTES = 320_000
BYTES_A_SECOND = 32_000
MAX_ROW_SECONDS = 1e6  # whatever a row says of itself

# What a shard raises that is no sound archive.
TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error)

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
        pa.field("name", pa.string(), metadata={"meaning": "path of `uri` relative to its INPUT, without extension"}),
        pa.field("version", pa.string(), metadata={"meaning": "size and ETag or mtime of `uri`; null for a manifest"}),
        pa.field(
            "start", pa.int64(), metadata={"meaning": "first byte of a manifest, first row group of a Parquet file"}
        ),
        pa.field("end", pa.int64(), metadata={"meaning": "one past the last"}),
        pa.field("items", pa.list_(ITEM), nullable=False, metadata={"meaning": "the files, where `kind` is files"}),
        pa.field("rows", pa.int64(), metadata={"meaning": "utterances in it, where known without reading it"}),
        pa.field("limit", pa.int64(), metadata={"meaning": "read no more utterances than this"}),
        pa.field(
            "bytes", pa.int64(), nullable=False, metadata={"meaning": "size, measured or estimated", "unit": "bytes"}
        ),
        pa.field("duplicates", pa.list_(DUPLICATE), nullable=False, metadata={"meaning": "rows whose utt_id is taken"}),
    ],
    metadata={"sewd.table": "plan"},
)


_NONE = array("Q")  # one for all parts without, never to be changed: a million empty ones are 160 MB


@dataclass(frozen=True)
class Part:
    """One row of the plan; see `PLAN` for the columns."""

    kind: str
    bytes: int
    uri: str | None = None
    name: str | None = None
    version: str | None = None
    start: int | None = None
    end: int | None = None
    items: tuple[dict[str, Any], ...] = ()
    rows: int | None = None
    limit: int | None = None
    content: str = ""  # digest of the rows themselves, for a manifest
    # What must be unique, one 64-bit digest a row where ids are known, and for a manifest each row's first byte: 16
    # bytes an utterance, so that millions of rows stay cheap.
    keys: array[int] = field(default_factory=lambda: _NONE, repr=False)
    offsets: array[int] = field(default_factory=lambda: _NONE, repr=False)

    @functools.cached_property
    def part_id(self) -> str:
        """Digest of what the part reads: 80 bits, so that a million parts collide with probability 4e-13."""
        digest = hashlib.sha256()
        for value in (self.kind, self.uri, self.version, self.start, self.end, self.limit, self.content):
            digest.update(f"{value}\0".encode())
        for item in self.items:
            digest.update("\0".join(str(item[name]) for name in ITEM.names).encode() + b"\n")
        return digest.hexdigest()[:20]

    def place(self, row: int) -> str:
        """Where the row is, in words that `pipeline.corpus.sources` uses too."""
        return self.items[row]["uri"] if self.items else row_place(str(self.uri), self.offsets[row])


def row_place(manifest: str, offset: int) -> str:
    """Where a row of a manifest is."""
    return f"{manifest}, row at byte {offset}"


def manifest_content(rows: Iterable[bytes]) -> str:
    """Digest of the rows of a manifest part."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.strip() + b"\n")
    return digest.hexdigest()


def plan(inputs: Iterable[str], part_bytes: int, limit: int | None = None) -> pa.Table:
    """List every INPUT and cut it into parts of about `part_bytes`.

    Args:
        inputs: files, directories, globs, manifests (.jsonl), tar shards, Parquet files; any fsspec URI.
        part_bytes: a part closes at this size; a shard, or a Parquet row group, is never divided.
        limit: plan only the first `limit` utterances.

    Returns:
        A table of schema `PLAN`, in the order of the inputs and of the paths below each. Rows whose utt_id is taken are
        marked, where ids are known without reading the audio: among files and manifests.

    Raises:
        UsageError: an INPUT is not there, or holds no audio.
        StorageError: an INPUT cannot be reached.
    """
    parts: dict[str, Part] = {}
    left = limit
    for uri in dict.fromkeys(uris.absolute(uri) for uri in inputs):
        if left is not None and left <= 0:
            break
        found = False
        for part in _input_parts(uri, part_bytes, left):
            found = True
            read = (part if part.limit is None else replace(part, limit=None)).part_id
            if read in parts:
                continue  # INPUTs that overlap: equal ids are equal reads
            parts[read] = part
            if left is not None:
                left -= part.rows or 0
        if not found:
            raise UsageError(
                f"no audio in {uri}: looked for audio files, .tar shards, .parquet files and .jsonl manifests"
            )
    return _table(list(parts.values()))


def _table(parts: list[Part]) -> pa.Table:
    duplicates = _duplicates(parts)
    none: list[dict[str, Any]] = []
    columns = {
        "ordinal": pa.array(range(len(parts)), pa.int32()),
        "duplicates": pa.array([duplicates.get(i, none) for i in range(len(parts))], PLAN.field("duplicates").type),
    }
    for name in [name for name in PLAN.names if name not in columns]:
        columns[name] = pa.array([getattr(part, name) for part in parts], PLAN.field(name).type)
    return pa.table(columns, PLAN)


def _key_digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _duplicates(parts: list[Part]) -> dict[int, list[dict[str, Any]]]:
    """For each part, its rows whose key an earlier row has taken, and where that row is."""
    ends = np.cumsum([len(part.keys) for part in parts])
    keys = np.concatenate(
        [np.zeros(0, np.uint64), *(np.frombuffer(part.keys, np.uint64) for part in parts if part.keys)]
    )
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    first = first[inverse]
    found: dict[int, list[dict[str, Any]]] = {}
    for position in np.flatnonzero(first != np.arange(len(keys))).tolist():
        ordinal, row = _locate(position, ends)
        other, other_row = _locate(int(first[position]), ends)
        found.setdefault(ordinal, []).append({"row": row, "first": parts[other].place(other_row)})
    return found


def _locate(position: int, ends: np.ndarray) -> tuple[int, int]:
    """(part, row in it) of a position among the keys of all parts; parts without keys hold none."""
    ordinal = int(np.searchsorted(ends, position, side="right"))
    return ordinal, position - int(ends[ordinal - 1] if ordinal else 0)


def suffix(path: str) -> str:
    """The extension, lower case, without its dot."""
    return posixpath.splitext(path)[1].lower().removeprefix(".")


def _kind(uri: str) -> str | None:
    if uri.lower().endswith(TAR_SUFFIXES):
        return "tar"
    if suffix(uri) == "parquet":
        return "parquet"
    return "files" if suffix(uri) in AUDIO_SUFFIXES else None


def _input_parts(uri: str, part_bytes: int, limit: int | None) -> Iterator[Part]:
    try:
        found = objects.stat(uri)
    except FileNotFoundError as error:
        if not globs.is_glob(uri):
            raise UsageError(f"no such file or directory: {uri}") from error
        yield from _glob_parts(uri, part_bytes, limit)
        return
    if found is None:
        yield from _listed_parts(objects.list_objects(uri), [], uri, part_bytes, limit)
    elif suffix(uri) in MANIFEST_SUFFIXES:
        yield from _manifest_parts(found, part_bytes, limit)
    elif _kind(uri) in ("tar", "parquet"):
        yield from _listed_parts([found], [], posixpath.dirname(uri), part_bytes, limit)
    else:
        beside = {reference for reference in _reference_uris(uri) if objects.exists(reference)}
        yield from _file_parts([found], posixpath.dirname(uri), beside, part_bytes, limit)


def _glob_parts(pattern: str, part_bytes: int, limit: int | None) -> Iterator[Part]:
    objects, beside = globs.glob_and_beside(pattern)
    if suffix(pattern) not in MANIFEST_SUFFIXES:
        yield from _listed_parts(objects, beside, globs.glob_root(pattern), part_bytes, limit)
        return
    for manifest in objects:
        for part in _manifest_parts(manifest, part_bytes, limit):
            yield part
            limit = None if limit is None else limit - (part.rows or 0)
        if limit is not None and limit <= 0:
            return


def is_hidden(path: str) -> bool:
    """Has the relative `path` a part that begins with a dot: nobody means such files, of editors, systems and caches.

    One that begins with `_` is as good as any: identifiers of videos do.
    """
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def _below(uri: str, root: str) -> str:
    return uri.removeprefix(root.rstrip("/") + "/")


def _listed_parts(
    objects: list[Object], beside: list[Object], root: str, part_bytes: int, limit: int | None
) -> Iterator[Part]:
    """Audio files, shards and Parquet files in the order of their paths; what is none of these is passed over.

    References are looked for among `beside` too.
    """
    visible = [found for found in objects if not is_hidden(_below(found.uri, root))]
    names = {found.uri for found in (*visible, *beside)}
    # Side-cars and the like lie between the files in path order: taken out first, or each would end a part.
    readable = ((kind, found) for found in visible if (kind := _kind(found.uri)) is not None)
    left = limit
    for kind, group in itertools.groupby(readable, key=lambda pair: pair[0]):
        for part in _kind_parts(kind, [found for _, found in group], root, names, part_bytes, left):
            yield part
            left = None if left is None else left - (part.rows or 0)
        if left is not None and left <= 0:
            return


def _kind_parts(
    kind: str, objects: list[Object], root: str, names: set[str], part_bytes: int, limit: int | None
) -> Iterator[Part]:
    if kind == "files":
        yield from _file_parts(objects, root, names, part_bytes, limit)
        return
    for found in objects:
        whole = Part(kind, found.size, found.uri, stem(_below(found.uri, root)), found.version)
        for part in _parquet_parts(whole, part_bytes, limit) if kind == "parquet" else [_tar_part(whole, limit)]:
            yield part
            limit = None if limit is None else limit - (part.rows or 0)
        if limit is not None and limit <= 0:
            return


def _file_parts(files: list[Object], root: str, names: set[str], part_bytes: int, limit: int | None) -> Iterator[Part]:
    files = files if limit is None else files[: max(limit, 0)]
    for start, end in _slices([file.size for file in files], part_bytes):
        items: tuple[dict[str, Any], ...] = tuple(
            {
                "utt_id": stem(_below(file.uri, root)),
                "uri": file.uri,
                "size": file.size,
                "version": file.version,
                "reference_uri": next((uri for uri in _reference_uris(file.uri) if uri in names), None),
            }
            for file in files[start:end]
        )
        yield Part(
            kind="files",
            bytes=sum(item["size"] for item in items),
            items=items,
            rows=len(items),
            keys=array("Q", [_key_digest(item["utt_id"]) for item in items]),
        )


def _reference_uris(uri: str) -> Iterator[str]:
    """Where a reference may be, best first: `NAME.txt`, then LibriSpeech's `*.trans.txt` whose name begins it."""
    directory, name = posixpath.split(stem(uri))
    yield posixpath.join(directory, f"{name}.txt")
    while "-" in name:
        name = name.rpartition("-")[0]
        yield posixpath.join(directory, f"{name}.trans.txt")


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


@dataclass
class _Rows:
    """Rows of a manifest that are gathered into a part."""

    uri: str
    rows: list[bytes] = field(default_factory=list)
    keys: array[int] = field(default_factory=lambda: array("Q"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    size: int = 0

    def add(self, offset: int, line: bytes) -> None:
        key, size = _manifest_row(line, posixpath.dirname(self.uri), row_place(self.uri, offset))
        self.rows.append(line)
        self.keys.append(_key_digest(key))
        self.offsets.append(offset)
        self.size += size

    def part(self) -> Part:
        return Part(
            kind="manifest",
            bytes=self.size,
            uri=self.uri,
            start=self.offsets[0],
            end=self.offsets[-1] + len(self.rows[-1]),
            rows=len(self.rows),
            content=manifest_content(self.rows),
            keys=self.keys,
            offsets=self.offsets,
        )


def _manifest_parts(manifest: Object, part_bytes: int, limit: int | None) -> Iterator[Part]:
    rows, total = _Rows(manifest.uri), 0
    for offset, line in objects.lines(manifest.uri):
        if not line.strip():
            continue
        rows.add(offset, line)
        total += 1
        if rows.size >= part_bytes or len(rows.rows) >= MAX_PART_ITEMS or total == limit:
            yield rows.part()
            rows = _Rows(manifest.uri)
        if total == limit:
            return
    if rows.rows:
        yield rows.part()


def _manifest_row(line: bytes, base: str, fallback: str) -> tuple[str, int]:
    """(what must be unique, estimated bytes). A line that does not parse becomes an error row when it is read."""
    try:
        row: ManifestRow = parse_meta(line, "", ManifestRow)
    except AudioError:
        return f"\0{fallback}", 0
    seconds = 0.0 if row.duration is None else min(max(row.duration, 0.0), MAX_ROW_SECONDS)
    size = UNKNOWN_ROW_BYTES if row.duration is None else int(seconds * BYTES_A_SECOND)
    return unique_key(manifest_utt_id(row, base), row), size


class _StrictTarInfo(tarfile.TarInfo):
    """Ends an archive at its end mark alone: tarfile takes a header that is broken, cut off or missing for it, too."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed has forgotten it
            raise
        except HeaderError as error:
            raise ReadError(f"broken off or damaged at byte {archive.offset}: {error}") from error


def open_tar(file: BinaryIO) -> tuple[tarfile.TarFile, bool]:
    """The shard in `file`, to be read as a stream, and whether it is compressed.

    Raises:
        tarfile.TarError: it is none.
    """
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    buffered = io.BufferedReader(file, TAR_BUFFER_BYTES)  # type: ignore[type-var]  # tarfile asks for 10 KiB a time
    # A name that is not UTF-8 is written so that Arrow can hold it.
    tar = tarfile.open(  # noqa: SIM115 - the caller closes it
        fileobj=buffered,
        mode="r|gz" if compressed else "r|",
        tarinfo=_StrictTarInfo,
        encoding="utf-8",
        errors="backslashreplace",
    )
    return tar, compressed


def tar_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that matter, in order: files and links that are not hidden.

    Raises:
        tarfile.TarError: the archive breaks off.
    """
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all, 1 GB for a shard of a million
        if (member.isfile() or member.islnk() or member.issym()) and not is_hidden(member.name):
            yield member


def _tar_part(shard: Part, limit: int | None) -> Part:
    # Only a limit makes it worth reading a shard's headers here: they are spread over the whole object.
    return shard if limit is None else replace(shard, limit=limit, rows=_count_audio(str(shard.uri), limit))


def _count_audio(uri: str, enough: int) -> int:
    count = 0
    try:
        with objects.open_read(uri) as file, open_tar(file)[0] as tar:
            for member in tar_members(tar):
                count += suffix(member.name) in AUDIO_SUFFIXES
                if count >= enough:
                    break
    except TAR_ERRORS:
        return min(count + 1, enough)  # reading it will say so in a row
    return count


def _parquet_parts(whole: Part, part_bytes: int, limit: int | None) -> Iterator[Part]:
    try:
        with objects.open_read(str(whole.uri)) as source:
            metadata = pq.ParquetFile(source).metadata
            schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError):
        yield whole if limit is None else replace(whole, rows=1, limit=limit)  # reading it will say so in a row
        return
    _check_audio_column(schema, str(whole.uri))
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


def _check_audio_column(schema: pa.Schema, uri: str) -> None:
    if "audio" not in schema.names:
        raise UsageError(f"{uri} has no column `audio`; its columns are {', '.join(sorted(schema.names))}")
    kind = schema.field("audio").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    members = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not (members & {"bytes", "path"} or any(test(kind) for test in plain)):
        raise UsageError(
            f"{uri}: column `audio` is {kind}; it must be a path, bytes, or a struct of `bytes` and `path`"
        )
