"""Commits as a table: each counts once, whenever it is rolled up or read, and whenever a roll-up is killed."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs import ledger as ledger_module
from pipeline.runs.commit import Commit, commit_objects, encode_commit, write_chunk
from pipeline.runs.ledger import (
    LEDGER,
    chunks_by_part,
    error_codes,
    ledger_table,
    non_contiguous_chunks,
    parts_done,
    read_commits,
    read_committed_chunks,
    read_ledger,
    roll_up,
    rolled_up_files,
)
from pipeline.runs.totals import Totals
from pipeline.storage import objects, uris
from sewd_model.engine_status import EngineStatus
from tests.support import s3

PACKED = EngineStatus("packed", "bfloat16", "a GPU", 300.0, None)
FALLEN = EngineStatus("clip by clip", "bfloat16", "another GPU", None, "no compiler")
COMMITS = st.dictionaries(st.tuples(st.sampled_from(["aa", "ab", "b0"]), st.integers(0, 5)), st.booleans(), max_size=12)


@pytest.fixture(scope="module")
def bucket():
    with s3.moto_server():
        yield s3.make_bucket("bucket")


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def make_commit(part="aa", chunk=0, last=False, **changes):
    made = Commit(
        part_id=part,
        chunk=chunk,
        first_row=10 * chunk,
        last=last,
        part_rows=10 * chunk + 10 if last else None,
        part_audio_s=None,
        utterances=9,
        errors=1,
        error_codes={"UNDECODABLE": 1},
        audio_s=1.5,
        source_bytes=7,
        attempt="attempt",
        workers={"reader": "host:1"},
        seconds={"compute": 0.25},
        engines=(PACKED,),
        splits=chunk,
    )
    return dataclasses.replace(made, **changes)


def put(run, *commits):
    return [write_chunk(run, commit, {}) for commit in commits]


def content(*commits):
    return [encode_commit(commit) for commit in commits]


def ledger(run):
    return read_ledger(run).table


def keys(commits):
    return sorted((commit.part_id, commit.chunk) for commit in commits)


def test_rolled_up_commits_are_read_as_they_were_written(run):
    written = put(run, *(make_commit(part, chunk, chunk == 2) for part in ("aa", "ab") for chunk in range(3)))
    before = ledger(run), read_committed_chunks(run), list(read_commits(run))
    roll_up(run, content(*written[:4]))
    assert len(commit_objects(run)) == 2
    assert len(rolled_up_files(run)) == 1
    in_order = [("part_id", "ascending"), ("chunk", "ascending")]
    assert ledger(run).sort_by(in_order) == before[0].sort_by(in_order)
    assert read_committed_chunks(run).sort_by(in_order) == before[1].sort_by(in_order)
    assert sorted(read_commits(run), key=lambda c: (c.part_id, c.chunk)) == before[2]
    assert set(parts_done(read_committed_chunks(run)).to_pylist()) == {"aa", "ab"}
    roll_up(run, content(*written[4:]))
    assert commit_objects(run) == []
    assert keys(read_commits(run)) == keys(written)


@pytest.mark.parametrize("kept", range(1, 4))
def test_a_roll_up_killed_while_removing_objects_counts_no_commit_twice(run, monkeypatch, kept):
    written = put(run, *(make_commit("aa", chunk, chunk == 3) for chunk in range(4)))
    delete = objects.delete

    def dies(uris):
        delete(uris[kept:])
        raise KeyboardInterrupt

    monkeypatch.setattr(objects, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        roll_up(run, content(*written))
    monkeypatch.setattr(objects, "delete", delete)
    assert len(commit_objects(run)) == kept
    assert len(ledger(run)) == len(read_committed_chunks(run)) == 4
    assert keys(read_commits(run)) == keys(written)
    assert Totals.from_ledger(ledger(run)).utterances == 36
    # The next start rolls up the remaining objects; equal content has the same file name.
    remaining = read_ledger(run).objects
    assert len(remaining) == kept
    roll_up(run, remaining)
    assert commit_objects(run) == []
    assert keys(read_commits(run)) == keys(written)
    assert Totals.from_ledger(ledger(run)).utterances == 36


def test_a_roll_up_killed_before_its_file_is_stored_changes_nothing(run, monkeypatch):
    written = put(run, make_commit())
    monkeypatch.setattr(objects, "put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        roll_up(run, content(*written))
    assert list(read_commits(run)) == written


def test_a_reader_misses_no_commit_that_is_rolled_up_meanwhile(run, monkeypatch):
    written = put(run, *(make_commit("aa", chunk, chunk == 5) for chunk in range(6)))
    listed = commit_objects(run)
    roll_up(run, content(*written[2:5]))
    # The reader listed the objects before the roll-up, and the files after it.
    monkeypatch.setattr(ledger_module, "commit_objects", lambda _: listed)
    assert keys(read_commits(run)) == keys(written)
    assert len(ledger(run)) == 6
    assert len(read_committed_chunks(run)) == 6


def test_a_lost_commit_is_an_error(run, monkeypatch):
    put(run, make_commit(), make_commit("ab"))
    listed = commit_objects(run)
    objects.delete(listed[:1])
    monkeypatch.setattr(ledger_module, "commit_objects", lambda _: listed)
    with pytest.raises(FileNotFoundError):
        list(read_commits(run))
    with pytest.raises(FileNotFoundError):
        ledger(run)


def test_all_readers_choose_the_same_of_several_attempts(run):
    first, second, third = (make_commit(last=True, attempt=name, utterances=n) for n, name in enumerate("abc"))
    put(run, first)
    roll_up(run, content(first))
    put(run, second)
    assert [commit.attempt for commit in read_commits(run)] == ["b"], "an object takes precedence over a file"
    assert ledger(run)["utterances"].to_pylist() == [1]
    roll_up(run, content(second))
    put(run, third)
    roll_up(run, content(third))
    [current] = read_commits(run)
    assert ledger(run)["utterances"].to_pylist() == [current.utterances]
    assert len(rolled_up_files(run)) == 3


def test_an_empty_run_has_an_empty_ledger(run):
    assert ledger(run).num_rows == read_committed_chunks(run).num_rows == 0
    assert ledger(run).schema == LEDGER
    assert Totals.from_ledger(ledger(run)) == Totals()
    assert (
        list(read_commits(run))
        == non_contiguous_chunks(ledger(run))
        == parts_done(read_committed_chunks(run)).to_pylist()
        == []
    )
    roll_up(run, [])
    assert rolled_up_files(run) == []


def test_commit_objects_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "READ_AHEAD", 4)
    put(str(tmp_path), *(make_commit(chunk=chunk) for chunk in range(11)))
    fetched = []
    fetch = objects.fetch
    monkeypatch.setattr(objects, "fetch", lambda uri: (fetched.append(uri), fetch(uri))[1])
    commits = read_commits(str(tmp_path))
    assert next(commits).chunk == 0
    assert len(fetched) <= 4
    assert [commit.chunk for commit in commits] == list(range(1, 11))


@given(COMMITS)
def test_a_part_is_done_when_no_chunk_up_to_its_last_is_missing(found):
    table = ledger_table(make_commit(part, chunk, last) for (part, chunk), last in found.items())
    wanted = set()
    for part in {part for part, _ in found}:
        ends = [chunk for (other, chunk), last in found.items() if other == part and last]
        if ends and all((part, chunk) in found for chunk in range(max(ends) + 1)):
            wanted.add(part)
    assert set(parts_done(table).to_pylist()) == wanted
    chunks = chunks_by_part(table, pa.array(["aa", "b0"]))
    assert chunks == {
        part: sorted(chunk for other, chunk in found if other == part)
        for part in ("aa", "b0")
        if any(other == part for other, _ in found)
    }


@given(st.lists(st.dictionaries(st.sampled_from("ABC"), st.integers(1, 4)), max_size=8))
def test_totals_are_the_sums_of_the_commits(codes):
    commits = [make_commit(chunk=n, error_codes=c, errors=sum(c.values())) for n, c in enumerate(codes)]
    totals = Totals.from_ledger(ledger_table(commits))
    assert (totals.chunks, totals.utterances) == (len(codes), 9 * len(codes))
    assert totals.error_codes == {k: sum(c.get(k, 0) for c in codes) for k in "ABC" if any(k in c for c in codes)}
    assert totals.errors == sum(totals.error_codes.values())
    assert error_codes(ledger_table(commits)) == totals.error_codes


def test_totals_count_transcripts_by_engine_and_fallbacks_by_reason(run):
    """A resume on another machine; the first start's commits are rolled up already."""
    put(run, *(first := [make_commit(chunk=0), make_commit(chunk=1)]))
    roll_up(run, content(*first))
    put(
        run,
        make_commit(chunk=2, last=True, engines=(FALLEN,)),
        make_commit("ab", last=True, utterances=0, splits=5, warned=3),
    )
    totals = Totals.from_ledger(ledger(run))
    assert totals.engines == {str(FALLEN): 9, str(PACKED): 18}
    assert totals.fallbacks == {"no compiler": 9}
    assert totals.splits == 0 + 1 + 2 + 5
    assert totals.warnings == [
        "9 of 27 transcripts, or their labels, were computed by a fallback: no compiler",
        "a batch was halved 8 times because memory ran out",
        "3 of 27 transcripts are of files with wrong headers or bytes that are no audio: see the column `warning`",
    ]


def without_engines(commit):
    """The content of the commit, as versions wrote it that did not record engines."""
    values = json.loads(encode_commit(commit))
    del values["engines"], values["splits"], values["warned"]
    return json.dumps(values).encode()


def test_commits_of_versions_without_engines_are_read_as_objects_and_rolled_up(run):
    """Both the columns of the file and the contents in it are of such a version."""
    old = [without_engines(make_commit(chunk=0)), without_engines(make_commit(chunk=1))]
    named = [
        field for field in ledger_module._ROLLED_UP_FILE if field.name not in ("engine", "fallback", "splits", "warned")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "_ROLLED_UP_FILE", pa.schema(named))
        roll_up(run, old[:1])
    (uri,) = rolled_up_files(run)
    assert pq.read_schema(io.BytesIO(objects.fetch(uri))).names == [field.name for field in named]
    objects.put(uris.join(run, make_commit(chunk=1).path), old[1])
    put(run, make_commit(chunk=2, last=True))

    assert sorted((c.chunk, c.engines, c.splits) for c in read_commits(run)) == [
        (0, (), None),
        (1, (), None),
        (2, (PACKED,), 2),
    ]
    totals = Totals.from_ledger(ledger(run))
    assert totals.engines == {str(PACKED): 9, "unknown": 18}
    assert (totals.fallbacks, totals.splits, totals.utterances) == ({}, 2, 27)
    assert totals == sum((Totals.from_commit(commit) for commit in read_commits(run)), Totals())


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sets(st.sampled_from([PACKED, FALLEN])), st.integers(0, 3), st.integers(0, 2))
    )
)
def test_totals_of_a_ledger_are_the_sums_of_its_chunks(made):
    commits = [
        make_commit(chunk=chunk, utterances=number, engines=tuple(engines), splits=splits, warned=warned)
        for chunk, (number, engines, splits, warned) in enumerate(made)
    ]
    totals = Totals.from_ledger(ledger_table(commits))
    assert totals == sum(map(Totals.from_commit, commits), Totals())
    assert sum(totals.engines.values()) == totals.utterances


def non_contiguous_row_by_row(commits):
    """The same as `non_contiguous_chunks`, computed row by row."""
    rows, following = {}, {}
    for commit in sorted(commits, key=lambda c: (c.part_id, c.chunk)):
        before = rows.get(commit.part_id, 0)
        follows = commit.chunk == following.get(commit.part_id, 0)
        end = commit.first_row + commit.utterances + commit.errors
        rows[commit.part_id], following[commit.part_id] = end, commit.chunk + 1
        begins_right = commit.first_row == before if follows else commit.first_row >= before
        if not begins_right or (commit.last and commit.part_rows != end):
            yield commit.part_id, commit.chunk, before


@given(COMMITS, st.data())
def test_chunks_that_do_not_follow_the_ones_before_are_found(found, data):
    numbers = st.integers(0, 4)
    commits = [
        make_commit(part, chunk, last, first_row=data.draw(numbers), utterances=data.draw(numbers), errors=0)
        for (part, chunk), last in found.items()
    ]
    commits = [dataclasses.replace(c, part_rows=data.draw(numbers) if c.last else None) for c in commits]
    rows = non_contiguous_chunks(ledger_table(commits))
    assert [(row.part_id, row.chunk, row.rows_before) for row in rows] == list(non_contiguous_row_by_row(commits))


@given(st.permutations(range(6)), st.lists(st.integers(0, 6), min_size=2, max_size=2))
def test_the_ledger_does_not_depend_on_how_commits_were_rolled_up(tmp_path_factory, order, cuts):
    run = str(tmp_path_factory.mktemp("run"))
    written = put(run, *(make_commit("aa", chunk, chunk == 5) for chunk in range(6)))
    for low, high in itertools.pairwise([0, *sorted(cuts)]):
        roll_up(run, content(*(written[i] for i in order[low:high])))
    assert keys(read_commits(run)) == keys(written)
    assert parts_done(read_committed_chunks(run)).to_pylist() == ["aa"]
    assert not non_contiguous_chunks(ledger(run))
    assert all(Path(uri).suffix == ".parquet" for uri in rolled_up_files(run))


@pytest.mark.parametrize("rolled", [0, 1, 2, 3])
def test_two_attempts_that_saw_different_inputs_are_both_kept_and_reported(run, rolled):
    """For one, chunk 0 was the last of the part; the other read on, since a file had been added in between."""
    written = put(run, make_commit(chunk=0), make_commit(chunk=0, last=True), make_commit(chunk=1, last=True))
    for commit in written[:rolled]:
        roll_up(run, content(commit))
    kept = sorted((commit.chunk, commit.last) for commit in read_commits(run))
    assert kept == sorted((row["chunk"], row["last"]) for row in ledger(run).to_pylist())
    assert kept == [(0, False), (0, True), (1, True)]
    assert non_contiguous_chunks(ledger(run)), "finishing the run refuses it"
    assert parts_done(ledger(run)).to_pylist() == ["aa"]


def test_an_attempt_that_was_rolled_up_twice_counts_once_for_every_reader(run):
    for attempt in ("a", "b"):
        put(run, commit := make_commit(last=True, attempt=attempt))
        roll_up(run, content(commit))
    assert len(rolled_up_files(run)) == 2
    assert len(list(read_commits(run))) == len(ledger(run)) == 1
