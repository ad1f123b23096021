"""A plan that changes: rows are replaced all at once for readers, also if a driver is killed at any write."""

from __future__ import annotations

import contextlib
import random
import shutil

import pytest

from jobs import repair as verb
from pipeline.config import make_config
from pipeline.errors import InputChangedError
from pipeline.runs import compact, ledger, lifecycle
from pipeline.runs import verify as module
from pipeline.runs.compact import read_compaction
from pipeline.runs.lifecycle import create_run, plan_new_run
from pipeline.runs.record import PlanUpdate
from pipeline.runs.repair import repair
from pipeline.runs.run import Run
from pipeline.runs.status import RunStatus
from pipeline.runs.update import follow_plan, next_update, replace_plan, update_run
from pipeline.runs.verify import verify
from pipeline.storage import objects
from tests.support import updates
from tests.support.inputs import write_files


class KilledError(Exception):
    """The driver is killed here."""


def killed(*_) -> None:
    """A call at which the driver is killed."""
    raise KilledError


def kill_after(monkeypatch, writes: int) -> None:
    """Raise at the write after this many: a PUT, or the removal of a single object."""
    put, delete = objects.put, objects._delete_one
    done = 0

    def count() -> None:
        nonlocal done
        if done >= writes:
            raise KilledError
        done += 1

    def counted_put(uri, data):
        count()
        put(uri, data)

    def counted_delete(uri):
        count()
        delete(uri)

    monkeypatch.setattr(objects, "put", counted_put)
    monkeypatch.setattr(objects, "_delete_one", counted_delete)


@pytest.fixture
def finished(tmp_path):
    run = updates.create(tmp_path / "run", ["a", "b", "c"])
    updates.work(run)
    return updates.finish(run)


def drive(run, names, again) -> Run:
    run = updates.update(run, names, again)
    updates.work(run)
    return updates.finish(run)


def assert_sound(run) -> None:
    assert [str(problem) for problem in verify(Run.open(run.uri)).problems] == []


def test_parts_join_leave_and_are_done_again(finished):
    before = updates.found(finished)
    run = updates.update(finished, ["a", "c", "d"], again=["c"])
    assert (run.status, run.record.parts, run.record.last_update.number) == (RunStatus.RUNNING, 3, 1)
    assert updates.found(run) == before, "readers see the rows of the state before"
    updates.work(run)
    assert updates.found(run) == before
    run = updates.finish(run)
    assert updates.found(run) == updates.expected(run) != before
    assert run.record.totals.utterances == 3 * updates.ROWS
    assert run.parts_done() == set(run.plan(["part_id"])["part_id"].to_pylist())
    (update,) = run.record.updates
    assert (update.number, update.added, update.changed, update.removed) == (1, 1, 1, 1)
    assert_sound(run)


def test_a_run_that_was_never_finished_is_updated(tmp_path):
    run = updates.create(tmp_path / "run", ["a", "b"])
    updates.work(run, chunks=4)
    run = drive(run, ["b", "c"], again=["b"])
    assert updates.found(run) == updates.expected(run)
    assert_sound(run)


def test_what_is_kept_is_not_done_again(finished):
    written = {commit.part_id for commit in finished.commits()}
    run = updates.update(finished, ["a", "b", "d"])
    assert len(written & set(run.plan(["part_id"])["part_id"].to_pylist())) == 2
    assert len(run.parts_done()) == 2
    assert run.totals().utterances == 2 * updates.ROWS


def writes_of(monkeypatch, call) -> int:
    """The number of writes of a call."""
    number = 0
    put, delete = objects.put, objects._delete_one

    def counted(write):
        def wrapped(*arguments):
            nonlocal number
            number += 1
            write(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(objects, "put", counted(put))
        patch.setattr(objects, "_delete_one", counted(delete))
        call()
    return number


@pytest.mark.parametrize("by", ["resume", "another update", "repair and resume"])
def test_an_update_that_is_killed_at_any_write_ends_as_if_it_were_not(finished, tmp_path, monkeypatch, by):
    names, again = ["a", "c", "d"], ["c"]
    before = updates.found(finished)
    undisturbed = Run.open(shutil.copytree(finished.uri, tmp_path / "undisturbed"))
    writes = writes_of(monkeypatch, lambda: drive(undisturbed, names, again))
    assert writes > 20
    for killed_after in range(0, writes, 1 if by == "resume" else 3):
        run = Run.open(shutil.copytree(finished.uri, tmp_path / f"run{killed_after}"))
        with monkeypatch.context() as patch:
            kill_after(patch, killed_after)
            with pytest.raises(KilledError):
                drive(run, names, again)
        run = Run.open(run.uri)
        planned = {row["name"] for row in run.plan(["name"]).to_pylist()}
        seen = updates.found(run)
        assert seen in (before, updates.expected(run)), "a reader sees one state or the other"
        assert_sound(run)
        if by == "repair and resume":
            assert repair(run.uri).impossible == []
            assert_sound(run)
        if by == "another update" or "d" not in planned:
            run = updates.update(follow_plan(run), names, again=["c"])
        updates.work(run)
        run = updates.finish(run)
        assert updates.found(run) == updates.expected(run)
        assert run.status == RunStatus.DONE
        assert run.record.totals.utterances == 3 * updates.ROWS
        assert_sound(run)


@pytest.mark.parametrize("lost", ["record", "status"])
def test_a_repair_without_a_record_keeps_the_rows_of_an_update_that_was_not_compacted(finished, lost):
    run = updates.update(finished, ["a", "b", "c", "d"])
    run.save_copy()
    updates.work(run)
    if lost == "record":
        objects.delete([f"{run.uri}/run.json"])
    else:
        run.save(status=None)
    result = repair(run.uri)
    assert (result.run.status, result.chunks, result.impossible) == (RunStatus.STOPPED, 0, [])
    assert_sound(run)
    run = updates.finish(run)
    assert updates.found(run) == updates.expected(run)
    assert_sound(run)


def test_a_repair_without_a_record_knows_that_an_update_was_finished(finished):
    run = drive(finished, ["a", "b", "c", "d"], again=())
    run.save_copy()
    objects.delete([f"{run.uri}/run.json"])
    assert repair(run.uri).run.status == RunStatus.DONE
    assert updates.found(run) == updates.expected(run)
    assert_sound(run)


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.DONE])
def test_a_repair_without_the_plan_of_an_update_leaves_the_rows_as_they_are(finished, status, capsys):
    run = updates.update(finished, ["a", "c", "d"])
    updates.work(run, chunks=1)
    if status == RunStatus.DONE:
        updates.work(run)
        run = updates.finish(run)
    objects.delete([f"{run.uri}/plan.parquet"])
    rows, compaction, commits = updates.found(run), read_compaction(run.uri), list(ledger.read_commits(run.uri))
    assert verb.repair(run.uri) == 1
    out, err = capsys.readouterr()
    assert "the plan of a run that was updated cannot be made again" in " ".join(err.split())
    assert ("rows and commits were left as they are" in out) == (status == RunStatus.RUNNING)
    assert (updates.found(run), read_compaction(run.uri)) == (rows, compaction)
    assert list(ledger.read_commits(run.uri)) == commits
    stopped = RunStatus.STOPPED if status == RunStatus.RUNNING else status
    assert Run.open(run.uri).status == stopped


def test_a_file_that_is_lost_before_the_first_compaction_is_stored_is_made_again(tmp_path, monkeypatch):
    run = updates.create(tmp_path / "run", ["a", "b"])
    updates.work(run)
    small = next(commit for commit in run.commits()).files[0]
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "write_compaction", killed)
        with pytest.raises(KilledError):
            updates.finish(run)
    objects.delete([f"{run.uri}/{small.path}"])
    result = repair(run.uri)
    assert (result.made, result.chunks) == ([f"{small.path} is lost or was changed"], 0)
    assert_sound(run)
    run = updates.finish(run)
    assert updates.found(run) == updates.expected(run)
    assert_sound(run)


def test_a_part_that_comes_back_while_its_commits_are_still_there_is_done_again(finished):
    old = updates.part("b").part_id
    run = updates.update(finished, ["a", "c"])
    run = updates.update(run, ["a", "b", "c"])
    ids = {row["name"]: row["part_id"] for row in run.plan().to_pylist()}
    assert ids["b"] == f"{old}2"
    updates.work(run)
    run = updates.finish(run)
    assert updates.found(run) == updates.expected(run)
    assert_sound(run)


@pytest.mark.parametrize("rolled_up", [False, True])
def test_commits_and_quarantine_records_that_do_not_count_are_removed(finished, rolled_up):
    left = updates.part("b").part_id
    if rolled_up:
        ledger.roll_up(finished.uri, ledger.read_ledger(finished.uri).objects)
    for name in (left, f"{left}-3", updates.part("a").part_id):
        objects.put(f"{finished.uri}/quarantine/{name}.json", b"{}")
    run = drive(finished, ["a", "c"], again=())
    assert left not in {commit.part_id for commit in ledger.read_commits(run.uri)}
    stored = [item.uri.rpartition("/")[2] for item in objects.list_objects(f"{run.uri}/quarantine")]
    assert stored == [f"{updates.part('a').part_id}.json"]
    assert_sound(run)


def test_verify_finds_commits_of_no_part_in_a_run_that_is_done(finished):
    run = drive(finished, ["a", "c"], again=())
    updates.write(run, "b", updates.part("b").part_id, 0)
    assert any("the plan has no part" in problem.message for problem in verify(run).problems)


@pytest.mark.parametrize("read", ["ledger", "parts_done", "files", "read"])
@pytest.mark.parametrize("rolled_up", [True, False])
def test_commits_that_leave_while_they_are_read_are_not_missed(tmp_path, monkeypatch, read, rolled_up):
    run = updates.create(tmp_path / "run", ["a", "b"])
    updates.work(run)
    if rolled_up:
        ledger.roll_up(run.uri, ledger.read_ledger(run.uri).objects)
    run = updates.update(Run.open(run.uri), ["a", "d"])
    updates.work(run)
    run = Run.open(run.uri)
    name = "rolled_up_files" if rolled_up else "commit_objects"
    once_listed(monkeypatch, name, lambda: updates.finish(run))
    calls = {
        "ledger": lambda: len(run.ledger()) == 6,
        "parts_done": lambda: len(run.parts_done()) == 2,
        "files": lambda: sum(file.rows for file in run.files()["transcripts"]) == 2 * updates.ROWS,
        "read": lambda: updates.found(run) == updates.expected(run),
    }
    assert calls[read]()


def once_listed(monkeypatch, name, call) -> None:
    """Call `call` between the first listing of commits and what follows it."""
    listing, calls = getattr(ledger, name), [call]

    def listed(uri):
        found = listing(uri)
        if calls:
            calls.pop()()
        return found

    monkeypatch.setattr(ledger, name, listed)


@pytest.mark.parametrize("number", [1, 2])
def test_verify_checks_a_run_again_that_is_updated_meanwhile(finished, monkeypatch, number):
    check = module.check_file
    names = [["a", "b", "d"], ["a", "d", "e"]][:number]
    left = list(names)

    def checked(*arguments):
        if left:
            drive(Run.open(finished.uri), left.pop(0), again=())
        return check(*arguments)

    monkeypatch.setattr(module, "check_file", checked)
    assert_sound(finished)
    assert left == []


def test_a_file_whose_rows_all_stay_is_kept_as_it_is(finished, monkeypatch):
    monkeypatch.setattr(compact, "FILE_BYTES", 1)
    run = drive(finished, ["a", "b", "c", "d"], again=())
    first = read_compaction(finished.uri).files
    run = drive(run, ["a", "b", "c", "d", "e"], again=())
    second = read_compaction(run.uri)
    assert second.files[: len(first)] == first
    assert len(second.files) > len(first)
    assert second.update == 2


def test_many_small_updates_leave_few_files(finished):
    names = ["a", "b", "c"]
    run = finished
    sizes = []
    for number in range(20):
        names = [*names, f"new{number}"]
        run = drive(run, names, again=())
        sizes.append(len(read_compaction(run.uri).files))
    assert max(sizes) <= 6
    assert updates.found(run) == updates.expected(run)
    assert_sound(run)


def test_random_histories_with_kills_end_as_the_last_plan_says(tmp_path, monkeypatch):
    choose = random.Random(5)
    run = updates.create(tmp_path / "run", "abc")
    alive = set("abc")
    for _ in range(25):
        alive = {name for name in "abcdefgh" if choose.random() < (0.8 if name in alive else 0.3)} or {"a"}
        again = [name for name in alive if choose.random() < 0.2]
        with monkeypatch.context() as patch:
            if choose.random() < 0.7:
                kill_after(patch, choose.randrange(60))
            with contextlib.suppress(KilledError):
                drive(follow_plan(Run.open(run.uri)), sorted(alive), again)
        assert_sound(run)
    run = drive(Run.open(run.uri), sorted(alive), ())
    assert updates.found(run) == updates.expected(run)
    assert run.record.totals.utterances == len(alive) * updates.ROWS
    assert len(run.record.updates) == run.plan_update().number
    assert_sound(run)


def test_an_update_does_parts_again_whose_chunks_do_not_fit_together(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "in", "a.wav", "b.wav")
    config = make_config(inputs=(str(folder),), output=str(tmp_path / "run"), model="m", part_mib=1e-6)
    run = create_run(config, {"schema": 2}, plan_new_run(config))
    torn, sound = run.plan(["part_id"])["part_id"].to_pylist()
    with monkeypatch.context() as patch:
        patch.setattr(updates, "texts", lambda name, part_id: [f"{name} {part_id} 0"])  # a file was gone then
        updates.write(run, "", torn, 0)
    updates.work(run)
    with pytest.raises(InputChangedError, match="Do it again by --update"):
        updates.finish(run)

    run, updated = update_run(run.save(status=RunStatus.FAILED), config, lambda: None)
    assert (updated.changed, updated.added, updated.removed) == ((f"{folder}/a.wav",), (), ())
    assert run.plan(["part_id"])["part_id"].to_pylist() == [sound, f"{torn}1"]
    updates.work(run)
    run = updates.finish(run)
    assert updates.found(run) == updates.expected(run)
    assert_sound(run)
    assert not update_run(run, config, lambda: None)[1].has_changes


def test_a_plan_without_parts_is_refused_by_nobody(finished):
    run = replace_plan(finished, finished.plan().slice(0, 0), PlanUpdate(next_update(finished), "", removed=3))
    run = updates.finish(run)
    assert updates.found(run) == []
    assert run.record.totals.utterances == 0
    assert_sound(run)
