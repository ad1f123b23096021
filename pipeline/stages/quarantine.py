"""Quarantine: utterances that kill or hang the process that decodes or recognises them become one error row each.

A part is first read in Ray's own process, at full speed, and nothing is recorded. A process that dies, or hangs and
ends itself (`pipeline.storage.deadline`), takes its whole part with it. Ray gives the part to another process, which
knows by the number of its attempt that it is not the first. From then on the part is read in a child process
(`pipeline.stages.child_process`) that hands over what it reads step by step. So when the child dies, the position at
which it died is known. If `DEATHS` processes die at one position, the utterance there is skipped, and the next child
continues after it.

Ray's process may die together with its child: with the node, which says nothing about the utterance, or because Ray
kills it for the memory of its child, which takes a while. So if a child works on one step for `MARK_AFTER_S` (waiting
for storage does not count), its position is recorded in storage until the step comes. An attempt that finds such a
record counts a death at that position, if the node of the attempt that wrote it is still alive.

Skipped utterances are recorded in one object per part, below the run, before any later row is handed out. A
later read of the part, in this start of the driver or a later one, skips the same, so its chunks stay the same.

Cost: a part that kills no process needs no request to storage, and a run needs one more (the records are listed when
the driver starts). If each first attempt left a marker, a million parts on S3 would need a million requests of 50 ms
each, for a case of one in a million.

A chunk in the model is handled likewise, with rows in place of utterances. Ray numbers no attempts there, but an actor
knows that it was restarted, and gets the chunks of the actor before it again. While it works on one of those at full
speed, it leaves a marker (`attempt_marker`); only if it finds one does it use a child process.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final, Self

from pipeline.cluster.ray_private import current_node, node_is_alive
from pipeline.errors import ErrorCode
from pipeline.runs.damage import damaged
from pipeline.runs.run import QUARANTINE
from pipeline.stages.steps import Position, Skipped
from pipeline.storage import clients, objects, uris

DEATHS: Final = 2


@dataclass(frozen=True)
class Record:
    """The quarantine record of a part that killed processes.

    Attributes:
        working_at: position at which an attempt has worked for a while, or died, on `node`.
        node: Ray's id of that node.
        deaths: number of processes that died, by position.
        skipped: skipped utterances, by number.
    """

    working_at: Position | None = None
    node: str = ""
    deaths: Mapping[Position, int] = field(default_factory=dict)
    skipped: Mapping[int, Skipped] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: str | bytes | None) -> Self:
        """Parse the content of a record's object; None gives an empty record."""
        if content is None:
            return cls()
        values = json.loads(content)
        skipped = [Skipped(Position(*s["place"]), ErrorCode(s["code"]), s["message"]) for s in values["aside"]]
        return cls(
            working_at=values["at"] and Position(*values["at"]),
            node=values["machine"],
            deaths={Position(*position): count for position, count in values["deaths"]},
            skipped={skip.position.utterance: skip for skip in skipped},
        )

    def content(self) -> bytes:
        """The content of the record's object, as `parse` reads it."""
        skipped = [{"place": s.position, "code": s.code, "message": s.message} for s in self.skipped.values()]
        values = {"at": self.working_at, "machine": self.node, "deaths": list(self.deaths.items()), "aside": skipped}
        return json.dumps(values).encode()

    def after_death(self, position: Position, code: ErrorCode, how: str) -> Self:
        """The record after one more death at a position; the last allowed death skips the utterance there."""
        deaths = self.deaths.get(position, 0) + 1
        skipped = dict(self.skipped)
        if deaths >= DEATHS:
            skipped[position.utterance] = Skipped(
                position, code, f"{deaths} processes crashed on it, the last one {how}"
            )
        return replace(self, working_at=None, node="", deaths={**self.deaths, position: deaths}, skipped=skipped)


@contextlib.contextmanager
def attempt_marker(run: str, name: str) -> Iterator[bool]:
    """Mark work that may kill this process; yields whether an earlier attempt at it died."""
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


def read_records(run: str) -> dict[str, str]:
    """The content of each record of a run, by part (or by part and chunk, for what killed the model).

    Raises:
        DamagedRunError: a record cannot be read.
    """
    found = objects.list_directory(uris.join(run, QUARANTINE))
    files = [item.uri for item in found if not objects.is_temporary(item.uri)]
    with ThreadPoolExecutor(clients.MAX_CONNECTIONS) as pool:
        contents = pool.map(objects.fetch, files)
        return {_part_of(uri): _checked(run, uri, content) for uri, content in zip(files, contents, strict=True)}


def _checked(run: str, uri: str, content: bytes) -> str:
    try:
        Record.parse(content)
        return content.decode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(run, uri, f"cannot be read ({error})") from error


def _part_of(uri: str) -> str:
    return uri.rpartition("/")[2].removesuffix(".json")
