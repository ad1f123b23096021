"""`sewd redecode` on real Ray, killed in the middle and run again."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

import pipeline
from pipeline.runs.verify import verify
from tests.support import corpora
from tests.support.command import command, sewd
from tests.support.without_ray import without_ray

CLIPS = 60
WAIT_S = 120


@pytest.mark.slow
def test_a_redecoding_that_is_killed_is_resumed_and_gives_the_rows_of_the_run(tmp_path, small_ctc):
    for index in range(CLIPS):
        corpora.write_audio(tmp_path / "in" / f"{index:02d}.wav", 0.5, seed=index)
    options = {"keep_posteriors": True, "threads": 1, "part_mib": 0.05, "chunk_rows": 1}
    with without_ray():
        source = pipeline.transcribe(
            pipeline.RunConfig(
                inputs=(str(tmp_path / "in"),), output=str(tmp_path / "run"), model=str(small_ctc), **options
            )
        )
    arguments = ["redecode", source.uri, "--output", tmp_path / "made"]

    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_commit(tmp_path / "made", process)
    process.send_signal(signal.SIGKILL)
    process.wait()

    killed = pipeline.Run.open(tmp_path / "made")
    assert killed.status == "running"
    assert verify(killed).problems == ()
    resumed = sewd(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    made = pipeline.Run.open(killed.uri)
    assert corpora.rows_of(made) == corpora.rows_of(source)
    assert verify(made).problems == ()
    assert len({commit.attempt for commit in made.commits()}) == 2, "what the killed start committed is not repeated"


def wait_for_commit(run: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT_S
    while not list(run.glob("commits/*/*.json")):
        assert process.poll() is None, "the command ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
