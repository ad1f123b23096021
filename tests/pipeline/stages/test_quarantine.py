"""The quarantine record of a part that killed processes."""

from __future__ import annotations

import json

from pipeline.errors import ErrorCode
from pipeline.stages.quarantine import DEATHS, Record, attempt_marker
from pipeline.stages.steps import Position, Skipped
from pipeline.storage import objects


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


def test_the_keys_of_a_record_are_those_of_earlier_versions():
    content = {
        "at": [4, 0],
        "machine": "node",
        "deaths": [[[3, 1], 2]],
        "aside": [{"place": [3, 1], "code": "CRASHED", "message": "died"}],
    }
    record = Record(
        working_at=Position(4, 0),
        node="node",
        deaths={Position(3, 1): 2},
        skipped={3: Skipped(Position(3, 1), ErrorCode.CRASHED, "died")},
    )
    assert Record.parse(json.dumps(content)) == record
    assert json.loads(record.content()) == content


def test_an_attempt_finds_the_marker_of_an_attempt_that_died_and_leaves_none(tmp_path):
    marker = tmp_path / "control" / "trial-part-0"
    with attempt_marker(str(tmp_path), "part-0") as died:
        assert not died
        left_behind = marker.read_bytes()
    assert not marker.exists()
    objects.put(str(marker), left_behind)
    with attempt_marker(str(tmp_path), "part-0") as died:
        assert died
    assert not marker.exists()
