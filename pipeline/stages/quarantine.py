"""Utterances that kill or hang the process which decodes or recognises them: found, and set aside as one row each.

A part is read in Ray's own process first, as fast as can be, and nothing is written about it. A process that dies, or
hangs and ends itself (`pipeline.storage.deadline`), takes the whole part along, and Ray gives it to another process: an attempt
that knows by its number that it is not the first. From then on the part is read in a child of that process, which hands
over what it reads step by step. So when the child dies it is known what came next: the place at which it died. Where
`DEATHS` processes die at one place, what lies there is set aside, and the next child goes on behind it.

Ray's process may die along with its child: of the machine, which means nothing, or because Ray kills it for the memory
that its child takes, and that takes a while. So a place at which a child works for `MARK_AFTER_S` without a step (what
it waits for storage is no work) is marked in storage until one comes, and an attempt that finds a mark counts a death
there, if the machine of the one that left it is alive.

What is set aside is recorded in one object a part, below the run, before any row after it is given out. Whoever reads
the part again, at this start of the driver or a later one, leaves out the same: its chunks stay as they were.

The cost: a part that no process dies of costs no request to storage, and one more of a run (the records are listed
when the driver starts). Were each first attempt to leave a mark, a million parts on S3 would cost a million requests
of 50 ms, for a case of one in a million.

A chunk in the model is the same with rows in the place of utterances. There Ray gives no number of the attempt, but an
actor knows that it was started again, and gets the chunks once more that the one before it had: it leaves a mark
(`attempt_marker`) while it works on one of those, as fast as ever, and only where it finds one does it take care.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple, Self

from pipeline.cluster.ray_private import current_node, node_is_alive
from pipeline.errors import AudioError, ErrorCode
from pipeline.runs.run import QUARANTINE
from pipeline.storage import objects, uris

DEATHS: Final = 2


class Place(NamedTuple):
    """A place in a part: before row `row` of its utterance `utterance`, or, -1, before that one is begun."""

    utterance: int
    row: int


START: Final = Place(0, -1)


@dataclass(frozen=True)
class Step:
    """What reading a part comes to: an utterance (of `size` planned bytes), a row of it, or nothing but a place.

    Attributes:
        then: the place where reading goes on.
        where: the utterance, for messages.
    """

    then: Place
    size: int = 0
    row: dict[str, Any] | None = None
    where: str = ""


@dataclass(frozen=True)
class Skipped:
    """The row at a place is this error. What follows of the same utterance, or of a container (-1), is not read."""

    place: Place
    code: ErrorCode
    message: str

    @property
    def error(self) -> AudioError:
        """As what decoding would have raised."""
        return AudioError(self.code, self.message)


# Steps of a part, or of a chunk, from a place on, but for what is set aside, by utterance.
StepsFrom = Callable[[Place, Mapping[int, Skipped]], Iterator[Step]]


@dataclass(frozen=True)
class Record:
    """What is known of a part of which processes die.

    Attributes:
        at: the place at which an attempt has been for a while, or was when it died, on `machine`.
        deaths: of processes, by place.
        aside: what is set aside, by utterance.
    """

    at: Place | None = None
    machine: str = ""
    deaths: Mapping[Place, int] = field(default_factory=dict)
    aside: Mapping[int, Skipped] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: str | bytes | None) -> Self:
        """Of the object's content; of None, that nothing is known."""
        if content is None:
            return cls()
        values = json.loads(content)
        aside = [Skipped(Place(*a["place"]), ErrorCode(a["code"]), a["message"]) for a in values["aside"]]
        return cls(
            at=values["at"] and Place(*values["at"]),
            machine=values["machine"],
            deaths={Place(*place): count for place, count in values["deaths"]},
            aside={a.place.utterance: a for a in aside},
        )

    def content(self) -> bytes:
        """What `parse` reads."""
        aside = [asdict(entry) for entry in self.aside.values()]
        return json.dumps(
            {"at": self.at, "machine": self.machine, "deaths": list(self.deaths.items()), "aside": aside}
        ).encode()

    def after_death(self, place: Place, code: ErrorCode, how: str) -> Self:
        """One more process died at a place; where it is one too many, what lies there is set aside."""
        deaths = self.deaths.get(place, 0) + 1
        aside = dict(self.aside)
        if deaths >= DEATHS:
            aside[place.utterance] = Skipped(place, code, f"{deaths} processes ended at this, the last one {how}")
        return replace(self, at=None, machine="", deaths={**self.deaths, place: deaths}, aside=aside)


@contextlib.contextmanager
def attempt_marker(run: str, name: str) -> Iterator[bool]:
    """Work on something of which a process may have died; tells whether one did, in an earlier attempt_marker."""
    uri = uris.join(run, "control", f"trial-{name}")
    try:
        died = node_is_alive(objects.fetch(uri).decode())
    except FileNotFoundError:
        died = False
    objects.put(uri, current_node().encode())
    try:
        yield died
    finally:
        objects.delete([uri])


def records(run: str) -> dict[str, str]:
    """The content of each record of a run, by part (or by part and chunk, which the model died of)."""
    found = objects.list_directory(uris.join(run, QUARANTINE))
    files = [item.uri for item in found if not objects.is_temporary(item.uri)]
    with ThreadPoolExecutor(uris.CONNECTIONS) as pool:
        contents = pool.map(objects.fetch, files)
        return {_part_of(uri): content.decode() for uri, content in zip(files, contents, strict=True)}


def _part_of(uri: str) -> str:
    return uri.rpartition("/")[2].removesuffix(".json")
