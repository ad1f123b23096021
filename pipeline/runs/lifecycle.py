"""The life of a run: planned, created, found again, finished, or removed for a new one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RunConfig
from pipeline.corpus.plan import plan
from pipeline.errors import InputChangedError, LeaseLostError, StorageError, UsageError
from pipeline.runs.commit import COMMITS, DataFile, remove_orphans
from pipeline.runs.compact import COMPACTION, compact_group, groups_of, read_compaction, write_compaction
from pipeline.runs.fingerprint import differences
from pipeline.runs.lease import lease_uri
from pipeline.runs.ledger import (
    committed,
    ledger,
    non_contiguous_chunks,
    parts_done,
)
from pipeline.runs.run import PLAN_FILE, QUARANTINE, RECORD, Run, Totals, now, write_plan
from pipeline.runs.status import RunStatus
from pipeline.schemas import TABLES
from pipeline.storage import objects, uris

SMALL_RUN_BYTES = 32 << 20
# What lies in a run, by what goes first when it is overwritten; `control` holds the lease.
COMMITS_OF_A_RUN = (COMMITS, COMPACTION)
DATA_OF_A_RUN = (*TABLES, QUARANTINE, "metrics", PLAN_FILE)


def save_failure(run: Run, reason: str, check_lease: Callable[[], None]) -> None:
    # The reason is already on its way to the user. Where RUN itself cannot be written, that is no news; and where
    # another driver works on it now, the record is that one's.
    with contextlib.suppress(StorageError, LeaseLostError):
        check_lease()
        run.save(status=RunStatus.FAILED, reason=reason)


def existing_run(config: RunConfig, wanted: dict[str, Any]) -> Run | None:
    """The run at `output` to go on with, if there is one; it must be the one that is wanted."""
    if config.existing == "overwrite" or not objects.exists(uris.join(config.output, RECORD)):
        return None
    run = Run.open(config.output)
    if run.status == RunStatus.OVERWRITTEN:
        raise UsageError(f"{run.uri} holds what is left of a run that was being overwritten: ask for that again")
    if config.existing == "refuse":
        raise UsageError(f"{run.uri} holds a run already ({run.status}), and a new one was asked for")
    if different := differences(run.record["fingerprint"], wanted):
        raise UsageError(f"{run.uri} holds another run; choose another --output. It differs in " + "; ".join(different))
    return run


def plan_run(config: RunConfig) -> pa.Table:
    """The parts of a new run; nothing is written, for another driver may be at the same."""
    if _is_object(config.output):
        raise UsageError(f"{config.output} is a file; a run is a directory or prefix")
    ours = (uris.join(config.output, PLAN_FILE), lease_uri(config.output))  # of one that was killed while it began
    there = [o.uri for o in objects.list_objects(config.output)]
    others = any(uri not in ours and not objects.is_temporary(uri) for uri in there)
    if others and uris.join(config.output, RECORD) not in there:
        raise UsageError(f"{config.output} is not empty and holds no run")
    return plan(config.inputs, int(config.part_mib * 2**20), config.limit)


def clear(config: RunConfig) -> None:
    """Remove a run, if there is one: commits first, so that readers see nothing of what is half gone, the record last.

    What is not a run's stays, and so does the lease, which is this driver's.

    Raises:
        UsageError: it is not to be removed: its workers may write still, or what is to be read lies in it.
    """
    record = uris.join(config.output, RECORD)
    if not objects.exists(record):
        return
    run = Run.open(config.output)
    if "fingerprint" not in run.record:
        raise UsageError(f"{run.uri}: its {RECORD} is somebody else's")
    if run.status == RunStatus.RUNNING:
        raise UsageError(
            f"{run.uri}: its driver ended without a word, and its workers may write still: "
            "go on with it (without --overwrite) and stop it, or choose another --output"
        )
    base = run.uri.rstrip("/") + "/"
    for uri in (*config.inputs, config.model, *config.tasks.values()):
        if f"{uri}/".startswith(base):
            raise UsageError(f"{uri} lies in {run.uri}, which is to be overwritten")
    run.save(status=RunStatus.OVERWRITTEN)
    there = [item.uri for item in objects.list_objects(run.uri)]
    for names in (COMMITS_OF_A_RUN, DATA_OF_A_RUN):
        objects.delete([uri for uri in there if uri.removeprefix(base).partition("/")[0] in names])
    objects.delete([record])


def create(config: RunConfig, wanted: dict[str, Any], parts: pa.Table) -> Run:
    write_plan(config.output, parts)
    record = {
        "status": RunStatus.RUNNING,
        "created": now(),
        "fingerprint": wanted,
        "config": asdict(config),
        "parts": parts.num_rows,
        "input_bytes": sum(parts["bytes"].to_pylist()),
        "attempts": [],
    }
    return Run(config.output, record).save()


def _is_object(uri: str) -> bool:
    try:
        return objects.stat(uri) is not None
    except FileNotFoundError:
        return False


def missing_parts(run: Run) -> int:
    """How many parts of the plan are not done."""
    plan = run.plan(["part_id"])["part_id"]
    return len(plan) - (pc.sum(pc.is_in(plan, parts_done(committed(run.uri))), min_count=0).as_py() or 0)


# Writes each group of files as one; where and how many at a time is the caller's choice.
CompactGroups = Callable[[str, Sequence[tuple[str, list[DataFile]]]], list[DataFile]]


def finish(run: Run, check_lease: Callable[[], None], compact_groups: CompactGroups) -> Run:
    """Check that the plan is committed whole, compact its files, remove what nothing names, and call the run done.

    Compaction takes minutes, in which a driver that was thought dead may have been replaced: each step that changes
    what readers see asks for the lease.
    """
    if missing := missing_parts(run):
        raise RuntimeError(f"{run.uri}: {missing} parts of the plan have no complete commit after the last wave")
    table = ledger(run.uri)
    check_contiguous(run, table)
    files = read_compaction(run.uri)
    if files is None:
        files = compact(run, compact_groups)
        check_lease()
        write_compaction(run.uri, files)
    check_lease()
    remove_orphans(run.uri, files)
    check_lease()
    return run.save(status=RunStatus.DONE, finished=now(), totals=asdict(Totals.of(table)), reason=None)


def compact(run: Run, compact_groups: CompactGroups) -> list[DataFile]:
    """Write the committed rows to few files: by `compact_groups`, or here, where they are small."""
    files = [file for commit in run.commits() for file in commit.files]
    groups = list(groups_of(files))
    if sum(file.size for file in files) < SMALL_RUN_BYTES:  # less work than workers for it would be
        return [compact_group(run.uri, table, group) for table, group in groups]
    return compact_groups(run.uri, groups)


def check_contiguous(run: Run, table: pa.Table) -> None:
    """Every part's chunks follow each other row by row, from its first to its last.

    Raises:
        InputChangedError: they do not. Chunks of one part that were read at different times saw different inputs:
            a file that a manifest names was replaced, or came, or went.
    """
    for row in non_contiguous_chunks(table):
        raise InputChangedError(
            f"{run.uri}: the files of part {row['part_id']} changed between two starts of the run: chunk "
            f"{row['chunk']} begins at row {row['first_row']}, and {row['before']} come before it. Start a new run"
        )
