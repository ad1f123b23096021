"""A stop from outside: what is asked to stop, when it is ended, and with which exit code; in processes of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from jobs.stop_signals import SAME_SIGNAL_S

# Prints what happens; `work` seconds of work are done after a request to stop, in a call that signals do not interrupt.
PROGRAM = """
import os, sys, threading, time
from jobs import stop_signals
stop_signals.END_S = 0.5
grace, work = float(sys.argv[1]), float(sys.argv[2])
def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
def end(stop):
    say("ended")
    os._exit(stop.exit_code)
with stop_signals.stop_on_signals(grace, lambda signum: say("stopping", signum), end) as stop:
    say("ready")
    while not stop.requested.wait(0.05):
        pass
    threading.Event().wait(work)
    say("finished")
sys.exit(stop.exit_code)
"""


# These tests may run under `nohup`, which has their processes ignore SIGHUP.
HANG_UPS = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"


@pytest.fixture
def start():
    processes = []

    def make(grace: float, work: float, *, before: str = HANG_UPS) -> subprocess.Popen:
        command = [sys.executable, "-c", before + PROGRAM, str(grace), str(work)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield make
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_work_that_ends_within_the_grace_period_is_finished(start, name, code):
    process = start(20, 0.2)
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=20)
    assert sorted(out.split("\n")) == ["", "finished", f"stopping {code - 128}"]  # a thread announces it
    assert process.returncode == code


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_work_that_takes_longer_is_ended(start, name, code):
    process = start(1.5, 60)
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=20)
    assert out == f"stopping {code - 128}\nended\n"
    assert process.returncode == code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_that_is_sent_twice_at_once_counts_once(start, name):
    process = start(20, 0.5)
    for _ in range(2):  # as `timeout` does: to the process, and to its group
        process.send_signal(getattr(signal, name))
        time.sleep(0.02)
    out, _ = process.communicate(timeout=20)
    assert out.endswith("finished\n")


def test_a_second_interrupt_ends_at_once_and_other_signals_do_not(start):
    process = start(60, 60)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping 2\n"
    time.sleep(SAME_SIGNAL_S + 0.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out == "ended\n"
    assert process.returncode == 130


@pytest.mark.parametrize("failure", ["sys.exit(1)", "1 / 0", "time.sleep(600)"])
def test_what_announces_the_stop_may_fail_or_block(start, failure):
    replaced = f"""
import sys, time
from jobs import stop_signals
follow = stop_signals.stop_on_signals
def announce(signum):
    {failure}
stop_signals.stop_on_signals = lambda grace, _, end: follow(grace, announce, end)
"""
    process = start(20, 0.1, before=HANG_UPS + replaced)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("finished\n", 143)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_process_keeps_ignoring_what_it_ignores(start, name):
    process = start(20, 0.1, before=f"import signal; signal.signal(signal.{name}, signal.SIG_IGN)\n")
    process.send_signal(getattr(signal, name))
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert sorted(out.split("\n")) == ["", "finished", "stopping 15"]
