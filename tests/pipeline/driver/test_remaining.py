"""What is left of a run, and what a user is told of an error that a stage raised, out of what Ray put around it."""

from __future__ import annotations

import dataclasses

import pytest
from ray.exceptions import RayTaskError

from benchmarks.resume import commit, plan_of
from pipeline.cluster.ray_errors import unwrap_project_error
from pipeline.driver.transcribe import find_left
from pipeline.errors import LeaseLostError, RunFailedError, StorageError, UsageError
from pipeline.runs.commit import write_chunk
from pipeline.runs.run import Run, write_plan
from pipeline.stages.quarantine import QUARANTINE
from pipeline.storage import objects, uris


@pytest.mark.parametrize("kind", [RunFailedError, LeaseLostError, StorageError, UsageError])
def test_an_error_of_ours_is_raised_as_it_was(kind):
    raised = RayTaskError("read_parts", "a long traceback", kind("part ab: why"))
    found = unwrap_project_error(raised.as_instanceof_cause())
    assert type(found) is kind
    assert str(found) == "part ab: why"


def test_a_bug_is_none_of_ours():
    assert (
        unwrap_project_error(RayTaskError("read_parts", "a long traceback", KeyError("a bug")).as_instanceof_cause())
        is None
    )


def test_what_is_left_comes_with_what_is_known_of_it(tmp_path):
    ids = [f"{i:020x}" for i in range(100_000)]  # more than are read at once
    write_plan(str(tmp_path), plan_of(ids))
    chunks = [(ids[99_999], 2, False), (ids[99_999], 0, False), (ids[3], 0, False), (ids[1], 0, True)]
    for part, chunk, last in chunks:
        write_chunk(str(tmp_path), dataclasses.replace(commit(part), chunk=chunk, last=last, files=()), {})
    objects.put(uris.join(str(tmp_path), QUARANTINE, f"{ids[70_000]}.json"), b"{}")
    _, left = find_left(Run(str(tmp_path), {}))
    assert left["part_id"].to_pylist() == [part for part in ids if part != ids[1]]
    known = {row["part_id"]: row for row in left.to_pylist() if row["committed"] or row["record"]}
    assert {part: (row["committed"], row["record"]) for part, row in known.items()} == {
        ids[3]: ([0], None),
        ids[70_000]: ([], "{}"),
        ids[99_999]: ([0, 2], None),
    }
    assert left["committed"].null_count == 0
