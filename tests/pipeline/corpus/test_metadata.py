"""Rows of metadata: their keys, their errors, and how they are split."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.metadata import ManifestRow, UtteranceMeta, parse_meta, split_rows, unique_key
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
def test_common_names_of_keys_are_known(values, attribute, wanted):
    assert getattr(row(**values), attribute) == wanted
    assert row(**values).tags is None


@pytest.mark.parametrize(
    "values",
    [
        {"lang": "en", "snr": 3.5, "nested": {"a": [1, None]}},
        {"tags": {"a": 1}, "span": 3, "model_config": "x"},  # names of this class's attributes, not of keys
        {"ümlaut": "ß"},
    ],
)
def test_unknown_keys_are_kept_as_tags(values):
    assert json.loads(row(**values).tags) == values


def test_of_two_keys_with_one_meaning_the_first_is_used_and_the_other_becomes_a_tag():
    found = row(text="normalised", transcription="As Spoken", utt_id="u", id=3)
    assert (found.text, found.utt_id) == ("normalised", "u")
    assert json.loads(found.tags) == {"id": 3, "transcription": "As Spoken"}


def test_tags_are_valid_json_even_if_the_manifest_has_nan():
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
def test_the_error_of_a_bad_row_names_the_place_and_the_key(line, words):
    with pytest.raises(AudioError, match=words) as caught:
        parse_meta(line, "m.jsonl, row at byte 5", ManifestRow)
    assert caught.value.code == ErrorCode.BAD_ROW
    assert caught.value.message.startswith("m.jsonl, row at byte 5: ")


def test_a_byte_order_mark_and_line_ends_are_ignored():
    assert parse_meta(b'\xef\xbb\xbf{"audio_filepath": "a"}\r\n', "m", ManifestRow).audio_filepath == "a"


def test_segments_of_one_recording_have_different_keys_unless_they_have_ids():
    whole, piece, other = row(), row(offset=0, duration=1), row(offset=1, duration=1)
    assert len({unique_key("a", meta) for meta in (whole, piece, other)}) == 3
    assert unique_key("a", row(offset=0, id="a")) == unique_key("a", row(offset=1, id="a")) == "a"
    assert unique_key("a", UtteranceMeta(text="b")) == "a"


@settings(deadline=None)
@given(st.lists(st.sampled_from([b'{"a": 1}', b"", b"  ", b"x\ry", b"z\r", b"\x0b"]), max_size=8), st.booleans())
def test_rows_are_split_as_lines_of_the_object_are(tmp_path_factory, rows, ends):
    data = b"\n".join(rows) + (b"\n" if ends else b"")
    path = tmp_path_factory.mktemp("rows") / "m.jsonl"
    path.write_bytes(data)
    planned = [(offset, line.rstrip(b"\n")) for offset, line in objects.lines(str(path)) if line.strip()]
    assert list(split_rows(data, 0)) == planned
    assert all(data[start : start + len(line)] == line for start, line in planned)
