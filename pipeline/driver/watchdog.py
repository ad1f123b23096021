"""Says what is stuck: a run that gets nothing done is silent, and nobody can tell a long chunk from a dead lock.

It speaks, and does nothing else: what hangs is ended by whoever knows it to hang (`pipeline.storage.deadline`, Ray).
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
def watching(describe: Callable[[float], str], stall_s: float = STALL_S) -> Iterator[Callable[[], None]]:
    """Warn when nothing is done for a while, and again each time the silence has doubled.

    Args:
        describe: what to say after so many seconds; called in a thread of its own.
        stall_s: the first silence that is worth a word.

    Yields:
        What to call whenever something is done.
    """
    done, ended = threading.Event(), threading.Event()

    def watch() -> None:
        silence = stall_s
        waited = 0.0
        while not ended.is_set():
            if done.wait(silence - waited):
                done.clear()
                silence, waited = stall_s, 0.0
            else:
                log.warning(describe(silence))
                waited, silence = silence, 2 * silence

    watcher = threading.Thread(target=watch, name="sewd-watchdog", daemon=True)
    watcher.start()
    try:
        yield done.set
    finally:
        ended.set()
        done.set()
        watcher.join()
