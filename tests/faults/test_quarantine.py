"""Files that kill or hang the process that decodes them, or the model, cost one row each and nothing else."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import pipeline
from pipeline.driver import dataset
from pipeline.driver import transcribe as driver
from pipeline.runs.verify import verify
from tests.faults import deadly, deadly_model
from tests.support import corpora

HOOK = str(Path(__file__).parent / "poison" / "sitecustomize.py")
DROP = ("part_id", "chunk")


@pytest.fixture
def deadly_decoder(monkeypatch):
    """Ray's workers and their child processes die of the files of `deadly`."""
    hook, read_parts = HOOK, dataset.read_parts

    def read(parts, settings):
        if (directory := hook.rpartition("/")[0]) not in sys.path:
            sys.path.insert(0, directory)
            runpy.run_path(hook)
        return read_parts(parts, settings)

    monkeypatch.setattr(dataset, "read_parts", read)


@pytest.fixture
def clips(tmp_path):
    """Six clips, with gaps between their names for deadly files."""
    for name in "adgjmp":
        corpora.write_audio(tmp_path / "in" / f"{name}.wav", seconds=1 + ord(name) % 3, seed=ord(name))
    return tmp_path / "in"


def transcribe(folder, output, model, **options):
    options = {"threads": 1, "chunk_rows": 2, "deadline_s": 600.0} | options
    config = pipeline.RunConfig(inputs=(str(folder),), output=str(output), model=str(model), **options)
    return pipeline.transcribe(config)


def errors_of(run):
    return {row["utt_id"]: (row["code"], row["stage"]) for row in corpora.rows_of(run, "errors")}


def test_a_file_that_crashes_its_decoder_costs_one_row(tmp_path, local_ray, clips, small_ctc, deadly_decoder):
    undisturbed = transcribe(clips, tmp_path / "undisturbed", small_ctc)
    corpora.write_audio(clips / "h.wav", seed=1, rate=deadly.SEGFAULT)
    run = transcribe(clips, tmp_path / "run", small_ctc)

    assert run.record.parts == 1
    assert errors_of(run) == {"h": ("CRASHED", "decode")}
    assert "SIGSEGV" in corpora.rows_of(run, "errors")[0]["message"]
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(undisturbed, drop=DROP)
    assert verify(run).problems == ()


@pytest.mark.slow
def test_a_file_that_hangs_its_decoder_costs_one_row(tmp_path, local_ray, clips, small_ctc, deadly_decoder):
    undisturbed = transcribe(clips, tmp_path / "undisturbed", small_ctc)
    corpora.write_audio(clips / "h.wav", seed=1, rate=deadly.HANG)
    run = transcribe(clips, tmp_path / "run", small_ctc, deadline_s=10)

    assert errors_of(run) == {"h": ("HUNG", "decode")}
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(undisturbed, drop=DROP)


@pytest.mark.slow
def test_many_deadly_files_of_a_part_cost_one_row_each(tmp_path, local_ray, clips, small_ctc, deadly_decoder):
    undisturbed = transcribe(clips, tmp_path / "undisturbed", small_ctc)
    kinds = {
        "b": deadly.SEGFAULT,
        "c": deadly.OUT_OF_MEMORY,
        "e": deadly.HANG,
        "n": deadly.ABORT,
        "o": deadly.EXIT,
        "q": deadly.SEGFAULT,
    }
    for name, rate in kinds.items():
        corpora.write_audio(clips / f"{name}.wav", seed=1, rate=rate)
    run = transcribe(clips, tmp_path / "run", small_ctc, deadline_s=10)

    expected = {name: ("HUNG" if rate == deadly.HANG else "CRASHED", "decode") for name, rate in kinds.items()}
    assert errors_of(run) == expected
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(undisturbed, drop=DROP)


@pytest.mark.slow
def test_a_file_that_kills_the_worker_together_with_its_child_costs_one_row(
    tmp_path, local_ray, clips, small_ctc, deadly_decoder
):
    undisturbed = transcribe(clips, tmp_path / "undisturbed", small_ctc)
    corpora.write_audio(clips / "h.wav", seed=1, rate=deadly.KILLS_WORKER)
    run = transcribe(clips, tmp_path / "run", small_ctc)

    assert errors_of(run) == {"h": ("CRASHED", "decode")}
    assert "with its worker" in corpora.rows_of(run, "errors")[0]["message"]
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(undisturbed, drop=DROP)


@pytest.mark.slow
def test_a_recording_keeps_its_segments_before_a_crash_and_a_resumed_run_has_the_same_chunks(
    tmp_path, local_ray, clips, small_ctc, deadly_decoder
):
    corpora.write_audio(clips / "h.wav", seconds=40, seed=1, rate=deadly.LATE)
    options = {"chunk_rows": 1, "max_segment_s": 4}
    run = transcribe(clips, tmp_path / "run", small_ctc, **options)
    rows = corpora.rows_of(run)
    segments = sorted((row for row in rows if row["utt_id"].startswith("h#")), key=lambda row: row["start_s"])
    assert len(rows) == 6 + len(segments)
    assert segments[0]["start_s"] == 0
    assert 10 < segments[-1]["start_s"] + segments[-1]["duration_s"] <= 20
    assert errors_of(run) == {"h": ("CRASHED", "decode")}

    # Resumed with half of the commits and a decoder that could read the whole file: what was skipped stays skipped.
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "finish_run", lambda run, *_: run.save(status="failed"))
        transcribe(clips, stopped, small_ctc, **options)
    for path in sorted(stopped.glob("commits/*/*.json"))[1::2]:
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "read_parts", unpatched_read_parts)
        resumed = transcribe(clips, stopped, small_ctc, **options)
    assert corpora.rows_of(resumed) == rows
    assert corpora.rows_of(resumed, "errors") == corpora.rows_of(run, "errors")


unpatched_read_parts = dataset.read_parts


def test_waiting_for_storage_does_not_count_as_hanging(tmp_path, local_ray, small_ctc, monkeypatch):
    """Opening a file and the next stage both take longer than the deadline."""
    samples = np.zeros(16_000, np.float32)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", samples, 16_000)
    read_parts = dataset.read_parts

    def slow_read(parts, settings):
        import time

        from pipeline.storage import objects

        fetch = objects.LocalFileSystem.cat_file
        objects.LocalFileSystem.cat_file = lambda *a, **k: (time.sleep(4), fetch(*a, **k))[1]
        try:
            for chunk in read_parts(parts, settings):
                time.sleep(4)
                yield chunk
        finally:
            objects.LocalFileSystem.cat_file = fetch

    monkeypatch.setattr(dataset, "read_parts", slow_read)
    run = transcribe(tmp_path / "in", tmp_path / "run", small_ctc, deadline_s=3)
    assert errors_of(run) == {}
    assert len(corpora.rows_of(run)) == 1
    assert not (tmp_path / "run" / "quarantine").exists()


@pytest.mark.parametrize(
    ("duration_s", "code"),
    [
        (deadly_model.CRASHES, "CRASHED"),
        pytest.param(deadly_model.HANGS, "HUNG", marks=pytest.mark.slow),
        pytest.param(deadly_model.KILLS_ACTOR, "CRASHED", marks=pytest.mark.slow),
    ],
)
def test_an_utterance_that_kills_the_model_costs_one_row(duration_s, code, tmp_path, local_ray, small_ctc, monkeypatch):
    for index in range(6):
        corpora.write_audio(tmp_path / "in" / f"{index}.wav", 1.0, index)
    undisturbed = transcribe(tmp_path / "in", tmp_path / "undisturbed", small_ctc)
    monkeypatch.setattr(dataset, "RecognizerActor", deadly_model.DeadlyRecognizer)
    corpora.write_audio(tmp_path / "in" / "3x.wav", duration_s, 7)
    run = transcribe(tmp_path / "in", tmp_path / "run", small_ctc, deadline_s=15.0)

    assert errors_of(run) == {"3x": (code, "model")}
    # The other rows of its chunk were recognised one by one: their confidences may differ in the last digits.
    drop = (*DROP, "confidence", "words")
    assert corpora.rows_of(run, drop=drop) == corpora.rows_of(undisturbed, drop=drop)
    assert run.record.totals.audio_s == pytest.approx(6.0)
    assert not list((tmp_path / "run" / "control").glob("trial-*"))
    assert verify(run).problems == ()
    assert [commit.engines[0].budget_s for commit in run.commits() if commit.errors] == [None], "one by one"


def test_a_model_that_kills_every_process_fails_the_run(tmp_path, local_ray, clips, small_ctc, monkeypatch):
    monkeypatch.setattr(dataset, "RecognizerActor", deadly_model.NeverReady)
    monkeypatch.setattr(dataset, "MAX_ACTOR_RESTARTS", 2)
    with pytest.raises(pipeline.RunFailedError, match="workers died at every try"):
        transcribe(clips, tmp_path / "run", small_ctc)
    assert pipeline.Run.open(tmp_path / "run").status == "failed"
