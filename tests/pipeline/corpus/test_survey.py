"""What is recognised in each INPUT."""

from __future__ import annotations

import json

import pytest

from pipeline.corpus.listings import Choice
from pipeline.corpus.survey import survey, total_of
from pipeline.storage import objects
from tests.support.corpora import LARGE
from tests.support.inputs import manifest, parquet, parquet_of_bytes, tar_of, write, write_files
from tests.support.shards import shar, shar_cut


def found(*inputs, part_bytes=LARGE, **choice):
    return survey([str(uri) for uri in inputs], part_bytes, Choice(**choice))


def test_audio_files_are_counted_with_their_references_and_suffixes(tmp_path):
    write_files(tmp_path, "a.wav", "b.WAV", "c.flac", "a.txt", "notes.md", ".hidden.wav")
    (one,) = found(tmp_path, part_bytes=15)
    (audio,) = one.found
    assert (audio.format, audio.objects, audio.parts, audio.bytes) == ("audio", 3, 2, 30)
    assert (audio.utterances, audio.references, audio.labels) == (3, 1, 0)
    assert (audio.suffixes, audio.suffix_bytes) == ({"wav": 2, "flac": 1}, {"wav": 20, "flac": 10})
    assert [line.partition(":")[2] for line in one.left_out] == [
        " 1 file that is neither audio nor text of it: .md 1",
        " 1 hidden audio file, whose path has a .name",
    ]


def test_the_format_of_each_layout_is_named_as_the_option_names_it(tmp_path):
    tar_of(tmp_path / "s.tar", "a.wav")
    parquet_of_bytes(tmp_path / "bytes.parquet", 3)
    parquet(tmp_path / "paths.parquet", [{"path": "x.wav", "text": "x"}])
    manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "label": "yes"}, {"audio_filepath": "b.mp3", "text": ""})
    write(tmp_path / "t.csv", "path,sentence\nc.wav,one\n,\n")
    write(tmp_path / "k/wav.scp", "r1 r1.wav\n")
    for name, data in shar([shar_cut("a", "x"), shar_cut("b")], {"a": b"A", "b": b"B"}).items():
        write(tmp_path / "shar" / name, data)
    names = ("s.tar", "bytes.parquet", "paths.parquet", "m.jsonl", "t.csv", "k", "shar")
    rows = [(one.found[0].format, one.found[0]) for one in found(*(tmp_path / name for name in names))]
    assert [(name, one.utterances, one.references, one.labels) for name, one in rows] == [
        ("webdataset", None, None, None),
        ("parquet", 3, None, None),
        ("parquet", 1, 1, 0),
        ("manifest", 2, 1, 1),
        ("csv", 2, 1, 0),
        ("kaldi", 1, 0, 0),
        ("shar", 2, 1, 0),
    ]
    assert rows[3][1].suffixes == {"wav": 1, "mp3": 1}
    assert rows[4][1].errors == {"BAD_ROW": 1}
    assert total_of(found(tmp_path / "m.jsonl", tmp_path / "t.csv")).utterances == 4


def test_a_directory_of_several_layouts_is_told_apart(tmp_path):
    write_files(tmp_path, "a.wav", "d/b.wav")
    tar_of(tmp_path / "s.tar", "x.wav")
    write(tmp_path / "d/metadata.csv", "file_name,text\nb.wav,one\nnone.wav,two\n")
    (one,) = found(tmp_path)
    assert {of.format: (of.objects, of.references) for of in one.found} == {
        "audio": (1, 0),
        "csv": (1, 2),
        "webdataset": (1, None),
    }


def test_rows_that_will_be_duplicates_are_counted_over_all_inputs(tmp_path):
    write_files(tmp_path, "x/a.wav", "y/a.wav")
    first, second = found(tmp_path / "x", tmp_path / "y")
    assert (first.found[0].errors, second.found[0].errors) == ({}, {"DUPLICATE_ID": 1})


def test_what_is_in_two_inputs_is_counted_once(tmp_path):
    tar_of(tmp_path / "s.tar", "a.wav")
    first, second = found(tmp_path, tmp_path / "s.tar")
    assert (len(first.found), second.found, second.problem) == (1, [], None)
    assert second.left_out == ["1 parts are in an earlier INPUT too, and are read once"]


def test_an_input_that_is_refused_costs_no_other(tmp_path):
    write_files(tmp_path, "a.wav", "b.zip")
    (tmp_path / "empty").mkdir()
    ones = found(tmp_path / "b.zip", tmp_path / "nothing", tmp_path / "empty", tmp_path / "a.wav")
    assert [bool(one.problem) for one in ones] == [True, True, True, False]
    assert "unpack it" in ones[0].problem
    assert total_of(ones).utterances == 1
    json.dumps([one.to_json() for one in ones])


def test_no_audio_is_opened_and_nothing_written(tmp_path, monkeypatch):
    write_files(tmp_path, "a.wav")
    manifest(tmp_path / "m.jsonl", {"audio_filepath": "a.wav"})
    opened = []
    fetch, open_read = objects.fetch, objects.open_read
    monkeypatch.setattr(objects, "fetch", lambda uri, *args: opened.append(uri) or fetch(uri, *args))
    monkeypatch.setattr(objects, "open_read", lambda uri: opened.append(uri) or open_read(uri))
    before = sorted(tmp_path.rglob("*"))
    found(tmp_path, tmp_path / "m.jsonl")
    assert {uri.rpartition("/")[2] for uri in opened} == {"m.jsonl"}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["s.tar", "t.csv", "m.jsonl"])
def test_damaged_inputs_are_surveyed_or_refused(tmp_path, name):
    write(tmp_path / name, b"\xff\xfe garbage \0" * 50)
    (one,) = found(tmp_path / name)
    assert one.problem is not None or one.found[0].parts == 1
