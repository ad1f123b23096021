"""The life of a run: planned, created, found again, finished, or removed for a new one."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RunConfig, column_names
from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.plan import plan
from pipeline.errors import InputChangedError, LeaseLostError, StorageError, UsageError
from pipeline.runs.additions import ADDITIONS, remove_leftovers, save_state
from pipeline.runs.commit import COMMITS, Commit, DataFile, remove_orphans
from pipeline.runs.compact import (
    COMPACTION,
    CompactGroups,
    compact_again,
    compact_files,
    read_compaction,
    write_compaction,
)
from pipeline.runs.damage import damaged, first_lost_file
from pipeline.runs.fingerprint import by_loaded_weights, differences
from pipeline.runs.lease import LEASE
from pipeline.runs.ledger import non_contiguous_chunks, remove_commits
from pipeline.runs.record import Addition, RunRecord
from pipeline.runs.recordings import RECORDINGS_FILE
from pipeline.runs.run import PLAN_FILE, QUARANTINE, RECORD, RECORD_COPY, Run, now, write_plan
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals
from pipeline.schemas import TABLES
from pipeline.storage import objects, uris

# What a run stores, in the order in which it is removed. Not `control`: it holds the lease, which the driver keeps.
_COMMIT_ENTRIES: Final = (COMMITS, COMPACTION)
_DATA_ENTRIES: Final = (*TABLES, ADDITIONS, QUARANTINE, "metrics", RECORDINGS_FILE, PLAN_FILE)


def find_existing_run(config: RunConfig, fingerprint: Mapping[str, Any]) -> Run | None:
    """The run at `config.output` to resume; None if there is none, or if it is to be overwritten.

    Raises:
        UsageError: there is a run that must not be resumed: a new one is required (`existing="refuse"`), its
            fingerprint differs, or it is partly removed.
        DamagedRunError: its record is damaged, or it is done and a data file is lost.
    """
    if config.existing == "overwrite" or not objects.exists(uris.join(config.output, RECORD)):
        if config.add_classifiers or config.retry_errors:
            option = "add-classifier" if config.add_classifiers else "retry-errors"
            raise UsageError(f"{option}: it is for a finished run, and there is none at {config.output}")
        return None
    run = Run.open(config.output)
    if not run.record.fingerprint or not run.record.config:
        raise damaged(run.uri, RECORD, "is damaged (it lacks the fingerprint or the configuration)")
    if run.status == RunStatus.OVERWRITTEN:
        raise UsageError(f"{run.uri} holds the rest of a run that was being overwritten; repeat the overwrite")
    if config.existing == "refuse":
        raise UsageError(f"{run.uri} already holds a run ({run.status}), and a new run was requested")
    if "commits" in fingerprint and "commits" not in run.record.fingerprint:
        run = run.with_changes(fingerprint=by_loaded_weights(run.record.fingerprint, fingerprint, config))
    if config.add_classifiers:  # the command need not name those that the run has
        fingerprint = {**fingerprint, "classifiers": {**run.record.classifier_digests, **fingerprint["classifiers"]}}
    if different := differences(run.record.fingerprint, fingerprint):
        made = f", made by `sewd redecode {run.record.source}`" if run.record.source else ""
        raise UsageError(
            f"{run.uri} holds a different run{made}; choose another --output. It differs in " + "; ".join(different)
        )
    compaction = read_compaction(run.uri) if run.status == RunStatus.DONE else None
    if compaction is not None and (lost := first_lost_file(run.uri, compaction.files)) is not None:
        raise lost
    return run


def plan_new_run(config: RunConfig) -> pa.Table:
    """The parts of a new run, of schema `PLAN`. Writes nothing: another driver may be starting the same run.

    Raises:
        UsageError: `config.output` is a file or holds something else than a run, or the inputs hold no audio.
    """
    check_output(config)
    names = column_names(config.columns)
    return plan(config.inputs, int(config.part_mib * 2**20), config.limit, names, config.input_format)


def check_output(config: RunConfig) -> None:
    """Check that a new run can be at `config.output`.

    Raises:
        UsageError: it is a file, or holds something else than a run.
    """
    if objects.is_object(config.output):
        raise UsageError(f"{config.output} is a file; a run is a directory or prefix")
    stored = [item.uri for item in objects.list_objects(config.output)]
    # A driver that was killed while it created the run leaves these and temporary files.
    leftovers = tuple(uris.join(config.output, name) for name in (PLAN_FILE, RECORD_COPY, LEASE))
    foreign = any(uri not in leftovers and not objects.is_temporary(uri) for uri in stored)
    if foreign and uris.join(config.output, RECORD) not in stored:
        raise UsageError(f"{config.output} is not empty and holds no run")


def create_run(config: RunConfig, fingerprint: Mapping[str, Any], parts: pa.Table, **further: Any) -> Run:
    """Store the plan, then the record of a new run.

    Args:
        config: of the run.
        fingerprint: what its rows depend on.
        parts: its plan, of schema `PLAN`.
        further: values of the record, see `RunRecord.updated`.
    """
    write_plan(config.output, parts)
    record = {
        "status": RunStatus.RUNNING,
        "created": now(),
        "fingerprint": fingerprint,
        "config": asdict(config),
        "parts": parts.num_rows,
        "input_bytes": sum(parts["bytes"].to_pylist()),
        "left_out": LeftOut.from_metadata(parts.schema.metadata).to_json(),
        "attempts": [],
    }
    return Run(config.output, RunRecord(record)).save(**further)


def remove_run(config: RunConfig) -> None:
    """Remove the run at `config.output`, if there is one.

    Commits are removed first, so that readers never see part of the data, and the record last. Files that do not belong
    to a run stay, and so does the lease, which the calling driver holds.

    Raises:
        UsageError: the run must not be removed: its workers may still be writing, it contains an input or a model, or
            its record is not one of this program.
    """
    record = uris.join(config.output, RECORD)
    if not objects.exists(record):
        return
    run = Run.open(config.output)
    if not run.record.fingerprint:
        raise UsageError(f"{run.uri}: its {RECORD} was not written by this program")
    adding = run.record.adding
    if RunStatus.RUNNING in (run.status, adding and adding.status):
        raise UsageError(
            f"{run.uri}: its driver was killed, and its workers may still be writing: "
            "resume the run (without --overwrite) and stop it, or choose another --output"
        )
    if run.status == RunStatus.UNKNOWN:
        raise UsageError(
            f"{run.uri}: its status {run.record.values.get('status')!r} is unknown to this version; "
            "choose another --output"
        )
    base = run.uri.rstrip("/") + "/"
    files = [uri for uri in (config.lm, config.hotwords) if uri is not None]
    for uri in (*config.inputs, config.model, *config.tasks.values(), *files):
        if f"{uri}/".startswith(base):
            raise UsageError(f"{uri} is inside {run.uri}, which is to be overwritten")
    run.save(status=RunStatus.OVERWRITTEN)
    stored = [item.uri for item in objects.list_objects(run.uri)]
    for entries in (_COMMIT_ENTRIES, _DATA_ENTRIES):
        objects.delete([uri for uri in stored if uri.removeprefix(base).partition("/")[0] in entries])
    objects.delete([uris.join(run.uri, RECORD_COPY), record])


def finish_run(run: Run, check_lease: Callable[[], None], compact_groups: CompactGroups) -> Run:
    """Check that every part is committed, compact the data, remove what does not count, and set the status to done.

    What does not count are orphaned files, and commits of parts that left the plan (`pipeline.runs.update`). Compaction
    takes minutes, during which another driver may have taken over the run: the lease is checked before each step that
    changes what readers see.

    Raises:
        LeaseLostError: another driver took over.
        InputChangedError: the chunks of a part do not fit together.
        RuntimeError: a part is not committed.
    """
    if missing := run.unfinished_parts():
        raise RuntimeError(f"{run.uri}: {missing} parts of the plan are not completely committed after the last wave")
    table = run.ledger()
    check_contiguous(run, table)
    update = run.plan_update()
    number = update.number if update else 0
    compaction = read_compaction(run.uri)
    if compaction is not None and compaction.update == number:
        files = list(compaction.files)
    else:
        if compaction is None:
            additions = tuple(addition.folder for addition in run.record.added)
            files = compact_files(run.uri, _committed_files(run.all_commits()), compact_groups)
        else:
            additions = compaction.additions
            parts = run.plan(["part_id", "update"])
            later = frozenset(parts.filter(pc.greater(parts["update"], compaction.update))["part_id"].to_pylist())
            new = _committed_files(commit for commit in run.commits() if commit.part_id in later)
            stored = parts["part_id"].combine_chunks()
            files = compact_again(run.uri, compaction.files, stored, new, compact_groups)
        check_lease()
        write_compaction(run.uri, files, number, additions)
    if update is not None:
        check_lease()
        _remove_left(run)
    check_lease()
    remove_orphans(run.uri, files)
    remove_leftovers(run)
    check_lease()
    return run.save(status=RunStatus.DONE, finished=now(), totals=Totals.from_ledger(table), reason=None)


def _committed_files(commits: Iterable[Commit]) -> list[DataFile]:
    return [file for commit in commits for file in commit.files]


def _remove_left(run: Run) -> None:
    """Remove the commits and quarantine records of parts that left the plan."""
    parts = run.plan(["part_id"])["part_id"].combine_chunks()
    for folder in run.record.folders:
        remove_commits(uris.join(run.uri, folder), lambda commits: pc.invert(pc.is_in(commits["part_id"], parts)))
    records = [item.uri for item in objects.list_directory(uris.join(run.uri, QUARANTINE))]
    if records:
        of = pa.array([posixpath.basename(uri).partition(".")[0].partition("-")[0] for uri in records], pa.string())
        stays = pc.is_in(of, parts).to_pylist()
        objects.delete([uri for uri, keep in zip(records, stays, strict=True) if not keep])


def check_contiguous(run: Run, table: pa.Table) -> None:
    """Check that every part's chunks follow each other row by row, from its first row to its last.

    Raises:
        InputChangedError: they do not. Chunks of one part that were read at different times saw different inputs: a
            file that a manifest names was replaced, added or removed.
    """
    for chunk in non_contiguous_chunks(table):
        raise InputChangedError(
            f"{run.uri}: the files of part {chunk.part_id} changed between two starts of the run: chunk {chunk.chunk} "
            f"begins at row {chunk.first_row}, but the chunks before it hold {chunk.rows_before} rows. "
            "Do it again by --update, or start a new run"
        )


def record_failure(run: Run, reason: str, check_lease: Callable[[], None], addition: Addition | None = None) -> None:
    """Set the status to failed, of the run or of the addition to it.

    Only if the run can be written and this driver still holds its lease.

    The caller reports `reason` to the user in any case. That the run cannot be written too would add nothing, and if
    another driver has taken over, the record belongs to it.
    """
    with contextlib.suppress(StorageError, LeaseLostError):
        check_lease()
        save_state(run, addition, status=RunStatus.FAILED, reason=reason)
