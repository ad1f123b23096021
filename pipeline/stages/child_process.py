"""A child process that computes steps, one at a time: what a broken file kills or hangs is this process alone."""

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
from enum import Enum, auto
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

from pipeline.errors import ErrorCode, StorageError, UsageError
from pipeline.stages.steps import Position, Row, Skipped, Step, StepsFrom
from pipeline.storage.deadline import DEADLINE_SIGNAL, on_pause_change, with_deadline

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


@contextlib.contextmanager
def child_steps(
    steps_from: StepsFrom[Row], position: Position, skipped: Mapping[int, Skipped], seconds: float
) -> Iterator[Iterator[Step[Row] | None]]:
    """Start a child process at `position`; yields its steps, and None now and then while it works on one.

    The steps raise `ChildDiedError` if the child dies before its last step, and what it raised of `StorageError` and
    `UsageError`.

    Args:
        steps_from: computes the steps; is pickled.
        position: where it starts.
        skipped: utterances to skip, by number.
        seconds: deadline of a step.
    """
    pipe, child_end = Pipe()
    with tempfile.TemporaryFile() as child_stderr, pipe:
        program = f"from pipeline.stages.child_process import child_main; child_main({child_end.fileno()})"
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
                    if isinstance(message, StorageError | UsageError):
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
    """Run in the child: send each step, then DONE; or the `StorageError` or `UsageError` that occurred.

    It computes the next step only when the parent asks for it: otherwise the parent would not know at which position
    the child died.

    Args:
        descriptor: file descriptor of the pipe to the parent.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe = Connection(descriptor)
    sending = threading.Lock()  # several threads wait for storage

    def send(message: Step[Any] | StorageError | UsageError | _Signal) -> None:
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
    except (StorageError, UsageError) as error:
        send(error)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # the parent writes nothing: this returns when the parent ends
    os._exit(0)
