"""What an input layout is: how it is recognised, planned and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.corpus.parts import Part
from pipeline.corpus.utterances import Utterance
from pipeline.storage import objects
from pipeline.storage.objects import Object


@dataclass(frozen=True)
class Listing:
    """Objects of one layout that an INPUT names.

    Attributes:
        root: the directory that ids and names are relative to.
        objects: in path order.
        listed: URIs of all objects in the directories that were listed, which may hold references beside audio; None
            if INPUT names one object, whose directory was not listed.
    """

    root: str
    objects: Sequence[Object]
    listed: frozenset[str] | None = None

    def exists(self, uri: str) -> bool:
        """Whether there is an object at `uri`, which is beside one of `objects`."""
        return objects.exists(uri) if self.listed is None else uri in self.listed


@dataclass(frozen=True)
class Layout:
    """One input layout.

    Attributes:
        kind: its name, stored in the plan.
        claims: whether an object with this URI is in this layout. Only the URI is looked at.
        plan: (listing, part_bytes, limit) -> parts, in order. Parts are closed at `part_bytes`; no more are needed once
            `limit` utterances are planned. Does not raise for broken data: reading it makes an error row.
        read: the utterances of a part, in order; `Part.limit` is applied by the caller.
        in_directories: its objects are found below directories and by globs; else INPUT must name them.
        plans_keys: `plan` fills `Part.keys`, so duplicate ids are found in the whole plan; else within a part, by
            reading it.
    """

    kind: str
    claims: Callable[[str], bool]
    plan: Callable[[Listing, int, int | None], Iterator[Part]]
    read: Callable[[Part], Iterator[Utterance]]
    in_directories: bool = True
    plans_keys: bool = False


def chain_parts(planners: Iterable[Callable[[int | None], Iterator[Part]]], limit: int | None) -> Iterator[Part]:
    """The parts of several planners, one after the other, until `limit` utterances are planned.

    Args:
        planners: each returns its parts for the rest of the limit.
        limit: None for no limit. Under a limit every part must know its `rows`.
    """
    for plan in planners:
        if limit is not None and limit <= 0:
            return
        for part in plan(limit):
            yield part
            limit = None if limit is None else limit - (part.rows or 0)
