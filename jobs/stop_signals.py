"""A stop from outside: SIGTERM, SIGINT and SIGHUP end a run within a grace period.

The first signal asks the run to stop: the chunks in the model are finished and committed. What has not ended when the
grace period is nearly over is ended at once, wherever it is: committed work is never lost, so this costs the chunks in
the model only.

A thread follows the signals, and not Python's handlers: these wait for the main thread, which may be inside a library.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
# What recording the stop and ending all processes takes, in seconds.
END_S: Final = 2.0
# `timeout` and some schedulers send a signal to a process, and again to its group.
SAME_SIGNAL_S: Final = 1.0
_CLOSE: Final = 0


@dataclass
class Stop:
    """A request to stop.

    Attributes:
        requested: set by the first signal.
        signum: that signal; 0 until then.
    """

    requested: threading.Event = field(default_factory=threading.Event)
    signum: int = 0

    @property
    def exit_code(self) -> int:
        """What shells report for a process that the signal ended."""
        return 128 + self.signum


@contextlib.contextmanager
def stop_on_signals(grace_s: float, announce: Callable[[int], None], end: Callable[[Stop], None]) -> Iterator[Stop]:
    """Follow the signals inside this context.

    Args:
        grace_s: seconds from the first signal to the end.
        announce: called in a thread of its own once the first signal has come: what it writes to may be gone or stuck.
        end: called in that thread when the grace period is nearly over, or at a second SIGINT; ends the process.
    """
    stop = Stop()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:  # `nohup` ignores SIGHUP, and `&` in a script SIGINT
            signal.signal(signum, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    follower = threading.Thread(
        target=_follow, args=(reader, stop, grace_s, announce, end), name="sewd-signals", daemon=True
    )
    follower.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        os.write(writer, bytes([_CLOSE]))
        follower.join()
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        os.close(reader)
        os.close(writer)


def _follow(
    reader: int, stop: Stop, grace_s: float, announce: Callable[[int], None], end: Callable[[Stop], None]
) -> None:
    first_at = end_at = float("inf")
    while True:
        wait_s = None if end_at == float("inf") else max(0.0, end_at - time.monotonic())
        ready, _, _ = select.select([reader], [], [], wait_s)
        received = os.read(reader, 64) if ready else b""
        if _CLOSE in received:
            return
        now = time.monotonic()
        signals = [signum for signum in received if signum in SIGNALS]
        if signals and not stop.signum:
            first_at, end_at = now, now + max(0.0, grace_s - END_S)
            stop.signum = signals[0]
            if stop.signum == signal.SIGHUP:
                _leave_terminal()
            stop.requested.set()
            threading.Thread(target=announce, args=(stop.signum,), name="sewd-announce", daemon=True).start()
        elif now >= end_at or (signal.SIGINT in signals and now > first_at + SAME_SIGNAL_S):
            end(stop)
            return


def _leave_terminal() -> None:
    """Write nothing more to a terminal that is gone: each write would fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if os.isatty(stream.fileno()):
                os.dup2(null, stream.fileno())
    os.close(null)
