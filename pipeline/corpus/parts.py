"""A part: the unit of planning and retry, as the planner makes it and as it is stored in the plan.

The id of a part is a digest of what it reads (URI, range, size and version), so a stored plan states exactly what was
meant, and an object that has changed since is noticed when it is read. A part that an update of the run planned has the
number of the update behind the digest: what is done again has another id than what it replaces.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from sewd_model.grouping import grouped

MAX_PART_ITEMS = 10_000  # files or manifest rows
_TABLE_BATCH_ITEMS = 1 << 16  # parts and files

T = TypeVar("T")
_Bytes = bytes  # `Part` has a field of that name

ITEM = pa.struct(
    [
        pa.field("utt_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("reference_uri", pa.string()),
        pa.field("reference_version", pa.string()),
    ]
)
_DIGESTED = 5  # fields of an item that are in the digest of its part
DUPLICATE = pa.struct([pa.field("row", pa.int32(), nullable=False), pa.field("first", pa.string(), nullable=False)])


def _field(name: str, kind: pa.DataType, meaning: str, nullable: bool = True, **metadata: str) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning, **metadata})


PLAN = pa.schema(
    [
        pa.field("part_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        _field("kind", pa.string(), "input layout: files, manifest, table, tar, tar_rows or parquet", nullable=False),
        _field("uri", pa.string(), "the manifest, shard or Parquet file; null for files"),
        _field("name", pa.string(), "path of `uri` relative to its INPUT, without extension; tar_rows: their manifest"),
        _field("version", pa.string(), "size and ETag or mtime of `uri`; null for a manifest"),
        _field("start", pa.int64(), "first byte of a manifest or shard, row of a table, row group of a Parquet file"),
        _field("end", pa.int64(), "one past the last byte, row or row group; null: to the end"),
        _field("items", pa.list_(ITEM), "the files, where `kind` is files", nullable=False),
        _field("rows", pa.int64(), "number of utterances, where known without reading the part"),
        _field("lines", pa.binary(), "rows as JSON lines, compressed by zlib, where `kind` is table or tar_rows"),
        _field("state", pa.string(), "what reading a shard or Parquet file depends on besides its bytes, as JSON"),
        _field("limit", pa.int64(), "read no more utterances than this"),
        _field("bytes", pa.int64(), "size, measured or estimated", nullable=False, unit="bytes"),
        _field("duplicates", pa.list_(DUPLICATE), "rows whose utt_id an earlier row of the plan has", nullable=False),
        _field("update", pa.int32(), "number of the update that planned it; null: planned when the run was created"),
        _field("retry", pa.list_(pa.string()), "utterances to do again; the other rows are carried over; null: all"),
        _field("retry_of", pa.string(), "id of the part whose failed rows it does again; null for other parts"),
    ],
    metadata={"sewd.table": "plan"},
)


class Item(NamedTuple):
    """One audio file of a part.

    Attributes:
        utt_id: its id.
        uri: where it is.
        size: bytes.
        version: changes with its content; see `pipeline.storage.reads.Object`.
        reference_uri: the text file that holds its reference; None if there is none.
        reference_version: changes with the content of that file; None: there is none, or a version planned it that did
            not look.
    """

    utt_id: str
    uri: str
    size: int
    version: str
    reference_uri: str | None
    reference_version: str | None = None


class Duplicate(NamedTuple):
    """A row of a part whose id is taken.

    Attributes:
        row: 0-based, in the part.
        first: where the earlier row with this id is.
    """

    row: int
    first: str


_NO_KEYS = array("Q")  # shared by all parts without keys, and never changed: a million empty arrays take 160 MB


@dataclass(frozen=True, slots=True)
class Part:
    """One row of the plan; see `PLAN` for the columns that are not described here.

    Attributes:
        kind: the name of its input layout.
        bytes: size, measured or estimated.
        uri: the container; empty for files.
        name: path of `uri` relative to its INPUT, without extension; empty for files and manifests; where the rows of a
            manifest name members of `uri`, the URI of the manifest.
        part_id: digest of what the part reads, and the number of the update. Computed when a part is planned; a part of
            a stored plan keeps its own.
        update: number of the update that planned it; 0: it was planned when the run was created.
        retry: ids of the utterances that are done again (`pipeline.runs.retry`); empty: all that there are.
        retry_of: id of the part whose failed rows it does again; empty for other parts.
        content: while planning, digest of the rows of a manifest.
        keys: while planning, a 64-bit digest of each row's unique key, where ids are known without reading the part.
        offsets: while planning, the first byte of each row of a manifest; where `lines` are rows of one, the number of
            each. With `keys` 16 bytes a row, so that millions of rows fit into memory.
        ranges: while planning, the first byte of each row of a shard, and one past its last.
        ahead: while reading, how many small objects of a store may be fetched before their turn.
        sizes: while planning, the share of each row of a table in `bytes`.
        earlier_rules: while reading, make ids and rows as version 0.1.0 did, which began the run.
    """

    kind: str
    bytes: int
    uri: str = ""
    name: str = ""
    version: str | None = None
    start: int | None = None
    end: int | None = None
    items: tuple[Item, ...] = ()
    rows: int | None = None
    lines: _Bytes = field(default=b"", repr=False)
    state: str = field(default="", repr=False)
    limit: int | None = None
    duplicates: tuple[Duplicate, ...] = ()
    part_id: str = ""
    update: int = 0
    retry: tuple[str, ...] = ()
    retry_of: str = ""
    content: str = field(default="", repr=False, compare=False)
    keys: array[int] = field(default_factory=lambda: _NO_KEYS, repr=False, compare=False)
    offsets: array[int] = field(default_factory=lambda: _NO_KEYS, repr=False, compare=False)
    ranges: array[int] = field(default_factory=lambda: _NO_KEYS, repr=False, compare=False)
    sizes: array[int] = field(default_factory=lambda: _NO_KEYS, repr=False, compare=False)
    earlier_rules: bool = field(default=False, repr=False, compare=False)
    ahead: int = field(default=0, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.part_id:
            object.__setattr__(self, "part_id", self._digest())

    def _digest(self) -> str:
        """80 bits, so that two of a million parts collide with probability 4e-13. Stored in plans: never change it."""
        values = (self.kind, self.uri or None, self.version, self.start, self.end, self.limit, self.content)
        text = "".join(f"{value}\0" for value in values)
        items = "".join("\0".join(map(str, item[:_DIGESTED])) + "\n" for item in self.items)
        digest = hashlib.sha256((text + items).encode()).hexdigest()[:20]
        return f"{digest}{self.update:x}" if self.update else digest

    @property
    def content_id(self) -> str:
        """The id without the number of the update: equal for parts that read the same."""
        return self.part_id.removesuffix(f"{self.update:x}") if self.update else self.part_id

    def planned_by(self, update: int) -> Part:
        """The same part, planned by the update of this number, under an id of its own."""
        part_id = f"{self.content_id}{update:x}" if update else self.content_id
        return replace(self, part_id=part_id, update=update)

    @property
    def unlimited_id(self) -> str:
        """While planning, the id of the part that reads the same without `limit`."""
        return self.part_id if self.limit is None else replace(self, limit=None, part_id="").part_id

    @staticmethod
    def from_row(row: Mapping[str, Any], earlier_rules: bool = False, ahead: int = 0) -> Part:
        """The part in a row of the plan. Columns that are not in `PLAN` are ignored."""
        return Part(
            kind=row["kind"],
            bytes=row["bytes"],
            uri=row["uri"] or "",
            name=row["name"] or "",
            version=row["version"],
            start=row["start"],
            end=row["end"],
            items=tuple(Item(**item) for item in row["items"]),
            rows=row["rows"],
            lines=row.get("lines") or b"",  # plans of version 0.1.0 have no such columns
            state=row.get("state") or "",
            limit=row["limit"],
            duplicates=tuple(Duplicate(**duplicate) for duplicate in row["duplicates"]),
            part_id=row["part_id"],
            update=row.get("update") or 0,  # plans of versions without updates have no such columns
            retry=tuple(row.get("retry") or ()),
            retry_of=row.get("retry_of") or "",
            earlier_rules=earlier_rules,
            ahead=ahead,
        )

    def row_location(self, row: int) -> str:
        """While planning, where row `row` is, worded as `Utterance.where` words it."""
        if self.items:
            return self.items[row].uri
        if self.offsets and self.lines:
            return table_row_location(self.name, self.offsets[row])
        if self.offsets:
            return manifest_row_location(self.uri, self.offsets[row])
        if self.ranges:
            return byte_range_location(self.uri, *self.ranges[2 * row : 2 * row + 2])
        return table_row_location(self.uri, (self.start or 0) + row)


def plan_table(parts: Sequence[Part]) -> pa.Table:
    """The plan: a table of schema `PLAN`, in the order of `parts`."""
    batches: list[pa.RecordBatch] = []
    ordinal = 0
    # In batches, since files as Python dictionaries take several times the memory of `Item` or Arrow.
    for group in grouped(parts, lambda part: 1 + len(part.items), at_least=_TABLE_BATCH_ITEMS):
        columns: dict[str, Iterable[Any]] = {
            "ordinal": range(ordinal, ordinal + len(group)),
            "uri": [part.uri or None for part in group],
            "name": [part.name or None for part in group],
            "lines": [part.lines or None for part in group],
            "state": [part.state or None for part in group],
            "items": [_as_dicts(part.items) for part in group],
            "duplicates": [_as_dicts(part.duplicates) for part in group],
            "update": [part.update or None for part in group],
            "retry": [part.retry or None for part in group],
            "retry_of": [part.retry_of or None for part in group],
        }
        for name in PLAN.names:
            if name not in columns:
                columns[name] = [getattr(part, name) for part in group]
        batches.append(pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in PLAN], schema=PLAN))
        ordinal += len(group)
    return pa.Table.from_batches(batches, PLAN)


def _as_dicts(rows: tuple[Item, ...] | tuple[Duplicate, ...]) -> Sequence[dict[str, Any]]:
    return [row._asdict() for row in rows] if rows else ()  # an empty list for each of a million parts takes a second


def manifest_row_location(manifest: str, offset: int) -> str:
    """Where a row of a manifest is, in words."""
    return f"{manifest}, row at byte {offset}"


def byte_range_location(uri: str, start: int, end: int) -> str:
    """Where a range of an object is, in words."""
    return f"{uri}[{start}:{end}]"


def table_row_location(table: str, row: int) -> str:
    """Where a row of a table is, in words; `row` counts from 0."""
    return f"{table}, row {row + 1}"


def manifest_content(rows: Iterable[bytes]) -> str:
    """Digest of the rows of a part of a manifest. Stored in part ids: never change it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.strip() + b"\n")
    return digest.hexdigest()


def key_digest(key: str) -> int:
    """64-bit digest of a unique key, for `Part.keys`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def cut_to_parts(items: Iterable[T], size_of: Callable[[T], int], part_bytes: int) -> Iterator[list[T]]:
    """Cut `items` into the contents of parts: each is closed once it holds `part_bytes` or MAX_PART_ITEMS."""
    return grouped(items, size_of, at_least=part_bytes, max_items=MAX_PART_ITEMS)
