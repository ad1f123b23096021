"""Warns about a run in which nothing is committed: from outside, a long chunk and a deadlock look the same.

It only writes to the log. A process that hangs is ended where that is known (`pipeline.storage.deadline`, Ray).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

STALL_S: Final = 120.0

log = logging.getLogger("sewd")


@contextlib.contextmanager
def warn_when_stalled(describe: Callable[[float], str], stall_s: float = STALL_S) -> Iterator[Callable[[], None]]:
    """Log a warning when there was no progress for a while, and again each time that this time has doubled.

    Args:
        describe: returns the warning, given the seconds without progress; called in a thread of its own.
        stall_s: seconds without progress before the first warning.

    Yields:
        A function to call at each progress.
    """
    progressed, ended = threading.Event(), threading.Event()
    watcher = threading.Thread(
        target=watch, args=(progressed, ended, describe, stall_s), name="sewd-watchdog", daemon=True
    )
    watcher.start()
    try:
        yield progressed.set
    finally:
        ended.set()
        progressed.set()
        watcher.join()


def watch(
    progressed: threading.Event, ended: threading.Event, describe: Callable[[float], str], stall_s: float
) -> None:
    """The thread of `warn_when_stalled`.

    Args:
        progressed: set at each progress; cleared here.
        ended: set, before `progressed`, when the thread is to end.
        describe: see `warn_when_stalled`.
        stall_s: see `warn_when_stalled`.
    """
    waited_s, warn_after_s = 0.0, stall_s
    while not ended.is_set():
        if progressed.wait(warn_after_s - waited_s):
            progressed.clear()
            waited_s, warn_after_s = 0.0, stall_s
        else:
            log.warning(describe(warn_after_s))
            waited_s, warn_after_s = warn_after_s, 2 * warn_after_s
