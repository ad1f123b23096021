"""A process that exceeds its deadline is ended; waiting for storage does not count."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from pipeline.storage.deadline import DEADLINE_SIGNAL, deadline_paused, on_pause_change, with_deadline

LIMIT_S = 600.0  # far longer than these tests take: the state of the timer is asserted, not its expiry

PROGRAM = """
import ctypes, time
from pipeline.storage.deadline import deadline_paused, with_deadline

def items():
    {}
    yield 1

for _ in with_deadline(1.0, items()):
    pass
print("finished")
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "statement",
    [
        "time.sleep(600)",
        "ctypes.PyDLL(None).sleep(600)",  # holds the interpreter's lock, so that no other Python thread runs
        "with deadline_paused(): time.sleep(0)\n    time.sleep(600)",
    ],
)
def test_a_process_that_hangs_is_ended_and_its_stack_is_printed(statement):
    ended = run(PROGRAM.format(statement))
    assert ended.returncode == -DEADLINE_SIGNAL
    assert "in items" in ended.stderr
    assert ended.stdout == ""


def test_a_process_that_was_started_with_the_signal_ignored_is_ended_too():
    ignore = "import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)"
    assert run(ignore + PROGRAM.format("time.sleep(600)")).returncode == -DEADLINE_SIGNAL


@pytest.fixture
def timer(monkeypatch):
    """The seconds of each setting of the process's timer; 0 stops it."""
    settings = []
    setitimer = signal.setitimer
    monkeypatch.setattr(signal, "setitimer", lambda kind, seconds: settings.append(seconds) or setitimer(kind, seconds))
    return settings


def is_running():
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def test_the_timer_runs_only_while_an_item_is_awaited(timer):
    def items():
        assert is_running()
        yield 1
        assert is_running()

    for _ in with_deadline(LIMIT_S, items()):
        assert not is_running()
    assert not is_running()
    assert timer == [LIMIT_S, 0, LIMIT_S, 0]


def test_a_pause_stops_the_timer_and_its_end_restarts_the_full_limit(timer):
    def items():
        with deadline_paused():
            assert not is_running()
            with deadline_paused():
                assert not is_running()
            assert not is_running()
        assert is_running()
        yield 1

    assert list(with_deadline(LIMIT_S, items())) == [1]
    assert timer == [LIMIT_S, 0, 0, 0, LIMIT_S, 0, LIMIT_S, 0]


def test_a_pause_by_any_thread_stops_the_timer(timer):
    def items():
        paused, resume = threading.Event(), threading.Event()

        def wait_for_storage():
            with deadline_paused():
                paused.set()
                resume.wait(60)

        thread = threading.Thread(target=wait_for_storage)
        thread.start()
        assert paused.wait(60)
        assert not is_running()
        resume.set()
        thread.join()
        assert is_running()
        yield 1

    assert list(with_deadline(LIMIT_S, items())) == [1]
    assert timer == [LIMIT_S, 0, LIMIT_S, 0, LIMIT_S, 0]


def test_the_first_pause_and_the_last_resumption_are_reported():
    changes = []
    on_pause_change(changes.append)
    try:
        with deadline_paused(), deadline_paused():
            assert changes == [True]
        assert changes == [True, False]
    finally:
        on_pause_change(lambda _: None)


def test_a_timer_of_other_code_keeps_running_while_there_is_no_limit():
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    with deadline_paused():
        assert is_running()
    assert signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0


def test_items_and_exceptions_pass_through():
    assert list(with_deadline(LIMIT_S, iter("abc"))) == ["a", "b", "c"]
    broken = with_deadline(LIMIT_S, (1 // n for n in (1, 0)))
    assert next(broken) == 1
    with pytest.raises(ZeroDivisionError):
        next(broken)
