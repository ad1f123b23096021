"""The chunks of a part: they close by content alone, and bad data becomes a row."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.audio import decode
from pipeline.audio.decode import AudioSettings
from pipeline.schemas import READ_CHUNK
from pipeline.stages.read import ReadSettings, read_chunks
from pipeline.stages.rows import part_steps
from pipeline.stages.steps import START
from pipeline.storage import objects
from tests.support import corpora


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine clips of 0.2 to 1.8 s; every third is truncated."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(9):
        path = corpora.write_audio(folder / f"{index}.wav", 0.2 * (index + 1), index, subtype="PCM_16")
        if index % 3 == 2:
            path.write_bytes(path.read_bytes()[:-100])
    return folder


def settings_for(folder, chunk_s=600.0, chunk_rows=2000, **audio):
    return ReadSettings(
        AudioSettings(**audio),
        720,
        chunk_s=chunk_s,
        chunk_rows=chunk_rows,
        stop_uri=str(folder / "stop"),
        run=str(folder),
        deadline_s=600,
    )


def part_of(folder):
    (part,) = corpora.parts_of(folder)
    return part


def read(part, settings, committed=frozenset()):
    steps = part_steps(part, settings, START, {})
    return read_chunks(part, committed, steps, settings)


def chunks_of(folder, committed=frozenset(), **options):
    return [t.to_pylist()[0] for t in read(part_of(folder), settings_for(folder, **options), committed)]


def test_a_chunk_is_one_row_of_the_schema(folder):
    (table,) = read(part_of(folder), settings_for(folder))
    assert table.schema.equals(READ_CHUNK)
    assert table.num_rows == 1


def test_the_last_chunk_holds_the_totals_of_the_part(folder):
    chunks = chunks_of(folder, chunk_rows=4)
    assert [chunk["last"] for chunk in chunks] == [False, False, True]
    assert [chunk["part_rows"] for chunk in chunks] == [None, None, 9]
    assert chunks[-1]["part_audio_s"] == pytest.approx(sum(chunk["audio_s"] for chunk in chunks))
    assert sum(chunk["source_bytes"] for chunk in chunks) == part_of(folder).bytes


@given(chunk_s=st.floats(0.1, 5), chunk_rows=st.integers(1, 12), committed=st.frozensets(st.integers(0, 9)))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_cover_the_part_without_gaps_and_committed_chunks_are_not_yielded(
    folder, chunk_s, chunk_rows, committed
):
    all_chunks = chunks_of(folder, chunk_s=chunk_s, chunk_rows=chunk_rows)
    assert [chunk["chunk"] for chunk in all_chunks] == list(range(len(all_chunks)))
    assert [row["utt_id"] for chunk in all_chunks for row in chunk["rows"]] == [str(index) for index in range(9)]
    for chunk in all_chunks:
        before_last = chunk["rows"][:-1]
        assert len(chunk["rows"]) <= chunk_rows
        assert sum(row["duration_s"] for row in before_last if row["code"] is None) < chunk_s

    remaining = chunks_of(folder, committed, chunk_s=chunk_s, chunk_rows=chunk_rows)
    for chunk in (*all_chunks, *remaining):
        del chunk["read_s"], chunk["read_at"]
    assert remaining == [chunk for chunk in all_chunks if chunk["chunk"] not in committed]


def test_segments_of_one_recording_are_decoded_in_one_pass_that_ends_before_the_next_recording_is_fetched(
    tmp_path, monkeypatch
):
    names = ["a.ogg", "b.ogg"]
    for name in names:
        corpora.write_audio(tmp_path / name, 3.0, format="OGG", subtype="VORBIS")
    rows = [
        {"id": f"{name}-{second}", "audio_filepath": name, "offset": second, "duration": 1.0}
        for name in names
        for second in range(3)
    ]
    rows.insert(1, {"id": "a row without audio"})
    corpora.write_manifest(tmp_path / "in.jsonl", rows)
    events, open_recording, fetch = [], decode.open_recording, objects.fetch

    @contextlib.contextmanager
    def logged_open(*arguments):
        events.append("open")
        with open_recording(*arguments) as reader:
            yield reader
        events.append("close")

    def logged_fetch(uri, *arguments, **version):
        events.append(uri.rpartition("/")[2])
        return fetch(uri, *arguments, **version)

    monkeypatch.setattr(decode, "open_recording", logged_open)
    monkeypatch.setattr(objects, "fetch", logged_fetch)
    (part,) = corpora.parts_of(tmp_path / "in.jsonl")
    [chunk] = [table.to_pylist()[0] for table in read(part, settings_for(tmp_path))]
    assert [row["code"] for row in chunk["rows"]] == [None, "BAD_ROW", *[None] * 5]
    audio_events = [event for event in events if event != "in.jsonl"]
    assert audio_events == ["a.ogg", "open", "close", "b.ogg", "open", "close"]


def test_a_part_without_rows_gives_one_last_chunk(tmp_path, folder):
    part = replace(part_of(folder), limit=0)
    (table,) = read(part, settings_for(folder))
    (chunk,) = table.to_pylist()
    assert (chunk["last"], chunk["part_rows"], chunk["rows"]) == (True, 0, [])


def test_a_stopped_part_ends_without_a_last_chunk(folder):
    chunks = read(part_of(folder), settings_for(folder, chunk_rows=2))
    assert next(chunks).to_pylist()[0]["chunk"] == 0
    objects.put(str(folder / "stop"), b"")
    try:
        # The row that closed chunk 0 is dropped with the chunk that it would start: the next start reads it again.
        assert [table.to_pylist()[0]["chunk"] for table in chunks] == []
    finally:
        objects.delete([str(folder / "stop")])


def test_a_row_holds_the_samples_as_they_were_decoded(folder):
    rows = {row["utt_id"]: row for chunk in chunks_of(folder) for row in chunk["rows"]}
    expected = corpora.noise_bursts(0.2, 0)
    assert rows["0"]["sample_type"] == "int16"
    samples = np.frombuffer(rows["0"]["samples"], "<i2") / 32768
    assert np.abs(samples - expected).max() <= 1 / 32768
    assert rows["2"]["samples"] is None
    assert rows["2"]["code"] == "TRUNCATED"


def test_a_manifest_row_with_an_offset_has_its_span_in_its_id_and_keeps_its_reference(tmp_path):
    corpora.write_audio(tmp_path / "talk.wav", seconds=4)
    rows = [
        {"audio_filepath": "talk.wav", "offset": 1.0, "duration": 2.0, "text": "middle"},
        {"audio_filepath": "talk.wav", "offset": 0, "duration": 4.0, "text": "whole"},
        {"audio_filepath": "talk.wav", "offset": 3.5, "duration": 0.5, "text": "end", "id": "named"},
        {"audio_filepath": "talk.wav", "offset": 9.0, "duration": 1.0, "text": "beyond"},
    ]
    manifest = corpora.write_manifest(tmp_path / "m.jsonl", rows)
    (part,) = corpora.parts_of(manifest)
    (table,) = read(part, settings_for(tmp_path))
    found = table.to_pylist()[0]["rows"]
    assert [(row["utt_id"], row["reference"], row["code"]) for row in found] == [
        ("talk#1000-3000", "middle", None),
        ("talk", "whole", None),
        ("named", "end", None),
        ("talk", "beyond", "OUT_OF_RANGE"),
    ]
    assert [row["start_s"] for row in found] == [1.0, 0.0, 3.5, 9.0]


def test_reference_files_between_audio_files_do_not_end_a_part(tmp_path):
    for index in range(6):
        corpora.write_audio(tmp_path / f"{index}.wav")
        (tmp_path / f"{index}.txt").write_text("words")
    assert [part.rows for part in corpora.parts_of(tmp_path)] == [6]


def test_a_second_row_with_the_same_id_is_an_error_row_without_samples(tmp_path):
    corpora.write_audio(tmp_path / "talk.wav", seconds=4)
    rows = [{"audio_filepath": "talk.wav", "offset": 1.0, "duration": duration} for duration in (2.0, 2.0004)]
    (part,) = corpora.parts_of(corpora.write_manifest(tmp_path / "m.jsonl", rows))
    (table,) = read(part, settings_for(tmp_path))
    (chunk,) = table.to_pylist()
    first, second = chunk["rows"]
    assert (first["utt_id"], first["code"]) == (second["utt_id"], None)
    assert (second["stage"], second["code"]) == ("read", "DUPLICATE_ID")
    assert second["samples"] is second["sample_type"] is None
    assert chunk["audio_s"] == pytest.approx(2.0)
