"""The GPU benchmark's parts, on the CPU: its ways agree, its figures are there, it says where it cannot run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.workload import waveforms
from sewd_model import SEWDConfig
from tests.support.checkpoints import SMALL

CPU = torch.device("cpu")
RATES = {"product_flop_per_s": 1e11, "copy_byte_per_s": 1e10, "dtype": "float32"}


def test_it_loads_without_ray_and_onnxruntime():
    code = "import sys, benchmarks.gpu; print(*{name.split('.')[0] for name in sys.modules})"
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert "sewd_model" in loaded
    assert not loaded & {"ray", "pipeline", "jobs", "onnxruntime", "typer"}


def test_without_a_cuda_device_it_says_so_with_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == "benchmarks.gpu: there is no CUDA device that torch can use\n"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_its_ways_take_turns_and_packed_clips_are_those_alone():
    config = SEWDConfig.from_dict(SMALL)
    ways, budget = gpu.make_ways(config, "float32", CPU, [2])
    found = gpu.measure(ways, waveforms("librispeech", 3), config, RATES, rounds=1)
    assert budget > 0
    assert list(found["ways"]) == ["one by one", "padded by 2", "packed"]
    assert found["best_padded"] == "padded by 2"
    assert found["ways"]["packed"]["frames_unlike_one_by_one"] < 0.01
    assert all(value > 0 for value in found["floors_s"].values())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_texts_of_the_bundled_model_are_compared():
    found = gpu.texts(gpu.SPEECH, "float32", CPU)
    assert found["equal_pieces"] == found["pieces"] > 2
    assert found["words_in_equal_pieces"] == found["words"] > 5
