"""Who works where, on a cluster of machines with and without GPUs on paper."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale import SPEED, measure
from pipeline.cluster.object_store import STORE_SHARE

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
    assert found["store_peak"] <= STORE_SHARE + 0.1  # what a reader is making comes on top of what waits


@pytest.mark.slow
def test_actors_that_share_gpus_on_unlike_machines_all_work_and_none_is_kept_waiting(tmp_path):
    found = measure(tmp_path, actors=3, gpus=[2, 1], seconds=30, gpus_per_actor=0.75)
    assert found.actors_by_machine == [2, 1, 0]
    assert found.idle <= 0.05
    assert found.store_peak <= STORE_SHARE + 0.1
