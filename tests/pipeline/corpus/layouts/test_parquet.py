"""Parquet files with a column of audio."""

import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.layout import Listing
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.read import read_part
from pipeline.errors import StorageError, UsageError
from pipeline.storage import objects, retry
from tests.support import s3
from tests.support.corpora import parts_of
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

    monkeypatch.setattr(objects, "open_read", lambda uri: objects.RetryingFile(Expired(b"x" * 1000), uri))
    with pytest.raises(StorageError, match="expired"):
        list(read_part(part))
