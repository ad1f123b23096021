"""What is left of a run, as the driver finds it at its start."""

from __future__ import annotations

import dataclasses

from benchmarks.resume import fake_commit, fake_plan
from pipeline.driver.remaining import find_remaining
from pipeline.runs.commit import write_chunk
from pipeline.runs.record import RunRecord
from pipeline.runs.run import Run, write_plan
from pipeline.stages.quarantine import QUARANTINE, Record
from pipeline.storage import objects, uris


def test_remaining_parts_have_their_committed_chunks_and_their_quarantine_record(tmp_path):
    ids = [f"{i:020x}" for i in range(100_000)]  # more than are read at once
    write_plan(str(tmp_path), fake_plan(ids))
    chunks = [(ids[99_999], 2, False), (ids[99_999], 0, False), (ids[3], 0, False), (ids[1], 0, True)]
    for part, chunk, last in chunks:
        write_chunk(str(tmp_path), dataclasses.replace(fake_commit(part), chunk=chunk, last=last, files=()), {})
    objects.put(uris.join(str(tmp_path), QUARANTINE, f"{ids[70_000]}.json"), Record().content())
    remaining = find_remaining(Run(str(tmp_path), RunRecord({})))
    parts = remaining.parts
    assert parts["part_id"].to_pylist() == [part for part in ids if part != ids[1]]
    known = {row["part_id"]: row for row in parts.to_pylist() if row["committed"] or row["record"]}
    assert {part: (row["committed"], row["record"]) for part, row in known.items()} == {
        ids[3]: ([0], None),
        ids[70_000]: ([], Record().content().decode()),
        ids[99_999]: ([0, 2], None),
    }
    assert parts["committed"].null_count == 0
    assert remaining.totals.chunks == len(remaining.commits) == len(chunks)
