"""One driver at a time: a lease that its holder renews and that other drivers watch.

A lease is one small object below the run. A driver that finds the lease of another one watches it: if it is renewed
while it is watched, its holder is alive, and the new driver is refused; if it does not change for `EXPIRE_S`, its
holder is dead, and the new driver takes over. Clocks are not compared: those of two machines differ. A holder on the
same machine is looked up directly, so that a killed run can be resumed at once.

The lease is written on condition that nobody else has written it (`pipeline.storage.conditional`): of two drivers that
start at the same moment one gets it, and the other is refused at once. Not every store honours the condition. There
both may believe that they hold the lease. It names the one that wrote last; the other notices at its next renewal,
before its next commit, and before each change of what the two share (`require_lease`), and gives up. What remains is
the time between such a check and the write after it. A commit in that time does no harm: commits of one chunk replace
each other whole (`pipeline.runs.commit`). A data file that is written in that time, after the other driver has
finished, is an orphan, and `sewd verify` finds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from pipeline.errors import LeaseLostError, RunBusyError, StorageError
from pipeline.storage import conditional, objects, uris
from pipeline.storage.conditional import Stored

LEASE: Final = "control/lease.json"
RENEW_S: Final = 10.0
# Longer than a call to storage is retried: a holder that is silent for so long is not only waiting for storage.
EXPIRE_S: Final = 90.0
_POLL_S: Final = 0.5
_RELEASE_S: Final = 5.0  # time to release the lease; if storage does not answer, the lease is left to expire

_held: set[str] = set()  # attempts of this process that hold a lease


class Clock(Protocol):
    """The time, which tests drive themselves. Times are in seconds."""

    def now(self) -> float:
        """The time of a clock that never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for `event`, at most `seconds`; return whether it is set."""


class _SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)


_SYSTEM_CLOCK: Final = _SystemClock()


def lease_uri(run: str) -> str:
    """The URI of the lease of a run."""
    return uris.join(run, LEASE)


@contextlib.contextmanager
def hold_lease(
    run: str, attempt: str, *, renew_s: float = RENEW_S, expire_s: float = EXPIRE_S, clock: Clock = _SYSTEM_CLOCK
) -> Iterator[None]:
    """Hold the lease of `run` for the driver `attempt`; `require_lease` checks that it is still held.

    Waits for up to `expire_s` if the lease belongs to a driver whose process cannot be looked up from here.

    Args:
        run: the RUN directory or prefix.
        attempt: the start of the driver.
        renew_s: interval of the renewals (heartbeats), in seconds.
        expire_s: how long a lease must not change before its holder counts as dead, in seconds.
        clock: the time, for tests.

    Raises:
        RunBusyError: another driver is working on the run.
        StorageError: the lease cannot be read or written.
    """
    uri = lease_uri(run)
    identity = {"attempt": attempt, **_identity()}
    _take(run, uri, _encode(identity, 0), expire_s, clock)
    _held.add(attempt)
    ended = threading.Event()

    def renew() -> None:
        beat = 0
        while not clock.wait(ended, renew_s):
            with contextlib.suppress(StorageError):  # the next renewal tries again
                stored = conditional.read(uri)
                if attempt not in _held or _holder(stored).get("attempt") != attempt:
                    return  # it is released, or another driver took it over
                beat += 1
                conditional.replace(uri, _encode(identity, beat), stored)
        with contextlib.suppress(StorageError):  # the lease expires
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


def require_lease(run: str, attempt: str) -> None:
    """Check that `attempt` holds the lease, before a write that could conflict with another driver's.

    Raises:
        LeaseLostError: `attempt` does not hold the lease any more.
        StorageError: the lease cannot be read.
    """
    if not _is_held(lease_uri(run), attempt):
        raise LeaseLostError(
            f"{run}: the lease of this driver is gone. Another driver took over the run, in which case nothing is "
            "lost; or control/lease.json of the run was removed, or cannot be read from every machine of the cluster"
        )


def own_attempt(run: str) -> str | None:
    """The attempt of this process that holds the lease of `run`; None if this process does not hold it.

    Raises:
        StorageError: the lease cannot be read.
    """
    attempt = _read_holder(lease_uri(run)).get("attempt")
    return attempt if attempt in _held else None


def release_lease(run: str, attempt: str) -> None:
    """Release the lease of `attempt`, for a process that ends at once.

    Raises:
        StorageError: the lease cannot be removed.
    """
    _held.discard(attempt)
    objects.delete([lease_uri(run)])


def is_lease_free(run: str) -> bool:
    """Whether nobody holds the lease of `run`, as far as that is known without waiting.

    A driver that was killed on another machine, or on this machine before its last restart, seems to hold it still.

    Raises:
        StorageError: the lease cannot be read.
    """
    holder = _read_holder(lease_uri(run))
    return not holder or _is_alive(holder) is False


def _is_held(uri: str, attempt: str) -> bool:
    return _read_holder(uri).get("attempt") == attempt


def _take(run: str, uri: str, content: bytes, expire_s: float, clock: Clock) -> None:
    """Write the lease once it is free; RunBusyError if another driver holds it, or takes it at the same moment."""
    while not conditional.replace(uri, content, _wait_until_free(run, uri, expire_s, clock)):
        if holder := _read_holder(uri):
            raise RunBusyError(_at_work(run, holder))


def _at_work(run: str, holder: Mapping[str, Any]) -> str:
    return (
        f"{run}: the driver {holder.get('host')}:{holder.get('pid')} is working on this run. "
        "Let it finish, stop it, or choose another --output"
    )


def _wait_until_free(run: str, uri: str, expire_s: float, clock: Clock) -> Stored | None:
    """Wait until nobody holds the lease; return what is stored then, None if nothing is."""
    stored = conditional.read(uri)
    first = _holder(stored)
    alive = _is_alive(first)
    deadline = clock.now() + expire_s
    while first and alive is not False:
        began = clock.now()
        stored = conditional.read(uri)
        holder = _holder(stored)
        if not holder:
            break
        if alive or holder != first:
            raise RunBusyError(_at_work(run, holder))
        if clock.now() - began > 2 * _POLL_S:  # storage is slow: the holder may be unable to renew its lease
            deadline = clock.now() + expire_s
        if clock.now() >= deadline:
            break
        clock.sleep(min(_POLL_S, expire_s / 4))
    return stored


def _read_holder(uri: str) -> dict[str, Any]:
    """The content of the lease; empty if there is no lease, or none that can be parsed."""
    try:
        return _parse(objects.fetch(uri))
    except FileNotFoundError:
        return {}


def _holder(stored: Stored | None) -> dict[str, Any]:
    return {} if stored is None else _parse(stored.data)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and "attempt" in content else {}


def _encode(identity: dict[str, Any], beat: int) -> bytes:
    return json.dumps(identity | {"beat": beat}).encode()


def _identity() -> dict[str, Any]:
    """This process: its host, the boot of the host, its PID namespace, its PID and its start time."""
    pid = os.getpid()
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    identity: dict[str, Any] = {"host": socket.gethostname(), "pid": pid, "boot": None, "numbering": None}
    with contextlib.suppress(OSError):  # not Linux
        identity |= {"boot": boot.read_text().strip(), "numbering": str(namespace.readlink())}
    return identity | {"born": _start_time(pid)}


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process runs on this machine; None: that cannot be known from here."""
    own = _identity()
    place = ("host", "boot", "numbering")
    if own["boot"] is None or any(holder.get(key) != own[key] for key in place) or holder.get("born") is None:
        return None
    if (holder["pid"], holder["born"]) == (own["pid"], own["born"]):
        return holder["attempt"] in _held  # else this process failed to release it
    return bool(_start_time(holder["pid"]) == holder["born"])


def _start_time(pid: int) -> str | None:
    """When a process was started, in ticks since the boot: a PID alone is reused. None: there is no such process."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return None
