"""`sewd finetune` as a user runs it, through Ray Train, and its error messages."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile

import pyarrow.parquet as pq
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
    arguments = ("finetune", "--train", corpus, "--valid", f"v={corpus}", "--model-config", config, "-o", run, *PLAIN)
    done = sewd(*arguments, "--steps", 4, "--valid-every", 2, "--save-dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert "done at step 4, best error" in done.stdout
    names = {path.name for path in run.iterdir()}
    assert {"model", "last", "log.jsonl", "loss.png", "checkpoints", "finetune.json"} <= names
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "valid" in row] == [0, 2, 4]
    assert "v: before wer" in done.stdout
    assert "; best wer" in done.stdout
    shown = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in shown] == ["step 0", "step 2", "step 4"], "a validation was not shown"
    refused = sewd(*arguments, "--steps", 5, "--valid-every", 2, "--save-dtype", "float16")
    assert refused.returncode == 2
    assert "with other steps" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_two_workers_train_together(corpus, tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    arguments = ("--train", corpus, "--model-config", config, "-o", run, "--steps", 3, "--workers", 2, *PLAIN)
    done = sewd("finetune", *arguments)
    assert done.returncode == 0, done.stderr
    assert len((run / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_two_workers_stop_together_when_patience_ends(corpus, tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    arguments = (
        "--train",
        corpus,
        "--valid",
        corpus,
        "--model-config",
        config,
        "-o",
        run,
        "--steps",
        50,
        "--workers",
        2,
    )
    done = sewd("finetune", *arguments, "--valid-every", 1, "--patience", 1, "--learning-rate", 1e-9, *PLAIN)
    assert done.returncode == 0, done.stderr
    measured = [row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "valid" in row]
    assert 2 <= len(measured) < 50


@pytest.mark.slow
def test_errors_and_unknown_characters_are_shown_before_the_first_step_and_counted(corpus, tmp_path):
    """A directory with a shard, a broken file and an unknown letter: the layouts of a run, and its exit codes."""
    folder, config, run = tmp_path / "in", write_config(tmp_path), tmp_path / "run"
    folder.mkdir()
    for number in range(8):
        shutil.copy(corpus.parent / f"{number:02}.wav", folder)
        (folder / f"{number:02}.txt").write_text("ab é" if number == 3 else "ab")
    with tarfile.open(folder / "more.tar", "w") as shard:
        shard.add(folder / "05.wav", "x/05.wav")
        shard.add(folder / "05.txt", "x/05.txt")
    (folder / "05.wav").write_bytes(b"no audio")
    arguments = ("finetune", "--train", folder, "--model-config", config, "-o", run, "--steps", 2, *PLAIN)
    limited = sewd(*arguments, "--max-error-rate", 0.01)
    assert limited.returncode == 1, limited.stderr
    assert "train: 1 of 9 rows failed, more than --max-error-rate 0.01" in limited.stderr
    assert "Traceback" not in limited.stderr
    done = sewd(*arguments)
    assert done.returncode == 3, done.stderr
    assert "train: 1 of 9 rows cannot be used" in done.stderr
    assert "train: 1 of 8 texts have characters" in done.stderr
    assert "'é' 1" in done.stderr
    assert "done at step 2" in done.stdout
    [row] = pq.read_table(run / "errors").to_pylist()
    assert (row["set"], row["utt_id"]) == ("train", "05")
    assert sewd(*arguments, "--errors-ok").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--init", "/nowhere/model"),
        ("--model-config", "/nowhere/config.json"),
        ("--init", "bundled", "--train", "/nowhere/more.jsonl"),
        ("--init", "bundled", "--valid", "/nowhere/*.tar"),
        ("--init", "bundled", "--steps", "0"),
    ],
)
def test_a_refused_start_is_one_line_before_ray_starts_and_leaves_nothing(corpus, tmp_path, arguments):
    done = sewd("finetune", "--train", corpus, "-o", tmp_path / "run", *arguments, environment={"RAY_ADDRESS": "x:1"})
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr or "steps: must be from 1 to 10,000,000" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model-config", "c.json", "--augment", "echo=1"), "augment: there is no 'echo'"),
        (("--model-config", "c.json", "--join", "many"), "join: 'many' is not MAX[:SECONDS]"),
        (
            ("--model-config", "c.json", "--precision", "float8"),
            "precision: Input should be 'auto', 'float32' or 'bfloat16'",
        ),
        (("--model-config", "c.json", "--train", "0=b.jsonl"), "train: '0=b.jsonl'"),
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
    assert verb._named("a/b.tar") == ("b", "a/b.tar")
    assert verb._named("a/b/") == ("b", "a/b/")
    assert verb._all_named(["x/a.jsonl", "b=y/a.jsonl"]) == {"a": "x/a.jsonl", "b": "y/a.jsonl"}
    with pytest.raises(UsageError, match="have the name a"):
        verb._all_named(["x/a.jsonl", "y/a.jsonl"])
    assert verb._join("5:1.25") == (5, 1.25)
    assert verb._join("3") == (3, default_of(DataSettings, "join_below_s"))


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    from pipeline.training.ray_train import finetune
    from pipeline.training.settings import Placement, TrainSettings

    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(UsageError, match=r"pip install 'sewd-pipeline\[train\]'"):
        finetune(TrainSettings(train=(), output=str(tmp_path), config="c.json"), Placement())
