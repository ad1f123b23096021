"""What is printed when nobody reads it any more, as after `sewd ... | head` or Ctrl-C on `2>&1 | tee`."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from jobs.console import err, out
sys.stdin.read()  # until the reader has gone
for console in (err, out):
    for _ in range(3):
        console.print("a line")
open(sys.argv[1], "w").write("done")
sys.exit(3)
"""


@pytest.mark.parametrize("gone", ["stdout", "stderr", "both"])
def test_a_verb_continues_without_its_readers(gone, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "result")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True) as process:
        for name in ("stdout", "stderr"):
            if gone in (name, "both"):
                getattr(process, name).close()
        process.stdin.close()
        kept = "" if gone == "both" else getattr(process, "stderr" if gone == "stdout" else "stdout").read()
    assert process.returncode == 3
    assert (tmp_path / "result").read_text() == "done"
    assert kept == ("" if gone == "both" else "a line\n" * 3)
