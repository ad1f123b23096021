"""A process that hangs ends itself; one that waits for storage does not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pipeline.storage.deadline import HUNG, waiting, within

PROGRAM = """
import ctypes, threading, time
from pipeline.storage.deadline import waiting, within

def wait():
    with waiting(), waiting():
        time.sleep(1.5)

def slowly():
    {}
    yield 1

for _ in within(0.7, slowly()):
    time.sleep(1.5)
print("through")
"""


@pytest.mark.parametrize(
    ("does", "ends"),
    [
        ("time.sleep(60)", True),
        ("ctypes.PyDLL(None).sleep(60)", True),  # and no other thread of Python's gets a turn
        ("wait(); time.sleep(60)", True),
        ("wait()", False),
        ("other = threading.Thread(target=wait); other.start(); other.join()", False),
    ],
)
def test_what_hangs_is_ended_and_what_waits_is_not(does, ends):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(does)], capture_output=True, text=True, timeout=50, check=False
    )
    assert ("in slowly" in done.stderr) == ends  # where it hung
    assert (done.stdout == "through\n") != ends
    assert done.returncode == (-HUNG if ends else 0)


def test_it_ends_whoever_was_started_with_the_signal_ignored():
    program = "import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)" + PROGRAM.format("time.sleep(60)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == -HUNG


def test_a_timer_of_somebody_elses_goes_on_where_there_is_no_limit():
    signal.setitimer(signal.ITIMER_REAL, 600)
    with waiting():
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
    assert signal.setitimer(signal.ITIMER_REAL, 0)[0] > 500


def test_items_and_errors_pass():
    assert list(within(60, iter("abc"))) == ["a", "b", "c"]
    broken = within(60, (1 // n for n in (1, 0)))
    assert next(broken) == 1
    with pytest.raises(ZeroDivisionError):
        next(broken)
