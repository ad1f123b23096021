"""Usage errors are one clear line with exit code 2 and no traceback. Every verb also runs as a module."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pipeline
from pipeline.runs.lease import hold_lease
from tests.support import corpora, runs
from tests.support.command import command, sewd, sewd_in_process
from tests.support.without_ray import without_ray

ROOT = Path(__file__).parents[2]


def assert_one_line(done, *words):
    """The process failed with exit code 2 and one line that contains `words`."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sewd: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture
def clip(tmp_path):
    return corpora.write_audio(tmp_path / "in" / "clip.wav")


def test_without_a_command_the_help_is_printed():
    done = sewd()
    assert done.returncode == 0
    assert "transcribe" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["transcribe"], ["INPUT"]),
        (["transcribe", "x", "--output", "r", "--nonsense"], ["--nonsense"]),
        (["frobnicate"], ["frobnicate"]),
        (["transcribe", "x", "--output", "r", "--model", "m", "--limit", "many"], ["--limit"]),
        (["transcribe", "x", "--output", "r", "--model", "m", "--limit", "0"], ["limit"]),
        (["transcribe", "x", "--output", "r", "--model", "m", "--channels", "left"], ["channels", "left"]),
        (["transcribe", "x", "--output", "r", "--model", "m", "--normalizer", "odd"], ["normalizer", "basic", "none"]),
        (["plan", "x", "--input-format", "tsv"], ["input-format", "audio, manifest, csv"]),
        (["plan", "nowhere"], ["no such file", "nowhere"]),
        (["evaluate", "nowhere"], ["no run at", "nowhere"]),
        (["status", "nowhere"], ["no run at", "nowhere"]),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else None,
)
def test_wrong_arguments_give_one_line(arguments, words, tmp_path):
    assert_one_line(sewd_in_process(*arguments), *words)


def test_a_missing_input_gives_one_line(tmp_path, small_ctc):
    done = sewd("transcribe", tmp_path / "nothing", "--output", tmp_path / "run", "--model", small_ctc)
    assert_one_line(done, "no such file", "nothing")
    assert not (tmp_path / "run").exists()


def test_a_directory_without_audio_gives_one_line(tmp_path, small_ctc):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.md").write_text("no audio")
    done = sewd_in_process("transcribe", tmp_path / "in", "--output", tmp_path / "run", "--model", small_ctc)
    assert_one_line(done, "no audio in")


def test_a_missing_or_broken_model_gives_one_line(tmp_path, clip, small_ctc):
    done = sewd_in_process("transcribe", clip, "--output", tmp_path / "run", "--model", tmp_path / "no-model")
    assert_one_line(done, "no-model")
    broken = tmp_path / "broken"
    broken.mkdir()
    config = json.loads((small_ctc / "config.json").read_text()) | {"hidden_size": 33}
    (broken / "config.json").write_text(json.dumps(config))
    assert_one_line(sewd_in_process("transcribe", clip, "--output", tmp_path / "run", "--model", broken), "hidden_size")


def test_an_output_with_other_files_gives_one_line(tmp_path, clip, small_ctc):
    done = sewd_in_process("transcribe", clip, "--output", clip.parent, "--model", small_ctc)
    assert_one_line(done, "not empty and holds no run")


@pytest.mark.ray
def test_actors_that_cannot_fit_give_one_line_with_the_numbers(tmp_path, clip, small_ctc):
    done = sewd(
        *("transcribe", clip, "--output", tmp_path / "run", "--model", small_ctc),
        *("--actors", 4, "--cpus-per-actor", 1000),
    )
    assert_one_line(done, "4 actors x 1000 CPUs", "Ray has")


@pytest.mark.parametrize(("dtype", "gpus", "words"), [("bfloat16", 0, "is for GPUs"), ("int8", 1, "is for CPUs")])
def test_a_dtype_for_another_device_gives_one_line_before_anything_starts(
    tmp_path, clip, small_ctc, dtype, gpus, words
):
    done = sewd_in_process(
        *("transcribe", clip, "--output", tmp_path / "run", "--model", small_ctc),
        *("--dtype", dtype, "--gpus-per-actor", gpus),
    )
    assert_one_line(done, f"dtype {dtype} {words}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("existing", "advice"),
    [("resume", "parts"), ("refuse", "(without --new-run) parts"), ("overwrite", "(without --overwrite) parts")],
)
def test_status_of_an_unfinished_run_shows_how_to_resume_it(tmp_path, existing, advice):
    run = runs.write_run(tmp_path / "run", runs.transcripts([{"text": "one"}]), status="running")
    run.save(config={**run.record.config} | {"existing": existing})
    with hold_lease(run.uri, "a"):
        assert "interrupted" not in sewd_in_process("status", run.uri).stdout
    printed = " ".join(sewd_in_process("status", run.uri).stdout.split())
    assert f"interrupted: no driver is running; run the same command again to resume {advice}" in printed
    run.save(status="stopped", config={**run.record.config} | {"existing": existing})
    printed = " ".join(sewd_in_process("status", run.uri).stdout.split())
    assert f"stopped: run the same command again to resume {advice}" in printed


@pytest.mark.parametrize("verb", ["transcribe", "evaluate", "status"])
def test_each_verb_runs_as_a_module(verb):
    done = subprocess.run([sys.executable, "-m", f"jobs.{verb}", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "RUN" in done.stdout


def test_the_printed_version_is_the_version_of_the_package():
    done = sewd_in_process("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"sewd-pipeline {importlib.metadata.version('sewd-pipeline')}")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--chunk-seconds", -5, ["chunk-seconds"]), ("--channels", "foo", ["channels", "'mix' or 'split'", "integer"])],
)
def test_a_bad_value_gives_one_line_with_the_name_of_its_option(tmp_path, clip, option, value, words):
    assert_one_line(sewd_in_process("transcribe", clip, "--output", tmp_path / "run", option, value), *words)


def test_no_workers_to_train_with_gives_one_line(tmp_path):
    words = ("finetune", "--train", tmp_path, "--init", "bundled", "-o", tmp_path / "training", "--workers", 0)
    assert_one_line(sewd_in_process(*words), "workers", "must be from 1 to")
    assert not (tmp_path / "training").exists()


def test_ctrl_c_while_modules_load_ends_at_once_without_a_traceback(tmp_path):
    slow = tmp_path / "typer"
    slow.mkdir()
    (slow / "__init__.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_name('reached').touch()\ntime.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits that it is ignored
    process = subprocess.Popen(command("status", "run"), env=environment, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and not (slow / "reached").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (-signal.SIGINT, "")


def test_an_update_says_if_nothing_has_changed(tmp_path, clip, small_ctc):
    with without_ray():
        pipeline.transcribe(pipeline.RunConfig((str(clip.parent),), str(tmp_path / "run"), str(small_ctc)))
    command = ["transcribe", clip.parent, "--output", tmp_path / "run", "--model", small_ctc]
    for options, said in ((["--update"], True), ([], False)):
        done = sewd_in_process(*command, *options)
        assert done.returncode == 0
        assert ("update: nothing has changed" in done.stderr) == said
