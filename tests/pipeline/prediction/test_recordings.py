"""Hours, rates, channels and errors by headers: equal to what soundfile reads; sampled, within the stated error."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import time

import av
import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio.decode import AudioSettings
from pipeline.errors import RunFailedError
from pipeline.prediction import recordings
from pipeline.prediction.recordings import Work, examine, row_settings, steps
from pipeline.storage import objects
from tests.support.corpora import parts_of, write_audio, write_manifest
from tests.support.inputs import parquet, tar, write

SETTINGS = row_settings(AudioSettings(), 400)


def found(*inputs, timed=False, settings=SETTINGS, allow_any_path=False):
    *_, last = steps(parts_of(*inputs), settings, allow_any_path, timed)
    return last.row


def with_faults(faults, *arguments):
    """`steps` in a child in which reading a header has a fault: by the recording's name, how the process then ends."""
    header = recordings._header

    def faulty(utterance, audio):
        match faults.get(utterance.where.rpartition("/")[2]) if utterance.problem is None else None:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                time.sleep(600)
        return header(utterance, audio)

    recordings._header = faulty
    yield from steps(*arguments)


def test_a_recording_that_kills_or_hangs_what_reads_it_cannot_be_read_and_the_others_are(tmp_path, monkeypatch):
    for name in ("a", "b", "c", "d"):
        write(tmp_path / f"{name}.wav", wav(2.0))
    monkeypatch.setattr(recordings, "steps", functools.partial(with_faults, {"b.wav": "crash", "d.wav": "hang"}))
    settings = {"allow_any_path": False, "timed": True}
    whole = examine(parts_of(tmp_path), SETTINGS, deadline_s=2.0, **settings)
    assert (whole.read, whole.audio_s, whole.failed) == (4, 4.0, {"CRASHED": 1, "HUNG": 1})
    assert [example["uri"] for example in whole.examples] == [f"{tmp_path}/b.wav", f"{tmp_path}/d.wav"]
    assert whole.work.read_cpu_s > 0
    monkeypatch.setattr(recordings, "MAX_DEATHS", 0)
    with pytest.raises(RunFailedError, match="the processes that read headers die, the last one "):
        examine(parts_of(tmp_path), SETTINGS, deadline_s=2.0, **settings)


def test_a_shard_that_kills_what_reads_it_is_read_up_to_there(tmp_path, monkeypatch):
    for shard in ("a", "b"):
        tar(tmp_path / f"{shard}.tar", *((f"{shard}{index}.wav", wav(1.0)) for index in range(3)))
    monkeypatch.setattr(recordings, "steps", shard_that_dies)
    whole = examine(parts_of(tmp_path), SETTINGS, allow_any_path=False, timed=False)
    assert (whole.audio_s, whole.failed) == (4.0, {"CRASHED": 1})
    assert whole.examples[0]["uri"] == f"{tmp_path}/a.tar"


def test_a_manifest_whose_rows_together_take_longer_than_the_deadline_is_read(tmp_path, monkeypatch):
    write(tmp_path / "a.wav", wav(1.0))
    write_manifest(tmp_path / "m.jsonl", [{"audio_filepath": "a.wav", "utt_id": str(index)} for index in range(30)])
    monkeypatch.setattr(recordings, "steps", slow_rows)
    whole = examine(parts_of(tmp_path / "m.jsonl"), SETTINGS, allow_any_path=False, timed=False, deadline_s=2.0)
    assert (whole.number, whole.audio_s) == (30, 30.0)


def slow_rows(*arguments):
    """`steps` in a child that takes three seconds for 30 rows of a manifest, with a step after each five."""
    read = recordings.read_part

    def slow(part, allow_any_path):
        for utterance in read(part, allow_any_path):
            time.sleep(0.1)
            yield utterance

    recordings.read_part, recordings.ROWS_A_STEP = slow, 5
    yield from steps(*arguments)


def shard_that_dies(*arguments):
    """`steps` in a child in which the first shard ends the process behind its first member."""
    read = recordings.read_part

    def dying(part, allow_any_path):
        for index, utterance in enumerate(read(part, allow_any_path)):
            if index == 1 and part.uri.endswith("a.tar"):
                os.kill(os.getpid(), signal.SIGSEGV)
            yield utterance

    recordings.read_part = dying
    yield from steps(*arguments)


def wav(seconds: float, rate: int = 16_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full((round(seconds * rate), channels), 0.1), rate, format="WAV")
    return buffer.getvalue()


def test_hours_rates_and_channels_are_those_of_the_headers(tmp_path):
    write(tmp_path / "a.wav", wav(1.5))
    write(tmp_path / "b.wav", wav(2.0, rate=8000, channels=2))
    write_audio(tmp_path / "c.flac", 3.0, rate=44_100)
    write_audio(tmp_path / "d.mp3", 4.0)
    whole = found(tmp_path)
    lengths = [soundfile.info(path).duration for path in tmp_path.iterdir()]
    assert whole.audio_s == pytest.approx(sum(lengths), abs=0.1)  # MP3: decoders trim the padding
    assert (whole.number, whole.read, whole.error_s) == (4, 4, 0.0)
    assert whole.rates == {16_000: 2, 8000: 1, 44_100: 1}
    assert whole.channels == {1: 3, 2: 1}
    split = found(tmp_path, settings=row_settings(AudioSettings(channels="split"), 400))
    assert split.audio_s == pytest.approx(whole.audio_s + 2.0)


def test_recordings_whose_headers_state_no_length_are_counted(tmp_path):
    """As browsers record: the length is not known when the header is written."""
    write(tmp_path / "stated.wav", wav(1.0))
    sink, samples = io.BytesIO(), np.full((1, 48_000), 1000, np.int16)
    sink.seekable = lambda: False
    with av.open(sink, "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    write(tmp_path / "piped.webm", sink.getvalue())
    whole = found(tmp_path)
    assert (whole.number, whole.read, whole.unstated, whole.audio_s) == (2, 2, 1, 1.0)
    assert whole.to_json()["no_length"] == 1


def test_what_cannot_be_read_is_a_share_with_examples(tmp_path):
    write(tmp_path / "good.wav", wav(1.0))
    write(tmp_path / "empty.wav", b"")
    write(tmp_path / "cut.wav", wav(1.0)[:-1000])
    write(tmp_path / "text.wav", b"not audio at all" * 10)
    whole = found(tmp_path)
    assert whole.failed == {"EMPTY_FILE": 1, "TRUNCATED": 1, "UNDECODABLE": 1}
    assert whole.failed_share == 0.75
    assert whole.audio_s == 1.0
    assert {example["code"] for example in whole.examples} == {*whole.failed}
    assert all(example["uri"] and example["message"] for example in whole.examples)


def test_every_layout_gives_the_same_hours(tmp_path):
    clips = {f"c{index}.wav": wav(0.5 + index / 4) for index in range(6)}
    for name, data in clips.items():
        write(tmp_path / "files" / name, data)
    shard = tar(tmp_path / "s.tar", *clips.items())
    table = parquet(tmp_path / "t.parquet", [{"audio": {"bytes": data, "path": name}} for name, data in clips.items()])
    rows = write_manifest(tmp_path / "m.jsonl", [{"audio_filepath": f"files/{name}"} for name in clips])
    wholes = [found(where) for where in (tmp_path / "files", shard, table, rows)]
    for whole in wholes:
        assert whole.audio_s == pytest.approx(sum(0.5 + index / 4 for index in range(6)))
        assert (whole.number, whole.rates) == (6, {16_000: 6})


def test_rows_of_a_manifest_count_the_seconds_that_they_name(tmp_path):
    write(tmp_path / "long.wav", wav(10.0))
    rows = [{"audio_filepath": "long.wav", "offset": 2.0 * k, "duration": 1.5} for k in range(4)]
    rows.append({"audio_filepath": "gone.wav"})
    whole = found(write_manifest(tmp_path / "m.jsonl", rows))
    assert whole.audio_s == pytest.approx(6.0)
    assert whole.failed == {"MISSING": 1}


def test_long_remote_recordings_that_are_no_objects_are_errors_and_others_are_read_by_ranges(monkeypatch):
    root = "memory://plan-headers"
    memory = fsspec.filesystem("memory")
    memory.pipe(f"{root}/long.wav", wav(100.0))
    memory.pipe(f"{root}/directory/x.wav", b"x")
    names = ["long.wav", "gone.wav", "directory", "odd://x/y.wav"]
    memory.pipe(
        f"{root}/m.jsonl",
        b"".join(json.dumps({"audio_filepath": name, "duration": 100}).encode() + b"\n" for name in names),
    )
    fetched = []
    fetch = objects.fetch
    monkeypatch.setattr(
        objects, "fetch", lambda uri, *args, **kwargs: fetched.append(uri) or fetch(uri, *args, **kwargs)
    )
    whole = found(f"{root}/m.jsonl", allow_any_path=True)
    assert whole.failed == {"MISSING": 2, "BAD_ROW": 1}
    assert whole.audio_s == 100.0
    assert not [uri for uri in fetched if uri.endswith(".wav")]


@pytest.mark.parametrize("layout", ["files", "manifest", "shards"])
def test_a_sample_is_within_its_error(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(recordings, "MAX_HEADERS", 60)
    monkeypatch.setattr(recordings, "MAX_CONTAINERS", 8)
    generator = np.random.default_rng(3)
    lengths = generator.gamma(2.0, 0.1, 240) + 0.03
    for index, seconds in enumerate(lengths):
        # Stereo by chance: sizes do not determine lengths.
        write(tmp_path / "files" / f"{index:03}.wav", wav(seconds, 8000, 1 + index % 2 * int(generator.integers(2))))
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    inputs = [tmp_path / "files"]
    if layout == "manifest":
        inputs = [write_manifest(tmp_path / "m.jsonl", [{"audio_filepath": f"files/{name}"} for name in names])]
    if layout == "shards":
        members = [(name, (tmp_path / "files" / name).read_bytes()) for name in names]
        inputs = [tar(tmp_path / f"{k}.tar", *members[k::24]) for k in range(24)]
    sampled = found(*inputs)
    assert sampled.read < 120
    assert sampled.number == pytest.approx(240, rel=0 if layout != "shards" else 0.2)
    assert 0 < sampled.error_s < 0.3 * lengths.sum()
    assert abs(sampled.audio_s - sum(round(8000 * s) / 8000 for s in lengths)) < 2 * sampled.error_s
    assert sampled.audio_s == found(*inputs).audio_s  # the same sample each time


def test_the_stated_intervals_hold_the_sum_as_often_as_they_say():
    """95 % intervals over many samples of one population, against its true sum."""
    generator = np.random.default_rng(0)
    sizes = generator.gamma(2.0, 1.0, 500) + 0.1
    values = sizes * generator.normal(1.0, 0.3, 500)
    hits = 0
    for _ in range(1000):
        chosen = generator.choice(500, 80, replace=False)
        estimate = values[chosen].sum() / sizes[chosen].sum() * sizes.sum()
        half = recordings.NORMAL_95 * recordings._variance(sizes[chosen], values[chosen], 500) ** 0.5
        hits += abs(estimate - values.sum()) <= half
    assert 0.92 <= hits / 1000 <= 0.97


def test_the_work_is_that_of_all_audio_although_few_files_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "MAX_DECODED", 5)
    for index in range(40):
        write_audio(tmp_path / f"{index}.wav", 2.0, seed=index)
    decoded = []
    monkeypatch.setattr(recordings, "levels", lambda *arguments: decoded.append(arguments))
    whole = found(tmp_path, timed=True)
    assert len(decoded) < 20
    assert sum(seconds for seconds, _ in whole.work.clips.values()) == pytest.approx(80, rel=0.2)  # pauses are skipped
    assert 0 < whole.work.read_cpu_s < 10
    decoded.clear()
    assert not found(tmp_path).work.clips
    assert not decoded  # without a model, no audio is decoded


def test_a_long_recording_is_timed_by_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "MAX_DECODED_S", 4.0)
    write(tmp_path / "long.wav", wav(120.0))
    settings = row_settings(AudioSettings(max_segment_s=8.0, skip_silence=False), 400)
    whole = found(tmp_path, timed=True, settings=settings)
    ((_, (seconds, number)),) = whole.work.clips.items()
    assert seconds == pytest.approx(120.0)
    assert seconds / number <= 2.1  # a quarter of the longest


@given(st.dictionaries(st.integers(-4, 6), st.tuples(st.floats(0, 1e6), st.floats(0, 1e6))), st.floats(0, 100))
def test_work_adds_up(clips, factor):
    work = Work(1.0, 2.0, clips)
    doubled = work + work
    assert doubled.clips == work.times(2).clips
    assert (doubled.read_cpu_s, doubled.read_s) == (2.0, 4.0)
    assert (work + Work()).clips == clips
    assert work.times(factor).read_s == 2.0 * factor
