"""The recordings of a run against a join by hand."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs import recordings as view
from pipeline.runs.recordings import RECORDINGS, recording_ids, recordings, write_recordings
from tests.support.runs import compact, errors, transcripts, write_run


def segment(recording, start_s, text, *, end_s=None, channel=None, uri=None, **more):
    end_s = start_s + 10 if end_s is None else end_s
    suffix = "" if channel is None else f"#c{channel}"
    words = [
        {"word": word, "start_s": start_s + index, "end_s": start_s + index + 0.5, "confidence": 0.5}
        for index, word in enumerate(text.split())
    ]
    return {
        "utt_id": f"{recording}{suffix}#{round(start_s * 1000)}-{round(end_s * 1000)}",
        "uri": uri or f"audio/{recording}.wav",
        "start_s": start_s,
        "duration_s": end_s - start_s,
        "channel": channel,
        "text": text,
        "words": words,
    } | more


def rows_of(run):
    rows = pa.concat_tables([RECORDINGS.empty_table(), *recordings(run)]).to_pylist()
    return {(row["recording"], row["channel"]): row for row in rows}


def test_segments_are_joined_in_order_whatever_the_order_of_the_rows(tmp_path):
    long = [segment("long", 10.0 * n, f"w{n} x{n}", skipped_s=0.5, warning="odd" if n == 3 else None) for n in range(9)]
    short = {"utt_id": "short", "uri": "audio/short.wav", "text": "alone", "reference": "a lone"}
    call = [segment("call", 10.0 * n, f"c{c}n{n}", channel=c) for n in range(3) for c in (1, 0)]
    shuffled = [*long[5:], short, *call, *long[:5]]
    long[0]["recording_reference"] = "what was said"
    failed = errors([{"utt_id": "call", "uri": "audio/call.wav", "code": "TRUNCATED"}, {"utt_id": "gone"}])
    run = write_run(tmp_path / "run", transcripts(shuffled), errors=failed, chunk_rows=4)
    found = rows_of(run)
    assert found.keys() == {("long", None), ("short", None), ("call", 0), ("call", 1), ("gone", None)}
    row = found["long", None]
    assert row["text"] == " ".join(f"w{n} x{n}" for n in range(9))
    assert [word["word"] for word in row["words"]] == row["text"].split()
    assert [word["start_s"] for word in row["words"]] == sorted(word["start_s"] for word in row["words"])
    assert (row["start_s"], row["end_s"], row["audio_s"], row["skipped_s"]) == (0.0, 90.0, 90.0, 4.5)
    assert (row["warnings"], row["errors"], row["reference"]) == (["odd"], [], "what was said")
    assert [part["utt_id"] for part in row["segments"]] == [part["utt_id"] for part in long]
    assert [found["call", c]["text"] for c in (0, 1)] == ["c0n0 c0n1 c0n2", "c1n0 c1n1 c1n2"]
    assert [found["call", c]["errors"][0]["code"] for c in (0, 1)] == ["TRUNCATED", "TRUNCATED"]
    assert found["short", None]["reference"] == "a lone"
    assert (found["gone", None]["text"], found["gone", None]["start_s"]) == ("", None)
    assert rows_of(compact(run)) == found


def test_a_channel_of_errors_only_is_one_too(tmp_path):
    lost = segment("call", 0.0, "", channel=1)
    lost = {name: lost[name] for name in ("utt_id", "uri", "start_s", "duration_s", "channel")}
    heard = [segment("call", 0.0, "yes", channel=0), segment("mixed", 0.0, "no")]
    whole = {"utt_id": "mixed", "uri": "audio/mixed.wav"}
    found = rows_of(write_run(tmp_path / "run", transcripts(heard), errors=errors([lost, whole])))
    assert {key: (row["text"], len(row["errors"])) for key, row in found.items()} == {
        ("call", 0): ("yes", 0),
        ("call", 1): ("", 1),
        ("mixed", None): ("no", 1),
    }


def test_parts_that_a_manifest_names_are_segments_of_their_audio(tmp_path):
    rows = [
        {"utt_id": f"u{n}", "uri": "audio/talk.wav", "start_s": start_s, "duration_s": 1.0, "text": f"t{n}"}
        for n, start_s in enumerate([7.0, 0.0, 3.0])
    ]
    again = [{"utt_id": name, "uri": "audio/twice.wav", "text": name} for name in ("one", "two")]
    found = rows_of(write_run(tmp_path / "run", transcripts([*rows, *again])))
    assert found["audio/talk.wav", None]["text"] == "t1 t2 t0"
    assert (found["one", None]["text"], found["two", None]["text"]) == ("one", "two")


def test_recordings_of_a_shard_are_told_apart_by_their_ids(tmp_path):
    rows = [segment(name, 10.0 * n, f"{name}{n}", uri="a/shard-0.tar.gz") for n in range(2) for name in ("x", "y")]
    found = rows_of(write_run(tmp_path / "run", transcripts(rows)))
    assert {key: row["text"] for key, row in found.items()} == {("x", None): "x0 x1", ("y", None): "y0 y1"}


IDS = st.text("ab#c0123-", min_size=1, max_size=12)


@given(IDS, st.integers(0, 10**7), st.integers(1, 10**6), st.none() | st.integers(0, 3))
def test_only_the_suffixes_of_the_pipeline_are_removed(name, start, length, channel):
    start_s, duration_s = start / 16_000, length / 16_000
    end_s = start_s + duration_s
    middle = "" if channel is None else f"#c{channel}"
    rows = {"start_s": [start_s] * 2, "duration_s": [duration_s] * 2, "channel": pa.array([channel] * 2, pa.int32())}
    ids = [f"{name}{middle}#{round(start_s * 1000)}-{round(end_s * 1000)}", "other#1-2#c9"]
    assert recording_ids(pa.table({"utt_id": ids, **rows})) == [name, "other#1-2#c9"]


def test_every_row_is_in_one_recording_whatever_the_number_of_buckets(tmp_path, monkeypatch):
    rows = [segment(f"r{n}", 10.0 * k, f"r{n}k{k}") for n, k in itertools.product(range(20), range(5))]
    run = write_run(tmp_path / "run", transcripts(rows[::-1]), chunk_rows=7)
    whole = rows_of(run)
    monkeypatch.setattr(view, "BUCKET_BYTES", 1 << 10)
    monkeypatch.setattr(view, "_BATCH_WORDS", 3)
    tables = list(recordings(run))
    assert len(tables) > 5
    assert rows_of(run) == whole
    assert sorted(part["utt_id"] for row in whole.values() for part in row["segments"]) == sorted(
        r["utt_id"] for r in rows
    )


@pytest.mark.parametrize("number", [0, 3])
def test_recordings_are_written_whole(tmp_path, number):
    run = write_run(tmp_path / "run", transcripts([segment("r", 10.0 * n, f"w{n}") for n in range(number)]))
    path = tmp_path / "deep" / "out.parquet"
    assert write_recordings(run, str(path)) == bool(number)
    table = pq.read_table(path)
    assert table.schema.equals(RECORDINGS)
    assert table["text"].to_pylist() == ["w0 w1 w2"][: bool(number)]
