"""Where processes die, and what is set aside for it; the children are real, what they read is not."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.audio.decode import AudioSettings
from pipeline.errors import ErrorCode, RunFailedError, StorageError
from pipeline.stages.child import MARK_AFTER_S, run_in_child
from pipeline.stages.quarantine import DEATHS, QUARANTINE, START, Position, Record, Skipped, Step, read_records
from pipeline.stages.read import ReadSettings, part_steps
from pipeline.storage import objects, uris
from pipeline.storage.deadline import deadline_paused
from tests.support import corpora


# ------------------------------------------------------------------------------------------------ steps of a real part
@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Of 3, 1 and 9 s, and one that is no audio: 2, 1, 4 rows and an error at most 2.5 s a row."""
    folder = tmp_path_factory.mktemp("clips")
    for name, seconds in (("a", 3), ("b", 1), ("d", 9)):
        corpora.write_audio(folder / f"{name}.wav", seconds, seed=seconds)
    (folder / "c.wav").write_text("no audio")
    return folder


def steps_of(clips, start=START, aside=()):
    (part,) = corpora.parts_of(clips)
    settings = ReadSettings(
        AudioSettings(max_segment_s=2.5), 720, 600, 2000, str(clips.parent / "stop"), str(clips), 600
    )
    steps = list(part_steps(part, settings, start, {entry.position.utterance: entry for entry in aside}))
    for step in steps:
        if step.row is not None and (samples := step.row.get("samples")) is not None:
            step.row["samples"] = samples.tobytes()  # arrays are not equal, each of their samples is
    return steps


def ids(steps):
    return [(step.row["utt_id"].partition("#")[0], step.row["code"]) for step in steps if step.row is not None]


def test_from_any_place_on_the_steps_are_those_that_are_left(clips):
    whole = steps_of(clips)
    assert [step.next for step in whole] == sorted(step.next for step in whole)
    assert sum(step.size for step in whole) == sum(path.stat().st_size for path in clips.iterdir())
    for done, step in enumerate(whole, 1):
        assert steps_of(clips, step.next) == whole[done:]


def test_an_utterance_ends_in_the_error_that_is_set_aside_at_its_place(clips):
    whole = steps_of(clips)
    first = Skipped(Position(0, 0), ErrorCode.CRASHED, "died")
    later = Skipped(Position(3, 2), ErrorCode.HUNG, "hung")
    steps = steps_of(clips, aside=[first, later])

    assert ids(steps) == [("a", "CRASHED"), *ids(whole)[2:6], ("d", "HUNG")]
    assert ids(whole)[2:6] == [("b", None), ("c", "UNDECODABLE"), ("d", None), ("d", None)]
    for done, step in enumerate(steps, 1):
        assert steps_of(clips, step.next, [first, later]) == steps[done:]


BEFORE_THE_SECOND = Skipped(Position(1, -1), ErrorCode.CRASHED, "died")


def test_of_files_the_one_that_cannot_be_begun_is_lost_and_no_other(clips):
    whole = steps_of(clips)
    steps = steps_of(clips, aside=[BEFORE_THE_SECOND])
    assert ids(steps) == [("a", None), ("a", None), ("b", "CRASHED"), *ids(whole)[3:]]
    for done, step in enumerate(steps, 1):
        assert steps_of(clips, step.next, [BEFORE_THE_SECOND]) == steps[done:]


def test_a_container_ends_in_the_error_that_is_set_aside_before_an_utterance(clips, tmp_path):
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("a", "b", "d"):
            tar.add(clips / f"{name}.wav", f"{name}.wav")
    steps = steps_of(shard, aside=[BEFORE_THE_SECOND])
    assert ids(steps) == [("a", None), ("a", None), ("shard", "CRASHED")]
    assert steps_of(shard, steps[-1].next, [BEFORE_THE_SECOND]) == []


# ---------------------------------------------------------------------------------------------------------- records
def test_a_record_is_read_as_it_was_written():
    record = Record(Position(3, 1)).after_death(Position(3, 1), ErrorCode.HUNG, "x")
    assert (record.working_at, record.skipped) == (None, {})
    for _ in range(DEATHS):
        record = record.after_death(Position(4, -1), ErrorCode.CRASHED, "by SIGSEGV")
    assert set(record.skipped) == {4}
    assert Record.parse(record.content()) == record
    marked = Record(Position(0, -1))
    assert Record.parse(marked.content()) == marked
    assert Record.parse(None) == Record()


# ----------------------------------------------------------------------------------------------------------- children
ROOT = Path(__file__).parents[3]
END = Position(4, -1)


def deadly(deeds, start, aside):
    """Four utterances of two rows each; at a place where a step is waited for, what `deeds` has for it is done."""
    place = start
    while place != END:
        entry = aside.get(place.utterance)
        if entry is not None and entry.position == place:
            place = Position(place.utterance + 1, -1)
            yield Step(place)
            continue
        deed = deeds.get(place)
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif deed == "hang":
            time.sleep(600)
        elif deed == "kill both":
            time.sleep(4 * MARK_AFTER_S + 1)
            os.kill(os.getppid(), signal.SIGKILL)
        elif deed == "take a while":
            time.sleep(4 * MARK_AFTER_S)
        elif deed == "wait for storage":
            with deadline_paused():
                time.sleep(4 * MARK_AFTER_S + 1)
            os.kill(os.getppid(), signal.SIGKILL)
        elif deed == "weather":
            raise StorageError("no network")
        elif deed == "bug":
            raise KeyError("a bug")
        place = Position(place.utterance, place.row + 1) if place.row < 2 else Position(place.utterance + 1, -1)
        yield Step(place)


def never_begins(start, aside):
    raise AssertionError


def kills_whatever_is_left_out(start, aside):
    return deadly({START: "kill"}, start, {})


class Unreadable:
    """Kills the process to which it is sent."""

    def __reduce__(self):
        return os._exit, (1,)


def care(run, deeds, seconds=30.0):
    return run_in_child(str(run), "ab", functools.partial(deadly, deeds), seconds)


def places(steps):
    return list(dict.fromkeys(step.next for step in steps))


def record_of(run):
    return Record.parse(read_records(str(run))["ab"])


def test_a_killing_utterance_is_skipped_and_the_rest_is_read(tmp_path):
    deadly_places = [Position(1, 0), Position(3, -1)]
    got = places(care(tmp_path, dict.fromkeys(deadly_places, "kill")))

    record = record_of(tmp_path)
    assert [(a.position, a.code) for a in record.skipped.values()] == [(p, ErrorCode.CRASHED) for p in deadly_places]
    assert record.deaths == dict.fromkeys(deadly_places, DEATHS)
    assert "SIGSEGV" in record.skipped[1].message
    rest = [Position(u, r) for u in (0, 1, 2) for r in (-1, 0, 1, 2) if (u, r) not in ((1, 1), (1, 2))]
    assert got == [*rest, Position(3, -1), END]


def test_a_hanging_utterance_is_skipped(tmp_path):
    assert places(care(tmp_path, {Position(2, 0): "hang"}, seconds=5.0))[-1] == END
    assert [(a.position, a.code) for a in record_of(tmp_path).skipped.values()] == [(Position(2, 0), ErrorCode.HUNG)]


def test_what_kills_though_it_is_left_out_fails_the_run(tmp_path):
    with pytest.raises(RunFailedError, match="though"):
        list(run_in_child(str(tmp_path), "ab", kills_whatever_is_left_out, 30))


def test_the_weather_comes_through_and_costs_no_row(tmp_path):
    with pytest.raises(StorageError, match="no network"):
        list(care(tmp_path, {Position(1, 1): "weather"}))
    assert read_records(str(tmp_path)) == {}


def test_a_bug_is_raised(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"):
        list(care(tmp_path, {Position(1, 1): "bug"}))


def test_children_that_die_when_they_start_fail_the_run_and_blame_no_utterance(tmp_path):
    with pytest.raises(RunFailedError, match="child processes die when they start"):
        list(run_in_child(str(tmp_path), "ab", functools.partial(never_begins, Unreadable()), 30))
    assert read_records(str(tmp_path)) == {}


def test_an_attempt_that_finds_a_recorded_position_counts_a_death_there(tmp_path):
    for _ in range(DEATHS):
        killed_with_its_child(tmp_path, "kill both")
        assert record_of(tmp_path).working_at == Position(2, 0)
    got = places(care(tmp_path, {}))

    record = record_of(tmp_path)
    assert record.working_at is None
    assert {a.position for a in record.skipped.values()} == {Position(2, 0)}
    assert Position(2, 1) not in got
    assert got[-1] == END


def killed_with_its_child(run, deed):
    program = "from tests.pipeline.stages.test_quarantine import Position, care; import sys; "
    program += "list(care(sys.argv[1], {Position(2, 0): sys.argv[2]}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # a child imports nothing from the working directory
    done = subprocess.run([sys.executable, "-c", program, str(run), deed], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL


def test_waiting_for_storage_is_not_recorded(tmp_path):
    killed_with_its_child(tmp_path, "wait for storage")
    assert objects.list_objects(str(tmp_path)) == []


def test_a_death_together_with_the_node_blames_no_utterance(tmp_path):
    uri = uris.join(str(tmp_path), QUARANTINE, "ab.json")
    for _ in range(DEATHS):
        objects.put(uri, replace(Record(), working_at=Position(2, 0), node="one that is gone").content())
        assert places(care(tmp_path, {}))[-1] == END
    assert record_of(tmp_path) == Record()


def test_a_slow_step_is_recorded_only_while_it_lasts(tmp_path):
    assert places(care(tmp_path, {Position(2, 0): "take a while"}))[-1] == END
    assert record_of(tmp_path) == Record()


def test_a_part_that_kills_no_process_leaves_no_record(tmp_path):
    assert places(care(tmp_path, {}))[-1] == END
    assert not (Path(tmp_path) / QUARANTINE).exists()
    assert objects.list_objects(str(tmp_path)) == []


def test_a_module_of_the_user_in_the_working_directory_is_not_imported(tmp_path, monkeypatch):
    for name in ("pipeline.py", "sewd_model.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert places(care(tmp_path / "run", {}))[-1] == END
