"""Finding, creating and removing a run; finishing one is tested with a whole pipeline."""

from __future__ import annotations

import json

import pytest

from pipeline.config import make_config
from pipeline.errors import LeaseLostError, StorageError, UsageError
from pipeline.runs.lifecycle import create_run, find_existing_run, plan_new_run, record_failure, remove_run
from pipeline.runs.run import Run
from pipeline.runs.status import RunStatus

FINGERPRINT = {"schema": 2, "model": "aa"}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"x")

    def make(**changes):
        return make_config(inputs=(str(tmp_path / "in"),), output=str(tmp_path / "run"), model="m", **changes)

    return make


def create(config):
    return create_run(config, FINGERPRINT, plan_new_run(config))


def accept() -> None:
    """The lease is held."""


def test_a_new_run_is_found_again(config):
    assert find_existing_run(config(), FINGERPRINT) is None
    run = create(config())
    assert (run.status, run.record.parts, run.record.input_bytes) == (RunStatus.RUNNING, 1, 1)
    assert find_existing_run(config(), FINGERPRINT) == run == Run.open(config().output)


def test_planning_writes_nothing(config, tmp_path):
    plan_new_run(config())
    assert not (tmp_path / "run").exists()


def test_a_run_with_another_fingerprint_is_not_resumed(config):
    create(config())
    with pytest.raises(UsageError, match=r"different run.*differs in model: aa -> bb"):
        find_existing_run(config(), FINGERPRINT | {"model": "bb"})


@pytest.mark.parametrize("status", RunStatus)
def test_an_existing_run_is_refused_on_request_whatever_its_status(config, status):
    create(config()).save(status=status)
    with pytest.raises(UsageError, match="already holds a run" if status != RunStatus.OVERWRITTEN else "repeat"):
        find_existing_run(config(existing="refuse"), FINGERPRINT)


def test_a_run_that_is_to_be_overwritten_is_not_resumed(config):
    create(config())
    assert find_existing_run(config(existing="overwrite"), FINGERPRINT) is None


@pytest.mark.parametrize("status", [RunStatus.STOPPED, RunStatus.FAILED, RunStatus.DONE, RunStatus.OVERWRITTEN])
def test_removing_a_run_leaves_the_lease_and_foreign_files(config, tmp_path, status):
    create(config()).save(status=status)
    run = tmp_path / "run"
    for name in ("transcripts/a.parquet", "commits/aa/b.json", "metrics/c.parquet", "control/lease.json", "notes.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    remove_run(config())
    assert {path.name for path in run.rglob("*") if path.is_file()} == {"lease.json", "notes.txt"}
    remove_run(config())  # there is none: nothing happens


@pytest.mark.parametrize("status", ["running", "paused"])
def test_a_run_that_may_still_be_written_to_is_not_removed(config, tmp_path, status):
    run = create(config())
    run.save(status=status)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UsageError, match="may still be writing" if status == "running" else "'paused' is unknown"):
        remove_run(config())
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert run.plan().num_rows == 1


def test_a_directory_with_the_run_json_of_another_program_is_not_removed(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"status": "done"}))
    with pytest.raises(UsageError, match="was not written by this program"):
        remove_run(config())
    assert (tmp_path / "run" / "run.json").exists()


def test_a_failure_is_recorded_with_its_reason(config):
    run = create(config())
    record_failure(run, "why", accept)
    record = Run.open(run.uri).record
    assert (record.status, record.reason) == (RunStatus.FAILED, "why")


@pytest.mark.parametrize("error", [LeaseLostError("gone"), StorageError("timed out")])
def test_a_failure_is_not_recorded_without_the_lease(config, error):
    def check_lease():
        raise error

    run = create(config())
    record_failure(run, "why", check_lease)
    assert Run.open(run.uri).status == RunStatus.RUNNING
