"""Audio files and the references beside them."""

import json
import os
import socket
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import MAX_TEXT_BYTES
from pipeline.errors import InputChangedError, StorageError
from pipeline.storage import objects
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


def named(folder: Path, name: bytes) -> Path:
    """A path whose name is these bytes."""
    return folder / os.fsdecode(name)


def test_names_that_are_not_utf8_are_read_under_their_escaped_names(tmp_path):
    named(tmp_path, b"caf\xe9.wav").write_bytes(b"A")
    named(tmp_path, b"caf\xe9.txt").write_bytes(b"words")
    named(tmp_path, b"d\xff").mkdir()
    named(tmp_path, b"d\xff/\xc3.wav").write_bytes(b"B")
    write(tmp_path / "\\xe9.wav", b"C")  # a name of four plain characters
    found = read(tmp_path)
    assert [(*outcome(u), u.meta.text) for u in found] == [
        ("\\xe9", b"C", None),
        ("caf\\xe9", b"A", "words"),
        ("d\\xff/\\xc3", b"B", None),
    ]
    assert outcomes(str(named(tmp_path, b"caf\xe9.wav"))) == [("caf\\xe9", b"A")]
    assert outcomes(str(named(tmp_path, b"d\xff"))) == [("\\xc3", b"B")]
    assert outcomes(str(named(tmp_path, b"d\xff/*.wav"))) == [("\\xc3", b"B")]
    for uri in found:
        uri.uri.encode()


def test_what_cannot_be_opened_is_missing_and_is_not_waited_for(tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "none")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.wav"))
    write(tmp_path / "z.wav", b"Z")
    *broken, last = outcomes(tmp_path)
    assert [result for _, result in broken] == ["MISSING"] * 5
    assert last == ("z", b"Z")


def test_a_reference_that_cannot_be_opened_makes_its_file_an_error_row(tmp_path):
    for name in ("device", "dangling", "good", "large", "pipe"):
        write(tmp_path / f"{name}.wav", b"A")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe.txt")
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    rows = dict(outcomes(tmp_path))
    assert rows == dict.fromkeys(("device", "dangling", "large", "pipe"), "BAD_ROW") | {"good": b"A"}


def test_a_chapter_whose_transcript_is_a_dangling_link_is_error_rows(tmp_path):
    write_files(tmp_path, "1-2-3.wav", "1-2-4.wav", "3-1-1.wav")
    (tmp_path / "1-2.trans.txt").symlink_to(tmp_path / "none")
    assert [result for _, result in outcomes(tmp_path)][:2] == ["BAD_ROW"] * 2


# References under other spellings


@pytest.mark.parametrize(
    ("audio", "text"),
    [
        ("A.WAV", "A.TXT"),
        ("a.wav", "a.TXT"),
        ("a.wav", "A.txt"),
        ("A.WAV", "a.Txt"),
        ("d/Take One.Wav", "d/take one.TXT"),
        ("caf\u00e9.wav", "cafe\u0301.txt"),
        ("cafe\u0301.wav", "caf\u00e9.TXT"),
    ],
)
def test_a_text_is_found_in_any_case_and_unicode_form(tmp_path, audio, text):
    write_files(tmp_path, audio, "other.wav", "third.txt")
    write(tmp_path / text, "words")
    by_name = {u.utt_id: u.meta.text for u in read(tmp_path)}
    assert by_name == {audio.rpartition(".")[0]: "words", "other": None}
    assert [u.meta.text for u in read(f"{tmp_path}/**/*.[wW]*")] == [u.meta.text for u in read(tmp_path)]


def test_the_text_of_a_single_file_is_found_in_upper_case(tmp_path):
    write_files(tmp_path, "A.WAV")
    write(tmp_path / "A.TXT", "words")
    assert [u.meta.text for u in read(tmp_path / "A.WAV")] == ["words"]


def test_a_text_is_never_that_of_audio_in_another_case_if_it_has_its_own(tmp_path):
    write_files(tmp_path, "a.wav", "A.wav", "b.wav", "B.wav", "c.wav")
    for name in ("A.txt", "b.TXT", "C.txt", "C.TXT"):
        write(tmp_path / name, name)
    texts = {u.utt_id: u.meta.text for u in read(tmp_path)}
    assert texts == {"a": None, "A": "A.txt", "b": "b.TXT", "B": None, "c": None}


def test_transcripts_of_a_chapter_are_found_in_any_case_and_unicode_form(tmp_path):
    write_files(tmp_path, "X-1-1.WAV", "X-1-e\u0301.WAV")
    write(tmp_path / "X-1.TRANS.TXT", "X-1-1 ONE\nX-1-\u00e9 TWO\n")
    assert [u.meta.text for u in read(tmp_path)] == ["ONE", "TWO"]


# LibriSpeech


def test_speakers_are_those_of_the_paths_and_of_speakers_txt(tmp_path):
    folder = tmp_path / "LibriSpeech"
    write_files(folder, "dev/84/12/84-12-0000.flac", "dev/84/12/84-12-0001.flac", "dev/9/1/9-1-0000.flac", "dev/x.flac")
    write(folder / "dev/84/12/84-12.trans.txt", "84-12-0000 ONE\n84-12-0001 TWO\n")
    write(folder / "SPEAKERS.TXT", "; comment\n84   | F | dev   | 8.02 | Jane Roe\n85 | M | dev | 1 | No One\n")
    for inputs in (folder, folder / "dev", f"{folder}/*/84/12/*.flac", folder / "dev/84/12/84-12-0000.flac"):
        first = read(inputs)[0]
        assert first.meta.speaker == "84"
        assert json.loads(first.meta.tags) == {"sex": "F", "subset": "dev", "speaker_name": "Jane Roe"}
    assert [(u.meta.speaker, u.meta.tags is None) for u in read(folder)][2:] == [("9", True), (None, True)]


def test_storage_that_fails_at_speakers_txt_fails_the_part_and_one_that_refuses_it_does_not(tmp_path, monkeypatch):
    write_files(tmp_path, "84/12/84-12-0000.flac")
    (part,) = parts_of(tmp_path)
    open_read = objects.open_read

    def failing(cause):
        def opened(uri):
            if uri.endswith("SPEAKERS.TXT"):
                raise StorageError(uri) from cause
            return open_read(uri)

        monkeypatch.setattr(objects, "open_read", opened)
        return [u.meta.speaker for u in read_part(part)]

    assert failing(PermissionError("403")) == ["84"]
    with pytest.raises(StorageError):
        failing(TimeoutError())


def test_speakers_txt_is_read_up_to_a_bound(tmp_path):
    write_files(tmp_path, "84/12/84-12-0000.flac")
    write(tmp_path / "SPEAKERS.TXT", "84 | F | dev | 8 | Jane Roe\n" + "x" * 3_000_000)
    tracemalloc.start()
    (found,) = read(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
    assert json.loads(found.meta.tags)["sex"] == "F"


def test_dates_and_other_numbers_in_paths_are_no_speakers(tmp_path):
    write_files(tmp_path, "2020/01/2020-02-0001.wav", "84/12/85-12-1.wav", "84/84-12-1.wav", "84/12/84-12.wav")
    assert [u.meta.speaker for u in read(tmp_path)] == [None] * 4


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
