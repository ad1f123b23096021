"""Manifest rows: what they may say, what they are called, and where their audio is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.metadata import ManifestRow, UtteranceMeta, manifest_utt_id, parse_meta, split_rows, unique_key
from pipeline.corpus.naming import relative_id, resolve, stem
from pipeline.errors import AudioError, ErrorCode
from pipeline.storage import objects


def row(**values):
    return parse_meta(json.dumps({"audio_filepath": "a.wav"} | values).encode(), "m.jsonl", ManifestRow)


@pytest.mark.parametrize(
    ("values", "attribute", "wanted"),
    [
        ({"utt_id": "x"}, "utt_id", "x"),
        ({"id": 7}, "utt_id", "7"),
        ({"text": "hello"}, "text", "hello"),
        ({"transcription": "hello"}, "text", "hello"),
        ({"transcript": "hello"}, "text", "hello"),
        ({"sentence": "hello"}, "text", "hello"),
        ({"text": ""}, "text", ""),
        ({"text": None}, "text", None),
        ({"text": 42}, "text", "42"),
        ({"speaker": 1272}, "speaker", "1272"),
        ({"speaker_id": "s"}, "speaker", "s"),
        ({"label": 3}, "label", "3"),
        ({"duration": "2.5"}, "duration", 2.5),
        ({"offset": 1}, "span", (1.0, None)),
        ({"offset": 0, "duration": 2}, "span", (0.0, 2.0)),
        ({"duration": 2}, "span", None),
    ],
)
def test_keys_have_the_names_that_are_common(values, attribute, wanted):
    assert getattr(row(**values), attribute) == wanted
    assert row(**values).tags is None


@pytest.mark.parametrize(
    "values",
    [
        {"lang": "en", "snr": 3.5, "nested": {"a": [1, None]}},
        {"tags": {"a": 1}, "span": 3, "model_config": "x"},  # names of ours, but not a row's
        {"ümlaut": "ß"},
    ],
)
def test_unknown_keys_are_kept_as_tags(values):
    assert json.loads(row(**values).tags) == values


def test_of_two_keys_with_one_meaning_the_first_counts_and_the_other_is_kept():
    found = row(text="normalised", transcription="As Spoken", utt_id="u", id=3)
    assert (found.text, found.utt_id) == ("normalised", "u")
    assert json.loads(found.tags) == {"id": 3, "transcription": "As Spoken"}


def test_tags_are_json_also_where_the_manifest_is_not_quite():
    tags = parse_meta(b'{"audio_filepath": "a", "snr": NaN, "l": [Infinity, 1]}', "m", ManifestRow).tags
    assert json.loads(tags, parse_constant=pytest.fail) == {"snr": None, "l": [None, 1]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json", "Invalid JSON"),
        (b"[1]", "object"),
        (b"{}", "audio_filepath: Field required"),
        (b'{"audio_filepath": ""}', "audio_filepath"),
        (b'{"audio_filepath": null}', "audio_filepath"),
        (b'{"audio_filepath": "a\\u0000b"}', "audio_filepath"),
        (b'{"audio_filepath": "a\\ud800b"}', "Invalid JSON"),
        (b'{"audio_filepath": "caf\xe9"}', "Invalid JSON"),
        (b'{"audio_filepath": "a", "id": ""}', "id"),
        (b'{"audio_filepath": "a", "offset": "soon"}', "offset"),
        (b'{"audio_filepath": "a", "offset": NaN}', "offset"),
        (b'{"audio_filepath": "a", "duration": 1e999}', "duration"),
        (b'{"audio_filepath": "a", "text": ["b"]}', "text"),
    ],
)
def test_a_bad_row_says_where_and_which_key(line, words):
    with pytest.raises(AudioError, match=words) as caught:
        parse_meta(line, "m.jsonl, row at byte 5", ManifestRow)
    assert caught.value.code == ErrorCode.BAD_ROW
    assert caught.value.message.startswith("m.jsonl, row at byte 5: ")


def test_a_byte_order_mark_and_line_ends_do_no_harm():
    assert parse_meta(b'\xef\xbb\xbf{"audio_filepath": "a"}\r\n', "m", ManifestRow).audio_filepath == "a"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("a.wav", "a"), ("a.b.wav", "a.b"), ("d.x/a", "d.x/a"), (".wav", ".wav"), ("d/.a.wav", "d/.a"), ("A.WAV", "A")],
)
def test_the_stem_ends_at_the_last_dot_of_the_name(path, wanted):
    assert stem(path) == wanted


@pytest.mark.parametrize(
    ("path", "base", "uri", "utt_id"),
    [
        ("a/b.wav", "/c", "/c/a/b.wav", "a/b"),
        ("./a//b.wav", "/c", "/c/a/b.wav", "a/b"),
        ("x/../b.wav", "/c", "/c/x/../b.wav", "b"),
        ("../d/b.wav", "/c", "/c/../d/b.wav", "../d/b"),
        ("../c/b.wav", "/c", "/c/../c/b.wav", "b"),
        ("/c/b.wav", "/c", "/c/b.wav", "b"),
        ("file:///c/b.wav", "/c", "/c/b.wav", "b"),
        ("/d/b.wav", "/c", "/d/b.wav", "../d/b"),
        ("/cc/b.wav", "/c", "/cc/b.wav", "../cc/b"),
        ("b.wav", "/", "/b.wav", "b"),
        ("a.b.wav", "/c", "/c/a.b.wav", "a.b"),
        ("ä ö.flac", "/c", "/c/ä ö.flac", "ä ö"),
        ("s3://bucket/b.wav", "/c", "s3://bucket/b.wav", "s3://bucket/b"),
        ("a/b.wav", "s3://bucket/c", "s3://bucket/c/a/b.wav", "a/b"),
        ("./a/b.wav", "s3://bucket/c", "s3://bucket/c/a/b.wav", "a/b"),
        ("../d/b.wav", "s3://bucket/c", "s3://bucket/d/b.wav", "../d/b"),
        ("b.wav", "s3://bucket", "s3://bucket/b.wav", "b"),
        ("s3://bucket/c/a/b.wav", "s3://bucket/c", "s3://bucket/c/a/b.wav", "a/b"),
        ("s3://bucket/d/b.wav", "s3://bucket/c", "s3://bucket/d/b.wav", "../d/b"),
        ("s3://other/c/b.wav", "s3://bucket/c", "s3://other/c/b.wav", "s3://other/c/b"),
        ("/d/b.wav", "s3://bucket/c", "/d/b.wav", "/d/b"),
    ],
)
def test_audio_has_one_name_however_its_path_is_written(path, base, uri, utt_id):
    assert resolve(path, base) == uri
    assert relative_id(path, base) == utt_id
    assert manifest_utt_id(row(audio_filepath=path), base) == utt_id
    assert manifest_utt_id(row(audio_filepath=path, id="own"), base) == "own"


SEGMENTS = st.lists(st.sampled_from(["a", "b", "c.d", ".", "..", "é"]), min_size=1, max_size=5)


@settings(deadline=None)
@given(SEGMENTS)
def test_relative_and_absolute_paths_to_one_file_give_one_name(segments):
    path = "/".join([*segments, "x.wav"])
    assert relative_id(path, "/m/n") == relative_id(f"/m/n/{path}", "/m/n")


def test_pieces_of_one_recording_are_told_apart_unless_they_are_named():
    whole, piece, other = row(), row(offset=0, duration=1), row(offset=1, duration=1)
    assert len({unique_key("a", meta) for meta in (whole, piece, other)}) == 3
    assert unique_key("a", row(offset=0, id="a")) == unique_key("a", row(offset=1, id="a")) == "a"
    assert unique_key("a", UtteranceMeta(text="b")) == "a"


@settings(deadline=None)
@given(st.lists(st.sampled_from([b'{"a": 1}', b"", b"  ", b"x\ry", b"z\r", b"\x0b"]), max_size=8), st.booleans())
def test_rows_are_cut_where_the_plan_cuts_them(tmp_path_factory, rows, ends):
    data = b"\n".join(rows) + (b"\n" if ends else b"")
    path = tmp_path_factory.mktemp("rows") / "m.jsonl"
    path.write_bytes(data)
    planned = [(offset, line.rstrip(b"\n")) for offset, line in objects.lines(str(path)) if line.strip()]
    assert list(split_rows(data, 0)) == planned
    assert all(data[start : start + len(line)] == line for start, line in planned)
