"""Rows that crash or hang their process, in decoding and in the model: set aside, and the others are as ever."""

from __future__ import annotations

import faulthandler
import os
import time

import pyarrow as pa
import pytest
import ray

import pipeline
from pipeline import driver
from pipeline import read as read_module
from pipeline.audio import AudioSettings
from pipeline.plan import plan
from pipeline.quarantine import Quarantine, Register
from pipeline.read import ReadSettings
from pipeline.recognize import Recognizer
from pipeline.verify import verify
from tests import corpora

POISON = ("03", "07")
LONG = "05"  # a recording of several segments


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(10):
        seconds = 9.0 if f"{index:02d}" == LONG else 1.0 + index / 10
        corpora.write_audio(folder / f"{index:02d}.wav", seconds, index)
    return folder


def transcribe(corpus, output, model, **options):
    given = {"chunk_rows": 3, "max_segment_s": 3.0, "threads": 1, "max_error_rate": 1.0} | options
    return pipeline.transcribe(pipeline.RunConfig((str(corpus),), str(output), str(model), **given))


@pytest.fixture(scope="module")
def calm(tmp_path_factory, local_ray, corpus, small_ctc):
    return rows_of(transcribe(corpus, tmp_path_factory.mktemp("calm") / "run", small_ctc))


def rows_of(run):
    return corpora.rows_of(run, drop=("part_id", "chunk"))


def name_of(row):
    return row["utt_id"].partition("#")[0]


def reading(fatal):
    """`read_parts` in which `fatal(utterance, segment)` may end the process, or never come back."""

    def read_parts(parts, settings):
        made = read_module._segment_row

        def segment_row(utterance, segment, settings):
            fatal(utterance.utt_id, segment)
            return made(utterance, segment, settings)

        read_module._segment_row = segment_row
        try:
            yield from read_module.read_parts(parts, settings)
        finally:
            read_module._segment_row = made  # Ray uses its processes again

    return read_parts


def test_files_that_crash_their_decoder_are_set_aside(tmp_path, corpus, small_ctc, calm, monkeypatch):
    def fatal(utt_id, _segment):
        if utt_id in POISON:
            os._exit(1)

    monkeypatch.setattr(driver, "read_parts", reading(fatal))
    run = transcribe(corpus, tmp_path / "run", small_ctc)
    assert run.status == "done"
    errors = corpora.rows_of(run, "errors")
    assert [(row["utt_id"], row["code"], row["stage"]) for row in errors] == [
        (name, "KILLED_WORKER", "decode") for name in POISON
    ]
    assert all("3 processes died" in row["message"] for row in errors)
    assert rows_of(run) == [row for row in calm if name_of(row) not in POISON]
    assert verify(run).problems == ()


def test_only_rows_have_a_deadline_and_no_wait_for_the_next_stage(corpus, local_ray, tmp_path, monkeypatch):
    armed = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: armed.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", armed.clear)
    register = ray.remote(Register).options(num_cpus=0).remote()
    settings = ReadSettings(AudioSettings(), 720, 600.0, 3, str(tmp_path / "stop"), Quarantine(register, 7.0))
    parts = plan([str(corpus)], 2**30).append_column("committed", pa.array([[]], pa.list_(pa.int32())))
    seen = []
    made = read_module._segment_row
    monkeypatch.setattr(read_module, "_segment_row", lambda *a: (seen.append(list(armed)), made(*a))[1])
    for _ in read_module.read_parts(parts, settings):
        assert armed == []
    assert armed == []
    assert all(7.0 in row for row in seen)
    assert len(seen) == 10
    assert ray.get(register.stuck.remote(0)) == []


@pytest.mark.slow
def test_a_file_that_hangs_its_decoder_is_set_aside(tmp_path, corpus, small_ctc, calm, monkeypatch):
    def fatal(utt_id, _segment):
        if utt_id == POISON[0]:
            time.sleep(1000)

    monkeypatch.setattr(driver, "read_parts", reading(fatal))
    run = transcribe(corpus, tmp_path / "run", small_ctc, row_deadline_s=3)
    [error] = corpora.rows_of(run, "errors")
    assert (error["utt_id"], error["code"]) == (POISON[0], "KILLED_WORKER")
    assert rows_of(run) == [row for row in calm if name_of(row) != POISON[0]]


def test_a_recording_keeps_the_segments_before_the_one_that_kills(tmp_path, corpus, small_ctc, calm, monkeypatch):
    def fatal(utt_id, segment):
        if utt_id == LONG and segment.start_s > 4:
            os._exit(1)

    monkeypatch.setattr(driver, "read_parts", reading(fatal))
    run = transcribe(corpus, tmp_path / "run", small_ctc, chunk_rows=1)
    [error] = corpora.rows_of(run, "errors")
    assert (error["utt_id"], error["code"]) == (LONG, "KILLED_WORKER")
    kept = [row for row in calm if name_of(row) != LONG or row["start_s"] <= 4]
    assert len(kept) < len(calm)
    assert rows_of(run) == kept
    assert verify(run).problems == ()


@pytest.mark.parametrize("way", ["crash", pytest.param("hang", marks=pytest.mark.slow)])
def test_a_row_that_ends_the_actor_is_set_aside(tmp_path, corpus, small_ctc, calm, monkeypatch, way):
    samples = {int(16_000 * (1.0 + int(name) / 10)) for name in POISON}

    class Fatal(Recognizer):
        def recognize(self, waveform):
            if len(waveform) in samples:
                os._exit(1) if way == "crash" else time.sleep(1000)
            return super().recognize(waveform)

    monkeypatch.setattr(driver, "Recognizer", Fatal)
    run = transcribe(corpus, tmp_path / "run", small_ctc, row_deadline_s=5)
    errors = corpora.rows_of(run, "errors")
    assert [(row["utt_id"], row["code"], row["stage"]) for row in errors] == [
        (name, "KILLED_WORKER", "recognize") for name in POISON
    ]
    rows = rows_of(run)
    assert rows == [row for row in calm if name_of(row) not in POISON]
    assert run.record["totals"]["audio_s"] == pytest.approx(sum(row["duration_s"] for row in rows))
    assert verify(run).problems == ()


def test_what_kills_and_is_no_row_fails_the_run(tmp_path, local_ray, corpus, small_ctc, monkeypatch):
    tries = tmp_path / "tries"

    def die(parts, settings):
        with tries.open("a") as file:
            file.write("x")
        os._exit(1)

    monkeypatch.setattr(driver, "MAX_DEATHS", 4)
    monkeypatch.setattr(driver, "read_parts", die)
    with pytest.raises(pipeline.RunFailedError, match="a worker died 5 times"):
        transcribe(corpus, tmp_path / "run", small_ctc)
    assert tries.read_text() == "xxxxx"
    assert pipeline.Run.open(tmp_path / "run").status == "failed"
