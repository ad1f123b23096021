"""The notice of a killed process, which a process that ends normally does not print."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from jobs.kill_notice import kill_notice
with kill_notice("killed, but nothing is lost"):
    {}
"""


@pytest.mark.parametrize(
    ("ending", "status", "notice_printed"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, True),
        ("os._exit(1)", 1, True),  # Ray ends a driver this way
        ("pass", 0, False),
        ("sys.exit(3)", 3, False),
        ("raise KeyboardInterrupt", -signal.SIGINT, False),
    ],
)
def test_the_notice_is_printed_only_by_a_process_that_is_killed(ending, status, notice_printed):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(ending)], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("nothing is lost" in done.stderr) == notice_printed


def test_the_notice_reaches_the_terminal_while_native_output_goes_to_the_log():
    program = """
import os, signal
from jobs.kill_notice import kill_notice
from jobs.native_output import native_output_to_log
with native_output_to_log(), kill_notice("killed, but nothing is lost"):
    os.write(2, b"noise of a library" + bytes([10]))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "killed, but nothing is lost\n")
