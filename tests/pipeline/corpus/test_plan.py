"""The plan: what is found, how it is cut and called, and what is refused. No file here is audio: nothing is decoded."""

import io
import json
import os
import tarfile
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import parts as parts_module
from pipeline.corpus.layouts import manifest as manifest_layout
from pipeline.corpus.layouts import parquet as parquet_layout
from pipeline.corpus.layouts import tar as tar_layout
from pipeline.corpus.parts import MAX_PART_ITEMS, PLAN, Item, Part, cut_to_parts
from pipeline.corpus.plan import plan
from pipeline.errors import StorageError, UsageError
from pipeline.storage import objects, retry
from tests.support import s3

LARGE = 1 << 40


def write(base: Path, *names: str, size: int = 10) -> Path:
    for name in names:
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode().ljust(size, b".")[:size])
    return base


def manifest(path: Path, *rows: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tar(path: Path, *names: str) -> str:
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return str(path)


def parquet(path: Path, rows: int = 4, group: int | None = None, **columns) -> str:
    columns = columns or {"audio": [{"bytes": b"x" * 10, "path": f"{i}.wav"} for i in range(rows)]}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return str(path)


def parts(*inputs, part_bytes=LARGE, limit=None):
    return plan([str(uri) for uri in inputs], part_bytes, limit).to_pylist()


def items(*inputs, **options):
    return [item for part in parts(*inputs, **options) for item in part["items"]]


def ids(*inputs, **options):
    return [item["utt_id"] for item in items(*inputs, **options)]


def ranges(found):
    return [(part["start"], part["end"]) for part in found]


# Files, directories, globs.


def test_a_directory_gives_its_audio_in_path_order_with_relative_names(tmp_path):
    write(tmp_path, "b.wav", "a/2.flac", "a/10.mp3", "a.b/x.y.ogg", "ü/ß.wav", "notes.md", "a/2.json")
    assert ids(tmp_path) == ["a.b/x.y", "a/10", "a/2", "b", "ü/ß"]


def test_upper_case_extensions_are_audio_too(tmp_path):
    write(tmp_path, "A.WAV", "b.Flac")
    assert ids(tmp_path) == ["A", "b"]


def test_hidden_files_and_directories_are_passed_over_but_underscores_are_not(tmp_path):
    write(tmp_path, ".a.wav", "._b.wav", ".cache/c.wav", "d/.e/f.wav", "_g.wav", "_h/i.wav")
    assert ids(tmp_path) == ["_g", "_h/i"]


def test_an_input_below_a_hidden_directory_is_read(tmp_path):
    write(tmp_path / ".data", "a.wav")
    assert ids(tmp_path / ".data") == ids(tmp_path / ".data" / "a.wav") == ids(f"{tmp_path}/.data/*.wav") == ["a"]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
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
def test_globs_name_files_and_directories_relative_to_their_fixed_part(tmp_path, pattern, wanted):
    write(tmp_path, "0.wav", "a/1.wav", "a/b/2.wav", "c/b/3.wav")
    if wanted is None:
        with pytest.raises(UsageError, match="no audio"):
            parts(f"{tmp_path}/{pattern}")
    else:
        assert ids(f"{tmp_path}/{pattern}") == wanted


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    write(tmp_path, "take [1].wav", "take 1.wav", "take [1].txt")
    (item,) = items(tmp_path / "take [1].wav")
    assert (item["utt_id"], item["reference_uri"]) == ("take [1]", str(tmp_path / "take [1].txt"))


def test_a_glob_of_manifests_reads_each(tmp_path):
    manifest(tmp_path / "a.jsonl", {"audio_filepath": "1.wav"}, {"audio_filepath": "2.wav"})
    manifest(tmp_path / "b.jsonl", {"audio_filepath": "3.wav"})
    found = parts(f"{tmp_path}/*.jsonl")
    assert [(part["kind"], part["uri"], part["rows"]) for part in found] == [
        ("manifest", str(tmp_path / "a.jsonl"), 2),
        ("manifest", str(tmp_path / "b.jsonl"), 1),
    ]
    assert [part["rows"] for part in parts(f"{tmp_path}/*.jsonl", limit=2)] == [2]


def test_links_are_read_as_the_files_they_lead_to(tmp_path):
    write(tmp_path / "far", "a.wav", "d/b.wav")
    near = tmp_path / "near"
    near.mkdir()
    (near / "x.wav").symlink_to(tmp_path / "far" / "a.wav")
    (near / "y").symlink_to(tmp_path / "far" / "d")
    found = items(near)
    assert [item["utt_id"] for item in found] == ["x", "y/b"]
    assert [item["version"] for item in found] == [objects.stat(item["uri"]).version for item in found]


def test_a_link_to_nothing_is_planned_so_that_it_becomes_a_row(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "none.wav")
    assert ids(tmp_path) == ["a"]


def test_a_name_that_is_not_utf8_is_planned(tmp_path):
    write(tmp_path, "a.wav")
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
    assert len(ids(tmp_path)) == 2


# References beside files.


def test_references_are_found_beside_files(tmp_path):
    write(
        tmp_path, "a.wav", "a.txt", "b.wav", "c/1-2-3.flac", "c/1-2.trans.txt", "c/9-9.flac", "d/x-1.wav", "x.trans.txt"
    )
    found = {item["utt_id"]: item["reference_uri"] for item in items(tmp_path)}
    assert found == {
        "a": f"{tmp_path}/a.txt",
        "b": None,
        "c/1-2-3": f"{tmp_path}/c/1-2.trans.txt",
        "c/9-9": None,
        "d/x-1": None,
    }


def test_references_are_found_beside_what_a_glob_names(tmp_path):
    write(tmp_path, "d/a.wav", "d/a.txt", "d/1-2-3.wav", "d/1-2.trans.txt", "e/f.flac", "e/f.txt")
    wanted = [f"{tmp_path}/d/1-2.trans.txt", f"{tmp_path}/d/a.txt"]
    for pattern in ("*/*.wav", "d/*.wav", "**/*.wav", "d*/*"):
        assert [item["reference_uri"] for item in items(f"{tmp_path}/{pattern}")] == wanted


def test_the_nearest_transcript_wins_and_a_side_car_over_it(tmp_path):
    write(tmp_path, "1-2-3.wav", "1-2-4.wav", "1-2.trans.txt", "1.trans.txt", "1-2-4.txt")
    assert [item["reference_uri"] for item in items(tmp_path)] == [f"{tmp_path}/1-2.trans.txt", f"{tmp_path}/1-2-4.txt"]


@pytest.mark.parametrize("reference", ["84-12-0001.txt", "84-12.trans.txt", None])
def test_a_single_file_has_the_reference_that_its_directory_would_give_it(tmp_path, reference):
    write(tmp_path, "84-12-0001.flac", "85-12.trans.txt", *([reference] if reference else []))
    (item,) = items(tmp_path / "84-12-0001.flac")
    assert item["utt_id"] == "84-12-0001"
    assert item["reference_uri"] == (f"{tmp_path}/{reference}" if reference else None)
    assert [item] == items(tmp_path)


def test_a_single_file_needs_no_extension(tmp_path):
    assert ids(write(tmp_path, "recording") / "recording") == ["recording"]


# Shards and Parquet.


def test_shards_parquet_and_files_come_in_path_order(tmp_path):
    write(tmp_path, "a.wav", "c/1.wav", "c/2.wav", "e.wav")
    tar(tmp_path / "b.tar", "x.wav")
    parquet(tmp_path / "d.parquet")
    found = parts(tmp_path)
    assert [part["kind"] for part in found] == ["files", "tar", "files", "parquet", "files"]
    assert [part["name"] for part in found] == [None, "b", None, "d", None]
    assert [part["ordinal"] for part in found] == list(range(5))


@pytest.mark.parametrize("name", ["a.tar", "a.TAR", "a.tar.gz", "a.tgz"])
def test_a_tar_is_known_by_its_name_and_never_divided(tmp_path, name):
    tar(tmp_path / name, *(f"{i}.wav" for i in range(50)))
    (part,) = parts(tmp_path / name, part_bytes=1)
    assert (part["kind"], part["uri"], part["bytes"]) == ("tar", f"{tmp_path}/{name}", (tmp_path / name).stat().st_size)


def test_row_groups_make_parts(tmp_path):
    parquet(tmp_path / "a.parquet", rows=10, group=2)
    found = parts(tmp_path / "a.parquet", part_bytes=1)
    assert ranges(found) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert [part["rows"] for part in found] == [2] * 5
    assert ranges(parts(tmp_path / "a.parquet")) == [(0, 5)]


def test_a_corrupt_parquet_file_is_planned_so_that_it_becomes_a_row(tmp_path):
    write(tmp_path, "a.parquet", size=100)
    (part,) = parts(tmp_path)
    assert (part["kind"], part["start"], part["end"]) == ("parquet", None, None)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": ["a"]}, "no column `audio`; its columns are text"),
        ({"audio": [1]}, "column `audio` is int64"),
        ({"audio": [{"array": [0.5]}]}, "column `audio` is struct"),
    ],
)
def test_parquet_without_audio_is_a_usage_error(tmp_path, columns, words):
    parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(UsageError, match=words):
        parts(tmp_path)


def test_a_parquet_file_that_cannot_be_reached_is_no_corrupt_one(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    with s3.forbidden_server():
        table = objects.Object("s3://bucket/a.parquet", 10, "v")
        with pytest.raises(StorageError):
            list(parquet_layout._plan_table(table, "s3://bucket", 1, None))


# Manifests.


def test_a_manifest_is_cut_by_the_seconds_that_it_states(tmp_path):
    rows = [{"audio_filepath": f"{i}.wav", "duration": 10} for i in range(10)]
    path = manifest(tmp_path / "m.jsonl", *rows)
    found = parts(path, part_bytes=3 * 10 * manifest_layout.BYTES_PER_SECOND)
    assert [part["rows"] for part in found] == [3, 3, 3, 1]
    data = Path(path).read_bytes()
    assert b"".join(data[start:end] for start, end in ranges(found)) == data


@pytest.mark.parametrize("duration", [-5, 0, 1e300, "3"])
def test_a_duration_without_sense_spoils_no_plan(tmp_path, duration):
    path = manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "duration": duration})
    (part,) = parts(path)
    assert 0 <= part["bytes"] < 1 << 50


def test_a_part_of_a_manifest_holds_so_many_rows_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "MAX_PART_ITEMS", 4)
    path = manifest(tmp_path / "m.jsonl", *({"audio_filepath": f"{i}.wav", "duration": 0} for i in range(9)))
    assert [part["rows"] for part in parts(path)] == [4, 4, 1]


def test_bad_lines_are_planned_so_that_they_become_rows(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'not json\n\n\r\n{"audio_filepath": "a.wav"}\r\n{}\n   \n')
    (part,) = parts(path)
    assert part["rows"] == 3
    assert part["duplicates"] == []


# Inputs.


@pytest.mark.parametrize(
    ("name", "words"),
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
def test_an_input_without_audio_is_a_usage_error(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path, "text/a.txt", "hidden/.a.wav", "good/a.wav")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n\r\n")
    with pytest.raises(UsageError, match=words):
        parts("good", name)


def test_the_same_input_twice_is_read_once(tmp_path, monkeypatch):
    write(tmp_path / "a", "1.wav", "2.wav")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    once = parts("a")
    assert parts("a", tmp_path / "a", "./a/", "b/../a") == once
    assert parts("a", "a/*") == once
    assert [part["rows"] for part in parts("a", "a", limit=3)] == [2]


def test_a_shard_that_is_given_beside_its_directory_is_read_once(tmp_path):
    shard = tar(tmp_path / "a.tar", "x.wav")
    assert parts(tmp_path, shard) == parts(tmp_path)


def test_what_is_read_once_counts_once_under_a_limit(tmp_path):
    write(tmp_path, "a/1.wav", "b/2.wav")
    shard = tar(tmp_path / "a" / "s.tar", "x.wav")
    found = parts(tmp_path / "a", f"{tmp_path}/a/*", shard, tmp_path / "b", limit=3)
    assert [(part["kind"], part["rows"]) for part in found] == [("files", 1), ("tar", 1), ("files", 1)]


def test_inputs_keep_their_order(tmp_path):
    write(tmp_path, "b/1.wav", "a/2.wav")
    assert ids(tmp_path / "b", tmp_path / "a") == ["1", "2"]


# Duplicates.


def test_duplicates_name_the_place_of_the_first_across_parts_and_inputs(tmp_path):
    write(tmp_path, "a/x.wav", "a/y.wav", "b/x.wav", "b/z.wav", "b/x.flac")
    found = parts(tmp_path / "a", tmp_path / "b", part_bytes=1)
    by_uri = {part["items"][0]["uri"]: part["duplicates"] for part in found}
    assert by_uri == {
        f"{tmp_path}/a/x.wav": [],
        f"{tmp_path}/a/y.wav": [],
        f"{tmp_path}/b/x.flac": [{"row": 0, "first": f"{tmp_path}/a/x.wav"}],
        f"{tmp_path}/b/x.wav": [{"row": 0, "first": f"{tmp_path}/a/x.wav"}],
        f"{tmp_path}/b/z.wav": [],
    }


def test_duplicates_within_and_across_manifests_name_the_row(tmp_path):
    one = manifest(
        tmp_path / "1.jsonl", {"audio_filepath": "a.wav"}, {"audio_filepath": "b.wav"}, {"audio_filepath": "./a.wav"}
    )
    two = manifest(tmp_path / "2.jsonl", {"audio_filepath": "c.wav"}, {"audio_filepath": "d.wav", "id": "b"})
    tar(tmp_path / "between.tar", "x.wav")
    first, _, second = parts(one, tmp_path / "between.tar", two)
    assert first["duplicates"] == [{"row": 2, "first": f"{one}, row at byte 0"}]
    offset = len(json.dumps({"audio_filepath": "a.wav"})) + 1
    assert second["duplicates"] == [{"row": 1, "first": f"{one}, row at byte {offset}"}]


def test_pieces_of_a_recording_are_no_duplicates(tmp_path):
    rows = [{"audio_filepath": "a.wav", "offset": offset, "duration": 1} for offset in (0, 1, 1)]
    (part,) = parts(manifest(tmp_path / "m.jsonl", *rows))
    assert [found["row"] for found in part["duplicates"]] == [2]


# Limits.


def test_the_limit_counts_across_everything(tmp_path):
    write(tmp_path, "a/1.wav", "a/2.wav")
    shard = tar(tmp_path / "b.tar", ".hidden.wav", "1.txt", "3.wav", "4.wav", "5.wav")
    table = parquet(tmp_path / "c.parquet", rows=4, group=2)
    rows = manifest(tmp_path / "d.jsonl", *({"audio_filepath": f"x{i}.wav"} for i in range(3)))
    inputs = (tmp_path / "a", shard, table, rows)
    for limit in range(1, 13):
        found = parts(*inputs, limit=limit)
        assert sum(part["rows"] for part in found) == limit
        assert all(part["limit"] is None or part["limit"] >= part["rows"] for part in found)
    assert sum(part["rows"] for part in parts(*inputs, limit=100)) == 12


def test_the_limit_counts_across_the_kinds_in_one_directory(tmp_path):
    write(tmp_path, "a.wav", "c.wav", "f.wav")
    tar(tmp_path / "b.tar", "1.wav", "2.wav")
    parquet(tmp_path / "d.parquet", rows=3)
    tar(tmp_path / "e.tar", "3.wav")
    everything = [("files", 1), ("tar", 2), ("files", 1), ("parquet", 3), ("tar", 1), ("files", 1)]
    for limit in range(1, 11):
        left, wanted = limit, []
        for kind, rows in everything:
            if left > 0:
                wanted.append((kind, min(rows, left)))
                left -= rows
        assert [(part["kind"], part["rows"]) for part in parts(tmp_path, limit=limit)] == wanted


def test_a_shards_members_are_not_gathered(tmp_path):
    with Path(tar(tmp_path / "a.tar", *(f"{i}.wav" for i in range(50)))).open("rb", buffering=0) as file:
        archive, _ = tar_layout.open_tar(file)
        assert max(len(archive.members) for _ in tar_layout.tar_members(archive)) <= 1


def test_a_broken_shard_counts_for_its_row_under_a_limit(tmp_path):
    shard = Path(tar(tmp_path / "a.tar", "1.wav", "2.wav"))
    shard.write_bytes(shard.read_bytes()[:1400])
    assert [part["rows"] for part in parts(shard, limit=10)] == [2]
    assert [part["rows"] for part in parts(write(tmp_path, "b.tar") / "b.tar", limit=10)] == [1]
    assert [part["rows"] for part in parts(write(tmp_path, "c.parquet") / "c.parquet", limit=10)] == [1]


# Identity.


@pytest.mark.parametrize("kind", ["files", "manifest", "tar", "parquet"])
def test_a_second_planning_is_equal_and_a_changed_object_is_another_part(tmp_path, kind):
    corpus = {
        "files": lambda: str(write(tmp_path / "d", "a.wav", "b.wav")),
        "manifest": lambda: manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav"}),
        "tar": lambda: tar(tmp_path / "s.tar", "a.wav"),
        "parquet": lambda: parquet(tmp_path / "t.parquet"),
    }[kind]()
    changed = Path(corpus) / "a.wav" if kind == "files" else Path(corpus)
    before = parts(corpus)
    assert parts(corpus) == before
    changed.write_bytes(changed.read_bytes().replace(b"a", b"b", 1))
    os.utime(changed, (1, 1))
    assert parts(corpus)[0]["part_id"] != before[0]["part_id"]


def test_a_manifest_that_grows_keeps_the_parts_that_are_full(tmp_path):
    rows = [{"audio_filepath": f"{i}.wav", "duration": 1} for i in range(10)]
    options = {"part_bytes": 2 * manifest_layout.BYTES_PER_SECOND}
    before = parts(manifest(tmp_path / "m.jsonl", *rows[:6]), **options)
    after = parts(manifest(tmp_path / "m.jsonl", *rows), **options)
    assert [part["part_id"] for part in after[:3]] == [part["part_id"] for part in before]
    assert len(after) == 5


def test_a_prefix_on_s3_is_planned_like_a_directory_however_it_is_written():
    with s3.moto_server():
        base = s3.make_bucket("bucket")
        objects.put(f"{base}/c/a/1.wav", b"x")
        objects.put(f"{base}/c/a/1.txt", b"words")
        objects.put(f"{base}/c/m.jsonl", b'{"audio_filepath": "./a/../a/1.wav"}\n')
        for uri in (f"{base}/c", f"{base}/c/", "s3a://bucket/c", f"{base}/c/*", f"{base}/c/a/1.wav"):
            (item,) = items(uri)
            assert (item["uri"], item["reference_uri"]) == (f"{base}/c/a/1.wav", f"{base}/c/a/1.txt")
            assert item["utt_id"] == ("1" if uri.endswith("wav") else "a/1")
        assert [part["rows"] for part in parts(f"{base}/c/m.jsonl")] == [1]
        with pytest.raises(UsageError, match="no such file or directory: s3://no-bucket/x"):
            parts("s3://no-bucket/x")


def test_storage_that_refuses_is_no_missing_input(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    with s3.forbidden_server():
        for uri in ("s3://bucket/dir", "s3://bucket/*.wav", "s3://bucket/m.jsonl"):
            with pytest.raises(StorageError):
                parts(uri)


def test_the_plan_has_its_schema_also_when_it_is_nearly_empty(tmp_path):
    assert plan([str(write(tmp_path, "a.wav"))], 1).schema.equals(PLAN, check_metadata=True)


# What holds for every input.


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 100))
def test_slices_tile_their_input_and_are_no_larger_than_they_must_be(sizes, part_bytes):
    slices = list(cut_to_parts(enumerate(sizes), lambda item: item[1], part_bytes))
    assert [index for group in slices for index, _ in group] == list(range(len(sizes)))
    for group in slices:
        assert sum(size for _, size in group[:-1]) < part_bytes


@settings(deadline=None)
@given(
    durations=st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=25),
    blanks=st.lists(st.sampled_from(["", "\n", " \r\n"]), min_size=25, max_size=25),
    part_bytes=st.integers(1, 5_000_000),
    ends=st.booleans(),
)
def test_manifest_parts_tile_the_rows_in_order(tmp_path_factory, durations, blanks, part_bytes, ends):
    path = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    rows = [json.dumps({"audio_filepath": f"{i}.wav", "duration": d}) for i, d in enumerate(durations)]
    text = "".join(blank + row + "\n" for row, blank in zip(rows, blanks, strict=False))
    path.write_text(text if ends else text[:-1])
    found = parts(path, part_bytes=part_bytes)
    data = path.read_bytes()
    read = [line for start, end in ranges(found) for line in data[start:end].decode().split("\n") if line.strip()]
    assert read == rows
    assert [part["rows"] for part in found] == [
        sum(bool(line.strip()) for line in data[start:end].split(b"\n")) for start, end in ranges(found)
    ]
    assert found == parts(path, part_bytes=part_bytes)
    assert len({part["part_id"] for part in found}) == len(found)


NAMES = st.sampled_from(["a.wav", "b.wav", "d/a.wav", "d/b.flac", "d/e/c.mp3", "é.wav"])


@settings(deadline=None)
@given(files=st.dictionaries(NAMES, st.integers(0, 30), min_size=1), part_bytes=st.integers(1, 60))
def test_file_parts_tile_the_directory_in_path_order(tmp_path_factory, files, part_bytes):
    folder = tmp_path_factory.mktemp("files")
    for name, size in files.items():
        write(folder, name, size=size)
    found = parts(folder, part_bytes=part_bytes)
    assert [item["uri"] for part in found for item in part["items"]] == sorted(f"{folder}/{name}" for name in files)
    assert sum(part["bytes"] for part in found) == sum(files.values())
    for part in found:
        assert part["rows"] == len(part["items"])
        assert sum(item["size"] for item in part["items"][:-1]) < part_bytes


# Scale.


def test_planning_many_rows_is_quick_and_small(tmp_path):
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


def test_a_part_of_files_holds_so_many_at_most(tmp_path):
    sizes = [0] * (MAX_PART_ITEMS + 1)
    assert [len(group) for group in cut_to_parts(sizes, int, LARGE)] == [MAX_PART_ITEMS, 1]


@pytest.mark.parametrize(
    ("part", "part_id"),
    [
        (Part("manifest", 10, "s3://b/m.jsonl", start=0, end=99, content="abc"), "2772c9a26ddb3a0671b0"),
        (Part("tar", 10, "/c/a.tar", "a", "10-5"), "4866ee0e662b88fdb4cf"),
        (Part("parquet", 10, "/c/a.parquet", "a", "10-5", start=1, end=3, limit=7), "e4899e99f6f13b168557"),
        (
            Part(
                "files",
                10,
                items=(
                    Item("a", "/c/a.wav", 10, "10-1", None),
                    Item("b", "/c/b.wav", 3, "3-1", "/c/b.txt"),
                ),
            ),
            "e5b961fa16ba9d5e3c74",
        ),
    ],
    ids=["manifest", "tar", "parquet", "files"],
)
def test_ids_of_parts_are_those_of_version_0_1_0(part, part_id):
    """Stored plans are resumed by these ids."""
    assert part.part_id == part_id
