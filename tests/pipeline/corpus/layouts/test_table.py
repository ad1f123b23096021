"""Tables of other programs: recognised by their content, their rows stored in the plan."""

import contextlib
import csv
import gzip
import io
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.parts import Part, plan_table
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.errors import UsageError
from tests.support.corpora import parts_of
from tests.support.inputs import outcomes, parquet, read, write, write_files
from tests.support.shards import ODD_ROWS, json_lines

ROWS = [
    {"path": "a.wav", "sentence": 'she said "yes", twice', "speaker_id": "s1", "locale": "en"},
    {"path": "d/b.wav", "sentence": "", "speaker_id": "", "locale": ""},
]


def csv_text(rows, delimiter=",", **options):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n", **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write_table(folder, name, rows=ROWS):
    write(folder / "a.wav", "A")
    write(folder / "d/b.wav", "B")
    if ".json" in name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = csv_text(rows, "\t" if ".tsv" in name else ",")
    data = text.encode()
    return write(folder / name, gzip.compress(data) if name.endswith(".gz") else data)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.CSV", "t.csv.gz", "t.tsv.gz", "t.jsonl.gz", "metadata.jsonl"])
def test_rows_of_a_table_are_utterances_with_its_columns(tmp_path, name):
    first, second = read(write_table(tmp_path, name))
    assert (first.utt_id, first.open(), first.meta.text, first.meta.speaker) == (
        *("a", b"A", 'she said "yes", twice', "s1"),
    )
    assert json.loads(first.meta.tags) == {"locale": "en"}
    assert (second.utt_id, second.open(), second.meta.text) == ("d/b", b"B", "")
    assert first.where == f"{tmp_path}/{name}, row 1"


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    write_files(tmp_path, "a.wav")
    write(tmp_path / "t.csv", b"\xef\xbb\xbffile_name,text\r\na.wav,x y\r\n")
    write(tmp_path / "t.tsv", b"\xef\xbb\xbffile_name\ttext\r\na.wav\tx y\r\n")
    assert [u.meta.text for u in read(tmp_path / "t.csv") + read(tmp_path / "t.tsv")] == ["x y"] * 2


def test_relative_paths_begin_beside_the_table_in_clips_or_above(tmp_path):
    write_files(tmp_path, "cv/clips/a.mp3", "egs/wav/b.wav")
    write(tmp_path / "cv/train.tsv", "path\tsentence\na.mp3\thello\n")
    write(tmp_path / "egs/data/train/t.csv", "path,text\nwav/b.wav,hello\n")
    (first,) = read(tmp_path / "cv/train.tsv")
    (second,) = read(tmp_path / "egs/data/train/t.csv")
    assert first.uri == f"{tmp_path}/cv/clips/a.mp3"
    assert first.utt_id == "clips/a"
    assert second.uri == f"{tmp_path}/egs/wav/b.wav"


def test_absolute_paths_and_uris_are_kept(tmp_path):
    write(tmp_path / "t.csv", "path\n/data/a.wav\ns3://bucket/b.wav\n")
    assert [u.uri for u in read(tmp_path / "t.csv")] == ["/data/a.wav", "s3://bucket/b.wav"]


def test_broken_rows_are_error_rows_and_cost_no_other(tmp_path):
    write_files(tmp_path, "a.wav", "b.wav")
    write(tmp_path / "t.csv", "path,duration\na.wav,1\n,2\nb.wav,long\nb.wav,1,surplus\nc.wav,1\nb.wav,3\n")
    codes = [code if isinstance(code, str) else "ok" for _, code in outcomes(tmp_path / "t.csv")]
    assert codes == ["ok", "BAD_ROW", "BAD_ROW", "BAD_ROW", "MISSING", "ok"]
    assert "row 3" in read(tmp_path / "t.csv")[2].problem.message
    assert [part.rows for part in parts_of(tmp_path / "t.csv", limit=2)] == [2]


@pytest.mark.parametrize("name", ["t.jsonl.gz", "metadata.jsonl"])
@pytest.mark.parametrize("odd", ODD_ROWS)
def test_an_odd_row_of_json_is_an_error_row(tmp_path, name, odd):
    write_files(tmp_path, "b.wav", size=1)
    data = json_lines([odd, {"audio_filepath": "b.wav"}])
    write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    assert outcomes(tmp_path / name) == [(f"{tmp_path}/{name}[0]", "BAD_ROW"), ("b", b"b")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "speaker,words\na,b\n", "no column of audio files; its columns are speaker, words"),
        ("t.csv", 'path,text\na.wav,"open\n', "cannot read the table"),
        ("t.csv", b"path,text\na.wav,\xff\n", "cannot read .*t.csv"),
        ("t.jsonl.gz", b"no gzip", "no table of a kind|cannot read"),
        ("t.csv.gz", gzip.compress(b"path\na.wav\n")[:-9], "cannot read"),
        ("t.csv", "", "has no rows"),
        ("t.csv", "path,text\n", "has no rows"),
    ],
    ids=["no audio", "open quote", "not UTF-8", "not gzip", "truncated gzip", "empty", "header only"],
)
def test_a_table_that_cannot_be_read_is_a_usage_error_in_a_line(tmp_path, name, content, message):
    write(tmp_path / name, content)
    with pytest.raises(UsageError, match=message) as error:
        parts_of(tmp_path / name)
    assert "\n" not in str(error.value)


def test_the_table_is_not_needed_after_planning(tmp_path):
    write_table(tmp_path, "t.csv")
    table = plan([str(tmp_path / "t.csv")], 1)
    (tmp_path / "t.csv").unlink()
    parts = [Part.from_row(row) for row in table.to_pylist()]
    assert [u.utt_id for part in parts for u in read_part(part)] == ["a", "d/b"]
    assert plan_table(parts).equals(table.cast(plan_table(parts).schema))


def test_parts_are_cut_by_duration_and_have_ids_of_their_rows(tmp_path):
    rows = [{"path": f"{i}.wav", "duration": "10"} for i in range(10)]
    write(tmp_path / "t.csv", csv_text(rows))
    found = parts_of(tmp_path / "t.csv", part_bytes=3 * 320_000)
    assert [(part.start, part.end, part.rows) for part in found] == [(0, 3, 3), (3, 6, 3), (6, 9, 3), (9, 10, 1)]
    rows[7]["duration"] = "11"
    write(tmp_path / "t.csv", csv_text(rows))
    again = parts_of(tmp_path / "t.csv", part_bytes=3 * 320_000)
    assert len({part.part_id for part in (*found, *again)}) >= 5


def test_equal_ids_are_duplicates_and_segments_of_a_recording_are_not(tmp_path):
    write_files(tmp_path, "a.wav")
    write(tmp_path / "t.csv", "id,path,offset,duration\nx,a.wav,,\nx,a.wav,,\n,a.wav,0,1\n,a.wav,1,1\n")
    found = [u.problem and u.problem.code.value for u in read(tmp_path / "t.csv")]
    assert found == [None, "DUPLICATE_ID", None, None]


# In directories


def test_metadata_of_audiofolder_describes_the_files_of_its_directory(tmp_path):
    write_files(tmp_path, "train/a.wav", "train/b.wav", "train/c.wav", "test/d.wav")
    write(tmp_path / "train/metadata.csv", "file_name,transcription\na.wav,one\nb.wav,two\n")
    found = {u.uri: u.meta.text for u in read(tmp_path)}
    names = {uri.removeprefix(f"{tmp_path}/"): text for uri, text in found.items()}
    assert names == {"train/a.wav": "one", "train/b.wav": "two", "train/c.wav": None, "test/d.wav": None}
    assert len(read(tmp_path)) == 4


def test_a_table_in_a_directory_that_names_no_audio_is_passed_over_and_named(tmp_path):
    write_files(tmp_path, "wavs/LJ001.wav")
    write(tmp_path / "metadata.csv", "LJ001|Printing, in the only sense|Printing\nLJ002|and|and\n")
    write(tmp_path / "wavs/metadata.csv", "LJ001|Printing\n")
    assert [u.utt_id for u in read(tmp_path)] == ["wavs/LJ001"]
    left_out = plan([str(tmp_path)], 1).schema.metadata[b"sewd.left_out"].decode()
    assert "metadata.csv has no column of audio files" in left_out
    assert "wavs/metadata.csv has no rows" in left_out


def test_other_tables_in_a_directory_are_counted_and_not_read(tmp_path):
    write_files(tmp_path, "a.wav")
    write(tmp_path / "train.csv", "path\na.wav\n")
    assert [u.utt_id for u in read(tmp_path)] == ["a"]
    assert b'"csv": 1' in plan([str(tmp_path)], 1).schema.metadata[b"sewd.left_out"]


def test_a_glob_of_tables_reads_each(tmp_path):
    for split in ("train", "dev"):
        write_table(tmp_path / split, "t.csv")
    assert [u.utt_id for u in read(f"{tmp_path}/*/t.csv")] == ["a", "d/b"] * 2 or len(read(f"{tmp_path}/*/t.csv")) == 4
    shutil.rmtree(tmp_path / "dev")
    assert len(read(f"{tmp_path}/*/t.csv")) == 2


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0", exclude_categories=("Cs",)), max_size=20)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip)), min_size=1, max_size=5), st.sampled_from([",", "\t"]))
def test_any_text_that_python_writes_to_csv_is_read_back(tmp_path_factory, texts, delimiter):
    folder = tmp_path_factory.mktemp("csv")
    rows = [{"path": f"{i}.wav", "text": text, "speaker": speaker} for i, (text, speaker) in enumerate(texts)]
    if delimiter == "\t" and any("\n" in value or "\t" in value for row in rows for value in row.values()):
        rows = [{key: value.replace("\n", " ").replace("\t", " ") for key, value in row.items()} for row in rows]
        rows = [row if row["speaker"].strip() else row | {"speaker": "s"} for row in rows]
    write(folder / ("t.tsv" if delimiter == "\t" else "t.csv"), csv_text(rows, delimiter))
    (name,) = folder.iterdir()
    assert [(u.meta.text, u.meta.speaker) for u in read(name)] == [(row["text"], row["speaker"]) for row in rows]


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_damage_to_a_table_ends_in_rows_or_a_usage_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    name = data.draw(st.sampled_from(["t.csv", "t.tsv", "t.csv.gz", "t.jsonl.gz"]))
    whole = bytearray(write_table(folder, name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UsageError):
        assert outcomes(write(folder / name, bytes(whole)))


# Other names of columns


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl.gz", "t.jsonl"])
def test_columns_have_other_names(tmp_path, name):
    rows = [
        {"clip": "a.wav", "said": "one", "who": "ann", "text": "raw", "key": "x"},
        {"clip": "d/b.wav", "said": "two", "who": "bob", "text": "raw", "key": "y"},
    ]
    path = write_table(tmp_path, name, rows)
    columns = {"audio_filepath": "clip", "text": "said", "speaker": "who", "utt_id": "key"}
    parts = [Part.from_row(row) for row in plan([str(path)], 1, columns=columns).to_pylist()]
    found = [utterance for part in parts for utterance in read_part(part)]
    assert [(u.utt_id, u.open(), u.meta.text, u.meta.speaker) for u in found] == [
        ("x", b"A", "one", "ann"),
        ("y", b"B", "two", "bob"),
    ]


def test_a_name_that_no_column_has_is_a_usage_error(tmp_path):
    path = write_table(tmp_path, "t.csv")
    with pytest.raises(
        UsageError, match=r"t\.csv has no column words; its columns are path, sentence, speaker_id, locale"
    ):
        plan([str(path)], 1, columns={"text": "words"})
    with pytest.raises(UsageError, match=r"t\.parquet has no column words; its columns are audio"):
        plan([str(parquet(tmp_path / "t.parquet", [{"audio": b"A"}]))], 1, columns={"text": "words"})
