"""`sewd transcribe --retry-errors`, killed in the middle and run again, on real Ray."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pipeline
from pipeline.runs.verify import verify
from tests.support import corpora
from tests.support.command import command, sewd

CLIPS = 24
LATE = range(0, CLIPS, 2)
WAIT_S = 120


def test_a_retry_that_is_killed_is_resumed_and_gives_the_rows_of_a_fresh_run(tmp_path, local_ray, small_ctc):
    folder = tmp_path / "in"
    for index in range(CLIPS):
        corpora.write_audio(folder / f"{index:02d}.wav", 1 + index / 8, seed=index)
    rows = [{"audio_filepath": f"{index:02d}.wav"} for index in range(CLIPS)]
    manifest = corpora.write_manifest(folder / "rows.jsonl", [*rows, {"audio_filepath": "gone.wav"}])
    options = {"inputs": (str(manifest),), "model": str(small_ctc), "chunk_rows": 1, "threads": 1}
    for index in LATE:
        (folder / f"{index:02d}.wav").rename(folder / f"late-{index}")
    before = pipeline.transcribe(pipeline.RunConfig(output=str(tmp_path / "run"), **options))
    for index in LATE:
        (folder / f"late-{index}").rename(folder / f"{index:02d}.wav")
    fresh = pipeline.transcribe(pipeline.RunConfig(output=str(tmp_path / "fresh"), **options))
    arguments = ["transcribe", manifest, "--output", before.uri, "--model", small_ctc, "--chunk-rows", 1]
    arguments += ["--threads", 1, "--retry-errors", "all"]

    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_retried_chunk(tmp_path / "run", process)
    process.send_signal(signal.SIGKILL)
    process.wait()

    killed = pipeline.Run.open(before.uri)
    assert killed.status == "running"
    assert corpora.rows_of(killed) == corpora.rows_of(before)
    assert verify(killed).problems == ()
    resumed = sewd(*arguments)
    assert resumed.returncode == 3, resumed.stderr  # one file is still missing
    run = pipeline.Run.open(before.uri)
    corpora.assert_same_transcripts(*(corpora.rows_of(each, drop=("part_id", "chunk")) for each in (run, fresh)))
    assert [row["utt_id"] for row in corpora.rows_of(run, "errors")] == ["gone"]
    assert verify(run).problems == ()
    computed = [commit for commit in run.commits() if not commit.carried]
    assert sum(commit.utterances for commit in computed) == len(LATE)
    assert len({commit.attempt for commit in computed}) == 2, "what the killed start committed is not repeated"


def wait_for_retried_chunk(run: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT_S
    while not any(not commit.carried for commit in pipeline.Run.open(run).commits()) or (
        pipeline.Run.open(run).status == "done"
    ):
        assert process.poll() is None, "the command ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
