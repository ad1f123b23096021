import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.scoring.references import load_references

WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)


def written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def texts(found):
    return {utt_id: found.texts[row] for utt_id, row in found.index.items()}


def labels(found):
    return {utt_id: found.labels[row] for utt_id, row in found.index.items()}


FORMS = {
    "utt_id.jsonl": '{"utt_id": "u1", "text": "a b"}\n\n{"utt_id": "u2", "text": ""}\n',
    "id.json": '{"id": "u1", "transcript": "a b"}\r\n{"id": "u2", "sentence": ""}',
    "audio.jsonl": '{"audio_filepath": "u1.wav", "text": "a b", "duration": 1.5}\n'
    '{"audio_filepath": "./u2.flac", "text": ""}',
    "bom.jsonl": '\ufeff{"utt_id": "u1", "text": "a b"}\n{"utt_id": "u2", "text": ""}\n',
    "rows.csv": "utt_id,speaker,text\nu1,s,a b\nu2,s,\n",
    "bom.csv": "\ufeffutt_id,text\r\nu1,a b\r\nu2,\r\n",
    "rows.TSV": "text\tid\na b\tu1\n\tu2\n",
    "text": "u1 a b\nu2\n",
    "chapter.trans.txt": "\ufeffu1  a b \r\n\r\nu2 \n",
    "tabs.txt": "u1\ta b\nu2\t\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_references(tmp_path, name):
    found = load_references(written(tmp_path, name, FORMS[name]))
    assert texts(found) == {"u1": "a b", "u2": ""}
    assert labels(found) == {"u1": None, "u2": None}
    assert found.duplicates == ()


def test_parquet_gives_the_same_references(tmp_path):
    rows = [{"utt_id": "u1", "text": "a b", "label": None}, {"utt_id": "u2", "text": None, "label": "yes"}]
    pq.write_table(pa.Table.from_pylist([{**row, "audio": b"\xff"} for row in rows]), tmp_path / "rows.parquet")
    found = load_references(str(tmp_path / "rows.parquet"))
    assert (texts(found), labels(found)) == ({"u1": "a b", "u2": None}, {"u1": None, "u2": "yes"})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", '{"utt_id": "u1", "label": "yes"}\n{"utt_id": "u2", "label": 7, "text": "x"}\n'),
        ("a.csv", "utt_id,label,text\nu1,yes\nu2,7,x\n"),
    ],
)
def test_labels_are_read_as_strings(tmp_path, name, data):
    found = load_references(written(tmp_path, name, data))
    assert (labels(found), texts(found)) == ({"u1": "yes", "u2": "7"}, {"u1": None, "u2": "x"})


def test_an_empty_cell_is_an_empty_text_and_not_a_label(tmp_path):
    found = load_references(written(tmp_path, "a.csv", "utt_id,text,label\nu1,a,\nu2,,yes\n"))
    assert (labels(found), texts(found)) == ({"u1": None, "u2": "yes"}, {"u1": "a", "u2": ""})


def test_ids_made_of_paths_are_those_of_the_corpus(tmp_path):
    rows = [
        {"audio_filepath": "deep/x.y.wav", "text": "1"},
        {"audio_filepath": str(tmp_path / "z.wav"), "text": "2"},
        {"audio_filepath": "w.wav", "utt_id": "own", "text": "3"},
    ]
    found = load_references(written(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows))))
    assert texts(found) == {"deep/x.y": "1", "z": "2", "own": "3"}


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x1c", "\u3000"])
def test_a_text_line_ends_only_at_a_line_feed(tmp_path, separator):
    found = load_references(written(tmp_path, "text", f"u1 a{separator}b\nu2 c\n"))
    assert texts(found) == {"u1": f"a{separator}b", "u2": "c"}


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    rows=st.dictionaries(
        WORDS.filter(lambda word: word and unicodedata.is_normalized("NFC", word)),
        st.lists(WORDS, max_size=4).map(" ".join),
        min_size=1,
        max_size=5,
    )
)
def test_any_words_are_read_back_from_every_format(tmp_path, rows):
    rows = {utt_id: " ".join(text.split()) for utt_id, text in rows.items()}
    listed = [{"utt_id": utt_id, "text": text} for utt_id, text in rows.items()]
    assert texts(load_references(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, listed))))) == rows
    kaldi = "".join(f"{utt_id} {text}\n" for utt_id, text in rows.items())
    assert texts(load_references(written(tmp_path, "text", kaldi))) == rows
    quoted = "".join('"{}","{}"\n'.format(*(v.replace('"', '""') for v in row)) for row in rows.items())
    assert texts(load_references(written(tmp_path, "a.csv", "utt_id,text\n" + quoted))) == rows


# Repeats


def test_equal_rows_of_one_utterance_are_duplicates(tmp_path):
    found = load_references(written(tmp_path, "text", "u1 a\nu2 b\nu1 a\nu1 a\n"))
    assert texts(found) == {"u1": "a", "u2": "b"}
    assert found.duplicates == ("u1",)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text", "u1 a\nu2 b\nu1 c\n"),
        ("a.jsonl", '{"id": "u1", "text": "a", "label": "x"}\n{"id": "u1", "text": "a", "label": "y"}'),
        ("b.jsonl", '{"id": "u1", "text": "a"}\n{"id": "u1", "label": "y"}'),
    ],
)
def test_two_references_of_one_utterance_are_refused(tmp_path, name, data):
    with pytest.raises(UsageError, match=r"different references for 1 utterances: u1; .*--refs A --refs B"):
        load_references(written(tmp_path, name, data))


def test_many_conflicts_are_counted_and_the_first_named(tmp_path):
    data = "".join(f"u{i} a\nu{i} b\n" for i in range(25))
    with pytest.raises(UsageError, match=r"for 25 utterances: u0, u1, .*u9, \.\.\.;") as error:
        load_references(written(tmp_path, "text", data))
    assert "u10" not in str(error.value)


# What is refused


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"utt_id": "u1", "text": "a"}\n{"utt_id": \n', "byte 30: "),
        ("a.jsonl", '["u1", "a"]', "row 1 of the JSON array is not an object"),
        ("a.json", '[{"utt_id": "u1", "text": "a"}', "cannot read the references"),
        ("a.jsonl", '{"utt_id": "u1", "text": ["a"]}', "byte 0: text: "),
        ("a.jsonl", '{"utt_id": "", "text": "a"}', "byte 0: utt_id"),
        ("a.jsonl", b'{"utt_id": "u1", "text": "\xff"}', "byte 0: "),
        ("a.jsonl", '{"text": "a"}', "neither utt_id nor audio_filepath"),
        ("a.jsonl", '{"utt_id": "u1"}', "u1 has neither text nor label"),
        ("a.csv", "who,words\nu1,a\n", "neither utt_id nor audio_filepath"),
        ("a.csv", "utt_id,words\nu1,a\n", "u1 has neither text nor label"),
        ("a.csv", "utt_id,text\nu1,hello, world\n", "row 1 .*more fields than the header"),
        ("a.tsv", "utt_id\ttext\nu1\thello\tworld\n", "row 1 .*more fields than the header"),
        ("a.csv", 'utt_id,text\nu1,a\nu2,"b" c\n', "a.csv: row 2: "),
        ("a.csv", b"utt_id,text\nu1,\xff\n", "cannot read the references"),
        ("text", b"u1 \xff\n", "cannot read the references"),
        ("a.parquet", b"PAR1 no", "cannot read the references"),
        ("text", "", "holds no reference"),
        ("a.jsonl", "\n", "holds no reference"),
        ("a.csv", "utt_id,text\n", "holds no reference"),
        ("a.csv", "", "holds no reference"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, name, data, message):
    uri = written(tmp_path, name, data)
    with pytest.raises(UsageError, match=message) as error:
        load_references(uri)
    assert uri in str(error.value)
    assert "\n" not in str(error.value)


def test_parquet_without_rows_or_with_bad_ones_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"utt_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}), path)
    with pytest.raises(UsageError, match="holds no reference"):
        load_references(str(path))
    pq.write_table(pa.table({"utt_id": ["u1"], "text": [["a"]]}), path)
    with pytest.raises(UsageError, match="row 1: text: "):
        load_references(str(path))


@pytest.mark.parametrize("name", ["nothing", "nothing.parquet", "nothing.csv"])
def test_the_error_of_a_missing_file_names_it(tmp_path, name):
    with pytest.raises(UsageError, match=f"no references at .*{name}"):
        load_references(str(tmp_path / name))


@pytest.mark.parametrize("name", ["folder", "folder.csv", "folder.parquet"])
def test_a_folder_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="references"):
        load_references(str(tmp_path / name))


# Rows of utterances


def test_references_are_found_for_arrays_and_chunked_arrays(tmp_path):
    found = load_references(written(tmp_path, "text", "u1 a\nu2 b\n"))
    for ids in (pa.array(["u2", "x", "u1", "u2"]), pa.chunked_array([["u2", "x"], ["u1", "u2"]])):
        assert found.positions(ids).tolist() == [1, -1, 0, 1]
        assert found.texts_of(ids).to_pylist() == ["b", None, "a", "b"]
        assert found.labels_of(ids).to_pylist() == [None] * 4
    assert len(found.texts_of(pa.array([], pa.string()))) == 0


# Tables whose fields are not quoted


TSV = {
    "open quotes": (
        'a\t"brew a latte\nb\tbrew an espresso"\nc\tcoffee\n',
        {"a": '"brew a latte', "b": 'brew an espresso"', "c": "coffee"},
    ),
    "quoted speech": ('a\t"Brew," he said\nb\tx\n', {"a": '"Brew," he said', "b": "x"}),
    "quotes of pandas": ('a\t"he said ""brew"""\nb\tx\n', {"a": 'he said "brew"', "b": "x"}),
    "a field quoted as a whole": ('a\t"brew"\nb\tx\n', {"a": "brew", "b": "x"}),
    "inches": ('a\ta 12" record\nb\ta 7" record\n', {"a": 'a 12" record', "b": 'a 7" record'}),
    "one quote": ('a\t"\nb\tx\n', {"a": '"', "b": "x"}),
    "a line feed in quotes": ('a\t"two\nlines"\nb\tx\n', {"a": "two\nlines", "b": "x"}),
    "a tab in quotes": ('a\t"two\twords"\nb\tx\n', {"a": "two\twords", "b": "x"}),
    "lines of Windows": ('a\t"brew\r\nb\tx\r\n', {"a": '"brew', "b": "x"}),
    "a separator of Unicode": ("a\tone\u2028two\nb\tx\n", {"a": "one\u2028two", "b": "x"}),
}


@pytest.mark.parametrize("kind", TSV)
def test_quotation_marks_of_a_tsv_are_text_unless_they_quote(tmp_path, kind):
    data, expected = TSV[kind]
    assert texts(load_references(written(tmp_path, "a.tsv", "id\tsentence\n" + data))) == expected


# Missing values


@pytest.mark.parametrize("null", ["NaN", "null"])
def test_a_row_without_text_and_label_is_no_reference(tmp_path, null):
    rows = f'{{"id": "a", "text": {null}}}\n{{"id": "b", "text": "x", "label": {null}}}\n'
    found = load_references(written(tmp_path, "a.jsonl", rows))
    assert (texts(found), labels(found)) == ({"b": "x"}, {"b": None})
    frame = pa.table({"id": ["a", "b"], "text": pa.array([float("nan"), 5.0])})
    pq.write_table(frame, tmp_path / "a.parquet")
    assert list(texts(load_references(str(tmp_path / "a.parquet")))) == ["b"]


def test_a_json_array_is_read(tmp_path):
    rows = [{"utt_id": "a", "text": "x"}, {"path": "d/b.wav", "text": "y"}]
    for data in (json.dumps(rows), json.dumps(rows, indent=2), "\ufeff" + json.dumps(rows)):
        assert texts(load_references(written(tmp_path, "a.json", data))) == {"a": "x", "d/b": "y"}


def test_labels_of_a_class_have_the_names_of_the_schema(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    schema = pa.schema(
        [("id", pa.string()), ("label", pa.int64())], {"huggingface": json.dumps({"info": {"features": features}})}
    )
    table = pa.table({"id": ["a", "b", "c", "d"], "label": [1, 0, -1, 7]}, schema=schema)
    pq.write_table(table, tmp_path / "a.parquet")
    assert labels(load_references(str(tmp_path / "a.parquet"))) == {"a": "yes", "b": "no", "d": "7"}


# Rows that name their audio


def joined(found, *ids):
    utterances = [utt_id if isinstance(utt_id, tuple) else (utt_id, None) for utt_id in ids]
    named = found.with_names(utterances)
    return dict(
        zip([u[0] for u in utterances], named.texts_of(pa.array([u[0] for u in utterances])).to_pylist(), strict=True)
    )


@pytest.mark.parametrize(
    "column", ["path", "audio_filepath", "file_name", "filename", "file", "name", "wav_filename", "audio"]
)
def test_rows_without_ids_are_found_by_the_path_of_their_audio(tmp_path, column):
    found = load_references(written(tmp_path, "a.csv", f"{column},text\na.wav,x\nd/b.mp3,y\n"))
    assert joined(found, "a", "d/b") == {"a": "x", "d/b": "y"}
    assert joined(found, "clips/a", "b") == {"clips/a": "x", "b": "y"}
    assert joined(found, ("train/0", "a.wav"), ("train/1", "b.mp3")) == {"train/0": "x", "train/1": "y"}


def test_a_name_that_several_have_is_not_guessed(tmp_path):
    found = load_references(written(tmp_path, "a.csv", "path,text\na.wav,x\n1/b.wav,y\n2/b.wav,z\n"))
    assert joined(found, "s1/a", "s2/a", "b") == {"s1/a": None, "s2/a": None, "b": None}
    assert joined(found, "in/1/b", "in/2/b", "in/3/b") == {"in/1/b": "y", "in/2/b": "z", "in/3/b": None}
    assert joined(found, "a", "s1/a") == {"a": "x", "s1/a": None}  # the row belongs to the exact id


def test_rows_with_ids_are_not_found_by_names(tmp_path):
    found = load_references(written(tmp_path, "a.csv", "id,path,text\na,q.wav,x\n"))
    assert joined(found, "d/a", "q") == {"d/a": None, "q": None}


def test_absolute_paths_of_another_machine_are_found_by_their_ends(tmp_path):
    found = load_references(written(tmp_path, "a.jsonl", '{"audio_filepath": "/mnt/x/d/a.wav", "text": "x"}\n'))
    assert joined(found, "d/a", "e/a") == {"d/a": "x", "e/a": None}


def test_audio_columns_of_parquet_give_their_paths_and_not_their_bytes(tmp_path):
    rows = [{"audio": {"bytes": b"\xff" * 9, "path": "a.wav"}, "text": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = load_references(str(tmp_path / "a.parquet"))
    assert joined(found, ("a/0", "a.wav")) == {"a/0": "x"}


@pytest.mark.parametrize(
    ("stored", "asked"), [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9"), ("\u1100\u1161", "\uac00")]
)
def test_composed_and_decomposed_names_meet(tmp_path, stored, asked):
    for name, data in (
        ("text", f"{stored} x\n"),
        ("a.csv", f"id,text\n{stored},x\n"),
        ("b.csv", f"path,text\n{stored}.wav,x\n"),
        ("c.jsonl", json.dumps({"audio_filepath": f"d/{stored}.wav", "text": "x"})),
    ):
        found = load_references(written(tmp_path, name, data))
        wanted = f"d/{asked}" if name == "c.jsonl" else asked
        assert joined(found, wanted) == {wanted: "x"}
