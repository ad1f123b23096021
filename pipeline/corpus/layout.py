"""What an input layout is: how it is recognised, planned and read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.naming import composed, spellings, stem, suffix
from pipeline.corpus.parts import Part
from pipeline.corpus.utterances import Utterance
from pipeline.storage import objects
from pipeline.storage.reads import Object


class OddText(NamedTuple):
    """A listed text whose suffix is not `.txt` in lower case, or beside which no audio has exactly its name."""

    uri: str
    has_audio: bool


@dataclass(frozen=True)
class Listing:
    """Objects of one layout that an INPUT names.

    Attributes:
        root: the directory that ids and names are relative to.
        objects: in path order.
        listed: versions of all objects in the directories that were listed, by URI: they may hold references beside
            audio; None if INPUT names one object, whose directory was not listed.
        left_out: counts what planning passes over.
        columns: names that tables have for keys of a manifest, by these keys.
        is_named: INPUT names these objects themselves, not a directory that they are in.
        kind: the kind of the tables or manifests, as `--input-format` names it; empty: each shows its own.
        odd_texts: listed texts that no audio finds by its exact name, by their folded names; see `find`.
        known: parts of manifests that a run has already, by the URI of the manifest, in order: parts that read the same
            are planned again with the same borders.
    """

    root: str
    objects: Sequence[Object]
    listed: Mapping[str, str] | None = None
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)
    columns: Mapping[str, str] = field(default_factory=dict, compare=False)
    is_named: bool = False
    kind: str = ""
    odd_texts: Mapping[str, Sequence[OddText]] = field(default_factory=dict, repr=False, compare=False)
    known: Mapping[str, Sequence[Part]] = field(default_factory=dict, repr=False, compare=False)

    def exists(self, uri: str) -> bool:
        """Whether there is an object at `uri`, which is beside one of `objects`."""
        return objects.exists(uri) if self.listed is None else uri in self.listed

    def version(self, uri: str) -> str | None:
        """The version of the object at `uri`, which is beside one of `objects`; None if it is gone by now."""
        if self.listed is not None:
            return self.listed[uri]
        with contextlib.suppress(FileNotFoundError):
            found = objects.stat(uri)
            return found.version if found else None
        return None

    def find(self, uri: str) -> str | None:
        """The URI of the text at `uri`, also if its name is in another case or another Unicode form.

        Another name is found only if it is the only one. A text is never that of audio in another case if there is
        audio in its own.
        """
        if self.exists(uri):
            return uri
        if self.listed is None:
            head, dot, kind = uri.rpartition(".")
            return next(filter(objects.exists, [f"{head}{dot}{kind.upper()}", *spellings(uri)]), None)
        found = self.odd_texts.get(folded(uri), ())
        same = [text for text in found if composed(stem(text.uri)) == composed(stem(uri))]
        others = same or [text for text in found if not text.has_audio]
        return others[0].uri if len(others) == 1 else None


def folded(uri: str) -> str:
    """`uri` in the form in which names that differ only in case or Unicode form are equal."""
    return composed(uri).casefold()


@dataclass(frozen=True)
class Layout:
    """One input layout.

    Attributes:
        kind: its name, stored in the plan.
        claims: whether an object with this URI is in this layout. Only the URI is looked at.
        plan: (listing, part_bytes, limit) -> parts, in order. Parts are closed at `part_bytes`; no more are needed once
            `limit` utterances are planned. Does not raise for broken data: reading it makes an error row.
            What it passes over it adds to `Listing.left_out`.
        read: the utterances of a part, in order; `Part.limit` is applied by the caller.
        in_directories: whether an object with this URI is read where it is found below a directory or by a glob; else
            INPUT must name it.
        plans_keys: `plan` fills `Part.keys`, so duplicate ids are found in the whole plan; else within a part, by
            reading it.
    """

    kind: str
    claims: Callable[[str], bool]
    plan: Callable[[Listing, int, int | None], Iterator[Part]]
    read: Callable[[Part], Iterator[Utterance]]
    in_directories: Callable[[str], bool] = lambda uri: True
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


def odd_texts(listed: Iterable[str], audio: Iterable[str]) -> dict[str, list[OddText]]:
    """The texts among `listed` that `Listing.exists` does not find for any of `audio`, by folded name."""
    stems = {stem(uri) for uri in audio}
    texts: dict[str, list[OddText]] = {}
    for uri in listed:
        if suffix(uri) == "txt" and (not uri.endswith(".txt") or stem(uri) not in stems):
            texts.setdefault(folded(uri), []).append(OddText(uri, stem(uri) in stems))
    return texts
