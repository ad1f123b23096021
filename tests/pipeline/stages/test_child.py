"""Child processes that die, hang or fail. The children are real; what they read is not."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ErrorCode, RunFailedError, StorageError
from pipeline.runs.run import QUARANTINE
from pipeline.stages.child import run_in_child
from pipeline.stages.child_process import MARK_AFTER_S
from pipeline.stages.quarantine import DEATHS, Record, read_records
from pipeline.stages.steps import START, Position, Step
from pipeline.storage import objects, uris
from pipeline.storage.deadline import deadline_paused

ROOT = Path(__file__).parents[3]
END = Position(4, -1)


def faulty_steps(faults, start, skipped):
    """The steps of four utterances of two rows each; before the step at a position, its fault in `faults` happens."""
    position = start
    while position != END:
        skip = skipped.get(position.utterance)
        if skip is not None and skip.position == position:
            position = Position(position.utterance + 1, -1)
            yield Step(position)
            continue
        happen(faults.get(position))
        if position.row < 2:
            position = Position(position.utterance, position.row + 1)
        else:
            position = Position(position.utterance + 1, -1)
        yield Step(position)


def happen(fault):
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault == "hang":
        time.sleep(600)
    elif fault == "kill the parent":
        time.sleep(4 * MARK_AFTER_S + 1)
        os.kill(os.getppid(), signal.SIGKILL)
    elif fault == "be slow":
        time.sleep(4 * MARK_AFTER_S)
    elif fault == "wait for storage, then kill the parent":
        with deadline_paused():
            time.sleep(4 * MARK_AFTER_S + 1)
        os.kill(os.getppid(), signal.SIGKILL)
    elif fault == "storage error":
        raise StorageError("no network")
    elif fault == "bug":
        raise KeyError("a bug")
    elif isinstance(fault, Path) and not fault.exists():
        fault.touch()
        fail_on_device()
    elif fault == "fail on the device":
        fail_on_device()


def fail_on_device():
    import torch

    from pipeline.stages.recognize import _end_if_device_fails

    with _end_if_device_fails():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def never_starts(start, skipped):
    raise AssertionError


def crashes_although_skipped(start, skipped):
    return faulty_steps({START: "crash"}, start, {})


class ExitsWhenUnpickled:
    def __reduce__(self):
        return os._exit, (1,)


def run_with_faults(run, faults, seconds=30.0):
    return run_in_child(str(run), "ab", functools.partial(faulty_steps, faults), seconds)


def positions(steps):
    return list(dict.fromkeys(step.next for step in steps))


def record_of(run):
    return Record.parse(read_records(str(run))["ab"])


def skips_of(record):
    return [(skip.position, skip.code) for skip in record.skipped.values()]


def test_a_killing_utterance_is_skipped_and_the_rest_is_read(tmp_path):
    crashing = [Position(1, 0), Position(3, -1)]
    reached = positions(run_with_faults(tmp_path, dict.fromkeys(crashing, "crash")))

    record = record_of(tmp_path)
    assert skips_of(record) == [(position, ErrorCode.CRASHED) for position in crashing]
    assert record.deaths == dict.fromkeys(crashing, DEATHS)
    assert "SIGSEGV" in record.skipped[1].message
    rest = [Position(u, r) for u in (0, 1, 2) for r in (-1, 0, 1, 2) if (u, r) not in ((1, 1), (1, 2))]
    assert reached == [*rest, Position(3, -1), END]


def test_a_device_that_fails_once_is_not_attributed_to_the_utterance(tmp_path):
    reached = positions(run_with_faults(tmp_path / "run", {Position(2, 0): tmp_path / "failed"}))
    assert reached == positions(run_with_faults(tmp_path / "undisturbed", {}))
    assert record_of(tmp_path / "run").skipped == {}


def test_an_utterance_on_which_the_device_fails_again_and_again_is_skipped(tmp_path):
    assert positions(run_with_faults(tmp_path, {Position(2, 0): "fail on the device"}))[-1] == END
    record = record_of(tmp_path)
    assert skips_of(record) == [(Position(2, 0), ErrorCode.CRASHED)]
    assert "exit status 70" in record.skipped[2].message


def test_a_hanging_utterance_is_skipped(tmp_path):
    assert positions(run_with_faults(tmp_path, {Position(2, 0): "hang"}, seconds=2.0))[-1] == END
    assert skips_of(record_of(tmp_path)) == [(Position(2, 0), ErrorCode.HUNG)]


def test_an_utterance_that_kills_although_it_is_skipped_fails_the_run(tmp_path):
    with pytest.raises(RunFailedError, match="although it is skipped"):
        list(run_in_child(str(tmp_path), "ab", crashes_although_skipped, 30))


def test_a_storage_error_in_a_child_is_raised_and_blames_no_utterance(tmp_path):
    with pytest.raises(StorageError, match="no network"):
        list(run_with_faults(tmp_path, {Position(1, 1): "storage error"}))
    assert read_records(str(tmp_path)) == {}


def test_a_bug_in_a_child_is_raised(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"):
        list(run_with_faults(tmp_path, {Position(1, 1): "bug"}))


def test_children_that_die_when_they_start_fail_the_run_and_blame_no_utterance(tmp_path):
    with pytest.raises(RunFailedError, match="child processes die when they start"):
        list(run_in_child(str(tmp_path), "ab", functools.partial(never_starts, ExitsWhenUnpickled()), 30))
    assert read_records(str(tmp_path)) == {}


def test_an_attempt_that_finds_a_recorded_position_counts_a_death_there(tmp_path):
    for _ in range(DEATHS):
        killed_with_its_child(tmp_path, "kill the parent")
        assert record_of(tmp_path).working_at == Position(2, 0)
    reached = positions(run_with_faults(tmp_path, {}))

    record = record_of(tmp_path)
    assert record.working_at is None
    assert {skip.position for skip in record.skipped.values()} == {Position(2, 0)}
    assert Position(2, 1) not in reached
    assert reached[-1] == END


def killed_with_its_child(run, fault):
    program = "from tests.pipeline.stages.test_child import Position, run_with_faults; import sys; "
    program += "list(run_with_faults(sys.argv[1], {Position(2, 0): sys.argv[2]}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # a child imports nothing from the working directory
    done = subprocess.run([sys.executable, "-c", program, str(run), fault], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL


def test_waiting_for_storage_is_not_recorded(tmp_path):
    killed_with_its_child(tmp_path, "wait for storage, then kill the parent")
    assert objects.list_objects(str(tmp_path)) == []


def test_a_death_together_with_the_node_blames_no_utterance(tmp_path):
    uri = uris.join(str(tmp_path), QUARANTINE, "ab.json")
    for _ in range(DEATHS):
        objects.put(uri, replace(Record(), working_at=Position(2, 0), node="a lost node").content())
        assert positions(run_with_faults(tmp_path, {}))[-1] == END
    assert record_of(tmp_path) == Record()


def test_a_slow_step_is_recorded_only_while_it_lasts(tmp_path):
    assert positions(run_with_faults(tmp_path, {Position(2, 0): "be slow"}))[-1] == END
    assert record_of(tmp_path) == Record()


def test_a_part_that_kills_no_process_leaves_no_record(tmp_path):
    assert positions(run_with_faults(tmp_path, {}))[-1] == END
    assert not (Path(tmp_path) / QUARANTINE).exists()
    assert objects.list_objects(str(tmp_path)) == []


def test_a_module_of_the_user_in_the_working_directory_is_not_imported(tmp_path, monkeypatch):
    for name in ("pipeline.py", "sewd_model.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert positions(run_with_faults(tmp_path / "run", {}))[-1] == END


def test_a_child_imports_what_the_runtime_environment_of_ray_put_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "from_runtime_environment.py").write_text(
        "from pipeline.stages.steps import Position, Step\n"
        "def steps(start, skipped):\n"
        "    yield Step(Position(4, -1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("from_runtime_environment")
    assert positions(run_in_child(str(tmp_path / "run"), "ab", module.steps, 30.0)) == [START, END]
