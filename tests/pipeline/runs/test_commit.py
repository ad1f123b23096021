"""Exactly once: each crash point, two attempts, and what readers, resumes and the removal of orphans see of them."""

import dataclasses
import hashlib
import io
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.parts import plan_table
from pipeline.runs.commit import (
    Commit,
    commit_objects,
    encode_commit,
    parse_commit,
    parse_commit_name,
    remove_orphans,
    write_chunk,
)
from pipeline.runs.ledger import read_commits
from pipeline.runs.record import RunRecord
from pipeline.runs.run import PLAN_FILE, Run, write_plan
from pipeline.schemas import ERRORS, TRANSCRIPTS
from pipeline.storage import objects
from sewd_model.engine_status import EngineStatus
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


def file_at(path):
    return {"table": "transcripts", "path": path, "rows": 1, "size": 1, "sha256": "0" * 64}


def make_commit(chunk=0, last=False, part=PART, **changes):
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


def visible_texts(run):
    """The transcripts that a reader sees."""
    return sorted(planned(run).dataset("transcripts").to_table()["text"].to_pylist())


def planned(run):
    """The run, which has a plan."""
    write_plan(run, plan_table([]))
    return Run(run, RunRecord({}))


def stored_paths(run):
    stored = (found.uri.removeprefix(f"{run}/") for found in objects.list_objects(run))
    return sorted(path for path in stored if path != PLAN_FILE)


def test_a_chunk_is_read_as_it_was_written(run):
    written = write_chunk(run, make_commit(last=True), tables("a", "b"))
    (found,) = read_commits(run)
    assert found == written
    assert visible_texts(run) == ["a", "b"]
    (file,) = found.files  # a table without rows has no file
    assert (file.table, file.rows) == ("transcripts", 2)
    data = objects.fetch(f"{run}/{file.path}")
    assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    assert file.sha256[:16] in file.path
    assert pq.read_table(io.BytesIO(data)).schema.equals(TRANSCRIPTS)


def test_a_chunk_without_rows_is_committed(run):
    write_chunk(run, make_commit(last=True, utterances=0), tables())
    assert planned(run).parts_done() == {PART}
    assert stored_paths(run) == [f"commits/ab/{PART}-00000.last.json"]
    assert visible_texts(run) == []


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_chunk_that_is_killed_at_any_put_is_not_committed_and_not_visible(run, monkeypatch, killed_at):
    write_chunk(run, make_commit(0), tables("before"))
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
        write_chunk(run, make_commit(1, last=True), {"transcripts": transcripts("lost"), "errors": errors})
    monkeypatch.setattr(objects, "put", put)
    assert visible_texts(run) == ["before"]
    assert [(commit.chunk, commit.last) for commit in read_commits(run)] == [(0, False)]
    # The next start processes the chunk again; finishing the run removes the files of the first attempt.
    write_chunk(run, make_commit(1, last=True), {"transcripts": transcripts("again"), "errors": errors})
    assert visible_texts(run) == ["again", "before"]
    assert planned(run).parts_done() == {PART}
    removed = remove_orphans(run, [file for commit in read_commits(run) for file in commit.files])
    assert removed == (1 if killed_at > 1 else 0)  # `errors` has equal bytes, hence the same name: it is not an orphan
    assert visible_texts(run) == ["again", "before"]


def test_a_commit_is_put_after_all_files_that_it_names(run, monkeypatch):
    order = []
    put = objects.put
    monkeypatch.setattr(objects, "put", lambda uri, data: (order.append(uri), put(uri, data)))
    commit = write_chunk(run, make_commit(), tables("a"))
    assert order == [f"{run}/{file.path}" for file in commit.files] + [f"{run}/{commit.path}"]


def test_two_attempts_with_different_bytes_leave_one_consistent_set(run):
    write_chunk(run, make_commit(last=True, attempt="first"), tables("first"))
    write_chunk(run, make_commit(last=True, attempt="second"), tables("second"))
    (current,) = read_commits(run)
    assert current.attempt == "second"
    assert visible_texts(run) == ["second"]
    assert len(stored_paths(run)) == 3
    assert remove_orphans(run, current.files) == 1
    assert visible_texts(run) == ["second"]
    assert stored_paths(run) == sorted([current.path, current.files[0].path])


def test_of_two_attempts_at_the_same_time_one_remains_whole(tmp_path):
    run = str(tmp_path)
    threads = [
        threading.Thread(target=write_chunk, args=(run, make_commit(last=True, attempt=text), tables(text)))
        for text in ("a", "b", "c", "d")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (current,) = read_commits(run)
    assert visible_texts(run) == [current.attempt]


def test_two_attempts_with_equal_bytes_leave_one_file(run):
    for _ in range(2):
        write_chunk(run, make_commit(last=True), tables("same"))
    assert len(stored_paths(run)) == 2


def test_only_orphans_and_temporary_files_are_removed(run):
    commit = write_chunk(run, make_commit(last=True), tables("a"))
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
    assert stored_paths(run) == sorted({*kept, commit.path, commit.files[0].path} - {PLAN_FILE})
    assert remove_orphans(run, commit.files) == 0


def test_the_name_of_a_commit_holds_its_part_its_chunk_and_whether_it_is_the_last(run):
    for commit in (make_commit(0), make_commit(2, last=True), make_commit(100_001)):
        objects.put(f"{run}/{commit.path}", b"not even JSON")
    for litter in (f".{PART}-00001.json.123.abcd.tmp", f"{PART}-00001.json.bak", "notes.json"):
        objects.put(f"{run}/commits/ab/{litter}", b"")
    names = [parse_commit_name(uri) for uri in commit_objects(run)]
    assert names == [(PART, 0, False), (PART, 2, True), (PART, 100_001, False)]


def test_a_run_without_commits_has_no_parts_and_no_orphans(run):
    assert planned(run).parts_done() == set()
    assert list(read_commits(run)) == []
    assert remove_orphans(run, []) == 0


def test_an_engine_keeps_its_keys_in_the_commit_object(tmp_path):
    engine = EngineStatus("packed", "float32", "cpu", 20.0, None)
    commit = make_commit(engines=(engine,))
    [stored] = json.loads(encode_commit(commit))["engines"]
    assert stored == {"way": "packed", "dtype": "float32", "device": "cpu", "budget_s": 20.0, "fallback": None}
    assert parse_commit(encode_commit(commit)) == commit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"utterances": "1"}, "a count is not an integer"),
        ({"audio_s": None}, "a time is not a number"),
        ({"part_id": 3}, "does not name its part"),
        ({"files": [{}]}, "missing"),
        ({"engines": [{"way": "packed"}]}, "missing"),
        ({"no_such_key": 1}, "unexpected keyword"),
        ({"part_id": "/../../../home/user/x"}, "outside of the run"),
        ({"folder": "../other"}, "outside of the run"),
        ({"folder": "/etc"}, "outside of the run"),
        ({"files": [file_at("../other/transcripts/a.parquet")]}, "not a data file of this run"),
        ({"files": [file_at("/home/user/a.parquet")]}, "not a data file of this run"),
    ],
)
def test_an_object_that_is_not_a_commit_is_an_error_that_says_why(changes, message):
    content = json.loads(encode_commit(make_commit())) | changes
    with pytest.raises(ValueError, match=f"not a commit: .*{message}"):
        parse_commit(json.dumps(content).encode())
