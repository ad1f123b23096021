"""The plan of the first measurements on a GPU, run on the CPU with small numbers."""

from __future__ import annotations

import json
import math
import sys

import pytest

from benchmarks import gpu_hour


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_step_is_measured_and_reported(monkeypatch, tmp_path, capsys):
    numbers = {"--device": "cpu", "--sizes": "tiny", "--dtypes": "float32", "--clips": "2", "--budgets": "5,10"}
    small = {"--processes": "1", "--product-size": "256", "--copy-bytes": "1000000", "--output": str(tmp_path)}
    monkeypatch.setitem(gpu_hour.SIZES, "tiny", {**gpu_hour.SIZES["tiny"], "num_hidden_layers": 1})
    arguments = [part for option in {**numbers, **small}.items() for part in option]
    monkeypatch.setattr(sys, "argv", ["gpu_hour", *arguments])
    assert gpu_hour.main() == 0
    figures = json.loads((tmp_path / "gpu.json").read_text())
    for step in ("speed", "budgets", "processes"):
        assert figures[step]
        assert all(row["times_real_time"] > 0 for row in figures[step]), figures[step]
    assert figures["texts"][0]["equal_pieces"] == figures["texts"][0]["pieces"]
    assert figures["best_budget_s"] in (5, 10)
    assert (tmp_path / "gpu.md").read_text() == capsys.readouterr().out


def test_a_step_that_fails_is_a_row_and_without_a_device_the_code_is_2(monkeypatch, capsys):
    def fail(error: Exception) -> dict[str, object]:
        raise error

    found = gpu_hour.row(lambda: fail(RuntimeError("CUDA error: no kernel\nmore")), math.inf, dtype="float16")
    assert found == {"dtype": "float16", "error": "RuntimeError: CUDA error: no kernel"}
    with pytest.raises(ZeroDivisionError):  # a bug
        gpu_hour.row(lambda: {"x": 1 / 0}, math.inf)
    monkeypatch.setattr(sys, "argv", ["gpu_hour"])
    monkeypatch.setattr(gpu_hour.torch.cuda, "is_available", lambda: False)
    assert gpu_hour.main() == 2
    assert "no CUDA device" in capsys.readouterr().err
