"""What a run has committed, and what is left of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.ledger import chunks_by_part, of_parts, parts_done, read_ledger
from pipeline.runs.run import Run
from pipeline.runs.totals import Totals
from pipeline.stages.quarantine import read_records


class Remaining(NamedTuple):
    """What a run has committed, and what is left of its plan.

    Attributes:
        totals: sums over the committed chunks.
        parts: the rows of the plan that are not done. Column `committed` lists the part's committed chunks, and
            `record` holds the content of its quarantine record (`pipeline.stages.quarantine`), or null.
        commits: the content of each commit that is still an object of its own.
    """

    totals: Totals
    parts: pa.Table
    commits: list[bytes]


def find_remaining(run: Run) -> Remaining:
    """Read from the commits and the plan what is done and what is left.

    Raises:
        StorageError: the run could not be read.
    """
    table, commits = read_ledger(run.uri)
    plan = run.plan_without(parts_done(table))
    ids = plan["part_id"].combine_chunks()
    plan = plan.append_column("committed", _values_of(ids, chunks_by_part(table, ids), pa.list_(pa.int32()), []))
    plan = plan.append_column("record", _values_of(ids, read_records(run.uri), pa.string(), None))
    return Remaining(Totals.from_ledger(of_parts(table, run.counted_parts())), plan, commits)


def _values_of(ids: pa.Array, known: Mapping[str, Any], value_type: pa.DataType, default: Any) -> pa.Array:
    """The known value of each id, else `default`. Millions of ids never become Python objects."""
    index = pc.index_in(ids, pa.array(known, pa.string())).fill_null(len(known))
    return pa.array([*known.values(), default], value_type).take(index)
