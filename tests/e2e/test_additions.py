"""`sewd transcribe --add-classifier`, killed in the middle and run again, on real Ray."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pipeline
from pipeline.runs.verify import verify
from tests.support import corpora
from tests.support.command import command, sewd, sewd_in_process

CLIPS = 16
WAIT_S = 120


def test_an_addition_that_is_killed_is_resumed_and_its_labels_are_those_of_a_run_with_both_heads(
    tmp_path, local_ray, small_ctc, small_classifier
):
    for index in range(CLIPS):
        corpora.write_audio(tmp_path / "in" / f"{index:02d}.wav", 1 + index / 4, seed=index)
    (tmp_path / "in" / "broken.wav").write_text("no audio")
    options = {"inputs": (str(tmp_path / "in"),), "model": str(small_ctc), "chunk_rows": 1, "threads": 1}
    both = pipeline.transcribe(
        pipeline.RunConfig(output=str(tmp_path / "both"), classifiers=(f"kw={small_classifier}",), **options)
    )
    run = pipeline.transcribe(pipeline.RunConfig(output=str(tmp_path / "run"), **options))
    files = run.files()["transcripts"]
    arguments = ["transcribe", tmp_path / "in", "--output", run.uri, "--model", small_ctc, "--chunk-rows", 1]
    arguments += ["--threads", 1, "--add-classifier", f"kw={small_classifier}"]

    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_commit(tmp_path / "run", process)
    process.send_signal(signal.SIGKILL)
    process.wait()

    killed = pipeline.Run.open(run.uri)
    assert (killed.status, killed.rows("labels"), killed.record.adding.status) == ("done", 0, "running")
    assert verify(killed).problems == ()
    assert "interrupted: run the same command again" in " ".join(sewd_in_process("status", run.uri).stdout.split())
    resumed = sewd(*arguments)
    assert resumed.returncode == 3, resumed.stderr  # one row failed
    assert f"kw: labels of {CLIPS} utterances" in resumed.stdout
    run = pipeline.Run.open(run.uri)
    for table in ("transcripts", "labels", "errors"):
        assert corpora.rows_of(run, table) == corpora.rows_of(both, table)
    assert run.files()["transcripts"] == files
    (addition,) = run.record.added
    assert len(addition.attempts) == 2
    assert addition.attempts[1].work.chunks < both.record.totals.chunks, "the first start's chunks are not repeated"
    assert verify(run).problems == ()


def wait_for_commit(run: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT_S
    while not list(run.glob("heads/*/commits/*/*.json")):
        assert process.poll() is None, "the command ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
