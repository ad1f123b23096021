"""A process that hangs ends itself: what takes longer than a limit to come is not waited for.

The alarm is the system's: a timer whose signal needs neither the interpreter's lock, which a decoder that hangs may
hold, nor its help. faulthandler writes where the process hung to standard error, and the signal ends it; whoever
started it finds out. To set a timer is one call of the system: faulthandler's own alarm starts and ends a thread each
time, 0.4 ms for every utterance.

Time in storage does not count: retries and time-outs have their own measure there, and bad weather is no hang.
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

HUNG: Final = signal.SIGALRM  # what ends a process that hangs


def within(seconds: float, items: Iterator[T]) -> Iterator[T]:
    """Give `items`; the process ends where one takes more than `seconds` to come.

    What the caller does between two of them, or waits for, is not measured. One at a time in a process.
    """
    while True:
        _alarm.limit(seconds)
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            _alarm.limit(None)
        yield item


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Time in here does not count, in whichever thread it is spent; afterwards the limit begins anew."""
    _alarm.wait(1)
    try:
        yield
    finally:
        _alarm.wait(-1)


def tell_of_waits(tell: Callable[[bool], None]) -> None:
    """Have `tell` called with True when somebody begins to wait, and with False when nobody does any more."""
    _alarm.tell = tell


class _Alarm:
    """The real-time timer, of which a process has one: on while there is a limit and nobody waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: float | None = None
        self._waits = 0
        self._registered = False
        self.tell: Callable[[bool], None] = lambda _: None

    def limit(self, seconds: float | None) -> None:
        with self._lock:
            if not self._registered:
                # Else a process would go on whose starter ignores the signal. Python sets it in a main thread only.
                ctypes.CDLL(None).signal(HUNG, 0)
                faulthandler.register(HUNG, chain=True)  # then what the signal does: end the process
                self._registered = True
            self._set(seconds, self._waits)

    def wait(self, change: int) -> None:
        with self._lock:
            before = self._waits
            self._set(self._seconds, before + change)
            if bool(before) != bool(self._waits):
                self.tell(bool(self._waits))

    def _set(self, seconds: float | None, waits: int) -> None:
        was, self._seconds, self._waits = self._seconds, seconds, waits
        if was is None and seconds is None:
            return  # the timer is not ours
        signal.setitimer(signal.ITIMER_REAL, seconds if seconds is not None and not waits else 0)


_alarm = _Alarm()
