"""The lease of a run: who may hold it, when it is free again, and how its loss is noticed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import LeaseLostError, UsageError
from pipeline.runs.lease import check, hold, is_free, lease_uri


@pytest.fixture
def run(tmp_path) -> str:
    return str(tmp_path / "run")


def write(run: str, **changes) -> None:
    holder = {"attempt": "other", "host": "elsewhere", "pid": 7, "beat": 0, "boot": "b", "numbering": "n", "born": "1"}
    lease = Path(lease_uri(run))
    lease.parent.mkdir(parents=True, exist_ok=True)
    whole = lease.with_suffix(".new")  # a lease that is half written is none
    whole.write_text(json.dumps(holder | changes))
    whole.replace(lease)


@contextlib.contextmanager
def soon(action: Callable[[], object]) -> Iterator[None]:
    """`action` half a second later, from another thread."""
    timer = threading.Timer(0.5, action)
    timer.start()
    yield
    timer.join()


def test_it_is_there_while_it_is_held_and_gone_after(run):
    assert is_free(run)
    with hold(run, "a"):
        assert not is_free(run)
        holder = json.loads(Path(lease_uri(run)).read_text())
        assert (holder["attempt"], holder["host"], holder["pid"]) == ("a", socket.gethostname(), os.getpid())
        check(run, "a")
        with pytest.raises(LeaseLostError):
            check(run, "b")
    assert not Path(lease_uri(run)).exists()
    assert is_free(run)
    with pytest.raises(LeaseLostError):
        check(run, "a")


def test_a_living_driver_of_this_machine_is_in_the_way_at_once(run):
    began = time.monotonic()
    at_work = pytest.raises(UsageError, match=f"{socket.gethostname()}:{os.getpid()} is at work")
    with hold(run, "a"), at_work, hold(run, "b", expire_s=60):
        pass
    assert time.monotonic() - began < 10


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux whether the process lives")
def test_a_dead_driver_of_this_machine_is_not_waited_for(run):
    code = f"""
import os, pipeline.runs.lease as lease
with lease.hold({run!r}, "dead"):
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert json.loads(Path(lease_uri(run)).read_text())["attempt"] == "dead"
    assert is_free(run)
    began = time.monotonic()
    with hold(run, "a", expire_s=60):
        check(run, "a")
    assert time.monotonic() - began < 10


def test_a_process_that_only_has_the_dead_drivers_number_is_not_it(run):
    with hold(run, "a"):
        holder = json.loads(Path(lease_uri(run)).read_text())
    write(run, **(holder | {"attempt": "other", "born": "1"}))
    with hold(run, "b", expire_s=60):
        check(run, "b")


def test_a_living_driver_that_numbers_its_processes_otherwise_is_watched_not_asked(run):
    with hold(run, "a"):
        holder = json.loads(Path(lease_uri(run)).read_text())
    write(run, **(holder | {"attempt": "other", "numbering": "pid:[1]"}))  # a container beside this one
    assert not is_free(run)

    beat = holder | {"attempt": "other", "numbering": "pid:[1]", "beat": holder["beat"] + 1}
    with soon(lambda: write(run, **beat)), pytest.raises(UsageError, match="is at work"), hold(run, "b", expire_s=30):
        pass


def test_what_this_process_could_not_give_back_is_free(run):
    with hold(run, "a"):
        left = Path(lease_uri(run)).read_text()
    Path(lease_uri(run)).write_text(left)
    began = time.monotonic()
    with hold(run, "b", expire_s=60):
        check(run, "b")
    assert time.monotonic() - began < 10


def test_a_silent_driver_of_another_machine_is_dead_once_its_lease_expired(run):
    write(run)
    began = time.monotonic()
    with hold(run, "a", expire_s=1):
        assert 0.9 < time.monotonic() - began < 10
        check(run, "a")


def test_a_driver_of_another_machine_that_renews_is_at_work(run):
    write(run)

    at_work = pytest.raises(UsageError, match="elsewhere:7 is at work")
    with soon(lambda: write(run, beat=1)), at_work, hold(run, "a", expire_s=30):
        pass


def test_a_driver_of_another_machine_that_ends_meanwhile_makes_room(run):
    write(run)

    with soon(Path(lease_uri(run)).unlink), hold(run, "a", expire_s=30):
        check(run, "a")


def test_a_lease_that_another_takes_is_lost_and_left_to_it(run):
    with hold(run, "a", renew_s=0.05):
        write(run)
        time.sleep(1)
        with pytest.raises(LeaseLostError, match="another driver took this run over"):
            check(run, "a")
    assert json.loads(Path(lease_uri(run)).read_text())["attempt"] == "other"


def test_it_is_renewed(run):
    with hold(run, "a", renew_s=0.05):
        time.sleep(1)
        assert json.loads(Path(lease_uri(run)).read_text())["beat"] > 2
        check(run, "a")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"attempt": '])
def test_one_that_cannot_be_read_is_none(run, content):
    write(run)
    Path(lease_uri(run)).write_bytes(content)
    with hold(run, "a", expire_s=60):
        check(run, "a")
