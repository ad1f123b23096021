"""A run, its plan and its totals."""

import dataclasses
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.parts import PLAN, plan_table
from pipeline.corpus.plan import plan
from pipeline.errors import StorageError, UsageError
from pipeline.runs.commit import Commit
from pipeline.runs.lease import hold_lease
from pipeline.runs.ledger import ledger_table
from pipeline.runs.record import RunRecord
from pipeline.runs.run import RECORD, Run, write_plan
from pipeline.runs.totals import Totals
from pipeline.schemas import LABELS, TABLES
from pipeline.storage import objects, retry
from tests.support import s3

TOTALS = st.builds(
    Totals,
    chunks=st.integers(0, 9),
    utterances=st.integers(0, 9),
    errors=st.integers(0, 9),
    audio_s=st.integers(0, 9).map(float),
    source_bytes=st.integers(0, 9),
    compute_s=st.integers(0, 9).map(float),
    error_codes=st.dictionaries(st.sampled_from(["MISSING", "EMPTY_FILE", "TRUNCATED"]), st.integers(1, 9)),
    engines=st.dictionaries(st.sampled_from(["packed", "clip by clip", "unknown"]), st.integers(1, 9)),
    fallbacks=st.dictionaries(st.sampled_from(["no int8", "no compiler"]), st.integers(1, 9)),
    splits=st.integers(0, 9),
    warned=st.integers(0, 9),
)


def run_with(path, **record):
    return Run(str(path), RunRecord(record))


def test_a_record_is_read_as_it_was_saved(tmp_path):
    saved = run_with(tmp_path, status="running", a={"ä": [1, None]}).save(status="done", b=2)
    assert saved.status == "done"
    assert Run.open(str(tmp_path)) == saved
    assert Run.open(f"{tmp_path}/").record.values == {"status": "done", "a": {"ä": [1, None]}, "b": 2}


def test_a_record_that_could_not_be_read_is_not_stored(tmp_path):
    run = run_with(tmp_path, status="running").save()
    for run_s in (0, -1.0, float("nan"), True, "2"):
        with pytest.raises(ValueError, match="run_s"):
            run.save(attempts=[{"id": "a", "predicted": {"run_s": run_s}}])
    assert Run.open(str(tmp_path)) == run


def test_saving_does_not_change_the_run_object(tmp_path):
    run = run_with(tmp_path, status="running")
    run.save(status="done")
    assert run.status == "running"


def test_a_running_run_is_interrupted_if_nobody_holds_its_lease(tmp_path):
    run = run_with(tmp_path, status="running").save()
    assert run.is_interrupted()
    with hold_lease(run.uri, "a"):
        assert not run.is_interrupted()
    assert not run.save(status="stopped").is_interrupted()
    assert not run.is_interrupted()  # its driver had ended and recorded that when the lease was read


@pytest.mark.parametrize("name", ["none", "empty", "file"])
def test_a_missing_run_is_a_usage_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UsageError, match=f"no run at {tmp_path}/{name}: there is no {RECORD}"):
        Run.open(str(tmp_path / name))


def test_a_run_that_must_not_be_read_is_not_reported_as_missing(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    with s3.forbidden_server(), pytest.raises(StorageError):
        Run.open("s3://bucket/run")


def test_a_save_that_is_killed_leaves_the_old_record(tmp_path, monkeypatch):
    run = run_with(tmp_path, status="running").save()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.save(status="done")
    assert Run.open(str(tmp_path)).status == "running"


def test_the_plan_is_read_as_it_was_written(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.wav").write_bytes(b"x")
    planned = plan([str(tmp_path)], 1)
    write_plan(str(tmp_path / "run"), planned)
    run = run_with(tmp_path / "run")
    assert run.plan().equals(planned)
    assert run.plan().schema.equals(PLAN)
    assert run.plan(["part_id"]).column_names == ["part_id"]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_without_rows_has_its_schema(tmp_path, table):
    write_plan(str(tmp_path), plan_table([]))
    found = run_with(tmp_path).dataset(table).to_table()
    assert (found.num_rows, found.schema) == (0, TABLES[table])
    assert TABLES["labels"] is LABELS


def test_a_part_is_done_when_its_chunks_are_committed(tmp_path):
    for name in ("aa-00000.json", "aa-00001.last.json", "bb-00000.json", "cc-00001.last.json"):
        objects.put(f"{tmp_path}/commits/{name[:2]}/{name}", b"{}")
    write_plan(str(tmp_path), plan_table([]))
    assert run_with(tmp_path).parts_done() == {"aa"}


@settings(deadline=None)
@given(TOTALS, TOTALS, TOTALS)
def test_totals_add_up_in_any_order(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Totals() == a
    for name in ("chunks", "utterances", "errors", "audio_s", "source_bytes", "compute_s", "splits"):
        assert getattr(a + b, name) == getattr(a, name) + getattr(b, name)
    for name in ("error_codes", "engines", "fallbacks"):
        here, there, both = (getattr(each, name) for each in (a, b, a + b))
        assert both == {key: here.get(key, 0) + there.get(key, 0) for key in sorted(here | there)}


def test_adding_changes_neither_term():
    a, b = Totals(error_codes={"MISSING": 1}), Totals(error_codes={"MISSING": 2, "EMPTY_FILE": 1})
    assert (a + b).error_codes == {"EMPTY_FILE": 1, "MISSING": 3}
    assert (a.error_codes, b.error_codes) == ({"MISSING": 1}, {"MISSING": 2, "EMPTY_FILE": 1})


@pytest.mark.parametrize(("utterances", "errors", "rate"), [(0, 0, 0.0), (3, 1, 0.25), (0, 2, 1.0)])
def test_the_error_rate_is_the_share_of_failed_rows_in_all_rows(utterances, errors, rate):
    assert Totals(utterances=utterances, errors=errors).error_rate == rate


def test_totals_of_a_commit_are_its_numbers():
    numbers = {"utterances": 2, "errors": 1, "error_codes": {"MISSING": 1}, "audio_s": 3.0, "source_bytes": 4}
    names = [field.name for field in dataclasses.fields(Commit)]
    commit = Commit(**dict.fromkeys(names) | numbers | {"seconds": {"compute": 5.0}, "files": (), "engines": ()})
    assert Totals.from_ledger(ledger_table([commit])) == Totals(1, 2, 1, 3.0, 4, 5.0, {"MISSING": 1}, {"unknown": 2})
