"""The plan: what is found, its order and ids, limits, duplicates, and refused INPUTs."""

import gzip
import json
import os
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.parts import Duplicate
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.errors import StorageError, UsageError
from pipeline.storage import objects, retry
from tests.support import s3
from tests.support.corpora import LARGE, parts_of
from tests.support.inputs import ids, items, manifest, outcome, parquet, parquet_of_bytes, tar_of, write_files
from tests.support.quick_s3 import quick_server


def test_a_directory_is_planned_in_path_order_with_relative_ids(tmp_path):
    write_files(tmp_path, "b.wav", "a/2.flac", "a/10.mp3", "a.b/x.y.ogg", "ü/ß.wav", "notes.md", "a/2.json")
    assert ids(tmp_path) == ["a.b/x.y", "a/10", "a/2", "b", "ü/ß"]


def test_upper_case_extensions_are_audio(tmp_path):
    write_files(tmp_path, "A.WAV", "b.Flac")
    assert ids(tmp_path) == ["A", "b"]


def test_hidden_files_and_directories_are_ignored_and_underscores_are_not_hidden(tmp_path):
    write_files(tmp_path, ".a.wav", "._b.wav", ".cache/c.wav", "d/.e/f.wav", "_g.wav", "_h/i.wav")
    assert ids(tmp_path) == ["_g", "_h/i"]


def test_an_input_below_a_hidden_directory_is_planned(tmp_path):
    write_files(tmp_path / ".data", "a.wav")
    assert ids(tmp_path / ".data") == ids(tmp_path / ".data" / "a.wav") == ids(f"{tmp_path}/.data/*.wav") == ["a"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.wav", ["0"]),
        ("a/*", ["1", "b/2"]),
        ("*/b", ["a/b/2", "c/b/3"]),
        ("**/*.wav", ["0", "a/1", "a/b/2", "c/b/3"]),
        ("a/**/*.wav", ["1", "b/2"]),
        ("[ac]", ["a/1", "a/b/2", "c/b/3"]),
        ("a?/*", None),
    ],
)
def test_ids_of_a_glob_are_relative_to_its_part_without_wildcards(tmp_path, pattern, expected):
    write_files(tmp_path, "0.wav", "a/1.wav", "a/b/2.wav", "c/b/3.wav")
    if expected is None:
        with pytest.raises(UsageError, match="no audio"):
            parts_of(f"{tmp_path}/{pattern}")
    else:
        assert ids(f"{tmp_path}/{pattern}") == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    write_files(tmp_path, "take [1].wav", "take 1.wav", "take [1].txt")
    (item,) = items(tmp_path / "take [1].wav")
    assert (item.utt_id, item.reference_uri) == ("take [1]", str(tmp_path / "take [1].txt"))


def test_each_manifest_of_a_glob_is_planned(tmp_path):
    manifest(tmp_path / "a.jsonl", {"audio_filepath": "1.wav"}, {"audio_filepath": "2.wav"})
    manifest(tmp_path / "b.jsonl", {"audio_filepath": "3.wav"})
    found = parts_of(f"{tmp_path}/*.jsonl")
    assert [(part.kind, part.uri, part.rows) for part in found] == [
        ("manifest", str(tmp_path / "a.jsonl"), 2),
        ("manifest", str(tmp_path / "b.jsonl"), 1),
    ]
    assert [part.rows for part in parts_of(f"{tmp_path}/*.jsonl", limit=2)] == [2]


def test_links_are_planned_as_their_targets(tmp_path):
    write_files(tmp_path / "far", "a.wav", "d/b.wav")
    near = tmp_path / "near"
    near.mkdir()
    (near / "x.wav").symlink_to(tmp_path / "far" / "a.wav")
    (near / "y").symlink_to(tmp_path / "far" / "d")
    found = items(near)
    assert [item.utt_id for item in found] == ["x", "y/b"]
    assert [item.version for item in found] == [objects.stat(item.uri).version for item in found]


def test_a_dangling_link_is_planned_and_becomes_an_error_row(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "none.wav")
    assert ids(tmp_path) == ["a"]


def test_a_name_that_is_not_utf8_is_planned(tmp_path):
    write_files(tmp_path, "a.wav")
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
    assert len(ids(tmp_path)) == 2


def test_a_hidden_file_is_planned_if_the_input_names_it(tmp_path):
    assert ids(write_files(tmp_path, ".a.wav") / ".a.wav") == [".a"]
    assert [part.kind for part in parts_of(tar_of(tmp_path / ".b.tar", "x.wav"))] == ["tar"]


def test_a_single_file_needs_no_extension(tmp_path):
    (tmp_path / "recording").write_bytes(b"RIFF\0\0\0\0WAVE")
    assert ids(tmp_path / "recording") == ["recording"]


def test_layouts_are_mixed_in_path_order(tmp_path):
    write_files(tmp_path, "a.wav", "c/1.wav", "c/2.wav", "e.wav")
    tar_of(tmp_path / "b.tar", "x.wav")
    parquet_of_bytes(tmp_path / "d.parquet")
    found = parts_of(tmp_path)
    assert [part.kind for part in found] == ["files", "tar", "files", "parquet", "files"]
    assert [part.name for part in found] == ["", "b", "", "d", ""]
    assert plan([str(tmp_path)], LARGE)["ordinal"].to_pylist() == list(range(5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no such file or directory: .*/none"),
        ("none.jsonl", "no such file or directory"),
        ("none/*.wav", "no audio in .*/none/"),
        ("empty", "no audio in .*/empty: looked for"),
        ("text", "no audio in .*/text"),
        ("empty.jsonl", "no audio in .*/empty.jsonl"),
        ("blank.jsonl", "no audio in .*/blank.jsonl"),
        ("hidden", "no audio"),
        ("nothing://a", "cannot open nothing://a"),
    ],
)
def test_an_input_without_audio_is_a_usage_error(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_files(tmp_path, "text/a.txt", "hidden/.a.wav", "good/a.wav")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n\r\n")
    with pytest.raises(UsageError, match=message):
        parts_of("good", name)


def test_an_input_given_twice_is_planned_once(tmp_path, monkeypatch):
    write_files(tmp_path / "a", "1.wav", "2.wav")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    once = parts_of("a")
    assert parts_of("a", tmp_path / "a", "./a/", "b/../a") == once
    assert parts_of("a", "a/*") == once
    assert [part.rows for part in parts_of("a", "a", limit=3)] == [2]


def test_a_shard_given_with_its_directory_is_planned_once(tmp_path):
    shard = tar_of(tmp_path / "a.tar", "x.wav")
    assert parts_of(tmp_path, shard) == parts_of(tmp_path)


def test_overlapping_inputs_count_once_under_a_limit(tmp_path):
    write_files(tmp_path, "a/1.wav", "b/2.wav")
    shard = tar_of(tmp_path / "a" / "s.tar", "x.wav")
    found = parts_of(tmp_path / "a", f"{tmp_path}/a/*", shard, tmp_path / "b", limit=3)
    assert [(part.kind, part.rows) for part in found] == [("files", 1), ("tar", 1), ("files", 1)]


def test_inputs_keep_their_order(tmp_path):
    write_files(tmp_path, "b/1.wav", "a/2.wav")
    assert ids(tmp_path / "b", tmp_path / "a") == ["1", "2"]


def test_duplicates_name_the_first_file_across_parts_and_inputs(tmp_path):
    write_files(tmp_path, "a/x.wav", "a/y.wav", "b/x.wav", "b/z.wav", "b/x.flac")
    found = parts_of(tmp_path / "a", tmp_path / "b", part_bytes=1)
    by_uri = {part.items[0].uri: part.duplicates for part in found}
    assert by_uri == {
        f"{tmp_path}/a/x.wav": (),
        f"{tmp_path}/a/y.wav": (),
        f"{tmp_path}/b/x.flac": (Duplicate(0, f"{tmp_path}/a/x.wav"),),
        f"{tmp_path}/b/x.wav": (Duplicate(0, f"{tmp_path}/a/x.wav"),),
        f"{tmp_path}/b/z.wav": (),
    }


def test_duplicates_within_and_across_manifests_name_the_first_row(tmp_path):
    one = manifest(
        tmp_path / "1.jsonl", {"audio_filepath": "a.wav"}, {"audio_filepath": "b.wav"}, {"audio_filepath": "./a.wav"}
    )
    two = manifest(tmp_path / "2.jsonl", {"audio_filepath": "c.wav"}, {"audio_filepath": "d.wav", "id": "b"})
    tar_of(tmp_path / "between.tar", "x.wav")
    first, _, second = parts_of(one, tmp_path / "between.tar", two)
    assert first.duplicates == (Duplicate(2, f"{one}, row at byte 0"),)
    offset = len(json.dumps({"audio_filepath": "a.wav"})) + 1
    assert second.duplicates == (Duplicate(1, f"{one}, row at byte {offset}"),)


def test_segments_of_a_recording_are_not_duplicates(tmp_path):
    rows = [{"audio_filepath": "a.wav", "offset": offset, "duration": 1} for offset in (0, 1, 1)]
    (part,) = parts_of(manifest(tmp_path / "m.jsonl", *rows))
    assert [duplicate.row for duplicate in part.duplicates] == [2]


def test_the_limit_holds_across_all_layouts(tmp_path):
    write_files(tmp_path, "a/1.wav", "a/2.wav")
    shard = tar_of(tmp_path / "b.tar", ".hidden.wav", "1.txt", "3.wav", "4.wav", "5.wav")
    table = parquet_of_bytes(tmp_path / "c.parquet", 4, row_group=2)
    rows = manifest(tmp_path / "d.jsonl", *({"audio_filepath": f"x{i}.wav"} for i in range(3)))
    inputs = (tmp_path / "a", shard, table, rows)
    for limit in range(1, 14):
        found = parts_of(*inputs, limit=limit)
        assert sum(part.rows for part in found) == limit
        assert all(part.limit is None or part.limit >= part.rows for part in found)
    assert sum(part.rows for part in parts_of(*inputs, limit=100)) == 13  # with the row of the text without audio


def test_the_limit_holds_across_layouts_in_one_directory(tmp_path):
    write_files(tmp_path, "a.wav", "c.wav", "f.wav")
    tar_of(tmp_path / "b.tar", "1.wav", "2.wav")
    parquet_of_bytes(tmp_path / "d.parquet", 3)
    tar_of(tmp_path / "e.tar", "3.wav")
    everything = [("files", 1), ("tar", 2), ("files", 1), ("parquet", 3), ("tar", 1), ("files", 1)]
    for limit in range(1, 11):
        remaining, expected = limit, []
        for kind, rows in everything:
            if remaining > 0:
                expected.append((kind, min(rows, remaining)))
                remaining -= rows
        assert [(part.kind, part.rows) for part in parts_of(tmp_path, limit=limit)] == expected


def test_a_broken_container_counts_as_its_error_row_under_a_limit(tmp_path):
    shard = Path(tar_of(tmp_path / "a.tar", "1.wav", "2.wav"))
    shard.write_bytes(shard.read_bytes()[:1400])
    assert [part.rows for part in parts_of(shard, limit=10)] == [2]
    assert [part.rows for part in parts_of(write_files(tmp_path, "b.tar") / "b.tar", limit=10)] == [1]
    assert [part.rows for part in parts_of(write_files(tmp_path, "c.parquet") / "c.parquet", limit=10)] == [1]


@pytest.mark.parametrize("kind", ["files", "manifest", "tar", "parquet"])
def test_planning_is_repeatable_and_a_changed_object_is_another_part(tmp_path, kind):
    corpus = {
        "files": lambda: write_files(tmp_path / "d", "a.wav", "b.wav"),
        "manifest": lambda: manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav"}),
        "tar": lambda: tar_of(tmp_path / "s.tar", "a.wav"),
        "parquet": lambda: parquet_of_bytes(tmp_path / "t.parquet"),
    }[kind]()
    changed = corpus / "a.wav" if kind == "files" else corpus
    before = parts_of(corpus)
    assert parts_of(corpus) == before
    changed.write_bytes(changed.read_bytes().replace(b"a", b"b", 1))
    os.utime(changed, (1, 1))
    assert parts_of(corpus)[0].part_id != before[0].part_id


def test_an_s3_prefix_is_planned_like_a_directory_however_it_is_written():
    with s3.moto_server():
        base = s3.make_bucket("bucket")
        objects.put(f"{base}/c/a/1.wav", b"x")
        objects.put(f"{base}/c/a/1.txt", b"words")
        objects.put(f"{base}/c/m.jsonl", b'{"audio_filepath": "./a/../a/1.wav"}\n')
        for uri in (f"{base}/c", f"{base}/c/", "s3a://bucket/c", f"{base}/c/*", f"{base}/c/a/1.wav"):
            (item,) = items(uri)
            assert (item.uri, item.reference_uri) == (f"{base}/c/a/1.wav", f"{base}/c/a/1.txt")
            assert item.utt_id == ("1" if uri.endswith("wav") else "a/1")
        assert [part.rows for part in parts_of(f"{base}/c/m.jsonl")] == [1]
        with pytest.raises(UsageError, match="no such file or directory: s3://no-bucket/x"):
            parts_of("s3://no-bucket/x")


def test_denied_access_is_not_a_missing_input(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    with s3.forbidden_server():
        for uri in ("s3://bucket/dir", "s3://bucket/*.wav", "s3://bucket/m.jsonl"):
            with pytest.raises(StorageError):
                parts_of(uri)


def test_planning_many_rows_takes_little_time_and_memory(tmp_path):
    path = tmp_path / "m.jsonl"
    number = 50_000
    with path.open("w") as file:
        for i in range(number):
            file.write(
                json.dumps({"audio_filepath": f"audio/{i // 1000}/{i}.flac", "duration": 9.5, "text": "w " * 20}) + "\n"
            )
    began = time.process_time()
    found = plan([str(path)], 32 << 20)
    assert sum(found["rows"].to_pylist()) == number
    assert time.process_time() - began < 10  # 0.5 s on a machine of 2 cores
    tracemalloc.start()
    plan([str(path)], 32 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 * number


def test_planning_many_small_objects_asks_for_lists_only_and_takes_little_memory(tmp_path, monkeypatch):
    number = 1_200  # with their texts three lists
    names = [f"{i // 100:02}/{i:04}" for i in range(number)]
    write_files(tmp_path / "bucket", *(f"{name}.{kind}" for name in names for kind in ("wav", "txt")))
    with quick_server(tmp_path):
        plan(["s3://bucket/00"], 32 << 20)  # the client is imported, and connects
        for request in ("fetch", "exists", "open_read"):
            monkeypatch.setattr(objects, request, lambda *_: pytest.fail("a request for an object"))
        tracemalloc.start()
        found = plan(["s3://bucket"], 32 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert [item["utt_id"] for item in found["items"][0].as_py()] == names
    assert peak < 6_000 * number  # two objects each, and a page of the list


# What is passed over


def left_out(*inputs, **options) -> LeftOut:
    return LeftOut.from_metadata(plan([str(uri) for uri in inputs], LARGE, **options).schema.metadata)


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path):
    write_files(tmp_path, "a.wav", "a.txt", "b.wav", "1/1-2-3.flac", "1/1-2.trans.txt")
    assert left_out(tmp_path) == LeftOut()
    write_files(
        tmp_path, "x.foo", "1/y.FOO", "README", "z.md", "alone.txt", ".c.wav", "._b.wav", "m.jsonl", ".DS_Store"
    )
    found = left_out(tmp_path)
    assert found.files == {"foo": 2, "": 1, "md": 1, "txt": 1, "jsonl": 1}
    assert found.hidden == 2
    (line, hidden) = found.lines
    assert line.startswith("left out: 6 files that are neither audio nor text of it: .foo 2, ")
    assert hidden.startswith("left out: 2 hidden audio files")
    assert left_out(f"{tmp_path}/*", tmp_path / "1").files == {"foo": 3, "": 1, "md": 1, "txt": 1, "jsonl": 1}
    assert "txt" not in left_out(tmp_path, limit=1).files


MORE_SUFFIXES = """
    wave gsm g722 mp2 mp1 mpga ac3 eac3 ts m2ts asf flv 3gpp 3g2 3ga mpg avi m4r f4v awb amr spx ogv weba ape tta rm
    dts adts mpeg vob
"""


def test_features_beside_audio_are_no_audio(tmp_path):
    write_files(tmp_path, "a.wav", "a.htk")
    assert ids(tmp_path) == ["a"]
    assert left_out(tmp_path).files == {"htk": 1}


@pytest.mark.parametrize("name", MORE_SUFFIXES.split())
def test_suffixes_that_the_decoders_read_are_audio(tmp_path, name):
    write_files(tmp_path, f"a.{name}", f"B.{name.upper()}")
    assert ids(tmp_path) == ["B", "a"]
    assert left_out(tmp_path) == LeftOut()


@pytest.mark.parametrize("row", [{"text": "x"}, {"file_name": "a.wav", "label": 1}, {"audio": 1}, {"x": None}])
def test_a_table_without_audio_in_a_directory_is_passed_over_with_a_note(tmp_path, row):
    write_files(tmp_path, "a.wav", "d/b.wav")
    parquet(tmp_path / "d" / "metadata.parquet", [row])
    assert ids(tmp_path) == ["a", "d/b"]
    (note,) = left_out(tmp_path).notes
    assert note.startswith(f"passed over {tmp_path}/d/metadata.parquet: it has ")
    if "file_name" in row:
        assert [part.kind for part in parts_of(tmp_path / "d" / "metadata.parquet")] == ["table"]
        return
    with pytest.raises(UsageError, match=r"no audio in .*metadata.parquet: .*; passed over .*column `audio`"):
        parts_of(tmp_path / "d" / "metadata.parquet")


def test_an_earlier_run_in_a_directory_is_passed_over_with_a_note(tmp_path):
    write_files(tmp_path, "a.wav", "runs/notes.wav")
    for name in ("run.json", "commits/ab/0-00000.json"):
        write_files(tmp_path / "runs" / "1", name)
    for name in ("plan", "transcripts/x", "metrics/y"):
        parquet(tmp_path / "runs" / "1" / f"{name}.parquet", [{"text": "x", "audio": "a.wav"}])
    write_files(tmp_path / "runs" / "1", "own.wav")  # audio is never passed over
    assert [part.kind for part in parts_of(tmp_path)] == ["files"]
    assert ids(tmp_path) == ["a", "runs/1/own", "runs/notes"]
    assert left_out(tmp_path).notes == [f"passed over {tmp_path}/runs/1: it is an earlier run"]
    assert not left_out(tmp_path).files
    (tmp_path / "runs" / "1" / "own.wav").unlink()
    with pytest.raises(UsageError, match=r"no audio in .*; passed over .*it is an earlier run"):
        parts_of(tmp_path / "runs" / "1")


def test_what_was_left_out_survives_json():
    found = LeftOut(Counter({"foo": 3}), 1, ["passed over x"], 2, 4)
    assert LeftOut.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert LeftOut.from_json(None) == LeftOut()


# INPUTs of unknown kinds

UNKNOWN = {
    "list.txt": b"a.wav\n",
    "feats.scp": b"a /data/a.ark:1\n",
    "m.jsonl.zst": b"x",
    "clips.zip": b"PK\x03\x04",
    "clips.7z": b"7z",
    "shard.tar.bz2": b"BZh",
    "shard.tar.xz": b"x",
    "a.wav.gz": gzip.compress(b"RIFF"),
    "table.xlsx": b"PK",
    "data.arrow": b"ARROW1",
    "data.h5": b"x",
    "a.TextGrid": b"x",
    "a.srt": b"x",
    "segments": b"a rec 0 1\n",
    "text": "a caf\u00e9\n".encode() * 1000,
    "noname": gzip.compress(b"{}"),
    "noname2": b"PK\x03\x04....",
    "noname3": b"ARROW1\0\0",
    "half": ("a" * 4095 + "\u00e9").encode(),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_input_that_is_a_table_list_or_archive_is_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(UNKNOWN[name])
    with pytest.raises(UsageError, match=f"{name}.*(manifest|unpack|repack)") as error:
        parts_of(tmp_path / name)
    assert "\n" not in str(error.value)


def test_shards_and_parquet_files_are_told_by_their_content(tmp_path):
    tar_of(tmp_path / "shard", "a.wav", "b.wav")
    parquet_of_bytes(tmp_path / "rows", 3)
    assert [(part.kind, len(list(read_part(part)))) for part in parts_of(tmp_path / "shard", tmp_path / "rows")] == [
        ("tar", 2),
        ("parquet", 3),
    ]


@pytest.mark.parametrize(
    "head", [b"NIST_1A\n   1024\nchannel_count -i 1\n", b"#!AMR\n", b"RIFF\0", b"\xff\xfb" * 5000, b"", b"\0" * 9]
)
def test_audio_without_a_suffix_is_not_taken_for_a_text(tmp_path, head):
    (tmp_path / "recording").write_bytes(head)
    assert ids(tmp_path / "recording") == ["recording"]


@pytest.mark.parametrize("kind", ["pipe", "device", "dangling"])
@pytest.mark.parametrize("name", ["a.wav", "a.tar", "a.parquet", "a.jsonl", "a"])
def test_an_input_that_cannot_be_opened_is_refused_and_not_waited_for(tmp_path, kind, name):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "none")
    with pytest.raises(UsageError, match="is a dangling link or not a regular file"):
        parts_of(path)


@pytest.mark.parametrize("name", ["b.tar", "b.parquet"])
@pytest.mark.parametrize("limit", [None, 5])
def test_a_container_that_cannot_be_opened_is_an_error_row(tmp_path, name, limit):
    write_files(tmp_path, "a.wav", "c.wav")
    os.mkfifo(tmp_path / name)
    results = [outcome(u) for part in parts_of(tmp_path, limit=limit) for u in read_part(part)]
    assert [result for _, result in results] == [b"a.wav.....", "MISSING", b"c.wav....."]
