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
from enum import Enum, auto
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

from pipeline.cluster.ray_private import current_node, node_is_alive
from pipeline.errors import ErrorCode, RunFailedError, StorageError
from pipeline.runs.run import QUARANTINE
from pipeline.stages.quarantine import DEATHS, Record
from pipeline.stages.steps import START, Position, Row, Skipped, Step, StepsFrom
from pipeline.storage import objects, uris
from pipeline.storage.deadline import DEADLINE_SIGNAL, on_pause_change, with_deadline

MAX_FAILED_STARTS: Final = 5  # children that die before their first step
MARK_AFTER_S: Final = 0.5

# Printed by the interpreter for an uncaught exception, which is a bug and not the fault of a file.
_BUG: Final = "Traceback (most recent call last):"


class _Signal(Enum):
    """Messages between a child and its parent, beside steps and errors.

    Attributes:
        WAITING: the child starts to wait for storage.
        WORKING: it continues.
        DONE: there are no more steps.
        NEXT: the parent asks for the next step.
    """

    WAITING = auto()
    WORKING = auto()
    DONE = auto()
    NEXT = auto()


class ChildDiedError(Exception):
    """A child process ended before its last step."""

    def __init__(self, code: ErrorCode, how: str) -> None:
        super().__init__(how)
        self.code = code
        self.how = how


def run_in_child(run: str, name: str, steps_from: StepsFrom[Row], seconds: float) -> Iterator[Step[Row]]:
    """Compute the steps of a part, or of a chunk in the model, that killed a process before, in child processes.

    Args:
        run: URI of the run; its quarantine holds the record.
        name: name of the part or chunk.
        steps_from: computes the steps in the child; is pickled.
        seconds: deadline of a step.

    Yields:
        The steps, in order, each once: a child that dies is replaced by one that continues after the last step.

    Raises:
        StorageError: from `steps_from`, or for the record.
        RunFailedError: children die before their first step, or of an utterance that is skipped.
    """
    uri = uris.join(run, QUARANTINE, f"{name}.json")
    record = _fetch_record(uri)
    if record.working_at is not None:
        if node_is_alive(record.node):
            how = "with its worker, perhaps for lack of memory"
            record = record.after_death(record.working_at, ErrorCode.CRASHED, how)
        else:
            record = replace(record, working_at=None, node="")
        objects.put(uri, record.content())
    position, failed_starts = START, 0
    while True:
        started = marked = False
        try:
            with _child(steps_from, position, record.skipped, seconds) as steps:
                for step in steps:
                    if step is None:
                        if started and not marked:
                            objects.put(uri, replace(record, working_at=position, node=current_node()).content())
                            marked = True
                        continue
                    if marked:
                        objects.put(uri, record.content())
                        marked = False
                    started, position = True, step.next
                    yield step
            return
        except ChildDiedError as death:
            if started:
                if record.deaths.get(position, 0) >= DEATHS:
                    raise RunFailedError(f"{name}: processes die at {position}, although it is skipped") from death
                record = record.after_death(position, death.code, death.how)
                objects.put(uri, record.content())
            elif (failed_starts := failed_starts + 1) >= MAX_FAILED_STARTS:
                raise RunFailedError(f"{name}: child processes die when they start, the last one {death}") from death


def _fetch_record(uri: str) -> Record:
    try:
        return Record.parse(objects.fetch(uri))
    except FileNotFoundError:
        return Record()


@contextlib.contextmanager
def _child(
    steps_from: StepsFrom[Row], position: Position, skipped: Mapping[int, Skipped], seconds: float
) -> Iterator[Iterator[Step[Row] | None]]:
    """Start a child process at `position`; yields its steps, and None now and then while it works on one.

    The steps raise `ChildDiedError` if the child dies before its last step.
    """
    pipe, child_end = Pipe()
    with tempfile.TemporaryFile() as child_stderr, pipe:
        program = f"from pipeline.stages.child import child_main; child_main({child_end.fileno()})"
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],  # -P: a `pipeline.py` in the working directory is not imported
            pass_fds=[child_end.fileno()],
            stdin=subprocess.PIPE,  # stays open while this process lives
            stdout=subprocess.DEVNULL,
            stderr=child_stderr,
            env=os.environ | {"PYTHONPATH": _import_path()},
        )
        child_end.close()

        def steps() -> Iterator[Step[Row] | None]:
            waiting = False
            try:
                pipe.send((steps_from, position, skipped, seconds))
                while True:
                    if not pipe.poll(MARK_AFTER_S):
                        if not waiting:
                            yield None
                        continue
                    message = pipe.recv()
                    if message is _Signal.DONE:
                        return
                    if isinstance(message, _Signal):
                        waiting = message is _Signal.WAITING
                        continue
                    if isinstance(message, StorageError):
                        raise message
                    yield message
                    pipe.send(_Signal.NEXT)
            except (EOFError, OSError) as error:
                status = process.wait()
                child_stderr.seek(0)
                raise _cause(status, child_stderr.read().decode(errors="replace"), seconds) from error

        try:
            yield steps()
        finally:
            process.kill()
            process.communicate()


def _cause(status: int, stderr: str, seconds: float) -> Exception:
    """Why a child ended, by its exit status and its standard error."""
    if status == -DEADLINE_SIGNAL:
        return ChildDiedError(ErrorCode.HUNG, f"after {seconds:g} s without progress")
    if status == 1 and _BUG in stderr.splitlines():
        return RuntimeError(f"a child process failed: {stderr}")
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return ChildDiedError(ErrorCode.CRASHED, how)


def _import_path() -> str:
    """The import path of this process, with what Ray's runtime environment added, as a value for PYTHONPATH.

    An empty entry is the working directory of the process, which is the user's.
    """
    return os.pathsep.join(filter(None, sys.path))


def child_main(descriptor: int) -> None:
    """Run in the child: send each step, then DONE; or the `StorageError` that occurred.

    It computes the next step only when the parent asks for it: otherwise the parent would not know at which position
    the child died.

    Args:
        descriptor: file descriptor of the pipe to the parent.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe = Connection(descriptor)
    sending = threading.Lock()  # several threads wait for storage

    def send(message: Step[Any] | StorageError | _Signal) -> None:
        with sending:
            pipe.send(message)

    steps_from, position, skipped, seconds = pipe.recv()
    on_pause_change(lambda paused: send(_Signal.WAITING if paused else _Signal.WORKING))
    first: Step[Any] = Step(position)
    try:
        for step in itertools.chain([first], with_deadline(seconds, steps_from(position, skipped))):
            send(step)
            pipe.recv()
        send(_Signal.DONE)
    except StorageError as error:
        send(error)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # the parent writes nothing: this returns when the parent ends
    os._exit(0)
