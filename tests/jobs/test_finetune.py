"""`sewd finetune` as a user runs it, through Ray Train, and its error messages."""

from __future__ import annotations

import json
import sys

import pytest

from jobs import finetune as verb
from pipeline.errors import UsageError
from pipeline.settings import default_of
from pipeline.training.settings import DataSettings
from tests.support.command import sewd
from tests.support.tones import write_config, write_corpus

PLAIN = ("--augment", "none", "--batch-seconds", "10", "--threads", "1")

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("tones"), 20)


@pytest.mark.slow
def test_finetune_writes_a_model_a_log_and_a_plot_and_refuses_other_settings(corpus, tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    arguments = ("finetune", "--train", corpus, "--valid", f"v={corpus}", "--config", config, "-o", run, *PLAIN)
    done = sewd(*arguments, "--steps", 4, "--valid-every", 2, "--save-dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert "done at step 4, best error" in done.stdout
    names = {path.name for path in run.iterdir()}
    assert {"model", "last", "log.jsonl", "loss.png", "checkpoints", "finetune.json"} <= names
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    refused = sewd(*arguments, "--steps", 5, "--valid-every", 2, "--save-dtype", "float16")
    assert refused.returncode == 2
    assert "with other steps" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_two_workers_train_together(corpus, tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    arguments = ("--train", corpus, "--config", config, "-o", run, "--steps", 3, "--workers", 2, *PLAIN)
    done = sewd("finetune", *arguments)
    assert done.returncode == 0, done.stderr
    assert len((run / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_two_workers_stop_together_when_patience_ends(corpus, tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    arguments = ("--train", corpus, "--valid", corpus, "--config", config, "-o", run, "--steps", 50, "--workers", 2)
    done = sewd("finetune", *arguments, "--valid-every", 1, "--patience", 1, "--learning-rate", 1e-9, *PLAIN)
    assert done.returncode == 0, done.stderr
    measured = [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "valid" in row]
    assert 2 <= len(measured) < 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config", "c.json", "--augment", "echo=1"), "augment: there is no 'echo'"),
        (("--config", "c.json", "--join", "many"), "join: 'many' is not MAX[:SECONDS]"),
        (("--config", "c.json", "--precision", "float8"), "precision: Input should be 'auto', 'float32' or 'bfloat16'"),
        (("--config", "c.json", "--train", "0=b.jsonl"), "train: '0=b.jsonl'"),
    ],
)
def test_a_bad_option_gives_one_line_and_exit_code_2(tmp_path, arguments, words):
    done = sewd("finetune", "--train", "a.jsonl", "-o", tmp_path / "run", *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_weights_names_and_join_limits_are_parsed():
    assert verb._weighted("0.5=a/b.jsonl") == ("a/b.jsonl", 0.5)
    assert verb._weighted("a/b=c.jsonl") == ("a/b=c.jsonl", 1.0)
    assert verb._weighted("s3://bucket/a.jsonl") == ("s3://bucket/a.jsonl", 1.0)
    assert verb._named("clean=a/b.jsonl") == ("clean", "a/b.jsonl")
    assert verb._named("a/b.jsonl") == ("b", "a/b.jsonl")
    assert verb._join("5:1.25") == (5, 1.25)
    assert verb._join("3") == (3, default_of(DataSettings, "join_below_s"))


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    from pipeline.training.ray_train import Placement, finetune
    from pipeline.training.settings import TrainSettings

    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(UsageError, match=r"pip install 'sewd-pipeline\[train\]'"):
        finetune(TrainSettings(train=(), output=str(tmp_path), config="c.json"), Placement())
