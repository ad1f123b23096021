"""Where stages run on a simulated cluster of nodes with and without GPUs."""

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
def test_actors_are_rarely_idle_and_decoding_runs_on_nodes_without_gpus(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scale", "--actors", "2", "--output", str(tmp_path / "measured.json")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    (measured,) = json.loads((tmp_path / "measured.json").read_text())["runs"]
    assert measured["actors"] == 2
    assert measured["idle"] <= 0.05
    assert measured["times_real_time"] >= 2 * 0.9 * SPEED
    assert measured["decoded_without_gpu"] >= 0.9
    assert measured["store_peak"] <= STORE_SHARE + 0.1  # a reader's unfinished output comes on top


@pytest.mark.slow
def test_actors_that_share_gpus_on_unequal_nodes_are_all_rarely_idle(tmp_path):
    measured = measure(tmp_path, actors=3, gpus=[2, 1], seconds=30, gpus_per_actor=0.75)
    assert measured.actors_by_node == [2, 1, 0]
    assert measured.idle <= 0.05
    assert measured.store_peak <= STORE_SHARE + 0.1
