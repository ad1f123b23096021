"""Options that name files, URIs or choices: a wrong one is one line with exit code 2, before Ray starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import ray

from jobs import main

DEMO = str(Path(__file__).parents[2] / "jobs" / "demo_corpus" / "audio")
CASES = [
    ("--cut", "word", "cut: Input should be 'pause' or 'vad'"),
    ("--normalizer", "strict", "normalizer: there is no normalizer"),
    ("--dtype", "float8", "dtype: Input should be 'auto', 'float32'"),
    ("--input-format", "zip", "input-format: must be one of"),
    ("--column", "text", "column: 'text' is not KEY=NAME"),
    ("--retry-errors", "LOST", "retry-errors: 'LOST' is neither"),
    ("--channels", "left", "channels: Input should be"),
    ("--actors", "8:2", "actors: 8:2 is not a range"),
    ("--model", "no/such/model", "cannot load the model"),
    ("--classifier", "keyword=no/such/model", "cannot load the model"),
    ("--classifier", "=bundled", "classifier: '=bundled' is neither MODEL nor NAME=MODEL"),
    ("--model", "odd://bucket/model", "odd"),
    ("--output", "odd://bucket/run", "odd"),
    ("--log", "no/such/directory/log.jsonl", "log"),
    ("--config", "no-such.yaml", "config: cannot read no-such.yaml"),
]


@pytest.mark.parametrize(("option", "value", "message"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_a_wrong_option_is_one_line_before_ray_starts(option, value, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    output = [] if option == "--output" else ["--output", "run"]
    monkeypatch.setattr(sys, "argv", ["sewd", "transcribe", DEMO, *output, option, value])
    with pytest.raises(SystemExit) as ended:
        main.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "run").exists()
