"""Change the plan of a run that exists: parts join it, leave it, or are done again, and the run stays one run.

How rows are replaced. The plan says which commits count: those of its parts (`Run.ledger`, `Run.commits`). A part that
stays keeps its id and its commits. A part that leaves takes its rows along. A part that is done again is in the new
plan under another id (`Part.planned_by`): the commits of the old id do not count any more, and the new id has none yet.
So to replace rows, write a plan with other parts by `replace_plan`; the driver does what is missing, and finishing the
run (`pipeline.runs.lifecycle`) makes its rows the ones that readers see.

The ordering argument. Each plan has the number of its update, and `compaction.json` has the number of the plan whose
rows its files hold. An update, and the start of a driver that does its work, write in this order; readers use the files
of the last `compaction.json` that is stored, if there is one:

1. The record, with the status `running`. Killed here, the next start finds nothing to do, and finishes the run again.
2. The plan, in one PUT, with the number of the update and what it changes: from here on the update will happen. Killed
   here, the record has the number of parts and bytes of the plan before; every start makes it follow the plan
   (`follow_plan`). Readers of a run that was finished before see its rows as they were. Readers of one that was never
   finished see the rows of commits that count: those that are replaced are gone, their successors come with the work.
3. The record that follows the plan, then the work: data files and commits of the new parts. Killed here, any start goes
   on: `sewd transcribe` with or without `--update`. Another update plans again from this plan, so that what is done of
   the new parts stays.
4. Compacted files, then the new `compaction.json` (`pipeline.runs.compact`): rows are replaced for readers, at once.
   Killed before it, the new files are orphans. Killed after it, the run is finished again with the same files.
5. Commits that do not count are removed, then orphaned files. Killed in between, what is left of them does not count
   either; it is removed when the run is finished again.
6. The record, with the status `done`.

Nothing is ever written under an id that was in an earlier plan, so commits and data files that a killed driver, or a
slow worker of it, left behind are never taken for those of a part that reads something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RunConfig, column_names
from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.parts import PLAN, Part
from pipeline.corpus.plan import plan_parts
from pipeline.corpus.update import UpdatedPlan, known_manifests, update_plan
from pipeline.errors import InputsError, UsageError
from pipeline.runs.fingerprint import has_earlier_rules
from pipeline.runs.ledger import non_contiguous_chunks
from pipeline.runs.record import PlanUpdate
from pipeline.runs.run import Run, now, write_plan
from pipeline.runs.status import RunStatus


def update_run(run: Run, config: RunConfig, check_lease: Callable[[], None]) -> tuple[Run, UpdatedPlan]:
    """Plan the INPUTs again and, if they have changed, make that the plan of the run. The caller holds the lease.

    It does not matter whether the run is done: parts that stay are resumed. Those whose chunks do not fit together,
    because a file changed between two starts of the run, are done again.

    Returns:
        The run, with the status `running` if its plan has changed, and what has changed.

    Raises:
        InputsError: the INPUTs cannot be planned; among other reasons, because one holds no audio any more.
        DamagedRunError: the stored plan, or a commit of a run that is not done, is lost or cannot be read.
        LeaseLostError: another driver took over.
    """
    try:
        updated = planned_again(run, config)
    except InputsError as error:
        raise InputsError(f"{error}; the run at {run.uri} stays as it is") from error
    run = follow_plan(run)
    torn = non_contiguous_chunks(run.ledger()) if run.status != RunStatus.DONE else []
    if torn:
        updated = updated.with_again({chunk.part_id for chunk in torn}, next_update(run))
    if not updated.has_changes:
        return run, updated
    check_lease()
    counts = {name: len(getattr(updated, name)) for name in ("added", "changed", "removed")}
    return replace_plan(run, updated.table, PlanUpdate(next_update(run), "", **counts)), updated


def planned_again(run: Run, config: RunConfig) -> UpdatedPlan:
    """What the next plan of a run would be, and how it differs from the stored one. Writes nothing.

    Raises:
        InputsError: the INPUTs cannot be planned.
        DamagedRunError: the stored plan is lost or cannot be read.
        StorageError: the INPUTs or the run could not be reached.
    """
    earlier = has_earlier_rules(run.record.fingerprint)

    def stored() -> Iterator[Part]:
        for batch in run.plan_batches():
            for row in batch.to_pylist():
                yield Part.from_row(row, earlier)

    known = known_manifests(stored())
    part_bytes = int(config.part_mib * 2**20)
    try:
        names = column_names(config.columns)
        now = plan_parts(config.inputs, part_bytes, config.limit, names, config.input_format, known)
    except UsageError as error:
        raise InputsError(str(error)) from error
    return update_plan(stored(), now, part_bytes, next_update(run))


def next_update(run: Run) -> int:
    """The number of the next update of a run: that of its new parts (`Part.planned_by`)."""
    update = run.plan_update()
    return 1 + (update.number if update else 0)


def replace_plan(run: Run, parts: pa.Table, update: PlanUpdate) -> Run:
    """Make `parts` the plan of a run; see the module. The caller holds the lease.

    Args:
        run: the run.
        parts: of schema `PLAN`. Its parts are those of the stored plan, with their ids, or planned by this update.
        update: what changes; its number is `next_update(run)`.

    Returns:
        The run, with the status `running`: what its new parts lack is to be done, and the run to be finished.
    """
    run = follow_plan(run).save(status=RunStatus.RUNNING)
    ordinals = pa.array(range(len(parts)), pa.int32())
    parts = parts.set_column(PLAN.get_field_index("ordinal"), PLAN.field("ordinal"), ordinals)
    metadata = {**(parts.schema.metadata or {}), **replace(update, at=now()).to_metadata()}
    write_plan(run.uri, parts.replace_schema_metadata(metadata))
    return follow_plan(run)


def follow_plan(run: Run) -> Run:
    """Make the record say what the plan holds, if an update was killed between the two.

    Raises:
        DamagedRunError: the plan is lost or cannot be read.
    """
    update = run.plan_update()
    if update is None or update == run.record.last_update:
        return run
    parts = run.plan(["bytes"])
    return run.save(
        status=RunStatus.RUNNING,
        parts=len(parts),
        input_bytes=pc.sum(parts["bytes"], min_count=0).as_py(),
        left_out=LeftOut.from_metadata(run.plan_metadata()).to_json(),
        updates=[*run.record.updates, update],
        reason=None,
    )
