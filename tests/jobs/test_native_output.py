"""What libraries write to standard error by themselves reaches the log, and the terminal only if a bug is raised."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging, os, sys, warnings
from pathlib import Path
from jobs.console import err
from jobs.logs import log_to
from jobs.native_output import native_output_to_log
log_to(Path(sys.argv[1]))
with native_output_to_log(KeyError):
    os.write(2, b"core_worker.cc: noise" + bytes([10]))
    os.system("echo loader noise >&2")
    logging.getLogger("azure.identity").warning("no token\\nin %d places", 8)
    warnings.warn("no project")
    err.print("a message of sewd")
    {}
"""


@pytest.mark.parametrize(
    ("ending", "status", "shown"),
    [("pass", 0, False), ("sys.exit(3)", 3, False), ("raise KeyError('x')", 1, False), ("1 / 0", 1, True)],
)
def test_native_output_goes_to_the_log(ending, status, shown, tmp_path):
    command = [sys.executable, "-c", PROGRAM.format(ending), str(tmp_path / "log.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr.splitlines()[0] == "a message of sewd"
    assert ("core_worker.cc: noise" in done.stderr) == shown
    assert ("no token" in done.stderr, "no project" in done.stderr) == (shown, shown)
    lines = [json.loads(line)["line"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[:4] == ["core_worker.cc: noise", "loader noise", "WARNING azure.identity: no token", "in 8 places"]
    assert lines[4].startswith("WARNING py.warnings: ")
    assert "UserWarning: no project" in lines[4]
