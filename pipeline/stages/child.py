"""A child process that reads a part, or runs the model over a chunk, step by step; see `pipeline.stages.quarantine`."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

from pipeline.cluster.ray_private import current_node, node_is_alive
from pipeline.errors import ErrorCode, RunFailedError, StorageError
from pipeline.runs.run import QUARANTINE
from pipeline.stages.quarantine import DEATHS, START, Place, Record, Skipped, Step, StepsFrom
from pipeline.storage import objects, uris
from pipeline.storage.deadline import HUNG, tell_of_waits, within

MAX_FAILED_STARTS: Final = 5  # of children that did not get as far as to read
MARK_AFTER_S: Final = 0.5

# What the interpreter says of an exception that nobody caught: a bug, and no file's fault.
_BUG: Final = "Traceback (most recent call last):"
_WITH_ITS_WORKER: Final = "the worker, perhaps for the memory that it took"
GO_ON: Final = True


class ChildDiedError(Exception):
    """A child ended before it was through."""

    def __init__(self, code: ErrorCode, how: str) -> None:
        super().__init__(how)
        self.code = code
        self.how = how


def run_in_child(run: str, name: str, steps_from: StepsFrom, seconds: float) -> Iterator[Step]:
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
    uri = uris.join(run, QUARANTINE, f"{name}.json")
    record = _fetch(uri)
    if record.at is not None:
        if node_is_alive(record.machine):
            record = record.after_death(record.at, ErrorCode.CRASHED, f"with {_WITH_ITS_WORKER}")
        else:
            record = replace(record, at=None, machine="")
        objects.put(uri, record.content())
    place, failed_starts = START, 0
    while True:
        begun = marked = False
        try:
            with _child(steps_from, place, record.aside, seconds) as steps:
                for step in steps:
                    if step is None:
                        if begun and not marked:
                            objects.put(uri, replace(record, at=place, machine=current_node()).content())
                            marked = True
                        continue
                    if marked:
                        objects.put(uri, record.content())
                        marked = False
                    begun, place = True, step.then
                    yield step
            return
        except ChildDiedError as death:
            if begun:
                if record.deaths.get(place, 0) >= DEATHS:
                    raise RunFailedError(f"{name}: processes die at {place}, though it is left out") from death
                record = record.after_death(place, death.code, death.how)
                objects.put(uri, record.content())
            elif (failed_starts := failed_starts + 1) >= MAX_FAILED_STARTS:
                raise RunFailedError(f"{name}: a process to work on it died as it started, {death}") from death


def _fetch(uri: str) -> Record:
    try:
        return Record.parse(objects.fetch(uri))
    except FileNotFoundError:
        return Record()


@contextlib.contextmanager
def _child(
    steps_from: StepsFrom, place: Place, aside: Mapping[int, Skipped], seconds: float
) -> Iterator[Iterator[Step | None]]:
    """A process that reads from `place` on; gives its steps, and None now and then while it works on one.

    They end in `ChildDiedError` where it dies before it is through.
    """
    ours, theirs = Pipe()
    with tempfile.TemporaryFile() as words, ours:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from pipeline.stages.child import serve; serve({theirs.fileno()})"],
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
