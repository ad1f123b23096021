"""Clips of utterances in every layout are their own audio, and what cannot be heard has a reason."""

from __future__ import annotations

import base64
import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipeline.audio.decode import AudioSettings, read_segments
from pipeline.audio.samples import to_float32
from pipeline.corpus.parts import plan_table
from pipeline.errors import StorageError
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.report import clips, render
from pipeline.report.content import ReportSettings, build_report
from pipeline.runs.run import write_plan
from pipeline.stages.rows import RowSettings, part_steps
from pipeline.stages.steps import START
from tests.support import runs
from tests.support.corpora import add_member, parts_of, write_manifest

RATE = 16_000
SECONDS = 1.2


def tone(hertz, seconds=SECONDS, rate=RATE):
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def hertz_of(clip):
    """The strongest frequency of a clip, and its duration in seconds."""
    head, data = clip.source.split(",", 1)
    assert head == "data:audio/ogg;base64"
    segments = read_segments(base64.b64decode(data), AudioSettings())
    samples = np.concatenate([to_float32(segment.samples) for segment in segments])
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return int(np.argmax(spectrum)) * RATE / len(samples), len(samples) / RATE


def encoded(hertz, seconds=SECONDS, kind="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(hertz, seconds), RATE, format=kind)
    return buffer.getvalue()


def run_of(path, *inputs, channels="mix", max_segment_s=60.0):
    """A run whose rows are those that the read stage makes of the inputs, each with an error; and its rows."""
    parts = parts_of(*inputs)
    settings = RowSettings(AudioSettings(RATE, channels, max_segment_s), 400)
    rows = []
    for part in parts:
        for step in part_steps(part, settings, START, {}):
            if step.row is not None:
                assert step.row.error is None
                names = ("utt_id", "uri", "start_s", "duration_s", "channel")
                rows.append({name: getattr(step.row, name) for name in names} | {"part_id": part.part_id})
    table = runs.transcripts([row | {"text": "a", "reference": "b"} for row in rows])
    run = runs.write_run(path / "run", table)
    write_plan(run.uri, plan_table(parts))
    return run, rows


def heard(run, rows):
    made = clips.clips_of(run, rows, "embed")
    assert not made.left_out
    return {utt_id: hertz_of(clip) for utt_id, clip in made.by_id.items()}


TONES = {"a": 440, "b": 880, "c": 1320}


def files(path):
    for name, hertz in TONES.items():
        (path / f"{name}.flac").write_bytes(encoded(hertz, kind="FLAC"))
    return path


def shard(path, mode="w", suffix="tar"):
    with tarfile.open(path / f"s.{suffix}", mode) as archive:
        for name, hertz in TONES.items():
            add_member(archive, f"{name}.wav", encoded(hertz))
    return path / f"s.{suffix}"


def parquet(path):
    audio = [{"bytes": encoded(hertz), "path": f"{name}.wav"} for name, hertz in TONES.items()]
    pq.write_table(pa.table({"audio": audio, "id": list(TONES)}), path / "p.parquet", row_group_size=1)
    return path / "p.parquet"


def parquet_of_paths(path):
    files(path)
    pq.write_table(pa.table({"audio": [f"{name}.flac" for name in TONES], "id": list(TONES)}), path / "p.parquet")
    return path / "p.parquet"


def offsets(path):
    soundfile.write(path / "long.wav", np.concatenate([tone(hertz) for hertz in TONES.values()]), RATE)
    rows = [
        {"audio_filepath": "long.wav", "offset": index * SECONDS, "duration": SECONDS, "id": name}
        for index, name in enumerate(TONES)
    ]
    return write_manifest(path / "m.jsonl", rows)


LAYOUTS = {
    "files": files,
    "tar": shard,
    "tar.gz": lambda path: shard(path, "w:gz", "tar.gz"),
    "parquet": parquet,
    "parquet of paths": parquet_of_paths,
    "manifest with offsets": offsets,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_clip_is_the_audio_of_its_utterance(tmp_path, layout):
    run, rows = run_of(tmp_path, LAYOUTS[layout](tmp_path))
    found = heard(run, rows)
    assert {utt_id: pytest.approx(hertz, abs=3) for utt_id, hertz in TONES.items()} == {
        utt_id: hertz for utt_id, (hertz, _) in found.items()
    }
    assert [seconds for _, seconds in found.values()] == [pytest.approx(SECONDS, abs=0.05)] * 3


def test_channels_and_segments_have_clips_of_their_own(tmp_path):
    left, right = tone(500, 6), np.concatenate([tone(1000, 3), tone(2000, 3)])
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], axis=1), RATE)
    run, rows = run_of(tmp_path, tmp_path / "x.wav", channels="split", max_segment_s=4.0)
    assert len(rows) >= 8
    found = heard(run, rows)
    for row in rows:
        if row["channel"] == 1 and row["start_s"] < 3 < row["start_s"] + row["duration_s"]:
            continue  # half of it is either tone
        expected = 500 if row["channel"] == 0 else (1000 if row["start_s"] < 3 else 2000)
        hertz, seconds = found[row["utt_id"]]
        assert hertz == pytest.approx(expected, abs=3)
        assert seconds == pytest.approx(row["duration_s"], abs=0.05)


def test_a_segment_in_a_shard_is_found_by_the_id_of_its_recording(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add_member(archive, "a.wav", encoded(300, 5))
        add_member(archive, "ab.wav", encoded(600, 5))
    run, rows = run_of(tmp_path, tmp_path / "s.tar", max_segment_s=3.0)
    found = heard(run, rows)
    assert len(found) == len(rows) >= 4
    for utt_id, (hertz, _) in found.items():
        assert hertz == pytest.approx(600 if utt_id.startswith("ab#") else 300, abs=3)


def test_of_a_long_utterance_the_beginning_is_played(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(440, 31))
    run, rows = run_of(tmp_path, tmp_path / "a.wav")
    clip = clips.clips_of(run, rows, "embed").by_id["a"]
    assert clip.seconds == clips.CLIP_S
    assert hertz_of(clip)[1] == pytest.approx(clips.CLIP_S, abs=0.05)


def gone(path):
    path.unlink()


def changed(path):
    path.write_bytes(encoded(700, 2))


def cut(path):
    data = path.read_bytes()
    stat = path.stat()
    path.write_bytes(data[: len(data) // 3].ljust(len(data), b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the planned version


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(gone, "MISSING"), (changed, "changed since they were transcribed"), (pipe, "MISSING"), (cut, None)],
)
def test_what_cannot_be_read_is_left_out_with_its_reason(tmp_path, damage, reason):
    run, rows = run_of(tmp_path, files(tmp_path))
    damage(tmp_path / "b.flac")
    made = clips.clips_of(run, rows, "embed")
    assert set(made.by_id) == {"a", "c"}
    assert sum(made.left_out.values()) == 1
    assert reason is None or list(made.left_out) == [reason]


def test_a_lost_shard_and_a_lost_plan_cost_only_the_clips(tmp_path):
    run, rows = run_of(tmp_path, shard(tmp_path))
    (tmp_path / "s.tar").unlink()
    assert clips.clips_of(run, rows, "embed").left_out == {"changed since they were transcribed": 3}

    (tmp_path / "run" / "plan.parquet").write_bytes(b"PAR1garbagePAR1")
    assert clips.clips_of(run, rows, "embed").left_out == {"MISSING": 3}
    (tmp_path / "run" / "plan.parquet").unlink()
    assert clips.clips_of(run, rows, "embed").left_out == {"MISSING": 3}


def test_storage_that_cannot_be_reached_is_tried_once(tmp_path, monkeypatch):
    run, rows = run_of(tmp_path, files(tmp_path))
    rows = [row | {"uri": f"s3://bucket/{row['utt_id']}"} for row in rows]
    tried = []

    def fail(uri, version=None):
        tried.append(uri)
        raise StorageError("no route")

    monkeypatch.setattr(clips, "open_object", fail)
    assert clips.clips_of(run, rows, "embed").left_out == {"in storage that cannot be reached": 3}
    assert len(tried) == 1


def test_limits_of_size_and_time_leave_out_the_rest(tmp_path, monkeypatch):
    run, rows = run_of(tmp_path, files(tmp_path))
    monkeypatch.setattr(clips, "PAGE_BYTES", 8_000)
    made = clips.clips_of(run, rows, "embed")
    assert "a" in made.by_id
    assert 0 < made.left_out["over the size of a page"] < 3

    monkeypatch.setattr(clips, "TIME_S", -1.0)
    assert sum(clips.clips_of(run, rows, "embed").left_out.values()) == 3


def test_no_further_utterance_of_a_shard_is_read_after_the_limit_of_time(tmp_path, monkeypatch):
    run, rows = run_of(tmp_path, shard(tmp_path))
    read = clips.read_part

    def slow(part):
        for number, utterance in enumerate(read(part)):
            if number == 1:
                monkeypatch.setattr(clips.time, "monotonic", lambda: float("inf"))
            yield utterance

    monkeypatch.setattr(clips, "read_part", slow)
    made = clips.clips_of(run, rows, "embed")
    assert len(made.by_id) == 1
    assert made.left_out == {"not decoded within 120 s": 2}


def test_shards_that_are_too_large_are_not_searched(tmp_path, monkeypatch):
    run, rows = run_of(tmp_path, shard(tmp_path))
    monkeypatch.setattr(clips, "SHARD_BYTES", 1_000)
    assert clips.clips_of(run, rows, "embed").left_out == {"in shards that are too large to search": 3}


def test_links_name_the_object_and_the_part_to_play(tmp_path):
    run, rows = run_of(tmp_path, offsets(tmp_path))
    rows = [rows[0], rows[1] | {"uri": "https://x.org/a b?c"}, rows[2] | {"uri": "s3://bucket/c.wav"}]
    made = clips.clips_of(run, rows, "link")
    assert made.by_id["a"].source == f"file://{tmp_path}/long.wav#t=0.000,1.200"
    assert made.by_id["b"].source == "https://x.org/a b?c#t=1.200,2.400"
    assert made.left_out == {"stored where no browser can open it": 1}
    signed = [rows[0] | {"uri": "https://x.org/a?sv=1&sig=hush"}]
    assert clips.clips_of(run, signed, "link").left_out == {"at an address that holds a secret": 1}

    run, rows = run_of(tmp_path / "t", shard(tmp_path))
    assert clips.clips_of(run, rows, "link").left_out == {"inside a shard": 3}


def test_a_page_says_how_many_can_be_played_and_is_silent_on_request(tmp_path):
    run, _ = run_of(tmp_path, files(tmp_path))
    (tmp_path / "b.flac").unlink()
    pages = {
        mode: render.html(build_report(run, settings=ReportSettings(EvaluationSettings(), audio=mode)))
        for mode in ("embed", "link", "none")
    }
    assert "2 of the first 3 utterances can be played. Not played: 1 MISSING." in pages["embed"]
    assert pages["embed"].count("<audio") == 2
    assert "media-src data:;" in pages["embed"]
    assert pages["link"].count("<audio") == 3
    assert "media-src https: http: file:;" in pages["link"]
    assert "<audio" not in pages["none"]
    assert "data:audio" not in pages["none"]
    assert "can be played" not in pages["none"]
    assert "media-src &#39;none&#39;;" in pages["none"] or "media-src 'none';" in pages["none"]
