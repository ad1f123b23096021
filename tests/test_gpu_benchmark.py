"""The functions of the GPU benchmark, run on the CPU, and its exit code without a GPU."""

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
SETUP = {"product_flop_per_s": 1e11, "copy_byte_per_s": 1e10, "dtype": "float32"}


def test_the_gpu_benchmark_imports_neither_ray_nor_onnxruntime():
    code = "import sys, benchmarks.gpu; print(*{name.split('.')[0] for name in sys.modules})"
    root = Path(__file__).parents[1]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(printed.stdout.split())
    assert "sewd_model" in loaded
    assert not loaded & {"ray", "pipeline", "jobs", "onnxruntime", "typer"}


def test_without_a_cuda_device_it_prints_one_line_and_exits_with_code_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == "benchmarks.gpu: there is no CUDA device that torch can use\n"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_method_is_measured_and_packed_frames_equal_those_of_single_clips():
    config = SEWDConfig.from_dict(SMALL)
    methods, budget_s = gpu.make_methods(config, "float32", CPU, [2])
    figures = gpu.measure(methods, waveforms("librispeech", 3), config, SETUP, rounds=1)
    assert budget_s > 0
    assert list(figures["methods"]) == ["one by one", "padded by 2", "packed"]
    assert figures["best_padded"] == "padded by 2"
    assert figures["methods"]["packed"]["frames_different"] < 0.01
    assert all(value > 0 for value in figures["lower_bounds_s"].values())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_texts_of_the_bundled_model_are_compared_with_float32():
    figures = gpu.compare_texts(gpu.SPEECH, "float32", CPU)
    assert figures["equal_pieces"] == figures["pieces"] > 2
    assert figures["words_in_equal_pieces"] == figures["words"] > 5
