"""Says what is stuck: a run that gets nothing done is silent, and nobody can tell a long chunk from a dead lock.

It speaks, and does nothing else: what hangs is ended by whoever knows it to hang (`pipeline.deadline`, Ray).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import ray

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


def recognizers(stage: str) -> str:
    """How the actors of a stage are, by Ray's word for it, and what of the cluster is free: `2 ALIVE, 1 RESTARTING`."""
    state: Any = ray._private.state  # the public call asks a dashboard, which is not always there
    job = ray.get_runtime_context().get_job_id()
    ours = [actor for actor in state.actors().values() if actor["JobID"] == job]
    states = Counter(actor["State"] for actor in ours if stage in actor["Name"] + actor["ActorClassName"])
    words = ", ".join(f"{count} {name}" for name, count in sorted(states.items()) if name != "DEAD") or "none"
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    rest = ", ".join(f"{free.get(name, 0.0):g} {name}s" for name in ("CPU", "GPU"))
    alive = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    return f"recognisers: {words}; {rest} free on {alive} machines"
