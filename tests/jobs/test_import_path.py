"""A user's module in the working directory is not imported in place of a library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["numpy.py", "ray.py", "torch.py", "typer.py", "pipeline.py"])
@pytest.mark.parametrize("path", ["{root}", ":{root}", "{root}:", "{root}::"])
def test_a_module_in_the_working_directory_is_not_imported(name, path, tmp_path):
    (tmp_path / name).write_text("raise RuntimeError('imported from the working directory')\n")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.main", "status", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path.format(root=ROOT)},
    )
    assert done.returncode == 2, done.stderr
    assert "no run at" in done.stderr
