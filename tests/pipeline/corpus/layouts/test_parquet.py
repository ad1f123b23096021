"""Parquet files with a column of audio."""

import io
import json
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.layout import Listing
from pipeline.corpus.layouts import parquet as parquet_module
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.errors import StorageError, UsageError
from pipeline.storage import objects, retry
from tests.support import s3
from tests.support.corpora import LARGE, parts_of
from tests.support.inputs import outcome, outcomes, parquet, parquet_of_bytes, ranges, read, write, write_files


def test_row_groups_make_parts(tmp_path):
    parquet_of_bytes(tmp_path / "a.parquet", 10, row_group=2)
    found = parts_of(tmp_path / "a.parquet", part_bytes=1)
    assert ranges(found) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert [part.rows for part in found] == [2] * 5
    assert ranges(parts_of(tmp_path / "a.parquet")) == [(0, 5)]


def test_a_corrupt_file_is_planned_and_becomes_an_error_row(tmp_path):
    write_files(tmp_path, "a.parquet", size=100)
    (part,) = parts_of(tmp_path)
    assert (part.kind, part.start, part.end) == ("parquet", None, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "no column `audio`; its columns are text"),
        ({"audio": 1}, "column `audio` that is int64"),
        ({"audio": {"array": [0.5]}}, "column `audio` that is struct"),
    ],
)
def test_a_file_without_an_audio_column_is_a_usage_error(tmp_path, row, message):
    parquet(tmp_path / "a.parquet", [row])
    with pytest.raises(UsageError, match=message):
        parts_of(tmp_path)


def test_a_file_that_cannot_be_reached_is_not_a_corrupt_one(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    with s3.forbidden_server():
        table = objects.Object("s3://bucket/a.parquet", 10, "v")
        with pytest.raises(StorageError):
            list(PARQUET.plan(Listing("s3://bucket", [table]), 1, None))


def test_audio_is_bytes_or_a_path_in_a_struct_or_a_column(tmp_path):
    write(tmp_path / "far.wav", b"F")
    struct = [
        {"audio": {"bytes": b"A", "path": "d/a.wav"}, "text": "hi", "speaker_id": 3, "lang": "en"},
        {"audio": {"bytes": None, "path": "far.wav"}, "text": None},
        {"audio": {"bytes": b"B", "path": None}},
        {"audio": {"bytes": None, "path": "none.wav"}},
        {"audio": {"bytes": None, "path": None}},
        {"audio": None},
        {"audio": {"bytes": b"C", "path": "/data/cache/c.wav"}, "id": 7},
        {"audio": {"bytes": b"D", "path": "/data/cache/d.wav"}},
    ]
    found = read(parquet(tmp_path / "t.parquet", struct))
    assert [outcome(u) for u in found] == [
        ("d/a", b"A"),
        ("far", b"F"),
        ("t/2", b"B"),
        ("none", "MISSING"),
        ("t/4", "MISSING"),
        ("t/5", "MISSING"),
        ("7", b"C"),
        ("/data/cache/d", b"D"),  # beside bytes a path is only a name, relative to nothing
    ]
    assert (found[0].meta.text, found[0].meta.speaker, found[0].meta.tags) == ("hi", "3", '{"lang": "en"}')
    assert found[1].uri == str(tmp_path / "far.wav")
    assert outcomes(parquet(tmp_path / "p.parquet", [{"audio": "far.wav"}, {"audio": None}])) == [
        ("far", b"F"),
        ("p/1", "MISSING"),
    ]
    assert outcomes(parquet(tmp_path / "b.parquet", [{"audio": b"B"}])) == [("b/0", b"B")]


def test_rows_without_ids_have_unique_ids_across_row_groups_and_directories(tmp_path):
    for split in ("train", "test"):
        rows = [{"audio": {"bytes": f"{split}{i}".encode(), "path": None}} for i in range(5)]
        parquet(tmp_path / split / "0.parquet", rows, row_group=2)
    found = outcomes(tmp_path, part_bytes=1)
    assert found == [(f"{split}/0/{i}", f"{split}{i}".encode()) for split in ("test", "train") for i in range(5)]


def test_segments_of_one_recording_are_not_duplicates(tmp_path):
    write(tmp_path / "a.wav", b"A")
    rows = [{"audio": "a.wav", "offset": float(i % 2), "duration": 1.0} for i in range(3)]
    assert [result for _, result in outcomes(parquet(tmp_path / "t.parquet", rows))] == [b"A", b"A", "DUPLICATE_ID"]


def test_the_error_of_a_duplicate_id_names_both_rows(tmp_path):
    rows = [{"audio": {"bytes": b"A", "path": "d/a.wav"}}] * 2
    path = parquet(tmp_path / "t.parquet", rows)
    _, second = read(path)
    assert second.problem.message == f"d/a names both {path}, row 0 and {path}, row 1"


def test_a_bad_row_is_an_error_row(tmp_path):
    rows = [{"audio": "a.wav", "offset": "soon"}, {"audio": "b.wav", "offset": "0"}]
    path = parquet(tmp_path / "t.parquet", rows)
    first, second = read(path)
    assert first.problem.message.startswith(f"{path}, row 0: offset")
    assert second.problem is None


def test_a_string_that_is_not_utf8_is_an_error_row(tmp_path):
    words = pa.array([b"good", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"audio": pa.array([b"A", b"B"]), "text": words}), tmp_path / "t.parquet")
    assert outcomes(tmp_path / "t.parquet") == [("t/0", b"A"), ("t/1", "BAD_ROW")]


def test_a_corrupt_file_keeps_the_rows_before_the_damage_and_adds_one_error_row(tmp_path):
    assert outcomes(write(tmp_path / "bad.parquet", b"PAR1 no parquet PAR1" * 9)) == [("bad", "BAD_ARCHIVE")]
    rows = [{"audio": {"bytes": os.urandom(2000), "path": f"{i}.wav"}} for i in range(200)]
    path = parquet(tmp_path / "t.parquet", rows, row_group=100)
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 30] = b"\xff" * 30
    found = outcomes(write(tmp_path / "broken.parquet", bytes(data)))
    assert found[:-1] == [(f"broken/{i}", rows[i]["audio"]["bytes"]) for i in range(len(found) - 1)]
    assert found[-1] == ("broken", "BAD_ARCHIVE")
    assert 0 < len(found) <= 101


def test_a_storage_error_is_not_a_corrupt_file(tmp_path, monkeypatch):
    (part,) = parts_of(parquet(tmp_path / "t.parquet", [{"audio": "a.wav"}]))
    monkeypatch.setattr(retry, "BACKOFF_S", 0)

    class Expired(io.BytesIO):
        def read(self, size=-1):
            raise PermissionError("the key has expired")

    monkeypatch.setattr(objects, "open_read", lambda uri, version=None: objects.RetryingFile(Expired(b"x" * 1000), uri))
    with pytest.raises(StorageError, match="expired"):
        list(read_part(part))


# Row groups of any size


@pytest.mark.parametrize("sizes", [[10] * 300, [40_000_000] * 3, [10] * 60 + [30_000_000] * 2 + [10] * 60])
def test_rows_are_read_by_bytes_in_bounded_memory(tmp_path, sizes):
    audio = [{"bytes": bytes(size - 1) + b"x", "path": None} for size in sizes]
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"audio": audio}), path, row_group_size=len(sizes), compression="zstd", use_dictionary=False
    )
    del audio
    (part,) = parts_of(path)
    before, most = pa.total_allocated_bytes(), 0
    for size, utterance in zip(sizes, read_part(part), strict=True):
        assert len(utterance.open()) == size
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 32 * 2**20 + 6 * max(sizes)


def test_rows_that_arrow_cannot_read_together_are_read_one_by_one(tmp_path, monkeypatch):
    path = parquet_of_bytes(tmp_path / "t.parquet", 10, row_group=5)
    whole = outcomes(path)
    iter_batches = pq.ParquetFile.iter_batches

    def limited(self, batch_size, row_groups):
        for number, batch in enumerate(iter_batches(self, batch_size, row_groups=row_groups)):
            if batch_size > 1 and number == 1:
                raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", limited)
    monkeypatch.setattr(parquet_module, "BATCH_ROWS", 2)
    assert outcomes(path) == whole
    assert len(whole) == 10


# Names, arrays and classes


@pytest.mark.parametrize("name", ["SA1.WAV", "a.wav", "x", "C:\\\\d\\\\a.wav", "a b.mp3"])
def test_a_base_name_beside_bytes_is_no_id(tmp_path, name):
    rows = [{"audio": {"bytes": bytes([65 + i]), "path": name}} for i in range(3)]
    found = read(parquet(tmp_path / "t.parquet", rows, row_group=2))
    assert [outcome(u) for u in found] == [("t/0", b"A"), ("t/1", b"B"), ("t/2", b"C")]
    assert [json.loads(u.meta.tags) for u in found] == [{"path": name}] * 3


def test_rows_of_a_run_that_version_0_1_0_began_keep_its_ids(tmp_path):
    parquet(tmp_path / "t.parquet", [{"audio": {"bytes": b"A", "path": "cv_1.mp3"}}])
    (part,) = parts_of(tmp_path / "t.parquet")
    assert [u.utt_id for u in PARQUET.read(replace(part, earlier_rules=True))] == ["cv_1"]


def test_a_bug_is_no_damaged_file(tmp_path, monkeypatch):
    def fail(*args):
        raise LookupError("of our own")

    parquet(tmp_path / "t.parquet", [{"audio": b"A"}])
    (part,) = parts_of(tmp_path / "t.parquet")
    monkeypatch.setattr(parquet_module, "parse_meta", fail)
    with pytest.raises(LookupError, match="of our own"):
        list(PARQUET.read(part))


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int16()])
def test_an_array_beside_a_path_is_the_audio(tmp_path, kind):
    scale = 1 if pa.types.is_floating(kind) else 32768
    samples = [round(0.25 * scale, 3), round(-0.5 * scale, 3), 0]
    struct = pa.struct([("path", pa.string()), ("array", pa.list_(kind)), ("sampling_rate", pa.int64())])
    rows = [
        {"path": "a.wav", "array": samples, "sampling_rate": 8000},
        {"path": None, "array": samples, "sampling_rate": 8000},
        {"path": "b.wav", "array": samples, "sampling_rate": None},
        {"path": "c.wav", "array": None, "sampling_rate": 8000},
    ]
    pq.write_table(pa.table({"audio": pa.array(rows, struct)}), tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet")
    assert [u.utt_id for u in found] == ["t/0", "t/1", "t/2", "c"]
    for utterance in found[:2]:
        data, rate = soundfile.read(io.BytesIO(utterance.open()))
        assert (data.tolist(), rate) == ([0.25, -0.5, 0.0], 8000)
    assert [outcome(u)[1] for u in found[2:]] == ["BAD_ROW", "MISSING"]


@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        (pa.uint8(), [160, 64, 128]),
        (pa.uint16(), [40_960, 16_384, 32_768]),
        (pa.int8(), [32, -64, 0]),
        (pa.int32(), [2**29, -(2**30), 0]),
        (pa.int32(), [8192, -16_384, 0]),
        (pa.int64(), [8192, -16_384, 0]),
        (pa.int64(), [2**29, -(2**30), 0]),
    ],
)
def test_integers_have_the_scale_and_the_middle_of_their_type(tmp_path, kind, samples):
    struct = pa.struct([("array", pa.list_(kind)), ("sampling_rate", pa.int64())])
    pq.write_table(
        pa.table({"audio": pa.array([{"array": samples, "sampling_rate": 8000}], struct)}), tmp_path / "t.parquet"
    )
    (found,) = read(tmp_path / "t.parquet")
    assert soundfile.read(io.BytesIO(found.open()))[0].tolist() == [0.25, -0.5, 0.0]


def test_an_array_of_channels_is_read(tmp_path):
    audio = {"array": [[0.25, 0.5], [-0.25, -0.5]], "path": "a.wav", "sampling_rate": 16000}
    (found,) = read(parquet(tmp_path / "t.parquet", [{"audio": audio}]))
    assert soundfile.read(io.BytesIO(found.open()))[0].tolist() == [[0.25, -0.25], [0.5, -0.5]]


def test_an_array_of_frames_that_is_no_audio_is_an_error_row(tmp_path):
    frames = {"array": [[0.5]] * 1025, "sampling_rate": 8000}
    assert outcomes(parquet(tmp_path / "t.parquet", [{"audio": frames}])) == [("t/0", "BAD_ROW")]


@pytest.mark.parametrize("audio", [{"bytes": b"A", "path": 5}, {"path": 5, "array": [0.5], "sampling_rate": 8000}])
def test_a_path_that_is_no_text_is_an_error_row(tmp_path, audio):
    assert outcomes(parquet(tmp_path / "t.parquet", [{"audio": audio}])) == [("t/0", "BAD_ROW")]


@pytest.mark.parametrize("audio", [{"bytes": "A"}, {"bytes": [65, 300]}, {"path": 5}])
def test_a_struct_of_other_types_holds_no_audio(tmp_path, audio):
    with pytest.raises(UsageError, match="a column `audio` that is struct"):
        parts_of(parquet(tmp_path / "t.parquet", [{"audio": audio}]))


def test_a_member_that_is_null_in_all_rows_has_no_type(tmp_path):
    write(tmp_path / "a.wav", b"A")
    rows = [{"audio": {"bytes": None, "path": "a.wav"}}]
    assert outcomes(parquet(tmp_path / "t.parquet", rows)) == [("a", b"A")]


def test_classes_have_the_names_of_the_schema(tmp_path):
    features = {
        "label": {"_type": "ClassLabel", "names": ["no", "yes"]},
        "speaker": {"_type": "ClassLabel", "names": {"0": "ann", "1": "bob"}},
        "gender": {"_type": "ClassLabel", "names": ["f", "m"]},
        "plain": {"_type": "Value", "dtype": "int64"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {"label": [1, 0, -1, 9], "speaker": [0, 1, 0, None], "gender": [1, 0, 1, -1], "plain": [1, 2, 3, 4]}
    table = pa.table({"audio": [b"A"] * 4, **columns}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "t.parquet")
    found = [u.meta for u in read(tmp_path / "t.parquet")]
    assert [meta.label for meta in found] == ["yes", "no", None, "9"]
    assert [meta.speaker for meta in found] == ["ann", "bob", "ann", None]
    assert [json.loads(meta.tags).get("gender") for meta in found] == ["m", "f", "m", None]
    assert [json.loads(meta.tags)["plain"] for meta in found] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "metadata", [b"", b"[]", b"{}", b'{"info": {"features": []}}', b'{"info": {"features": {"label": 1}}}', b"\xff"]
)
def test_other_metadata_changes_nothing(tmp_path, metadata):
    table = pa.table({"audio": [b"A"], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [u.meta.label for u in read(tmp_path / "t.parquet")] == ["1"]


def test_nan_is_null(tmp_path):
    nan = float("nan")
    row = {"audio": b"A", "text": nan, "speaker": nan, "label": nan, "duration": nan, "id": nan, "x": nan}
    (found,) = read(parquet(tmp_path / "t.parquet", [row]))
    assert outcome(found) == ("t/0", b"A")
    assert (found.meta.text, found.meta.speaker, found.meta.label, found.meta.duration) == (None,) * 4
    assert found.meta.tags == '{"x": null}'


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**60], pa.timestamp("us")),
        pa.array([2**50], pa.timestamp("s")),
        pa.array([2**60], pa.timestamp("ms", tz="UTC")),
        pa.array([-(2**62)], pa.timestamp("us", tz="Nowhere/Land")),
        pa.array([2**30], pa.date32()),
        pa.array([2**62], pa.duration("s")),
        pa.array([b"caf\xe9"]).view(pa.string()),
        pa.array([[2**60]], pa.list_(pa.timestamp("us"))),
        pa.array([{"at": 2**60}], pa.struct([("at", pa.timestamp("us"))])),
        pa.array([{"a": b"\xff"}]),
    ],
)
def test_a_value_that_python_has_not_in_a_column_that_nobody_asked_for_loses_no_audio(tmp_path, values):
    pq.write_table(pa.table({"audio": [b"A"], "text": ["words"], "when": values}), tmp_path / "t.parquet")
    (found,) = read(tmp_path / "t.parquet")
    assert outcome(found) == ("t/0", b"A")
    assert found.meta.text == "words"
    json.loads(found.meta.tags or "null")


@pytest.mark.parametrize("name", ["text", "speaker", "duration"])
def test_a_value_that_python_has_not_in_a_known_column_is_an_error_row(tmp_path, name):
    times = pa.array([2**60, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"audio": [b"A", b"B"], name: times}), tmp_path / "t.parquet")
    assert outcomes(tmp_path / "t.parquet")[0] == ("t/0", "BAD_ROW")


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_damage_to_a_file_ends_in_rows(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("parquet")
    rows = [{"audio": {"bytes": bytes([i]) * 50, "path": f"d/{i}.wav"}, "text": "a", "n": i} for i in range(8)]
    whole = bytearray(parquet(folder / "t.parquet", rows, row_group=4).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = outcomes(write(folder / "d.parquet", bytes(whole)))
    except UsageError:  # the name of the column is hit
        return
    assert found


# Other names and types of columns


def planned(path, **columns):
    parts = [Part.from_row(row) for row in plan([str(path)], LARGE, columns=columns).to_pylist()]
    return [utterance for part in parts for utterance in read_part(part)]


STRUCTS = {
    "bytes": pa.array([{"bytes": b"A", "path": None}, {"bytes": None, "path": None}]),
    "large": pa.array([{"bytes": b"A"}, None], pa.struct({"bytes": pa.large_binary()})),
    "plain": pa.array([b"A", None]),
    "large plain": pa.array([b"A", None], pa.large_binary()),
    "view": pa.array([b"A", None], pa.binary_view()),
}


@pytest.mark.parametrize("kind", [kind for kind in STRUCTS if kind != "view"])
def test_columns_have_the_names_that_the_user_says(tmp_path, kind):
    table = {"speech": STRUCTS[kind], "said": ["one", "two"], "who": [1, 2], "text": ["raw", "raw"], "n": [5, 6]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = planned(tmp_path / "t.parquet", audio_filepath="speech", text="said", speaker="who")
    assert [outcome(u)[1] for u in found] == [b"A", "MISSING"]
    assert [(u.utt_id, u.meta.text, u.meta.speaker, u.meta.tags) for u in found] == [
        ("t/0", "one", "1", '{"n": 5}'),
        ("t/1", "two", "2", '{"n": 6}'),
    ]


def test_names_of_columns_are_part_of_what_a_part_reads(tmp_path):
    parquet(tmp_path / "t.parquet", [{"audio": b"A", "a": "x", "b": "y"}])
    ids = [plan([str(tmp_path / "t.parquet")], 1, columns={"text": name})["part_id"][0] for name in ("a", "b")]
    assert ids[0] != ids[1]


def test_the_column_that_datasets_calls_audio_is_found_by_its_type(tmp_path):
    features = {"info": {"features": {"text": {"_type": "Value"}, "speech": {"_type": "Audio"}}}}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    speech = pa.array([{"bytes": b"A", "path": "a.flac"}], kind)
    schema = pa.schema({"raw": kind, "speech": kind, "text": pa.string()}, {"huggingface": json.dumps(features)})
    pq.write_table(pa.table([speech, speech, ["hi"]], schema), tmp_path / "t.parquet")
    (found,) = read(tmp_path / "t.parquet")
    assert (found.open(), found.meta.text) == (b"A", "hi")
    assert "raw" in found.meta.tags


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 4)])
def test_arrays_beside_a_column_of_rates_are_audio(tmp_path, kind):
    samples = [0.0, 0.5, -0.5, 0.25]
    table = {"audio": pa.array([samples, samples], kind), "sampling_rate": [8000, None], "text": ["a", "b"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    first, second = read(tmp_path / "t.parquet")
    waveform, rate = soundfile.read(io.BytesIO(first.open()))
    assert (waveform.tolist(), rate) == (samples, 8000)
    assert (second.problem.code.value, second.utt_id) == ("BAD_ROW", "t/1")
    pq.write_table(pa.table({"audio": pa.array([samples], kind)}), tmp_path / "n.parquet")
    with pytest.raises(UsageError, match="beside a column `sampling_rate`"):
        parts_of(tmp_path / "n.parquet")


# Manifests of paths


def test_rows_of_paths_are_those_of_a_table(tmp_path):
    write_files(tmp_path, "clips/a.wav", "clips/b.wav")
    rows = [
        {"path": "a.wav", "sentence": "one", "speaker_id": 7, "offset": 0.5, "duration": 1.0, "locale": "en"},
        {"path": "b.wav", "sentence": None, "offset": None, "duration": float("nan")},
        {"path": None, "sentence": "x"},
        {"path": "none.wav"},
        {"path": "/dev/zero"},
    ]
    path = parquet(tmp_path / "train.parquet", rows)
    found = read(path)
    assert [part.kind for part in parts_of(path)] == ["table"]
    assert [u.utt_id for u in found[:2]] == ["clips/a", "clips/b"]
    assert (found[0].meta.text, found[0].meta.speaker, found[0].meta.span) == ("one", "7", (0.5, 1.0))
    assert json.loads(found[0].meta.tags) == {"locale": "en"}
    assert [outcome(u)[1] for u in found[2:]] == ["BAD_ROW", "MISSING", "MISSING"]
    assert [part.rows for part in parts_of(path, limit=2)] == [2]


def test_a_renamed_column_of_paths_is_a_table(tmp_path):
    write_files(tmp_path, "a.wav")
    path = parquet(tmp_path / "t.parquet", [{"clip": "a.wav", "audio": 5, "said": "one"}])
    (found,) = planned(path, audio_filepath="clip", text="said")
    assert (found.utt_id, found.meta.text, found.problem) == ("a", "one", None)


def test_paths_in_a_directory_are_named_and_not_read(tmp_path):
    write_files(tmp_path, "a.wav")
    parquet(tmp_path / "t.parquet", [{"path": "a.wav", "text": "one"}])
    assert [u.meta.text for u in read(tmp_path)] == [None]
    assert b"t.parquet: it has paths of audio" in plan([str(tmp_path)], 1).schema.metadata[b"sewd.left_out"]
    assert [u.meta.text for u in read(f"{tmp_path}/*.parquet")] == ["one"]


def test_a_damaged_manifest_of_paths_ends_in_an_error_row(tmp_path):
    rows = [{"path": f"{i}.wav", "text": "word " * 50 + str(i)} for i in range(5000)]
    path = parquet(tmp_path / "t.parquet", rows, row_group=1000)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(2).column(0).dictionary_page_offset
    data[start : start + 500] = b"\xff" * 500
    write(path, bytes(data))
    found = read(path)
    assert 1000 <= len(found) <= 2001
    assert sum(u.problem is not None for u in found) == 1
    assert found[-1].problem.code.value == "BAD_ARCHIVE"
