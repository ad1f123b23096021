"""A deadline for each step of a decoder or a model: a process that hangs past it is ended by a signal.

The timer is the operating system's. Its signal needs neither the interpreter's lock, which a hanging decoder may hold,
nor any Python code to run. `faulthandler` writes the stack of the hang to standard error, and the signal ends the
process; the parent process sees it in the exit status. Setting a timer is one system call. faulthandler's own timer
starts and ends a thread each time, which costs 0.4 ms for every utterance.

Time spent in storage does not count: retries and time-outs bound it there, and a transient storage error is not a hang.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")

DEADLINE_SIGNAL: Final = signal.SIGALRM  # ends a process that exceeds its deadline


def with_deadline(seconds: float, items: Iterator[T]) -> Iterator[T]:
    """Iterate over `items`, and end the process if one item takes longer than `seconds` to arrive.

    The time that the caller spends between two items is not measured. A process runs one such iteration at a time.

    Args:
        seconds: the deadline for each item.
        items: what to iterate over.

    Yields:
        The items, unchanged and in order. Exceptions pass through.
    """
    while True:
        _timer.set_limit(seconds)
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            _timer.set_limit(None)
        yield item


@contextlib.contextmanager
def deadline_paused() -> Iterator[None]:
    """Stop the clock inside this context, whichever thread enters it; afterwards the full limit starts again."""
    _timer.change_pauses(1)
    try:
        yield
    finally:
        _timer.change_pauses(-1)


def on_pause_change(callback: Callable[[bool], None]) -> None:
    """Call `callback` with True when the first thread pauses the deadline, with False when the last one resumes."""
    _timer.on_pause_change = callback


class _ProcessTimer:
    """The process's one real-time timer. It runs while there is a limit and no thread has paused it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limit_s: float | None = None
        self._pauses = 0
        self._registered = False
        self.on_pause_change: Callable[[bool], None] = lambda _: None

    def set_limit(self, seconds: float | None) -> None:
        with self._lock:
            if not self._registered:
                # A process inherits an ignored signal from its parent. Python's own signal.signal works in the main
                # thread only, hence the C function; 0 is SIG_DFL.
                ctypes.CDLL(None).signal(DEADLINE_SIGNAL, 0)
                faulthandler.register(DEADLINE_SIGNAL, chain=True)  # chain: then the default action ends the process
                self._registered = True
            self._update(seconds, self._pauses)

    def change_pauses(self, change: int) -> None:
        with self._lock:
            before = self._pauses
            self._update(self._limit_s, before + change)
            if bool(before) != bool(self._pauses):
                self.on_pause_change(bool(self._pauses))

    def _update(self, limit_s: float | None, pauses: int) -> None:
        previous_limit_s, self._limit_s, self._pauses = self._limit_s, limit_s, pauses
        if previous_limit_s is None and limit_s is None:
            return  # a timer that may be running belongs to other code
        signal.setitimer(signal.ITIMER_REAL, limit_s if limit_s is not None and not pauses else 0)


_timer = _ProcessTimer()
