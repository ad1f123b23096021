"""Names of audio: stems, the URI of a path, and the utt_id made of a path."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.metadata import ManifestRow, manifest_utt_id
from pipeline.corpus.naming import relative_id, resolve, stem

SEGMENTS = st.lists(st.sampled_from(["a", "b", "c.d", ".", "..", "é"]), min_size=1, max_size=5)


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
def test_audio_has_one_id_however_its_path_is_written(path, base, uri, utt_id):
    assert resolve(path, base) == uri
    assert relative_id(path, base) == utt_id
    assert manifest_utt_id(ManifestRow(audio_filepath=path), base) == utt_id
    assert manifest_utt_id(ManifestRow(audio_filepath=path, id="own"), base) == "own"


@settings(deadline=None)
@given(SEGMENTS)
def test_relative_and_absolute_paths_of_one_file_give_one_id(segments):
    path = "/".join([*segments, "x.wav"])
    assert relative_id(path, "/m/n") == relative_id(f"/m/n/{path}", "/m/n")
