"""Files that kill or hang the process which decodes them cost a row each, and nothing else."""

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
    """Ray's workers, and their children, die of the files of `deadly`."""
    hook, read_parts = HOOK, dataset.read_parts

    def read(parts, settings):
        if (directory := hook.rpartition("/")[0]) not in sys.path:
            sys.path.insert(0, directory)
            runpy.run_path(hook)
        return read_parts(parts, settings)

    monkeypatch.setattr(dataset, "read_parts", read)


@pytest.fixture
def sound(tmp_path):
    """Six clips, in the order of their names, between which there is room."""
    for name in "adgjmp":
        corpora.write_audio(tmp_path / "in" / f"{name}.wav", seconds=1 + ord(name) % 3, seed=ord(name))
    return tmp_path / "in"


def transcribe(folder, output, model, **options):
    options = {"threads": 1, "chunk_rows": 2, "deadline_s": 600.0} | options
    config = pipeline.RunConfig(inputs=(str(folder),), output=str(output), model=str(model), **options)
    return pipeline.transcribe(config)


def errors_of(run):
    return {row["utt_id"]: (row["code"], row["stage"]) for row in corpora.rows_of(run, "errors")}


def test_a_file_that_crashes_its_decoder_costs_one_row(tmp_path, local_ray, sound, small_ctc, deadly_decoder):
    calm = transcribe(sound, tmp_path / "calm", small_ctc)
    corpora.write_audio(sound / "h.wav", seed=1, rate=deadly.SEGFAULT)
    run = transcribe(sound, tmp_path / "run", small_ctc)

    assert run.record.parts == 1
    assert errors_of(run) == {"h": ("CRASHED", "decode")}
    assert "SIGSEGV" in corpora.rows_of(run, "errors")[0]["message"]
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(calm, drop=DROP)
    assert verify(run).problems == ()


@pytest.mark.slow
def test_a_file_that_hangs_its_decoder_costs_one_row(tmp_path, local_ray, sound, small_ctc, deadly_decoder):
    calm = transcribe(sound, tmp_path / "calm", small_ctc)
    corpora.write_audio(sound / "h.wav", seed=1, rate=deadly.HANG)
    run = transcribe(sound, tmp_path / "run", small_ctc, deadline_s=10)

    assert errors_of(run) == {"h": ("HUNG", "decode")}
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(calm, drop=DROP)


@pytest.mark.slow
def test_many_deadly_files_of_a_part_cost_a_row_each(tmp_path, local_ray, sound, small_ctc, deadly_decoder):
    calm = transcribe(sound, tmp_path / "calm", small_ctc)
    kinds = {
        "b": deadly.SEGFAULT,
        "c": deadly.OUT_OF_MEMORY,
        "e": deadly.HANG,
        "n": deadly.ABORT,
        "o": deadly.EXIT,
        "q": deadly.SEGFAULT,
    }
    for name, rate in kinds.items():
        corpora.write_audio(sound / f"{name}.wav", seed=1, rate=rate)
    run = transcribe(sound, tmp_path / "run", small_ctc, deadline_s=10)

    want = {name: ("HUNG" if rate == deadly.HANG else "CRASHED", "decode") for name, rate in kinds.items()}
    assert errors_of(run) == want
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(calm, drop=DROP)


@pytest.mark.slow
def test_a_file_that_takes_the_worker_along_with_its_child_costs_one_row(
    tmp_path, local_ray, sound, small_ctc, deadly_decoder
):
    calm = transcribe(sound, tmp_path / "calm", small_ctc)
    corpora.write_audio(sound / "h.wav", seed=1, rate=deadly.KILLS_WORKER)
    run = transcribe(sound, tmp_path / "run", small_ctc)

    assert errors_of(run) == {"h": ("CRASHED", "decode")}
    assert "with the worker" in corpora.rows_of(run, "errors")[0]["message"]
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(calm, drop=DROP)


@pytest.mark.slow
def test_a_recording_keeps_the_segments_before_the_one_that_kills_and_a_resume_cuts_the_same_chunks(
    tmp_path, local_ray, sound, small_ctc, deadly_decoder
):
    corpora.write_audio(sound / "h.wav", seconds=40, seed=1, rate=deadly.LATE)
    options = {"chunk_rows": 1, "max_segment_s": 4}
    run = transcribe(sound, tmp_path / "run", small_ctc, **options)
    rows = corpora.rows_of(run)
    of_h = sorted((row for row in rows if row["utt_id"].startswith("h#")), key=lambda row: row["start_s"])
    assert len(rows) == 6 + len(of_h)
    assert of_h[0]["start_s"] == 0
    assert 10 < of_h[-1]["start_s"] + of_h[-1]["duration_s"] <= 20
    assert errors_of(run) == {"h": ("CRASHED", "decode")}

    # Now with half of the commits, and a decoder that would read it all: what was set aside stays so.
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "finish_run", lambda run, *_: run.save(status="failed"))
        transcribe(sound, stopped, small_ctc, **options)
    for path in sorted(stopped.glob("commits/*/*.json"))[1::2]:
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "read_parts", _read_parts)
        again = transcribe(sound, stopped, small_ctc, **options)
    assert corpora.rows_of(again) == rows
    assert corpora.rows_of(again, "errors") == corpora.rows_of(run, "errors")


_read_parts = dataset.read_parts


def test_storage_that_is_waited_for_is_no_hang(tmp_path, local_ray, small_ctc, monkeypatch):
    """Opening a file takes longer than the deadline, and so does the next stage."""
    samples = np.zeros(16_000, np.float32)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", samples, 16_000)
    read_parts = dataset.read_parts

    def slowly(parts, settings):
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

    monkeypatch.setattr(dataset, "read_parts", slowly)
    run = transcribe(tmp_path / "in", tmp_path / "run", small_ctc, deadline_s=2)
    assert errors_of(run) == {}
    assert len(corpora.rows_of(run)) == 1
    assert not (tmp_path / "run" / "quarantine").exists()


@pytest.mark.parametrize(
    ("deed", "code"),
    [
        (deadly_model.CRASHES, "CRASHED"),
        pytest.param(deadly_model.HANGS, "HUNG", marks=pytest.mark.slow),
        pytest.param(deadly_model.TAKES_ITS_ACTOR_ALONG, "CRASHED", marks=pytest.mark.slow),
    ],
)
def test_an_utterance_that_kills_the_model_costs_one_row(deed, code, tmp_path, local_ray, small_ctc, monkeypatch):
    for index in range(6):
        corpora.write_audio(tmp_path / "in" / f"{index}.wav", 1.0, index)
    calm = transcribe(tmp_path / "in", tmp_path / "calm", small_ctc)
    monkeypatch.setattr(dataset, "Recognizer", deadly_model.Deadly)
    corpora.write_audio(tmp_path / "in" / "3x.wav", deed, 7)
    run = transcribe(tmp_path / "in", tmp_path / "run", small_ctc, deadline_s=15.0)

    assert errors_of(run) == {"3x": (code, "model")}
    # The rows beside it were gone through one by one: their confidences may differ in the last digits.
    drop = (*DROP, "confidence", "words")
    assert corpora.rows_of(run, drop=drop) == corpora.rows_of(calm, drop=drop)
    assert run.record.totals.audio_s == pytest.approx(6.0)
    assert not list((tmp_path / "run" / "control").glob("trial-*"))
    assert verify(run).problems == ()
    assert [commit.engines[0].budget_s for commit in run.commits() if commit.errors] == [None], "one by one"


def test_a_model_that_kills_every_process_fails_the_run(tmp_path, local_ray, sound, small_ctc, monkeypatch):
    monkeypatch.setattr(dataset, "Recognizer", deadly_model.NeverReady)
    monkeypatch.setattr(dataset, "MAX_ACTOR_RESTARTS", 2)
    with pytest.raises(pipeline.RunFailedError, match="workers died at every try"):
        transcribe(sound, tmp_path / "run", small_ctc)
    assert pipeline.Run.open(tmp_path / "run").status == "failed"
