"""Do rows again that failed, in a finished run.

Each part with rows to retry is done again (`pipeline.runs.update`): the next plan has it under another id. What need
not be computed again is carried over: before the parts are read, the rows that succeeded, and those that are not
retried, are committed under the new id, chunk by chunk, as they are stored. What is left of the part to read are the
utterances to retry. Their rows follow in chunks of their own.

The unit is the utterance as its source describes it: of a long recording with one failed segment, all segments are
done again, because they are cut anew. Where the row that failed stands for an unknown number of utterances (a shard
whose end could not be read), the whole part is read.

The ordering argument is that of the update. Rows are carried over from the files that `compaction.json` names, which
are untouched until the new one is stored. Killed in between, what is missing is carried over by the next start. If
those files are lost, the part is read whole: it is a part like any other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.layouts.files import FILES
from pipeline.corpus.layouts.manifest import MANIFEST
from pipeline.corpus.layouts.table import TABLE
from pipeline.corpus.parts import PLAN, Part, plan_table
from pipeline.errors import ErrorCode, UsageError
from pipeline.runs.commit import Commit, DataFile, write_chunk
from pipeline.runs.compact import read_compaction
from pipeline.runs.lease import require_lease
from pipeline.runs.ledger import read_commits
from pipeline.runs.record import PlanUpdate
from pipeline.runs.run import Run, open_files
from pipeline.runs.status import RunStatus
from pipeline.runs.update import next_update, replace_plan
from pipeline.schemas import TABLES
from sewd_model.grouping import grouped

ALL: Final = "all"
NOT_RETRIED: Final = frozenset((ErrorCode.DUPLICATE_ID.value,))  # unless they are named: they fail again in any case
BATCH_ROWS: Final = 100_000  # that are read at once to be carried over
_APPENDED: Final = re.compile(r"(#c\d+|#\d+-\d+)+$")
_LISTED_KINDS: Final = frozenset(
    (FILES.kind, MANIFEST.kind, TABLE.kind)
)  # each of their utterances is known to the plan


@dataclass(frozen=True)
class Carried:
    """A part whose rows are carried over.

    Attributes:
        part_id: its new id.
        retry: ids of the utterances that are done again, as `utterance_id` gives them.
        commits: of its chunks, under the old id, in order.
    """

    part_id: str
    retry: frozenset[str]
    commits: tuple[Commit, ...]


CarryBatches = Callable[[Sequence[Sequence[Carried]]], None]
"""Carries batches of parts over by `carry_batch`; where is the caller's choice."""


def utterance_id(utt_id: str) -> str:
    """The id of a row without what is appended for channels and segments; equal for all rows of an utterance."""
    return _APPENDED.sub("", utt_id)


def _was_finished(run: Run) -> bool:
    """Whether all rows of its plan are in compacted files: also if a start was killed before it changed the plan."""
    compaction, update = read_compaction(run.uri), run.plan_update()
    return compaction is not None and compaction.update == (update.number if update else 0)


def retry_errors(run: Run, codes: Collection[str]) -> Run:
    """Plan the rows of a finished run that failed with one of `codes` to be done again; the caller holds the lease.

    Returns:
        The run: with the status `running`, or as it was if there are no such rows. A run that is not finished, because
        an earlier call of this was interrupted, is returned as it is: it is to be resumed.

    Raises:
        UsageError: the run is not finished for another reason.
    """
    if run.status != RunStatus.DONE and is_retrying(run):
        return run
    if run.status != RunStatus.DONE and not _was_finished(run):
        raise UsageError(
            f"rows are retried in a finished run, and {run.uri} is {run.status}: run its command first, "
            "without --retry-errors"
        )
    failed = _failed(run, codes)
    if not failed:
        return run
    number = next_update(run)
    again = [_again(part, failed[part.part_id], number) for part in run.parts(failed.keys())]
    ids = pa.array(failed, pa.string())
    batches = [batch.filter(pc.invert(pc.is_in(batch["part_id"], ids))) for batch in run.plan_batches()]
    table = pa.concat_tables([pa.Table.from_batches(batches, PLAN), plan_table(again)])
    changed = sum(len(rows) for rows in failed.values())
    return replace_plan(
        run, table.replace_schema_metadata(run.plan_metadata()), PlanUpdate(number, "", changed=changed)
    )


def is_retrying(run: Run) -> bool:
    """Whether the plan of the run was written by `retry_errors`."""
    update = run.plan_update()
    return update is not None and any(
        pc.any(pc.and_(pc.equal(batch["update"], update.number), pc.is_valid(batch["retry_of"]))).as_py()
        for batch in run.plan_batches()
    )


def _failed(run: Run, codes: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows to retry, by part."""
    code = pc.field("code")
    wanted = ~code.isin(sorted(NOT_RETRIED)) if ALL in codes else code.isin(sorted(codes))
    columns = ["part_id", "utt_id", "stage", "byte_start"]

    def read(files: Mapping[str, list[DataFile]]) -> pa.Table:
        errors = open_files(run.uri, "errors", [file.path for file in files["errors"]])
        return errors.to_table(columns, filter=wanted)

    failed: dict[str, list[dict[str, Any]]] = {}
    for batch in run.read(read).to_batches():
        for row in batch.to_pylist():
            failed.setdefault(row.pop("part_id"), []).append(row)
    return failed


def _again(part: Part, failed: Sequence[Mapping[str, Any]], number: int) -> Part:
    """The part as the next plan has it; its `retry` is empty if all of it has to be read."""
    hides_rows = part.kind not in _LISTED_KINDS and any(
        row["stage"] == "read" and row["byte_start"] is None for row in failed
    )
    ids = () if hides_rows else tuple(sorted({utterance_id(row["utt_id"]) for row in failed}))
    return replace(part.planned_by(number), retry=ids, retry_of=part.part_id)


def carry_over(run: Run, carry_batches: CarryBatches) -> None:
    """Commit what the parts that are done again need not compute, where that is not done yet; see the module."""
    compaction = read_compaction(run.uri)
    if compaction is None:
        return
    again: dict[str, tuple[str, frozenset[str]]] = {}
    for batch in run.plan_batches():
        is_again = pc.and_(pc.is_valid(batch["retry_of"]), pc.greater(batch["update"], compaction.update))
        for row in batch.filter(is_again).select(["part_id", "retry", "retry_of"]).to_pylist():
            if row["retry"]:
                again[row["retry_of"]] = row["part_id"], frozenset(row["retry"])
    if not again:
        return
    wanted = again.keys() | {part_id for part_id, _ in again.values()}
    commits: dict[str, list[Commit]] = {}
    for commit in read_commits(run.uri):
        if commit.part_id in wanted:
            commits.setdefault(commit.part_id, []).append(commit)
    left = [
        Carried(part_id, retry, tuple(sorted(commits[old], key=lambda commit: commit.chunk)))
        for old, (part_id, retry) in again.items()
        if old in commits and _is_left(commits[old], commits.get(part_id, ()))
    ]
    batches = list(grouped(left, _rows, at_least=BATCH_ROWS))
    if batches:
        carry_batches(batches)


def _is_left(before: Sequence[Commit], now: Sequence[Commit]) -> bool:
    """Whether not all chunks are carried over, and nothing of the part was read."""
    return all(commit.carried for commit in now) and len(now) < len(before)


def _rows(part: Carried) -> int:
    return sum(commit.utterances + commit.errors for commit in part.commits)


def carry_batch(run: Run, attempt: str, batch: Sequence[Carried]) -> None:
    """Commit rows of some parts under their new ids.

    Nothing of a part is carried over if one of its rows lacks a label of a classifier that was added to the run.

    Raises:
        LeaseLostError: another driver took over.
        StorageError: the run could not be read or written.
        DamagedRunError: a file of the run is lost or was changed.
    """
    old = pc.field("part_id").isin([part.commits[0].part_id for part in batch])

    def read(files: Mapping[str, list[DataFile]]) -> dict[str, pa.Table]:
        paths = {name: [file.path for file in files[name]] for name in TABLES}
        return {name: open_files(run.uri, name, paths[name]).to_table(filter=old) for name in TABLES}

    stored = run.read(read)
    tasks = tuple(run.record.classifier_digests)
    require_lease(run.uri, attempt)
    for part in batch:
        for commit, tables in list(_carried(part, stored, tasks)):
            write_chunk(run.uri, replace(commit, attempt=attempt), tables)


def _carried(
    part: Carried, stored: Mapping[str, pa.Table], tasks: tuple[str, ...]
) -> Iterator[tuple[Commit, dict[str, pa.Table]]]:
    """The commits of a part under its new id with their tables; none if a label is missing."""
    kept = {name: _kept(table, part) for name, table in stored.items()}
    if kept["labels"].num_rows != len(tasks) * kept["transcripts"].num_rows:
        return
    first_row = 0
    for commit in part.commits:
        tables = {name: table.filter(pc.equal(table["chunk"], commit.chunk)) for name, table in kept.items()}
        rows, errors = tables["transcripts"], tables["errors"]
        yield (
            replace(
                commit,
                part_id=part.part_id,
                first_row=first_row,
                last=False,
                part_rows=None,
                part_audio_s=None,
                utterances=rows.num_rows,
                errors=errors.num_rows,
                error_codes=dict(Counter(errors["code"].to_pylist())),
                audio_s=pc.sum(rows["duration_s"], min_count=0).as_py(),
                skipped_s=pc.sum(rows["skipped_s"], min_count=0).as_py(),
                warned=rows.num_rows - rows["warning"].null_count,
                classifiers=tasks,
                carried=True,
                files=(),
            ),
            tables,
        )
        first_row += rows.num_rows + errors.num_rows


def _kept(table: pa.Table, part: Carried) -> pa.Table:
    """The rows of a part that are not done again, under its new id."""
    rows = table.filter(pc.equal(table["part_id"], part.commits[0].part_id))
    rows = rows.filter(
        pa.array([utterance_id(name) not in part.retry for name in rows["utt_id"].to_pylist()], pa.bool_())
    )
    index = rows.schema.get_field_index("part_id")
    ids = pa.array([part.part_id] * rows.num_rows, pa.string())
    return rows.set_column(index, rows.schema.field(index), ids)
