"""JSON-lines manifests."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import parts as parts_module
from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.metadata import BYTES_PER_SECOND
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.errors import StorageError, UsageError
from pipeline.storage import objects, retry
from tests.support import s3
from tests.support.corpora import parts_of
from tests.support.inputs import manifest, outcome, outcomes, ranges, read, write


def test_a_manifest_is_cut_by_its_stated_durations(tmp_path):
    rows = [{"audio_filepath": f"{i}.wav", "duration": 10} for i in range(10)]
    path = manifest(tmp_path / "m.jsonl", *rows)
    found = parts_of(path, part_bytes=3 * 10 * BYTES_PER_SECOND)
    assert [part.rows for part in found] == [3, 3, 3, 1]
    data = Path(path).read_bytes()
    assert b"".join(data[start:end] for start, end in ranges(found)) == data


@pytest.mark.parametrize("duration", [-5, 0, 1e300, "3"])
def test_an_absurd_duration_gives_a_bounded_size(tmp_path, duration):
    path = manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "duration": duration})
    (part,) = parts_of(path)
    assert 0 <= part.bytes < 1 << 50


def test_a_part_of_a_manifest_has_a_maximum_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "MAX_PART_ITEMS", 4)
    path = manifest(tmp_path / "m.jsonl", *({"audio_filepath": f"{i}.wav", "duration": 0} for i in range(9)))
    assert [part.rows for part in parts_of(path)] == [4, 4, 1]


def test_bad_lines_are_planned_and_become_error_rows(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'not json\n\n\r\n{"audio_filepath": "a.wav"}\r\n{}\n   \n')
    (part,) = parts_of(path)
    assert part.rows == 3
    assert part.duplicates == ()


@settings(deadline=None)
@given(
    durations=st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=25),
    blanks=st.lists(st.sampled_from(["", "\n", " \r\n"]), min_size=25, max_size=25),
    part_bytes=st.integers(1, 5_000_000),
    ends=st.booleans(),
)
def test_parts_cover_the_rows_of_a_manifest_in_order(tmp_path_factory, durations, blanks, part_bytes, ends):
    path = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    rows = [json.dumps({"audio_filepath": f"{i}.wav", "duration": d}) for i, d in enumerate(durations)]
    text = "".join(blank + row + "\n" for row, blank in zip(rows, blanks, strict=False))
    path.write_text(text if ends else text[:-1])
    found = parts_of(path, part_bytes=part_bytes)
    data = path.read_bytes()
    read = [line for start, end in ranges(found) for line in data[start:end].decode().split("\n") if line.strip()]
    assert read == rows
    assert [part.rows for part in found] == [
        sum(bool(line.strip()) for line in data[start:end].split(b"\n")) for start, end in ranges(found)
    ]
    assert found == parts_of(path, part_bytes=part_bytes)
    assert len({part.part_id for part in found}) == len(found)


def test_a_manifest_that_grows_keeps_its_full_parts(tmp_path):
    rows = [{"audio_filepath": f"{i}.wav", "duration": 1} for i in range(10)]
    options = {"part_bytes": 2 * BYTES_PER_SECOND}
    before = parts_of(manifest(tmp_path / "m.jsonl", *rows[:6]), **options)
    after = parts_of(manifest(tmp_path / "m.jsonl", *rows), **options)
    assert [part.part_id for part in after[:3]] == [part.part_id for part in before]
    assert len(after) == 5


def test_rows_added_to_a_manifest_do_not_change_the_planned_rows(tmp_path):
    write(tmp_path / "a.wav", b"A")
    path = manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav"})
    (part,) = parts_of(path)
    with path.open("a") as file:
        file.write('{"audio_filepath": "b.wav"}\n')
    assert [outcome(u) for u in read_part(part)] == [("a", b"A")]


def test_the_recording_of_neighbouring_rows_is_fetched_once(tmp_path, monkeypatch):
    for name in "ab":
        write(tmp_path / f"{name}.mp3", name)
    rows = [{"audio_filepath": f"{name}.mp3", "offset": start, "duration": 1} for start, name in enumerate("aaabba")]
    utterances = read(manifest(tmp_path / "m.jsonl", *rows))
    fetched = []
    fetch = objects.fetch
    monkeypatch.setattr(objects, "fetch", lambda uri, **kw: fetched.append(uri) or fetch(uri, **kw))
    assert b"".join(utterance.open() for utterance in utterances) == b"aaabba"
    assert [Path(uri).stem for uri in fetched] == ["a", "b", "a"]


def test_paths_are_relative_to_the_manifest_or_absolute_or_uris(tmp_path):
    for name in ("in/a.wav", "in/d/b.wav", "out/c.wav"):
        write(tmp_path / name, name)
    path = manifest(
        tmp_path / "in/m.jsonl",
        {"audio_filepath": "a.wav", "text": "hi", "speaker": 5, "lang": "en"},
        {"audio_filepath": "./d/../d/b.wav", "offset": 1, "duration": 2},
        {"audio_filepath": f"{tmp_path}/out/c.wav"},
        {"audio_filepath": f"file://{tmp_path}/in/d/b.wav", "id": "mine"},
    )
    found = read(path)
    assert [outcome(u) for u in found] == [
        ("a", b"in/a.wav"),
        ("d/b", b"in/d/b.wav"),
        ("../out/c", b"out/c.wav"),
        ("mine", b"in/d/b.wav"),
    ]
    assert (found[0].meta.text, found[0].meta.speaker, found[0].meta.tags) == ("hi", "5", '{"lang": "en"}')
    assert [u.meta.span for u in found] == [None, (1.0, 2.0), None, None]
    assert [u.fixed_id for u in found] == [False, False, False, True]


def test_each_bad_row_is_an_error_row_that_names_its_place(tmp_path):
    write(tmp_path / "a.wav", b"A")
    good = b'{"audio_filepath": "a.wav"}'
    data = b"\xef\xbb\xbf" + good + b"\r\n\n  \nnot json\n\n{}\n" + good[:-1] + b', "id": "last"}'
    path = write(tmp_path / "m.jsonl", data)
    found = read(path)
    assert [outcome(u)[1] for u in found] == [b"A", "BAD_ROW", "BAD_ROW", b"A"]
    for utterance, line in zip(found[1:3], (b"not json", b"{}"), strict=True):
        assert data[utterance.byte_start : utterance.byte_end] == line
        assert f"{path}, row at byte {utterance.byte_start}: " in utterance.problem.message
    assert len({u.utt_id for u in found}) == 4


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("none.wav", "MISSING"),
        ("..", "MISSING"),
        ("a.wav/b.wav", "MISSING"),
        ("x" * 300, "MISSING"),
        ("nothing://a/b.wav", "BAD_ROW"),
        ("s3://a bad bucket/b.wav", "MISSING"),
    ],
)
def test_a_path_without_an_object_is_bad_data(tmp_path, path, code):
    write(tmp_path / "a.wav", b"A")
    found = outcomes(manifest(tmp_path / "m.jsonl", {"audio_filepath": path}, {"audio_filepath": "a.wav"}))
    assert [result for _, result in found] == [code, b"A"]


def test_denied_access_fails_the_part_and_is_not_an_error_row(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    with s3.forbidden_server():
        (found,) = read(manifest(tmp_path / "m.jsonl", {"audio_filepath": "s3://bucket/a.wav"}))
        with pytest.raises(StorageError):
            outcome(found)


@settings(deadline=None)
@given(
    rows=st.lists(st.sampled_from(['{"audio_filepath": "%d.wav"}', "bad %d", '{"id": "%d"}']), min_size=1, max_size=12),
    blanks=st.lists(st.sampled_from(["", "\n", " \r\n", "\r\n\n"]), min_size=13, max_size=13),
    part_bytes=st.integers(1, 2_000_000),
)
def test_every_row_is_read_once_in_order_for_any_part_size(tmp_path_factory, rows, blanks, part_bytes):
    rows = [row % i for i, row in enumerate(rows)]
    text = "".join(blank + row + "\n" for blank, row in zip(blanks, rows, strict=False)) + blanks[-1]
    path = write(tmp_path_factory.mktemp("manifest") / "m.jsonl", text)
    found = read(path, part_bytes=part_bytes)
    assert len(found) == len(rows)
    for row, utterance in zip(rows, found, strict=True):
        if utterance.problem is not None:
            assert text.encode()[utterance.byte_start : utterance.byte_end].strip().decode() == row
        else:
            assert json.loads(row)["audio_filepath"] == utterance.utt_id + ".wav"


# What is no manifest in JSON lines


@pytest.mark.parametrize(
    "data",
    [
        json.dumps([{"audio_filepath": "a.wav"}]),
        json.dumps([{"audio_filepath": "a.wav"}], indent=2),
        json.dumps({"data": [{"audio_filepath": "a.wav"}]}, indent=1),
        "\ufeff [\n{}\n]\n",
    ],
)
def test_a_json_array_or_object_over_lines_is_refused_in_one_line(tmp_path, data):
    path = write(tmp_path / "m.json", data)
    with pytest.raises(UsageError, match=r"a manifest has one JSON object a line: .*jq") as error:
        parts_of(path)
    assert "\n" not in str(error.value)


def test_rows_with_the_number_of_a_shard_whose_audio_is_files_are_an_ordinary_manifest(tmp_path):
    rows = [{"audio_filepath": f"{i}.wav", "duration": 1.0, "text": "x", "shard_id": 0} for i in range(3)]
    path = manifest(tmp_path / "tarred_audio_manifest.json", *rows)
    write(tmp_path / "0.wav", b"A")
    assert [(part.kind, part.rows) for part in parts_of(path)] == [("manifest", 3)]


def test_json_lines_with_their_audio_under_another_key_are_a_table(tmp_path):
    write(tmp_path / "clips/a.wav", b"A")
    path = manifest(tmp_path / "m.jsonl", {"path": "a.wav", "sentence": "hi"})
    (found,) = read(path)
    assert (found.utt_id, found.open(), found.meta.text) == ("clips/a", b"A", "hi")


# Missing values, as pandas writes them


@pytest.mark.parametrize(
    "key", ["text", "speaker", "label", "duration", "utt_id", "id", "sentence", "transcript", "lang"]
)
def test_nan_is_null(tmp_path, key):
    path = write(tmp_path / "m.jsonl", f'{{"audio_filepath": "a.wav", "{key}": NaN}}\n')
    (found,) = read(path)
    meta = found.meta
    assert (meta.utt_id, meta.text, meta.speaker, meta.label, meta.duration) == (None,) * 5
    assert (found.utt_id, found.problem) == ("a", None)
    assert meta.tags == ('{"lang": null}' if key == "lang" else None)


def test_labels_without_texts_are_counted(tmp_path):
    rows = [{"audio_filepath": f"{i}.wav", "label": "yes"} for i in range(3)]
    path = manifest(tmp_path / "m.jsonl", *rows, {"audio_filepath": "x.wav", "text": "x", "label": "no"})
    found = LeftOut.from_metadata(plan([str(path)], 1 << 40).schema.metadata)
    assert (found.labels_only, found.texts) == (3, 1)


# Files that a manifest names


def test_pipes_devices_and_directories_in_a_manifest_are_missing_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    write(tmp_path / "z.wav", b"Z")
    names = ["pipe.wav", "/dev/zero", "/dev/stdin", "/dev/tty", "folder.wav", "a\ud800.wav", "x" * 5000, "z.wav/y.wav"]
    *rows, last = outcomes(manifest(tmp_path / "m.jsonl", *({"audio_filepath": name} for name in [*names, "z.wav"])))
    assert {result for _, result in rows} <= {"MISSING", "BAD_ROW"}
    assert last == ("z", b"Z")


@pytest.mark.parametrize(
    ("stored", "named"), [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9"), ("\uac00", "\u1100\u1161")]
)
def test_files_are_found_under_composed_and_decomposed_names(tmp_path, stored, named):
    write(tmp_path / f"{stored}.wav", b"A")
    assert outcomes(manifest(tmp_path / "m.jsonl", {"audio_filepath": f"{named}.wav"})) == [(named, b"A")]


def test_a_file_whose_name_is_not_utf8_is_found_under_its_escaped_name(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"A")
    assert outcomes(manifest(tmp_path / "m.jsonl", {"audio_filepath": "caf\\xe9.wav"})) == [("caf\\xe9", b"A")]
