"""Small recordings that are fetched before their turn."""

import threading
import time
from dataclasses import replace

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import ahead as ahead_module
from pipeline.corpus.ahead import opened_ahead
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import ObjectOpener, Utterance, broken_utterance
from pipeline.errors import AudioError, ErrorCode, StorageError
from pipeline.storage import objects
from tests.support.inputs import outcome, parts_of, write

ROOT = "memory://ahead"


@pytest.fixture(autouse=True)
def store():
    """A store of objects `0` to `29`, whose content is their name; every seventh is missing."""
    files = fsspec.filesystem("memory")
    for number in range(30):
        if number % 7 != 6:
            files.pipe_file(f"/ahead/{number}", str(number).encode())
    yield files
    files.rm("/ahead", recursive=True)


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The objects that are fetched, in the order of the requests."""
    made = []
    fetch = objects.fetch

    def counted(uri, *arguments, **options):
        made.append(uri.rpartition("/")[2])
        return fetch(uri, *arguments, **options)

    monkeypatch.setattr(objects, "fetch", counted)
    return made


def utterance(number: int, uri: str = "") -> Utterance:
    uri = uri or f"{ROOT}/{number}"
    return Utterance(str(number), uri, ObjectOpener(uri))


@settings(deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["object", "same", "bytes", "broken", "local", "large"]), max_size=40),
    ahead=st.sampled_from([0, 1, 3, 32]),
)
def test_the_utterances_and_what_they_give_do_not_depend_on_how_many_are_read_ahead(tmp_path_factory, kinds, ahead):
    local = write(tmp_path_factory.mktemp("local") / "a.wav", b"local")
    found: list[Utterance] = []
    for number, kind in enumerate(kinds):
        one = {
            "object": utterance(number % 30),
            "same": found[-1] if found else utterance(0),
            "bytes": Utterance(str(number), "memory://x.tar", lambda number=number: b"member %d" % number),
            "broken": broken_utterance(str(number), "x", AudioError(ErrorCode.BAD_ROW, "no")),
            "local": utterance(number, str(local)),
            "large": utterance(29),
        }[kind]
        found.append(one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead_module, "SMALL_BYTES", 1)  # objects of two letters are large
        assert [outcome(one) for one in opened_ahead(found, ahead)] == [outcome(one) for one in found]


def test_small_objects_are_fetched_at_the_same_time(monkeypatch):
    together = threading.Barrier(4, timeout=20)  # requests wait for three others
    fetch = objects.fetch

    def waiting(uri, *arguments, **options):
        together.wait()
        return fetch(uri, *arguments, **options)

    monkeypatch.setattr(objects, "fetch", waiting)
    numbers = (0, 1, 2, 3, 4, 5, 7, 8)
    assert [one.open() for one in opened_ahead(map(utterance, numbers), 4)] == [b"%d" % n for n in numbers]


def test_no_more_are_fetched_than_asked_for(fetched):
    reader = opened_ahead(map(utterance, range(30)), 4)
    for turn in range(5):
        next(reader)
        time.sleep(0.05)
        assert len(fetched) <= turn + 5


def test_neighbours_of_one_recording_share_it_and_others_fetch_it_again(fetched):
    for ahead in (0, 8):
        fetched.clear()
        numbers = [1, 1, 1, 2, 1]
        assert [one.open() for one in opened_ahead(map(utterance, numbers), ahead)] == [b"1", b"1", b"1", b"2", b"1"]
        assert sorted(fetched) == ["1", "1", "2"]


def test_what_is_large_is_fetched_in_its_turn(fetched, monkeypatch):
    monkeypatch.setattr(ahead_module, "SMALL_BYTES", 1)
    reader = opened_ahead(map(utterance, (11, 12, 14, 15)), 8)
    first = next(reader)
    assert fetched == []
    assert first.open() == b"11"
    assert fetched == ["11"]


def test_an_object_of_unknown_size_is_fetched_in_its_turn(fetched, monkeypatch):
    find = ObjectOpener.find
    monkeypatch.setattr(ObjectOpener, "find", lambda opener: replace(find(opener), size=0))
    reader = opened_ahead(map(utterance, (11, 12)), 8)
    first = next(reader)
    assert fetched == []
    assert first.open() == b"11"


def test_local_files_are_read_in_their_turn(tmp_path, fetched):
    paths = [str(write(tmp_path / name, name)) for name in "abc"]
    reader = opened_ahead([utterance(n, path) for n, path in enumerate(paths)], 8)
    assert next(reader).open() == b"a"
    assert fetched == ["a"]


def test_an_error_of_storage_is_raised_in_the_turn_of_its_utterance(monkeypatch):
    fetch = objects.fetch

    def failing(uri, *arguments, **options):
        if uri.endswith("/2"):
            raise StorageError("the key has expired")
        return fetch(uri, *arguments, **options)

    monkeypatch.setattr(objects, "fetch", failing)
    reader = opened_ahead(map(utterance, (0, 1, 2, 3)), 8)
    assert [next(reader).open() for _ in range(2)] == [b"0", b"1"]
    third = next(reader)
    with pytest.raises(StorageError, match="expired"):
        third.open()


def test_the_texts_beside_audio_are_fetched_ahead_and_stay_with_it(store, fetched):
    for number in range(20):
        store.pipe_file(f"/ahead/d/{number:02}.wav", b"audio %d" % number)
        store.pipe_file(f"/ahead/d/{number:02}.txt", b"text %d" % number if number != 5 else b"\xff")
    (part,) = parts_of(f"{ROOT}/d")
    for ahead in (0, 8):
        found = [(one.meta.text, *outcome(one)) for one in read_part(replace(part, ahead=ahead))]
        expected = [(f"text {n}", f"{n:02}", b"audio %d" % n) for n in range(20)]
        expected[5] = (None, "05", "BAD_ROW")
        assert found == expected


def test_a_transcript_of_a_chapter_is_fetched_once(store, fetched):
    for number in range(20):
        store.pipe_file(f"/ahead/c/1/2/1-2-{number:04}.flac", b"audio")
    lines = "".join(f"1-2-{number:04} TEXT {number}\n" for number in range(20))
    store.pipe_file("/ahead/c/1/2/1-2.trans.txt", lines.encode())
    (part,) = parts_of(f"{ROOT}/c")
    fetched.clear()
    found = [one.meta.text for one in read_part(replace(part, ahead=8))]
    assert found == [f"TEXT {number}" for number in range(20)]
    assert fetched.count("1-2.trans.txt") == 1
