"""The lease of a run: who may hold it, when it is free again, and how its loss is noticed. A test drives the clock."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import LeaseLostError, StorageError, UsageError
from pipeline.runs import lease as lease_module
from pipeline.runs.lease import EXPIRE_S, RENEW_S, hold_lease, is_lease_free, lease_uri, require_lease
from pipeline.storage import objects


class FakeClock:
    """A clock that moves when a driver sleeps, or when the test advances it. Implements `lease.Clock`."""

    def __init__(self) -> None:
        self.time = 0.0
        self._actions: list[tuple[float, Callable[[], object]]] = []
        self._changed = threading.Condition()
        self._deadline: float | None = None  # of the renewer's wait, while it waits

    def at(self, time: float, action: Callable[[], object]) -> None:
        """Call `action` when the time is reached."""
        self._actions.append((time, action))

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        due = [action for time, action in self._actions if time <= self.time]
        self._actions = [(time, action) for time, action in self._actions if time > self.time]
        for action in due:
            action()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """The renewer's wait: it ends when the test has advanced the clock far enough, or when `event` is set."""
        with self._changed:
            self._deadline = self.time + seconds
            while self.time < self._deadline and not event.is_set():
                self._changed.wait(0.01)  # nothing notifies of the event
            self._deadline = None
            return event.is_set()

    def advance(self, seconds: float) -> None:
        """Move the clock; return when the renewer has done what was due: it waits again, or its thread has ended."""
        while not self._is_renewer_waiting():
            pass
        with self._changed:
            self.time += seconds
            self._changed.notify_all()
        while is_renewer_alive() and not self._is_renewer_waiting():
            pass

    def _is_renewer_waiting(self) -> bool:
        with self._changed:
            if self._deadline is None or self._deadline <= self.time:
                self._changed.wait(0.01)
            return self._deadline is not None and self._deadline > self.time


def is_renewer_alive() -> bool:
    return any(thread.name == "sewd-lease" for thread in threading.enumerate())


@pytest.fixture
def run(tmp_path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def write(run: str, **changes) -> None:
    """Write the lease of another driver, on another machine."""
    holder = {"attempt": "other", "host": "elsewhere", "pid": 7, "beat": 0, "boot": "b", "numbering": "n", "born": "1"}
    lease = Path(lease_uri(run))
    lease.parent.mkdir(parents=True, exist_ok=True)
    complete = lease.with_suffix(".new")  # a half-written lease counts as no lease
    complete.write_text(json.dumps(holder | changes))
    complete.replace(lease)


def read(run: str) -> dict:
    return json.loads(Path(lease_uri(run)).read_text())


def test_a_lease_exists_while_it_is_held_and_is_removed_afterwards(run):
    assert is_lease_free(run)
    with hold_lease(run, "a"):
        assert not is_lease_free(run)
        holder = read(run)
        assert (holder["attempt"], holder["host"], holder["pid"]) == ("a", socket.gethostname(), os.getpid())
        require_lease(run, "a")
        with pytest.raises(LeaseLostError):
            require_lease(run, "b")
    assert not Path(lease_uri(run)).exists()
    assert is_lease_free(run)
    with pytest.raises(LeaseLostError):
        require_lease(run, "a")


def test_a_second_driver_on_the_same_machine_is_refused_at_once(run, clock):
    at_work = pytest.raises(UsageError, match=f"{socket.gethostname()}:{os.getpid()} is working on this run")
    with hold_lease(run, "a"), at_work, hold_lease(run, "b", clock=clock):
        pass
    assert clock.time == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux whether the process lives")
def test_a_dead_driver_of_the_same_machine_is_replaced_at_once(run, clock):
    code = f"""
import os, pipeline.runs.lease as lease
with lease.hold_lease({run!r}, "dead"):
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert read(run)["attempt"] == "dead"
    assert is_lease_free(run)
    with hold_lease(run, "a", clock=clock):
        require_lease(run, "a")
        assert clock.time == 0


def test_a_process_that_reuses_the_pid_of_the_dead_driver_is_not_that_driver(run, clock):
    with hold_lease(run, "a"):
        holder = read(run)
    write(run, **(holder | {"attempt": "other", "born": "1"}))
    with hold_lease(run, "b", clock=clock):
        require_lease(run, "b")
        assert clock.time == 0


def test_a_driver_in_another_pid_namespace_is_watched_and_not_looked_up(run, clock):
    with hold_lease(run, "a"):
        holder = read(run)
    write(run, **(holder | {"attempt": "other", "numbering": "pid:[1]"}))  # a container on the same machine
    assert not is_lease_free(run)

    renewed = holder | {"attempt": "other", "numbering": "pid:[1]", "beat": holder["beat"] + 1}
    clock.at(RENEW_S, lambda: write(run, **renewed))
    with pytest.raises(UsageError, match="is working on this run"), hold_lease(run, "b", clock=clock):
        pass
    assert clock.time == RENEW_S


def test_a_lease_that_this_process_failed_to_release_is_free(run, clock):
    with hold_lease(run, "a"):
        content = Path(lease_uri(run)).read_text()
    Path(lease_uri(run)).write_text(content)
    with hold_lease(run, "b", clock=clock):
        require_lease(run, "b")
        assert clock.time == 0


def test_a_silent_driver_of_another_machine_is_dead_once_its_lease_has_expired(run, clock):
    write(run)
    with hold_lease(run, "a", clock=clock):
        assert clock.time == EXPIRE_S
        require_lease(run, "a")


def test_while_storage_is_slow_a_silent_driver_of_another_machine_is_not_yet_dead(run, clock, monkeypatch):
    write(run)
    fetch = objects.fetch

    def slow_fetch(uri, **version):
        if 30 < clock.time < 60:  # a renewal may take as long
            clock.time += 20
        return fetch(uri, **version)

    monkeypatch.setattr(objects, "fetch", slow_fetch)
    with hold_lease(run, "a", clock=clock):
        assert clock.time > 60 + EXPIRE_S


def test_a_driver_of_another_machine_that_renews_its_lease_is_alive(run, clock):
    write(run)
    clock.at(EXPIRE_S - 1, lambda: write(run, beat=1))
    at_work = pytest.raises(UsageError, match="elsewhere:7 is working on this run")
    with at_work, hold_lease(run, "a", clock=clock):
        pass
    assert clock.time == EXPIRE_S - 1


def test_a_lease_that_another_machine_releases_is_taken_at_once(run, clock):
    write(run)
    clock.at(20, Path(lease_uri(run)).unlink)
    with hold_lease(run, "a", clock=clock):
        require_lease(run, "a")
        assert clock.time == 20


def test_a_lease_that_another_driver_took_over_is_lost_and_left_to_it(run, clock):
    with hold_lease(run, "a", clock=clock):
        write(run)
        clock.advance(RENEW_S)
        assert not is_renewer_alive()
        with pytest.raises(LeaseLostError, match="Another driver took over the run"):
            require_lease(run, "a")
    assert read(run) == read(run) | {"attempt": "other", "beat": 0}


def test_a_lease_is_renewed_once_in_every_interval(run, clock):
    with hold_lease(run, "a", clock=clock):
        assert read(run)["beat"] == 0
        clock.advance(RENEW_S - 1)
        assert read(run)["beat"] == 0
        for beat in (1, 2, 3):
            clock.advance(RENEW_S)
            assert read(run)["beat"] == beat
        require_lease(run, "a")


def test_a_renewal_that_meets_a_storage_error_is_made_again_in_the_next_interval(run, clock, monkeypatch):
    def fail(*_):
        raise StorageError("timed out")

    with hold_lease(run, "a", clock=clock):
        with monkeypatch.context() as patch:
            patch.setattr(lease_module.conditional, "replace", fail)
            clock.advance(RENEW_S)
        assert read(run)["beat"] == 0
        clock.advance(RENEW_S)
        assert read(run)["beat"] > 0


@pytest.mark.parametrize("content", [b"", b"[]", b'{"attempt": '])
def test_a_lease_that_cannot_be_parsed_is_no_lease(run, clock, content):
    write(run)
    Path(lease_uri(run)).write_bytes(content)
    with hold_lease(run, "a", clock=clock):
        require_lease(run, "a")
        assert clock.time == 0
