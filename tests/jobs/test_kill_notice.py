"""Who is killed has a last word, and who ends has none beside his own."""

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
    ("does", "status", "speaks"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, True),
        ("os._exit(1)", 1, True),  # as Ray does
        ("pass", 0, False),
        ("sys.exit(3)", 3, False),
        ("raise KeyboardInterrupt", -signal.SIGINT, False),
    ],
)
def test_a_process_that_is_ended_from_outside_has_a_last_word(does, status, speaks):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(does)], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("nothing is lost" in done.stderr) == speaks
