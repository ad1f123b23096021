"""One driver a run: a lease that its holder renews, and that others watch.

A lease is one small object below the run. Whoever finds one of another driver watches it: renewed while it is looked
at, it is alive, and the newcomer is refused; unchanged for `EXPIRE_S`, its holder is dead, and the newcomer takes it
over. No clocks are compared: those of two machines differ. A holder on the same machine is asked for directly, so that
a killed run goes on at once.

Most stores have no conditional write, so two drivers that start in the same second may both think that they hold it.
The lease names the one that wrote last; the other finds out at its next renewal, before its next commit, and before
each change of what it shares with the other (`check`), and gives up. What remains are the moments between such a look
and the write after it. A commit in them harms nothing: commits of one chunk replace each other whole
(`pipeline.runs.commit`). A data file that is written in them after the other driver ended is a file that nothing names, and
`sewd verify` finds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pipeline.errors import LeaseLostError, StorageError, UsageError
from pipeline.storage import objects, uris

RENEW_S: Final = 10.0
# Longer than a call to storage is retried for in bad weather: whoever is silent for so long is not only waiting.
EXPIRE_S: Final = 90.0
_LOOK_S: Final = 0.5
_RELEASE_S: Final = 5.0  # for giving it back: in bad weather it is left to expire

_held: set[str] = set()  # attempts of this process that hold a lease


def lease_uri(run: str) -> str:
    """Where the lease of a run lies."""
    return uris.join(run, "control", "lease.json")


@contextlib.contextmanager
def hold(run: str, attempt: str, *, renew_s: float = RENEW_S, expire_s: float = EXPIRE_S) -> Iterator[None]:
    """Hold the lease of `run` for the driver `attempt`; whether it still does, `check` says.

    Waits up to `expire_s` for a holder that is dead, if it cannot be asked.

    Raises:
        UsageError: another driver is at work.
    """
    uri = lease_uri(run)
    _wait_until_free(run, uri, expire_s)
    identity = {"attempt": attempt, **_identity()}
    objects.put(uri, _content(identity, 0))
    _held.add(attempt)
    ended = threading.Event()

    def renew() -> None:
        beat = 0
        while not ended.wait(renew_s):
            with contextlib.suppress(StorageError):  # in bad weather, again
                if not _is_held(uri, attempt):
                    return  # another driver took it over
                beat += 1
                objects.put(uri, _content(identity, beat))
        with contextlib.suppress(StorageError):  # it expires
            if _is_held(uri, attempt):
                objects.delete([uri])

    renewer = threading.Thread(target=renew, name="sewd-lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        _held.discard(attempt)
        ended.set()
        renewer.join(_RELEASE_S)


def check(run: str, attempt: str) -> None:
    """For whoever is about to write what another driver could be writing too.

    Raises:
        LeaseLostError: the lease is not `attempt`'s any more.
        StorageError: it cannot be known.
    """
    if not _is_held(lease_uri(run), attempt):
        raise LeaseLostError(
            f"{run}: another driver took this run over, and nothing is lost by it; or its control/lease.json was "
            "removed, or cannot be seen from every machine of the cluster"
        )


def is_free(run: str) -> bool:
    """Whether nobody holds the lease of `run`, as far as it can be known without waiting: a driver that was killed on
    another machine, or on this one before it was started anew, seems to hold it.

    Raises:
        StorageError: it cannot be known.
    """
    holder = _holder(lease_uri(run))
    return not holder or _alive(holder) is False


def _is_held(uri: str, attempt: str) -> bool:
    return _holder(uri).get("attempt") == attempt


def _wait_until_free(run: str, uri: str, expire_s: float) -> None:
    first = _holder(uri)
    alive = _alive(first)
    deadline = time.monotonic() + expire_s
    while first and alive is not False:
        began = time.monotonic()
        now = _holder(uri)
        if not now:
            return
        if alive or now != first:
            raise UsageError(
                f"{run}: the driver {now.get('host')}:{now.get('pid')} is at work on this run. "
                "Let it finish, stop it, or choose another --output"
            )
        if time.monotonic() - began > 2 * _LOOK_S:  # the weather is bad, for the other one too
            deadline = time.monotonic() + expire_s
        if time.monotonic() >= deadline:
            return
        time.sleep(min(_LOOK_S, expire_s / 4))


def _holder(uri: str) -> dict[str, Any]:
    """What the lease says; empty where there is none, or none that can be read."""
    try:
        content = json.loads(objects.fetch(uri))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _content(identity: dict[str, Any], beat: int) -> bytes:
    return json.dumps(identity | {"beat": beat}).encode()


def _identity() -> dict[str, Any]:
    """This process: its machine, the start of the machine, its own numbering of processes, number and start."""
    pid = os.getpid()
    boot, numbering = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    identity: dict[str, Any] = {"host": socket.gethostname(), "pid": pid, "boot": None, "numbering": None}
    with contextlib.suppress(OSError):  # not Linux
        identity |= {"boot": boot.read_text().strip(), "numbering": str(numbering.readlink())}
    return identity | {"born": _born(pid)}


def _alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process runs on this machine; None: it cannot be known from here."""
    mine = _identity()
    here = ("host", "boot", "numbering")
    if mine["boot"] is None or any(holder.get(name) != mine[name] for name in here) or holder.get("born") is None:
        return None
    if (holder["pid"], holder["born"]) == (mine["pid"], mine["born"]):
        return holder["attempt"] in _held  # this process did not manage to give it back
    return bool(_born(holder["pid"]) == holder["born"])


def _born(pid: int) -> str | None:
    """When a process was started, in ticks since the machine was: a pid alone is used again. None: there is none."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return None
