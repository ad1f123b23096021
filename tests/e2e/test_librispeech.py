"""Real speech end to end: every text equals that of transformers on the clip alone.

This holds for every input layout, any number of actors, and a run that was killed and resumed.
"""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pipeline
from tests.support import corpora
from tests.support.oracle import Reference, samples

LINEAGE = ("uri", "part_id", "chunk", "speaker", "tags")
LAYOUTS = ("manifest", "directory", "shards")
# The slow tests use all 1,008 utterances in every layout with one and with two actors; the others every 48th, so 21.
SOME = [(layout, actors, 48) for layout, actors in zip(LAYOUTS, (1, 2, 1), strict=True)]
ALL = [pytest.param(layout, actors, 1, marks=pytest.mark.slow) for layout in LAYOUTS for actors in (1, 2)]


@pytest.fixture(scope="module")
def expected(librispeech, librispeech_rows, sew_d_tiny):
    """A function that returns the utt_id and the expected text of a manifest row."""
    reference = Reference(sew_d_tiny)
    known = {}

    def expect(row):
        utt_id = row["audio_filepath"].removesuffix(".mp3")
        if utt_id not in known:
            known[utt_id] = reference.expect(samples(librispeech / row["audio_filepath"]))
        return utt_id, known[utt_id]

    return expect


def make_input(layout: str, folder: Path, source: Path, rows: list[dict]) -> Path:
    if layout == "manifest":
        return corpora.librispeech_manifest(folder, source, rows)
    if layout == "directory":
        return corpora.librispeech_directory(folder, source, rows)
    return corpora.librispeech_shards(folder, source, rows, shards=4)


def check(transcripts: list[dict], rows: list[dict], expected) -> int:
    """Check that every row has one transcript, with its text and reference; returns how many differ in near-ties."""
    by_id = {row["utt_id"]: row for row in transcripts}
    assert len(by_id) == len(transcripts) == len(rows)
    near_ties = 0
    for row in rows:
        utt_id, reference = expected(row)
        assert reference.allows(by_id[utt_id]["text"]), utt_id
        near_ties += by_id[utt_id]["text"] != reference.text
        assert by_id[utt_id]["reference"] == row["text"]
    return near_ties


@pytest.mark.parametrize(("layout", "actors", "every"), [*SOME, *ALL])
def test_every_text_equals_that_of_transformers_on_the_clip_alone(
    layout, actors, every, tmp_path, local_ray, librispeech, librispeech_rows, sew_d_tiny, expected, record_property
):
    rows = librispeech_rows[::every]
    source = make_input(layout, tmp_path / "input", librispeech, rows)
    config = pipeline.RunConfig(
        inputs=(str(source),),
        output=str(tmp_path / "run"),
        model=str(sew_d_tiny),
        actors=actors,
        chunk_s=60,
        part_mib=1,
        threads=2 // actors,
    )
    run = pipeline.transcribe(config)
    near_ties = check(corpora.rows_of(run), rows, expected)
    record_property("texts that differ in near-ties", near_ties)
    logging.getLogger(__name__).info(
        "%s, %d actors: %d texts, %d differ in near-ties", layout, actors, len(rows), near_ties
    )
    assert corpora.rows_of(run, "errors") == []
    # Most texts are not empty: a run of empty texts would pass all of the above.
    assert sum(bool(row["text"]) for row in corpora.rows_of(run)) > 0.9 * len(rows)


@pytest.mark.parametrize(
    ("every", "kills", "chunk_s"),
    [pytest.param(32, 2, 5, id="32-utterances"), pytest.param(1, 5, 240, id="all-1008", marks=pytest.mark.slow)],
)
def test_a_run_killed_with_sigkill_and_resumed_has_the_same_rows(
    every, kills, chunk_s, tmp_path, local_ray, librispeech, librispeech_rows, sew_d_tiny
):
    rows = librispeech_rows[::every]
    source = corpora.librispeech_manifest(tmp_path / "input", librispeech, rows)
    options = {"chunk_s": chunk_s, "part_mib": 0.25 if every > 1 else 8, "threads": 2, "actors": 1}
    undisturbed = pipeline.transcribe(
        pipeline.RunConfig(
            inputs=(str(source),), output=str(tmp_path / "undisturbed"), model=str(sew_d_tiny), **options
        )
    )
    total = undisturbed.record.totals.chunks
    assert total >= 20

    command = [sys.executable, "-m", "jobs.transcribe", str(source), "--output", str(tmp_path / "killed")]
    command += ["--model", str(sew_d_tiny), "--chunk-seconds", str(chunk_s), "--part-mib", str(options["part_mib"])]
    command += ["--threads", "2", "--actors", "1"]
    generator = random.Random(2109)
    for kill in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_commits(tmp_path / "killed", (kill + 1) * total // (kills + 2), process)
        time.sleep(generator.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert pipeline.Run.open(str(tmp_path / "killed")).status == "running"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    killed = pipeline.Run.open(str(tmp_path / "killed"))
    assert len(killed.record.attempts) == kills + 1
    assert len({commit.attempt for commit in killed.commits()}) == kills + 1, "every start must have committed a chunk"
    assert corpora.rows_of(killed) == corpora.rows_of(undisturbed)


def wait_for_commits(run: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until the run has `count` commits; the process must not end before."""
    while len(list(run.glob("commits/*/*.json"))) < count:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
