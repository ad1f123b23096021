"""What a run has committed, and what is left of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.additions import failed_rows
from pipeline.runs.ledger import chunks_by_part, of_parts, parts_done, read_ledger
from pipeline.runs.record import Addition
from pipeline.runs.run import Run
from pipeline.runs.totals import Totals
from pipeline.stages.quarantine import read_records
from pipeline.storage import uris

_CARRIED: Final = pa.struct([("chunks", pa.int32()), ("rows", pa.int64()), ("audio_s", pa.float64())])
_FAILED: Final = pa.list_(pa.struct([("utt_id", pa.string()), ("code", pa.string())]))


class Remaining(NamedTuple):
    """What a run has committed, and what is left of its plan.

    Attributes:
        totals: sums over the committed chunks.
        parts: the rows of the plan that are not done. Column `committed` lists the part's committed chunks, and
            `record` holds the content of its quarantine record (`pipeline.stages.quarantine`), or null. `failed` lists
            its rows that have no labels because they have no transcript; it is empty unless classifiers are added.
            `carried` counts what was carried over (`pipeline.runs.retry`); it is null if nothing was.
        commits: the content of each commit that is still an object of its own.
    """

    totals: Totals
    parts: pa.Table
    commits: list[bytes]


def find_remaining(run: Run, addition: Addition | None = None) -> Remaining:
    """Read from the commits and the plan what is done and what is left: of the run, or of an addition to it.

    Raises:
        StorageError: the run could not be read.
    """
    table, commits = read_ledger(uris.join(run.uri, addition.folder) if addition else run.uri)
    plan = run.plan_without(parts_done(table))
    ids = plan["part_id"].combine_chunks()
    plan = plan.append_column("committed", _values_of(ids, chunks_by_part(table, ids), pa.list_(pa.int32()), []))
    plan = plan.append_column("record", _values_of(ids, read_records(run.uri), pa.string(), None))
    failed = failed_rows(run, ids) if addition else {}
    plan = plan.append_column("failed", _values_of(ids, failed, _FAILED, []))
    carried = {} if addition else _carried(table)
    plan = plan.append_column("carried", _values_of(ids, carried, _CARRIED, None))
    return Remaining(Totals.from_ledger(of_parts(table, run.counted_parts())), plan, commits)


def _carried(table: pa.Table) -> dict[str, dict[str, Any]]:
    """The chunks of each part that were carried over, their rows, and their audio."""
    found = table.filter(table["carried"].fill_null(False))
    found = found.append_column("rows", pc.add(found["utterances"], found["errors"]))
    sums = found.group_by("part_id").aggregate([("chunk", "count"), ("rows", "sum"), ("audio_s", "sum")])
    return {
        row["part_id"]: {"chunks": row["chunk_count"], "rows": row["rows_sum"], "audio_s": row["audio_s_sum"]}
        for row in sums.to_pylist()
    }


def _values_of(ids: pa.Array, known: Mapping[str, Any], value_type: pa.DataType, default: Any) -> pa.Array:
    """The known value of each id, else `default`. Millions of ids never become Python objects."""
    index = pc.index_in(ids, pa.array(known, pa.string())).fill_null(len(known))
    return pa.array([*known.values(), default], value_type).take(index)
