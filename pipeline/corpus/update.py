"""Plan a corpus again that was planned before: what reads the same keeps its parts, the rest is planned anew.

The parts that stay and the new ones together read what the parts of a new plan read, each row once, with the same marks
of duplicates. A stored part stays if all that it reads is still there:

* Files and rows of tables are compared one by one, by what the plan holds of them. So it does not matter which of them
  a new plan would put into one part. A part of which one has changed or is gone is retired; the rest of it is planned
  anew with what was added. (Parts are small: at most that much is done again beside what has changed.)
* A manifest is planned again with the borders of its stored parts, which stay if their bytes hold the same rows. Rows
  that are added behind them are new parts. Where rows have moved within it, they are done again.
* All parts of a shard or a Parquet file stay if its version is the same. Under a limit of utterances, and in layouts of
  other kinds, each stays if the same part would be planned.

What a manifest, a table or a Parquet file names is not looked at: its rows are the same as long as the manifest is.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.layouts.files import FILES
from pipeline.corpus.layouts.manifest import MANIFEST
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.layouts.table import TABLE
from pipeline.corpus.layouts.tar import TAR
from pipeline.corpus.parts import Duplicate, Item, Part, cut_to_parts, manifest_content, plan_table
from pipeline.corpus.plan import PlannedParts
from sewd_model.grouping import grouped

_CONTAINERS: Final = frozenset({TAR.kind, PARQUET.kind})
_PROBLEM: Final = b'{"problem"'  # how the line of a row of a table begins that cannot be read
_BATCH_PARTS: Final = 1 << 14


@dataclass(frozen=True)
class UpdatedPlan:
    """A plan that follows another one; see the module.

    Attributes:
        table: of schema `PLAN`: the parts that stay, in their order, then the new ones.
        kept: number of the parts that stay.
        added: objects that no stored part names, as URIs in path order.
        changed: objects that have changed, or whose rows have.
        removed: objects that are gone.
    """

    table: pa.Table
    kept: int
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def has_changes(self) -> bool:
        """Whether anything has changed."""
        return bool(self.added or self.changed or self.removed)

    def with_again(self, part_ids: Collection[str], number: int) -> UpdatedPlan:
        """The plan in which parts that stay are done again, as a whole; `number` is that of the update."""
        is_again = pc.is_in(self.table["part_id"], pa.array(sorted(part_ids), pa.string()))
        stored = map(Part.from_row, self.table.filter(is_again).to_pylist())
        again = [replace(part.planned_by(number), retry=(), retry_of="") for part in stored]
        table = pa.concat_tables([self.table.filter(pc.invert(is_again)), plan_table(again)])
        return replace(
            self,
            table=table.replace_schema_metadata(self.table.schema.metadata),
            kept=self.kept - len(again),
            changed=tuple(sorted({*self.changed, *(uri for part in again for uri in _uris(part))})),
        )


def known_manifests(stored: Iterable[Part]) -> dict[str, list[Part]]:
    """The parts of manifests by URI, in order: the borders that planning again keeps."""
    known: dict[str, list[Part]] = {}
    for part in stored:
        if part.kind == MANIFEST.kind:
            known.setdefault(part.uri, []).append(part)
    return {uri: sorted(parts, key=lambda part: part.start or 0) for uri, parts in known.items()}


def update_plan(stored: Iterable[Part], now: PlannedParts, part_bytes: int, number: int) -> UpdatedPlan:
    """The plan that follows the one of the `stored` parts.

    Args:
        stored: the parts of the stored plan.
        now: the inputs, planned again with the borders of `known_manifests`.
        part_bytes: new parts are closed at this size.
        number: of the update, for the ids of new parts.
    """
    new = _Available(now.parts)
    stored_uris: set[str] = set()
    kept: list[pa.Table] = []
    for group in grouped(stored, lambda _: 1, at_least=_BATCH_PARTS):
        for part in group:
            stored_uris.update(_uris(part))
        kept.append(plan_table([same for part in group if (same := new.take(part)) is not None]))
    parts = plan_table(list(new.rest(part_bytes, number)))
    table = pa.concat_tables([*kept, parts]).replace_schema_metadata(
        {**(parts.schema.metadata or {}), **now.left_out.to_metadata()}
    )
    uris = {uri for part in now.parts for uri in _uris(part)}
    return UpdatedPlan(
        table,
        kept=sum(map(len, kept)),
        added=tuple(sorted(uris - stored_uris)),
        changed=tuple(sorted(new.touched & uris & stored_uris)),
        removed=tuple(sorted(stored_uris - uris)),
    )


def _uris(part: Part) -> Iterator[str]:
    """The objects that the plan names of a part."""
    if part.uri:
        yield part.uri
    else:
        yield from (item.uri for item in part.items)


class _Available:
    """What a new plan reads and no part that stays reads.

    Attributes:
        touched: objects of which something was not found in the other plan.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._count: Counter[bytes] = Counter()
        self._redone: set[bytes] = set()  # what retired parts read, and is still there
        self._stays: set[bytes] = set()  # containers
        self._versions: dict[str, str | None] = {}
        self._references: dict[str, str | None] = {}
        for part in parts:
            self._count.update(_identities(part))
            if part.kind == TABLE.kind:
                self._versions[part.uri] = part.version
            for item in part.items:
                if item.reference_uri is not None:
                    self._references[item.reference_uri] = item.reference_version
        self.touched: set[str] = set()

    def take(self, part: Part) -> Part | None:
        """The stored part as it stays, and what it reads is no longer available; None if it is retired."""
        if any(item.reference_version is None and item.reference_uri is not None for item in part.items):
            # An earlier version planned it, and did not look at the references: they count as unchanged.
            part = replace(part, items=tuple(map(self._with_reference_version, part.items)))
        identities = _identities(part)
        needed = Counter(identities)
        if _is_container(part) and identities[0] in self._count:
            self._stays.update(identities)
            return part
        if all(self._count[identity] >= number for identity, number in needed.items()):
            self._count.subtract(needed)
            return replace(part, version=self._versions[part.uri]) if part.kind == TABLE.kind else part
        for row, identity in enumerate(identities):
            if identity in self._count:
                self._redone.add(identity)
            else:
                self.touched.add(_uri_of(part, row))
        return None

    def _with_reference_version(self, item: Item) -> Item:
        if item.reference_version is not None or item.reference_uri is None:
            return item
        return item._replace(reference_version=self._references.get(item.reference_uri))

    def rest(self, part_bytes: int, number: int) -> Iterator[Part]:
        """New parts of all that is available."""
        files: list[_File] = []
        for part in self._parts:
            left = [row for row, identity in enumerate(_identities(part)) if self._take_one(identity, part, row)]
            first = dict(part.duplicates)
            if part.kind == FILES.kind:
                files += [_File(part.items[row], first.get(row)) for row in left]
            elif part.kind == TABLE.kind:
                yield from _table_parts(part, left, number)
            elif left:
                yield part.planned_by(number)
        for group in cut_to_parts(files, lambda file: file.item.size, part_bytes):
            yield Part(
                kind=FILES.kind,
                bytes=sum(file.item.size for file in group),
                items=tuple(file.item for file in group),
                rows=len(group),
                duplicates=tuple(Duplicate(i, file.first) for i, file in enumerate(group) if file.first is not None),
                update=number,
            )

    def _take_one(self, identity: bytes, part: Part, row: int) -> bool:
        if self._count[identity] <= 0 or identity in self._stays:
            return False
        self._count[identity] -= 1
        if identity not in self._redone:
            self.touched.add(_uri_of(part, row))
        return True


@dataclass(frozen=True, slots=True)
class _File:
    """A file, and where an earlier row with its id is."""

    item: Item
    first: str | None


def _table_parts(part: Part, rows: Sequence[int], number: int) -> Iterator[Part]:
    """A new part for each range of neighbouring rows of a part of a table."""
    lines = _lines(part)
    first_of = dict(part.duplicates)
    start = part.start or 0
    for _, group in itertools.groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
        block = [row for _, row in group]
        first, end = block[0], block[-1] + 1
        of_range = lines[first:end]
        yield replace(
            part,
            part_id="",
            update=number,
            bytes=sum(part.sizes[first:end]),
            start=start + first,
            end=start + end,
            rows=len(of_range),
            lines=zlib.compress(b"\n".join(of_range)),
            content=manifest_content(of_range),
            duplicates=tuple(Duplicate(row - first, first_of[row]) for row in range(first, end) if row in first_of),
        )


def _lines(part: Part) -> list[bytes]:
    return zlib.decompress(part.lines).split(b"\n") if part.rows else []


def _uri_of(part: Part, row: int) -> str:
    return part.items[row].uri if part.items else part.uri


def _is_container(part: Part) -> bool:
    """Whether a part is of an object that is compared as a whole."""
    return part.kind in _CONTAINERS and part.limit is None and part.version is not None


def _identities(part: Part) -> list[bytes]:
    """What a part reads: equal for what makes the same rows, whichever part reads it."""
    first = dict(part.duplicates)
    if part.kind == FILES.kind:
        return [_digest(FILES.kind, *item, first.get(row)) for row, item in enumerate(part.items)]
    if part.kind == TABLE.kind:
        # The number of a row in the table shows only where something is wrong with it.
        lines = _lines(part)
        numbers = [
            (part.start or 0) + row if row in first or line.startswith(_PROBLEM) else None
            for row, line in enumerate(lines)
        ]
        return [
            _digest(TABLE.kind, part.uri, line, number, first.get(row))
            for row, (line, number) in enumerate(zip(lines, numbers, strict=True))
        ]
    if _is_container(part):
        return [_digest(part.kind, part.uri, part.name, part.version)]
    return [_digest(part.content_id, part.name, *part.duplicates)]


def _digest(*values: Any) -> bytes:
    return hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=16).digest()
