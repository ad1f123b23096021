"""Exactly once: each crash point, two attempts, and what readers, resumes and the last tidying see of them."""

import dataclasses
import hashlib
import io
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.runs.commit import Commit, commit_objects, name_of, remove_orphans, write_chunk
from pipeline.runs.ledger import read_commits
from pipeline.runs.run import Run
from pipeline.schemas import ERRORS, TRANSCRIPTS
from pipeline.storage import objects
from tests.support import s3

PART = "abcdef0123456789abcd"
REQUIRED = ("utt_id", "uri", "stage", "code", "message", "part_id")


@pytest.fixture(scope="module")
def bucket():
    with s3.moto_server():
        yield s3.make_bucket("bucket")


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def commit_of(chunk=0, last=False, part=PART, **changes):
    return dataclasses.replace(
        Commit(
            part_id=part,
            chunk=chunk,
            first_row=chunk,
            last=last,
            part_rows=1 if last else None,
            part_audio_s=1.0 if last else None,
            utterances=1,
            errors=0,
            error_codes={},
            audio_s=1.0,
            source_bytes=10,
            attempt="attempt",
            workers={"reader": "host:1", "recognizer": "host:2"},
            seconds={"read": 0.1, "queue": 0.0, "compute": 0.2, "rows": 0.3},
        ),
        **changes,
    )


def transcripts(*texts, part=PART):
    row = dict.fromkeys(TRANSCRIPTS.names) | {"uri": "u", "words": [], "part_id": part, "chunk": 0}
    return pa.Table.from_pylist([row | {"utt_id": text, "text": text} for text in texts], schema=TRANSCRIPTS)


def tables(*texts):
    return {"transcripts": transcripts(*texts), "errors": ERRORS.empty_table()}


def seen(run):
    """The texts that a reader sees."""
    return sorted(Run(run, {}).dataset("transcripts").to_table()["text"].to_pylist())


def stored(run):
    return sorted(found.uri.removeprefix(f"{run}/") for found in objects.list_objects(run))


def test_a_chunk_is_read_as_it_was_written(run):
    written = write_chunk(run, commit_of(last=True), tables("a", "b"))
    (found,) = read_commits(run)
    assert found == written
    assert seen(run) == ["a", "b"]
    (file,) = found.files  # a table without rows leaves none
    assert (file.table, file.rows) == ("transcripts", 2)
    data = objects.fetch(f"{run}/{file.path}")
    assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    assert file.sha256[:16] in file.path
    assert pq.read_table(io.BytesIO(data)).schema.equals(TRANSCRIPTS)


def test_a_chunk_without_rows_is_committed_too(run):
    write_chunk(run, commit_of(last=True, utterances=0), tables())
    assert Run(run, {}).parts_done() == {PART}
    assert stored(run) == [f"commits/ab/{PART}-00000.last.json"]
    assert seen(run) == []


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_killed_at_any_put_a_chunk_is_not_committed_and_readers_see_nothing_of_it(run, monkeypatch, killed_at):
    write_chunk(run, commit_of(0), tables("before"))
    put, calls = objects.put, []

    def dies(uri, data):
        calls.append(uri)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        put(uri, data)

    errors = pa.Table.from_pylist(
        [dict.fromkeys(ERRORS.names) | dict.fromkeys(REQUIRED, "x") | {"chunk": 1}],
        schema=ERRORS,
    )
    monkeypatch.setattr(objects, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        write_chunk(run, commit_of(1, last=True), {"transcripts": transcripts("lost"), "errors": errors})
    monkeypatch.setattr(objects, "put", put)
    assert seen(run) == ["before"]
    assert [(commit.chunk, commit.last) for commit in read_commits(run)] == [(0, False)]
    # The next start does it again; finishing removes what the first attempt left.
    write_chunk(run, commit_of(1, last=True), {"transcripts": transcripts("again"), "errors": errors})
    assert seen(run) == ["again", "before"]
    assert Run(run, {}).parts_done() == {PART}
    left = remove_orphans(run, [file for commit in read_commits(run) for file in commit.files])
    assert left == (1 if killed_at > 1 else 0)  # `errors` has equal bytes, and so an equal name: it is no orphan
    assert seen(run) == ["again", "before"]


def test_the_commit_is_put_after_all_that_it_names(run, monkeypatch):
    order = []
    put = objects.put
    monkeypatch.setattr(objects, "put", lambda uri, data: (order.append(uri), put(uri, data)))
    commit = write_chunk(run, commit_of(), tables("a"))
    assert order == [f"{run}/{file.path}" for file in commit.files] + [f"{run}/{commit.path}"]


def test_two_attempts_with_different_bytes_leave_one_consistent_set(run):
    write_chunk(run, commit_of(last=True, attempt="first"), tables("first"))
    write_chunk(run, commit_of(last=True, attempt="second"), tables("second"))
    (standing,) = read_commits(run)
    assert standing.attempt == "second"
    assert seen(run) == ["second"]
    assert len(stored(run)) == 3
    assert remove_orphans(run, standing.files) == 1
    assert seen(run) == ["second"]
    assert stored(run) == sorted([standing.path, standing.files[0].path])


def test_two_attempts_at_the_same_time_leave_one_of_them_whole(tmp_path):
    run = str(tmp_path)
    threads = [
        threading.Thread(target=write_chunk, args=(run, commit_of(last=True, attempt=text), tables(text)))
        for text in ("a", "b", "c", "d")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (standing,) = read_commits(run)
    assert seen(run) == [standing.attempt]


def test_two_attempts_with_equal_bytes_leave_one_file(run):
    for _ in range(2):
        write_chunk(run, commit_of(last=True), tables("same"))
    assert len(stored(run)) == 2


def test_orphans_and_what_killed_writers_left_are_removed_and_nothing_else(run):
    commit = write_chunk(run, commit_of(last=True), tables("a"))
    litter = [
        "transcripts/deadbeef-00000-0123456789abcdef.parquet",
        "labels/deadbeef-00000-0123456789abcdef.parquet",
        f"transcripts/.{PART}.parquet.1.aa.tmp",
        f"commits/ab/.{PART}-00001.json.1.aa.tmp",
        ".run.json.1.aa.tmp",
    ]
    kept = ["run.json", "plan.parquet", "metrics/corpus-basic.parquet", "notes/mine.tmp"]
    for name in litter + kept:
        objects.put(f"{run}/{name}", b"x")
    assert remove_orphans(run, commit.files) == len(litter)
    assert stored(run) == sorted([*kept, commit.path, commit.files[0].path])
    assert remove_orphans(run, commit.files) == 0


def test_the_name_of_a_commit_tells_what_it_is(run):
    for commit in (commit_of(0), commit_of(2, last=True), commit_of(100_001)):
        objects.put(f"{run}/{commit.path}", b"not even JSON")
    for litter in (f".{PART}-00001.json.123.abcd.tmp", f"{PART}-00001.json.bak", "notes.json"):
        objects.put(f"{run}/commits/ab/{litter}", b"")
    names = [name_of(uri) for uri in commit_objects(run)]
    assert names == [(PART, 0, False), (PART, 2, True), (PART, 100_001, False)]


def test_a_run_without_commits_has_none(run):
    assert Run(run, {}).parts_done() == set()
    assert list(read_commits(run)) == []
    assert remove_orphans(run, []) == 0
