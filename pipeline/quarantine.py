"""Utterances that kill or hang the process which decodes or recognises them: found, and set aside as one row each.

A part is read in Ray's own process first, as fast as can be, and nothing is written about it. A process that dies, or
hangs and ends itself (`pipeline.deadline`), takes the whole part along, and Ray gives it to another process: an attempt
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
(`trial`) while it works on one of those, as fast as ever, and only where it finds one does it take care.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Self

import ray

from pipeline import storage
from pipeline.deadline import HUNG, tell_of_waits, within
from pipeline.errors import AudioError, ErrorCode, RunFailedError, StorageError

QUARANTINE = "quarantine"
DEATHS: Final = 2
MAX_FAILED_STARTS: Final = 5  # of children that did not get as far as to read
MARK_AFTER_S: Final = 0.5

# What the interpreter says of an exception that nobody caught: a bug, and no file's fault.
_BUG: Final = "Traceback (most recent call last):"
_WITH_ITS_WORKER: Final = "the worker, perhaps for the memory that it took"


class Place(NamedTuple):
    """A place in a part: before row `row` of its utterance `utterance`, or, -1, before that one is begun."""

    utterance: int
    row: int


START: Final = Place(0, -1)
GO_ON: Final = True


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
class Aside:
    """The row at a place is this error. What follows of the same utterance, or of a container (-1), is not read."""

    place: Place
    code: ErrorCode
    message: str

    @property
    def error(self) -> AudioError:
        """As what decoding would have raised."""
        return AudioError(self.code, self.message)


# Steps of a part, or of a chunk, from a place on, but for what is set aside, by utterance.
StepsFrom = Callable[[Place, Mapping[int, Aside]], Iterator[Step]]


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
    aside: Mapping[int, Aside] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: str | bytes | None) -> Self:
        """Of the object's content; of None, that nothing is known."""
        if content is None:
            return cls()
        values = json.loads(content)
        aside = [Aside(Place(*a["place"]), ErrorCode(a["code"]), a["message"]) for a in values["aside"]]
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
            aside[place.utterance] = Aside(place, code, f"{deaths} processes ended at this, the last one {how}")
        return replace(self, at=None, machine="", deaths={**self.deaths, place: deaths}, aside=aside)


class ChildDiedError(Exception):
    """A child ended before it was through."""

    def __init__(self, code: ErrorCode, how: str) -> None:
        super().__init__(how)
        self.code = code
        self.how = how


def attempt_number() -> int:
    """How often this Ray task was tried before: because its process or machine died, or its output with one.

    Ray keeps it for the names of its logs and has no public call for it; the tests of `tests/faults` rest on it.
    """
    worker: Any = ray._private.worker.global_worker
    return int(worker.core_worker.get_current_task_attempt_number())


def this_machine() -> str:
    """Ray's name of the machine that this process is on; nothing where there is no Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _lives(machine: str) -> bool:
    """Whether a machine is in the cluster: one of an earlier Ray is not; of one without a name nothing is known."""
    if not machine or not ray.is_initialized():
        return not machine
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return machine in {node["NodeID"] for node in nodes if node["Alive"]}


def started_again() -> bool:
    """Whether this is an actor of Ray that is there in the place of one that died."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and context.was_current_actor_reconstructed


@contextlib.contextmanager
def trial(run: str, name: str) -> Iterator[bool]:
    """Work on something of which a process may have died; tells whether one did, in an earlier trial."""
    uri = storage.join(run, "control", f"trial-{name}")
    try:
        died = _lives(storage.fetch(uri).decode())
    except FileNotFoundError:
        died = False
    storage.put(uri, this_machine().encode())
    try:
        yield died
    finally:
        storage.delete([uri])


def records(run: str) -> dict[str, str]:
    """The content of each record of a run, by part (or by part and chunk, which the model died of)."""
    found = storage.list_directory(storage.join(run, QUARANTINE))
    uris = [item.uri for item in found if not storage.is_temporary(item.uri)]
    with ThreadPoolExecutor(storage.CONNECTIONS) as pool:
        contents = pool.map(storage.fetch, uris)
        return {_part_of(uri): content.decode() for uri, content in zip(uris, contents, strict=True)}


def _part_of(uri: str) -> str:
    return uri.rpartition("/")[2].removesuffix(".json")


def with_care(run: str, name: str, steps_from: StepsFrom, seconds: float) -> Iterator[Step]:
    """The steps of a part, or of a chunk in the model, that a process died of before, made by children.

    Args:
        run: URI of the run, below which the record lies.
        name: of the part or chunk.
        steps_from: makes them; is pickled.
        seconds: to wait for a step.

    Raises:
        StorageError: as `steps_from` raises it, and for the record.
        RunFailedError: no child can be started, or they die also of what is left out.
    """
    uri = storage.join(run, QUARANTINE, f"{name}.json")
    record = _fetch(uri)
    if record.at is not None:
        if _lives(record.machine):
            record = record.after_death(record.at, ErrorCode.CRASHED, f"with {_WITH_ITS_WORKER}")
        else:
            record = replace(record, at=None, machine="")
        storage.put(uri, record.content())
    place, failed_starts = START, 0
    while True:
        begun = marked = False
        try:
            with _child(steps_from, place, record.aside, seconds) as steps:
                for step in steps:
                    if step is None:
                        if begun and not marked:
                            storage.put(uri, replace(record, at=place, machine=this_machine()).content())
                            marked = True
                        continue
                    if marked:
                        storage.put(uri, record.content())
                        marked = False
                    begun, place = True, step.then
                    yield step
            return
        except ChildDiedError as death:
            if begun:
                if record.deaths.get(place, 0) >= DEATHS:
                    raise RunFailedError(f"{name}: processes die at {place}, though it is left out") from death
                record = record.after_death(place, death.code, death.how)
                storage.put(uri, record.content())
            elif (failed_starts := failed_starts + 1) >= MAX_FAILED_STARTS:
                raise RunFailedError(f"{name}: a process to work on it died as it started, {death}") from death


def _fetch(uri: str) -> Record:
    try:
        return Record.parse(storage.fetch(uri))
    except FileNotFoundError:
        return Record()


@contextlib.contextmanager
def _child(
    steps_from: StepsFrom, place: Place, aside: Mapping[int, Aside], seconds: float
) -> Iterator[Iterator[Step | None]]:
    """A process that reads from `place` on; gives its steps, and None now and then while it works on one.

    They end in `ChildDiedError` where it dies before it is through.
    """
    ours, theirs = Pipe()
    with tempfile.TemporaryFile() as words, ours:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from pipeline.quarantine import serve; serve({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,  # open for as long as this process lives
            stdout=subprocess.DEVNULL,
            stderr=words,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # also what Ray brought here with the job
        )
        theirs.close()

        def steps() -> Iterator[Step | None]:
            waits = False
            try:
                ours.send((steps_from, place, aside, seconds))
                while True:
                    if not ours.poll(MARK_AFTER_S):
                        if not waits:
                            yield None
                        continue
                    answer = ours.recv()
                    if answer is None:
                        return
                    if isinstance(answer, bool):
                        waits = answer
                        continue
                    if isinstance(answer, StorageError):
                        raise answer
                    yield answer
                    ours.send(GO_ON)
            except (EOFError, OSError) as error:
                status = process.wait()
                words.seek(0)
                raise _cause(status, words.read().decode(errors="replace"), seconds) from error

        try:
            yield steps()
        finally:
            process.kill()
            process.communicate()


def _cause(status: int, words: str, seconds: float) -> Exception:
    """Why a child ended, by its exit status and what it said."""
    if status == -HUNG:
        return ChildDiedError(ErrorCode.HUNG, f"after {seconds:g} s without a sign of life")
    if status == 1 and _BUG in words.splitlines():
        return RuntimeError(f"a process that reads or recognises with care failed: {words}")
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return ChildDiedError(ErrorCode.CRASHED, how)


def serve(descriptor: int) -> None:
    """The child: sends the steps that it is asked for, then None; or the `StorageError` that it met.

    Between them, True as it begins to wait for storage, and False when it goes on.
    It goes on when it is told to: were it ahead, its parent would not know the place at which it died.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe = Connection(descriptor)
    sending = threading.Lock()  # storage is waited for in several threads

    def send(message: Step | StorageError | bool | None) -> None:
        with sending:
            pipe.send(message)

    steps_from, place, aside, seconds = pipe.recv()
    tell_of_waits(send)
    try:
        for step in itertools.chain([Step(place)], within(seconds, steps_from(place, aside))):
            send(step)
            pipe.recv()
        send(None)
    except StorageError as error:
        send(error)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the parent is gone
    os._exit(0)
