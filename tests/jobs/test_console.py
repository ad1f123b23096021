"""What is printed when nobody reads it any more, as after `sewd ... | head` or Ctrl-C on `2>&1 | tee`."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.table import Table

from jobs.console import _Console

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


def test_control_characters_of_texts_are_not_printed():
    printed = io.StringIO()
    console = _Console(file=printed, force_terminal=True, width=80)
    table = Table("label")
    table.add_row("\x1b]0;title\x07\x1b[2Jspoken\x9b31m")
    console.print(table)
    console.print("\x1b[1A\rtext", markup=False)
    own = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())  # Rich's colours
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", own)
    assert "spoken" in own
    assert "\ufffd[1Atext" in own
