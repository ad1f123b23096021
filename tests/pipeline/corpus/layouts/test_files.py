"""Audio files and the references beside them."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.read import read_part
from pipeline.errors import InputChangedError
from tests.support.corpora import parts_of
from tests.support.inputs import items, outcome, outcomes, read, write, write_files

NAMES = st.sampled_from(["a.wav", "b.wav", "d/a.wav", "d/b.flac", "d/e/c.mp3", "é.wav"])


def test_references_are_found_beside_files(tmp_path):
    write_files(
        tmp_path, "a.wav", "a.txt", "b.wav", "c/1-2-3.flac", "c/1-2.trans.txt", "c/9-9.flac", "d/x-1.wav", "x.trans.txt"
    )
    found = {item.utt_id: item.reference_uri for item in items(tmp_path)}
    assert found == {
        "a": f"{tmp_path}/a.txt",
        "b": None,
        "c/1-2-3": f"{tmp_path}/c/1-2.trans.txt",
        "c/9-9": None,
        "d/x-1": None,
    }


def test_references_are_found_beside_the_files_of_a_glob(tmp_path):
    write_files(tmp_path, "d/a.wav", "d/a.txt", "d/1-2-3.wav", "d/1-2.trans.txt", "e/f.flac", "e/f.txt")
    wanted = [f"{tmp_path}/d/1-2.trans.txt", f"{tmp_path}/d/a.txt"]
    for pattern in ("*/*.wav", "d/*.wav", "**/*.wav", "d*/*"):
        assert [item.reference_uri for item in items(f"{tmp_path}/{pattern}")] == wanted


def test_a_text_file_of_the_same_name_is_preferred_then_the_longest_transcript_name(tmp_path):
    write_files(tmp_path, "1-2-3.wav", "1-2-4.wav", "1-2.trans.txt", "1.trans.txt", "1-2-4.txt")
    assert [item.reference_uri for item in items(tmp_path)] == [f"{tmp_path}/1-2.trans.txt", f"{tmp_path}/1-2-4.txt"]


@pytest.mark.parametrize("reference", ["84-12-0001.txt", "84-12.trans.txt", None])
def test_a_single_file_has_the_same_reference_as_in_its_directory(tmp_path, reference):
    write_files(tmp_path, "84-12-0001.flac", "85-12.trans.txt", *([reference] if reference else []))
    (item,) = items(tmp_path / "84-12-0001.flac")
    assert item.utt_id == "84-12-0001"
    assert item.reference_uri == (f"{tmp_path}/{reference}" if reference else None)
    assert [item] == items(tmp_path)


@settings(deadline=None)
@given(files=st.dictionaries(NAMES, st.integers(0, 30), min_size=1), part_bytes=st.integers(1, 60))
def test_parts_cover_the_files_of_a_directory_in_path_order(tmp_path_factory, files, part_bytes):
    folder = tmp_path_factory.mktemp("files")
    for name, size in files.items():
        write_files(folder, name, size=size)
    found = parts_of(folder, part_bytes=part_bytes)
    assert [item.uri for part in found for item in part.items] == sorted(f"{folder}/{name}" for name in files)
    assert sum(part.bytes for part in found) == sum(files.values())
    for part in found:
        assert part.rows == len(part.items)
        assert sum(item.size for item in part.items[:-1]) < part_bytes


def test_files_are_read_with_their_references(tmp_path):
    write(tmp_path / "a.wav", b"A")
    write(tmp_path / "a.txt", "\ufeffhello there\n")
    write(tmp_path / "1/1-2-3.flac", b"B")
    write(tmp_path / "1/1-2-4.flac", b"C")
    write(tmp_path / "1/1-2.trans.txt", "1-2-3 GOOD\u2028MORNING\r\n1-2-5 NOBODY\n")
    found = read(tmp_path)
    assert [outcome(u) for u in found] == [("1/1-2-3", b"B"), ("1/1-2-4", b"C"), ("a", b"A")]
    assert [u.meta.text for u in found] == ["GOOD\u2028MORNING", None, "hello there"]
    assert [u.uri for u in found] == [f"{tmp_path}/1/1-2-3.flac", f"{tmp_path}/1/1-2-4.flac", f"{tmp_path}/a.wav"]
    assert not any(u.fixed_id for u in found)


def test_a_single_file_is_read_with_its_reference(tmp_path):
    write(tmp_path / "1-2-3.flac", b"B")
    write(tmp_path / "1-2.trans.txt", "1-2-3 GOOD MORNING\n")
    (found,) = read(tmp_path / "1-2-3.flac")
    assert (outcome(found), found.meta.text) == (("1-2-3", b"B"), "GOOD MORNING")


def test_a_reference_that_is_not_utf8_makes_its_file_an_error_row(tmp_path):
    write(tmp_path / "a.wav", b"A")
    write(tmp_path / "a.txt", b"caf\xe9")
    write(tmp_path / "b.wav", b"B")
    assert outcomes(tmp_path) == [("a", "BAD_ROW"), ("b", b"B")]


def test_a_transcript_that_changed_between_two_runs_is_read_again(tmp_path):
    write(tmp_path / "1-2-3.flac", b"B")
    for text in ("OLD", "NEW"):
        write(tmp_path / "1-2.trans.txt", f"1-2-3 {text}\n")
        assert [u.meta.text for u in read(tmp_path)] == [text]


def test_a_name_that_is_not_utf8_and_a_dangling_link_are_missing(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
    (tmp_path / "link.wav").symlink_to(tmp_path / "none")
    assert [result for _, result in outcomes(tmp_path)] == ["MISSING", "MISSING"]


def test_a_linked_file_is_read(tmp_path):
    write(tmp_path / "far/a.wav", b"A")
    (tmp_path / "near").mkdir()
    (tmp_path / "near/b.wav").symlink_to(tmp_path / "far/a.wav")
    assert outcomes(tmp_path / "near") == [("b", b"A")]


def test_a_reference_that_went_missing_after_planning_fails_the_part(tmp_path):
    write(tmp_path / "a.wav", b"A")
    text = write(tmp_path / "a.txt", "hello")
    (part,) = parts_of(tmp_path)
    text.unlink()
    with pytest.raises(InputChangedError, match=r"a\.txt"):
        list(read_part(part))
