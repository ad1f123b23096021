"""`--input-format`: INPUTs are read as the user says, or refused."""

from __future__ import annotations

import gzip
import json

import pytest

from pipeline.config import make_config
from pipeline.corpus.input_formats import FORMATS
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import check_inputs, plan
from pipeline.corpus.read import read_part
from pipeline.errors import UsageError
from tests.support.inputs import manifest, outcome, parquet, parquet_of_bytes, tar_of, write, write_files
from tests.support.shards import json_lines, shar, shar_cut, tar_bytes


def forced(path, name):
    parts = [Part.from_row(row) for row in plan([str(path)], 1 << 40, input_format=name).to_pylist()]
    return [outcome(utterance) for part in parts for utterance in read_part(part)]


@pytest.fixture
def corpus(tmp_path):
    """An object of each format, whose name shows nothing."""
    write_files(tmp_path, "a.wav", size=1)
    write(tmp_path / "audio", b"\0\1\2\3")
    manifest(tmp_path / "manifest", {"audio_filepath": "a.wav", "id": "x"})
    write(tmp_path / "csv", "id,path\nx,a.wav\n")
    write(tmp_path / "tsv", "id\tpath\nx\ta.wav\n")
    write(tmp_path / "kaldi", "x a.wav\n")
    recording = {"id": "x", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}], "sampling_rate": 16_000}
    write(tmp_path / "lhotse", json_lines([recording]))
    tar_of(tmp_path / "webdataset", "x.wav")
    write(tmp_path / "webdataset.gz", gzip.compress(tar_bytes([("x.wav", b"X")])))
    parquet_of_bytes(tmp_path / "parquet", 1)
    for name, data in shar([shar_cut("x", "said")], {"x": b"S"}).items():
        write(tmp_path / name, data)
    write(tmp_path / "audio_0.tar", tar_bytes([("x.wav", b"N")]))
    write(tmp_path / "nemo.json", json_lines([{"audio_filepath": "x.wav", "shard_id": 0}]))
    return tmp_path


OBJECTS = {
    "audio": ("audio", "audio", b"\0\1\2\3"),
    "manifest": ("manifest", "x", b"a"),
    "csv": ("csv", "x", b"a"),
    "tsv": ("csv", "x", b"a"),
    "kaldi": ("kaldi", "x", b"a"),
    "lhotse": ("lhotse", "x", b"a"),
    "webdataset": ("webdataset", "x", b"abc"),
    "webdataset.gz": ("webdataset", "x", b"X"),
    "parquet": ("parquet", "0", b"x" * 10),
    "cuts.000000.jsonl.gz": ("shar", "x", b"S"),
    "nemo.json": ("nemo-tarred", "x", b"N"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_read_as_the_format_that_is_asked_for(corpus, name):
    asked, utt_id, data = OBJECTS[name]
    expected = "parquet/0" if asked == "parquet" and utt_id == "0" else utt_id
    assert forced(corpus / name, asked)[0] in ((expected, data), ("0", data))


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("asked", FORMATS)
def test_content_of_another_format_is_refused_in_a_line(corpus, name, asked):
    own = OBJECTS[name][0]
    if own == asked or {own, asked} in ({"csv", "kaldi"}, {"lhotse", "manifest"}):  # one may be the other
        return
    with pytest.raises(UsageError, match=f"{name} is not of the format {asked}, which --input-format asks") as error:
        forced(corpus / name, asked)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="is not of the format"):
        check_inputs([str(corpus / name)], asked)


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ("audio", ["a"]),
        ("webdataset", ["s/x", "audio_0.tar", "recording"]),
        ("shar", ["x"]),
        ("parquet", ["0"]),
        ("csv", ["x"]),
        ("kaldi", None),
    ],
)
def test_below_a_directory_only_the_format_that_is_asked_for_is_read(tmp_path, asked, ids):
    write_files(tmp_path, "a.wav", size=1)
    write(tmp_path / "t.csv", "id,path\nx,a.wav\n")
    parquet_of_bytes(tmp_path / "p.parquet", 1)
    for name, data in shar([shar_cut("x", "said")], {"x": b"S"}).items():
        write(tmp_path / name, data)
    if ids is None:
        with pytest.raises(UsageError, match="nothing of the format kaldi, which --input-format asks for, in"):
            forced(tmp_path, asked)
        return
    table = plan([str(tmp_path)], 1 << 40, input_format=asked)
    assert table.num_rows == 1
    assert sum(json.loads(table.schema.metadata[b"sewd.left_out"])["files"].values()) >= 2


def test_paths_in_parquet_files_of_a_directory_are_read_where_they_are_asked_for(tmp_path):
    write_files(tmp_path, "a.wav", size=1)
    parquet(tmp_path / "t.parquet", [{"path": "a.wav", "text": "one"}])
    assert forced(tmp_path, "parquet") == [("a", b"a")]


def test_the_format_is_part_of_a_configuration():
    assert make_config(inputs=("x",), output="y", input_format="csv").choice.input_format == "csv"
    with pytest.raises(UsageError, match="input-format: must be one of audio, manifest, csv"):
        make_config(inputs=("x",), output="y", input_format="tsv")
