"""Audio files of kinds that outsiders found, and files with flipped bits, through whole runs."""

from __future__ import annotations

import random
from pathlib import Path

import jiwer
import pytest

import pipeline
from tests.conftest import SHARED
from tests.support import corpora
from tests.support.command import sewd
from tests.support.fuzz import damaged

CASES = SHARED.parent / "cases"
RIGHT = {  # seconds and text, by case
    "aiff-from-a-pipe": (1.675, "brew a dark roast latte"),
    "mp3-junk-before-first-frame": (1.7, "brew a dark roast latte"),
    "mp3-mono-then-stereo": (3.7, "brew a dark roast latte brew a triple shot espresso"),
    "ogg-flac": (1.675, "brew a dark roast latte"),
    "wav-behind-id3": (1.675, "brew a dark roast latte"),
    "wav-header-44-too-long": (1.675, "brew a dark roast latte"),
}
FILES_A_RUN = 50


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases beside the repository")
def test_the_audio_cases_of_outsiders_get_their_transcripts(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for case in RIGHT:
        for path in (CASES / case / "in").iterdir():
            (folder / f"{case}.{path.stem}{path.suffix}").symlink_to(path)

    done = sewd("transcribe", folder, "--output", tmp_path / "run", "--threads", 1)

    assert done.returncode == 0, done.stderr
    rows = corpora.rows_of(tmp_path / "run")
    warned = sum(row["warning"] is not None for row in rows)
    assert f"{warned} of {len(rows)} transcripts are of files with wrong headers" in " ".join(done.stderr.split())
    assert len(rows) == len(list(folder.iterdir()))
    for row in rows:
        seconds, text = RIGHT[row["utt_id"].partition(".")[0]]
        assert row["duration_s"] == pytest.approx(seconds, abs=0.12), row["utt_id"]
        if "mid_frame" not in row["utt_id"]:  # which begins in the middle of a word
            assert jiwer.cer(text, row["text"].lower()) <= 0.1, (row["utt_id"], row["text"])
        assert (row["warning"] is not None) is ("mp3" in row["utt_id"] or "44" in row["utt_id"]), row["utt_id"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(11))
def test_files_with_flipped_bits_end_no_run_and_are_each_a_transcript_or_a_row(seed, tmp_path, local_ray, small_ctc):
    folder: Path = tmp_path / "in"
    folder.mkdir()
    suffixes = ("wav", "mp3", "flac", "m4a")  # the content decides, not the name
    for number in range(FILES_A_RUN):
        name = f"{number:02}.{random.Random(number).choice(suffixes)}"
        (folder / name).write_bytes(damaged(1_000_000 + FILES_A_RUN * seed + number)[1])

    run = pipeline.transcribe(
        pipeline.RunConfig(inputs=(str(folder),), output=str(tmp_path / "run"), model=str(small_ctc), threads=1)
    )

    assert run.status == "done"
    transcripts, errors = corpora.rows_of(run), corpora.rows_of(run, "errors")
    found = [row["utt_id"].partition("#")[0] for row in [*transcripts, *errors]]
    assert set(found) == {f"{number:02}" for number in range(FILES_A_RUN)}
    assert all(row["message"] for row in errors)
    assert not {row["code"] for row in errors} & {"CRASHED", "HUNG"}
