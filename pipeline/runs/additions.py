"""Classifiers that are added to a finished run, by a pass of their own over its plan.

Only the new heads are computed, for the rows that have a transcript. The commits of the pass are kept apart, below
`heads/`, in the form of the run's own (`pipeline.runs.commit`), and their data files hold labels only. The run stays
done, and its readers see what they saw before: what is read is what `compaction.json` names.

The ordering argument. When every part is committed, the labels are compacted beside those of the run, and one PUT of
`compaction.json` names them together with all files from before: from then on readers see the new labels, all of them.
Killed before it: the next start resumes the pass and compacts again. Killed after it: `compaction.json` says that
it holds the addition, and the next start only completes the record. The commits of the pass stay, as those of the run
do; its data files are removed once the compacted ones are named.

An addition of other classifiers, or of other checkpoints, has another folder, which is named by what is added: what
was begun and never finished is never seen, and is removed when an addition is finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RunConfig
from pipeline.errors import ErrorCode, InputChangedError, UsageError
from pipeline.runs.commit import COMMITS, DataFile
from pipeline.runs.compact import CompactGroups, Compaction, compact_files, read_compaction, write_compaction
from pipeline.runs.ledger import read_ledger
from pipeline.runs.record import Addition
from pipeline.runs.run import Run, open_files
from pipeline.runs.status import RunStatus
from pipeline.storage import objects, uris

ADDITIONS: Final = "heads"


def find_addition(
    run: Run, config: RunConfig, digests: Mapping[str, str], commits: Mapping[str, str] | None = None
) -> Addition | None:
    """The classifiers of `config.added_tasks` that the run lacks, and what is done of them; None if it has them all.

    Args:
        run: the run.
        config: the request.
        digests: digest of each requested checkpoint, by task.
        commits: of all checkpoints of the request that are on the hub.

    Raises:
        UsageError: the run is not finished, or has another classifier of one of these names.
    """
    stored = run.record.classifier_digests
    for task, digest in digests.items():
        if stored.get(task, digest) != digest:
            raise UsageError(f"{run.uri} has another classifier {task}; give the new one a name, NAME=MODEL")
    missing = {task: digest for task, digest in digests.items() if task not in stored}
    if not missing:
        return None
    if run.status != RunStatus.DONE:
        raise UsageError(
            f"classifiers are added to a finished run, and {run.uri} is {run.status}: "
            "run its command first, without --add-classifier"
        )
    text = "".join(f"{task}\0{digest}\0" for task, digest in sorted(missing.items()))
    folder = f"{ADDITIONS}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    begun = run.record.adding
    earlier = begun.attempts if begun is not None and begun.folder == folder else ()
    added = {task: config.added_tasks[task] for task in missing}
    return Addition(folder, added, missing, dict(commits or {}), attempts=earlier)


def find_named(run: Run, tasks: Collection[str]) -> Addition | None:
    """The last addition of one of the classifiers with these names, finished or not; None if there is none."""
    adding = run.record.adding
    additions = [*run.record.added, *([adding] if adding else [])]
    return next((each for each in reversed(additions) if not each.digests.keys().isdisjoint(tasks)), None)


def failed_rows(run: Run, parts: pa.Array) -> dict[str, list[dict[str, str]]]:
    """The rows of `parts` without a transcript, as `utt_id` and `code`, by part.

    Without those whose id an earlier row has: that row may have a transcript, and they fail again in any case.
    """
    wanted = pc.field("part_id").isin(parts) & (pc.field("code") != ErrorCode.DUPLICATE_ID.value)

    def read(files: Mapping[str, list[DataFile]]) -> pa.Table:
        errors = open_files(run.uri, "errors", [file.path for file in files["errors"]])
        return errors.to_table(["part_id", "utt_id", "code"], filter=wanted)

    failed: dict[str, list[dict[str, str]]] = {}
    for batch in run.read(read).to_batches():
        for row in batch.to_pylist():
            failed.setdefault(row.pop("part_id"), []).append(row)
    return failed


def save_state(run: Run, addition: Addition | None, **changes: Any) -> Run:
    """Write `run.json` with changes to the state of an addition or, if it is None, of the run itself."""
    return run.save(**changes if addition is None else {"adding": replace(addition, **changes)})


def finish_addition(
    run: Run, addition: Addition, check_lease: Callable[[], None], compact_groups: CompactGroups
) -> Run:
    """Check that the addition is complete, compact its labels, name them, and complete the record.

    Raises:
        LeaseLostError: another driver took over.
        InputChangedError: a part has another number of rows than when it was transcribed.
        RuntimeError: a part is not committed.
    """
    if missing := run.unfinished_parts(addition.folder):
        raise RuntimeError(f"{run.uri}: {missing} parts of the plan are not completely committed after the last wave")
    compaction = _compaction(run)
    if addition.folder not in compaction.additions:
        _check_rows(run, addition)
        committed = [file for commit in run.commits_below(addition.folder) for file in commit.files]
        files = compact_files(run.uri, committed, compact_groups)
        check_lease()
        additions = (*compaction.additions, addition.folder)
        write_compaction(run.uri, [*compaction.files, *files], compaction.update, additions)
    return _complete_record(run, addition, check_lease)


def complete_record(run: Run, check_lease: Callable[[], None]) -> Run:
    """Complete the record if a driver was killed between `compaction.json` and the record of an addition."""
    adding = run.record.adding
    if adding is None or adding.folder not in _compaction(run).additions:
        return run
    return _complete_record(run, adding, check_lease)


def _compaction(run: Run) -> Compaction:
    return read_compaction(run.uri) or Compaction(())


def _complete_record(run: Run, addition: Addition, check_lease: Callable[[], None]) -> Run:
    check_lease()
    record = run.record
    added = [*record.added, replace(addition, status=RunStatus.DONE, reason=None)]
    run = run.with_changes(adding=None, added=added)
    remove_leftovers(run)
    check_lease()
    heads = {**record.classifier_digests, **addition.digests}
    commits = {**record.fingerprint.get("commits", {}), **addition.commits}
    run = run.save(
        fingerprint={**record.fingerprint, "classifiers": heads, **({"commits": commits} if commits else {})},
        config={**record.config, "classifiers": [*record.config.get("classifiers", ()), *addition.specifications]},
    )
    run.save_copy()
    return run


def _check_rows(run: Run, addition: Addition) -> None:
    """Check that each part has as many rows as when it was transcribed."""
    before, now = (_rows_of_parts(uri) for uri in (run.uri, uris.join(run.uri, addition.folder)))
    both = before.join(now, "part_id", join_type="inner", right_suffix="_now")
    for row in both.filter(pc.not_equal(both["part_rows"], both["part_rows_now"])).to_pylist():
        raise InputChangedError(
            f"{run.uri}: the files of part {row['part_id']} have changed since they were transcribed: they were "
            f"{row['part_rows']} rows then, and are {row['part_rows_now']} now. Start a new run"
        )


def _rows_of_parts(uri: str) -> pa.Table:
    table = read_ledger(uri).table
    return table.filter(table["last"]).select(["part_id", "part_rows"])


def remove_leftovers(run: Run) -> None:
    """Remove the data files of finished additions, which were compacted, and what was begun and never finished."""
    adding = run.record.adding
    kept = tuple(f"{uris.join(run.uri, addition.folder)}/{COMMITS}/" for addition in run.record.added)
    if adding is not None:
        kept = (*kept, f"{uris.join(run.uri, adding.folder)}/")
    found = objects.list_objects(uris.join(run.uri, ADDITIONS))
    objects.delete([item.uri for item in found if not item.uri.startswith(kept) or objects.is_temporary(item.uri)])
