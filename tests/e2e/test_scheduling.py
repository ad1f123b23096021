"""Who works where, on a cluster of machines with and without GPUs on paper."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale import SPEED

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_actors_hardly_wait_while_there_is_work_and_decoding_keeps_off_their_machines(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scale", "--actors", "2", "--output", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    (found,) = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert found["actors"] == 2
    assert found["idle"] <= 0.05
    assert found["times_real_time"] >= 2 * 0.9 * SPEED
    assert found["decoded_without_gpu"] >= 0.9
