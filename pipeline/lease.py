"""One driver a run: a lease that its holder renews, and that others watch.

A lease is one small object below the run. Whoever finds one of another driver watches it: renewed while it is looked
at, it is alive, and the newcomer is refused; unchanged for `EXPIRE_S`, its holder is dead, and the newcomer takes it
over. No clocks are compared: those of two machines differ. A holder on the same machine is asked for directly, so that
a killed run goes on at once.

Most stores have no conditional write, so two drivers that start in the same second may both think that they hold it.
The lease names the one that wrote last; the other sees that at its next renewal, or its writers do before their next
commit (`check`), and it gives up. Until then both may commit, which harms nothing: commits of one chunk replace each
other whole (`pipeline.commit`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from pipeline import storage
from pipeline.errors import LeaseLostError, StorageError, UsageError

RENEW_S: Final = 5.0
EXPIRE_S: Final = 20.0
_LOOK_S: Final = 0.5


def lease_uri(run: str) -> str:
    """Where the lease of a run lies."""
    return storage.join(run, "control", "lease.json")


@contextlib.contextmanager
def hold(
    run: str, attempt: str, *, renew_s: float = RENEW_S, expire_s: float = EXPIRE_S
) -> Iterator[Callable[[], None]]:
    """Hold the lease of `run` for the driver `attempt`; gives a function that raises once it is lost.

    Waits up to `expire_s` for a holder that is dead, if it cannot be asked.

    Raises:
        UsageError: another driver is at work.
        LeaseLostError: by the function given: another driver took the lease over.
    """
    uri = lease_uri(run)
    _wait_until_free(run, uri, expire_s)
    beat = 0
    storage.put(uri, _content(attempt, beat))
    ended, lost = threading.Event(), threading.Event()

    def renew() -> None:
        nonlocal beat
        while not ended.wait(renew_s):
            with contextlib.suppress(StorageError):  # in bad weather, again
                if _holder(uri).get("attempt") != attempt:
                    lost.set()
                    return
                beat += 1
                storage.put(uri, _content(attempt, beat))

    def still_held() -> None:
        if lost.is_set():
            raise LeaseLostError(_lost(run, uri))

    renewer = threading.Thread(target=renew, name="sewd-lease", daemon=True)
    renewer.start()
    try:
        yield still_held
    finally:
        ended.set()
        renewer.join()
        with contextlib.suppress(StorageError):  # it expires
            if _holder(uri).get("attempt") == attempt:
                storage.delete([uri])


def check(run: str, attempt: str) -> None:
    """For writers, before they commit.

    Raises:
        LeaseLostError: the lease is not `attempt`'s any more.
    """
    if _holder(lease_uri(run)).get("attempt") != attempt:
        raise LeaseLostError(_lost(run, lease_uri(run)))


def _lost(run: str, uri: str) -> str:
    return (
        f"{run}: {_named(_holder(uri)) or 'another driver'} took this run over; nothing is lost, and it goes on there"
    )


def _wait_until_free(run: str, uri: str, expire_s: float) -> None:
    first = _holder(uri)
    deadline = time.monotonic() + expire_s
    alive = _alive(first)
    while first and alive is not False:
        now = _holder(uri)
        if not now:
            return
        if alive or now != first:
            raise UsageError(
                f"{run}: {_named(now)} is at work on this run. Let it finish, stop it, or choose another --output"
            )
        if time.monotonic() >= deadline:
            return
        time.sleep(min(_LOOK_S, expire_s / 4))


def _holder(uri: str) -> dict[str, Any]:
    """What the lease says; empty where there is none, or none that can be read."""
    try:
        content = json.loads(storage.fetch(uri))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    return f"the driver {holder.get('host')}:{holder.get('pid')}" if holder else ""


def _content(attempt: str, beat: int) -> bytes:
    pid = os.getpid()
    holder = {"attempt": attempt, "host": socket.gethostname(), "pid": pid, "beat": beat}
    return json.dumps(holder | {"boot": _boot(), "born": _born(pid)}).encode()


def _alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process runs on this machine; None: it cannot be known from here."""
    boot = _boot()
    if boot is None or (holder.get("host"), holder.get("boot")) != (socket.gethostname(), boot):
        return None
    return holder.get("born") is not None and _born(int(holder["pid"])) == holder["born"]


def _boot() -> str | None:
    """This start of the machine, where the system tells."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else None


def _born(pid: int) -> str | None:
    """When a process of this machine was started, in ticks since the machine was: a pid alone is used again."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return None
