"""Check that a run is what its commits say: every commit, file, checksum and count, and the plan.

What must hold for any run that nobody is writing to, done or not: each commit object can be parsed, its name matches
its content, it belongs to a part of the plan, and its chunk follows the chunks before it row by row; each current data
file (those of the commits, or the compacted ones once the run has them) is stored whole, with the bytes of its SHA-256;
and it has as many rows of each chunk as the commits say. For a run that is done, in addition: every part of the plan is
committed to its last chunk, the totals of the record are the sums of the commits, and there are no orphaned data files.

In a run whose update has not ended (`pipeline.runs.update`) there may be commits of parts that left the plan. Its
current data files are the compacted ones of before, with rows of these parts, and those of the commits of new parts.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedRunError
from pipeline.runs.additions import ADDITIONS
from pipeline.runs.commit import Commit, CommitName, DataFile, commit_objects, is_orphan, parse_commit
from pipeline.runs.compact import COMPACTION, Compaction, read_compaction
from pipeline.runs.damage import NOT_PARQUET, content_problem
from pipeline.runs.ledger import (
    fetch_commit_objects,
    ledger_table,
    non_contiguous_chunks,
    parts_done,
    read_rolled_up,
    rolled_up_files,
)
from pipeline.runs.record import Addition
from pipeline.runs.run import PLAN_FILE, RECORD, Run
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals
from pipeline.schemas import is_readable
from pipeline.storage import objects, uris

FILES_AT_ONCE: Final = 4
CHECKS: Final = 4  # of a run that is written to meanwhile


class ChunkOfTable(NamedTuple):
    """The rows of one table, or of one task of `labels`, that belong to one chunk."""

    table: str
    part_id: str
    chunk: int
    task: str = ""


_RowCounts = Counter[ChunkOfTable]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: the object, relative to the run.
        message: what is wrong with it.
    """

    path: str
    message: str


@dataclass(frozen=True)
class Verification:
    """The result of checking a run.

    Attributes:
        problems: everything that is wrong; empty if the run is sound.
        parts: parts of the plan.
        parts_done: parts that are committed completely.
        commits: committed chunks.
        files: data files that were checked.
        rows: their rows.
        size: their size, in bytes.
    """

    problems: tuple[Problem, ...]
    parts: int
    parts_done: int
    commits: int
    files: int
    rows: int
    size: int


def verify(run: Run) -> Verification:
    """Check a run; see the module. Reads every byte of it once.

    A run that is finished or updated during the check is checked again, because files that it had are gone then.

    Raises:
        StorageError: storage could not be reached.
    """
    for _ in range(CHECKS):
        result = _verify(run)
        reopened = Run.open(run.uri)
        if not result.problems or reopened.record == run.record:
            break
        run = reopened
    return result


def _verify(run: Run) -> Verification:
    problems: list[Problem] = []
    plan, plan_problems = _read_plan(run)
    compaction: Compaction | None
    try:
        compaction = read_compaction(run.uri)
    except DamagedRunError as error:
        problems.append(Problem(COMPACTION, f"cannot be read: {error.__cause__}"))
        compaction = Compaction((), plan.number)
    additions = [addition.folder for addition in run.record.added] if compaction is None else compaction.additions
    all_commits, commit_problems = _read_commits(run, ["", *additions])
    counted = [commit for commit in all_commits if commit.part_id in plan.updates]
    has_left = plan.number > 0 and run.status != RunStatus.DONE
    commits = counted if has_left else all_commits
    problems += [*commit_problems, *plan_problems, *_check_commits(commits, plan.updates)]
    files = current_files(commits, compaction, plan.updates)
    stored = _RowCounts()
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        checks = pool.map(lambda file: check_file(run.uri, file), files)
        for file, (messages, counts) in zip(files, checks, strict=True):
            problems += [Problem(file.path, message) for message in messages]
            stored += counts
    if compaction is not None and compaction.update < plan.number:
        stored = _RowCounts({key: rows for key, rows in stored.items() if key.part_id in plan.updates})
    problems += _check_counts(commits, stored, run.record.first_classifiers)
    if run.status == RunStatus.DONE:
        problems += _check_done(run, commits, plan.updates, files)
    commits = [commit for commit in commits if not commit.folder]
    done = len(parts_done(ledger_table(commits)))
    rows, size = sum(file.rows for file in files), sum(file.size for file in files)
    return Verification(tuple(problems), len(plan.updates), done, len(commits), len(files), rows, size)


def _read_commits(run: Run, folders: Sequence[str]) -> tuple[list[Commit], list[Problem]]:
    """Each chunk's commit once, as readers choose it: the object, or what it was rolled up to."""
    commits: dict[tuple[str, CommitName], Commit] = {}
    problems: list[Problem] = []
    found = (read(run, folder) for folder in folders for read in (_commit_objects, _rolled_up_commits))
    for path, content in itertools.chain.from_iterable(found):
        if isinstance(content, Problem):
            problems.append(content)
            continue
        try:
            commit = parse_commit(content)
        except ValueError as error:
            problems.append(Problem(path, f"cannot be read: {error}"))
            continue
        if path.endswith(".json") and path != commit.full_path:
            problems.append(Problem(path, f"its content belongs to {commit.full_path}"))
        commits.setdefault((commit.folder, CommitName(commit.part_id, commit.chunk, commit.last)), commit)
    return list(commits.values()), problems


def _commit_objects(run: Run, folder: str) -> Iterator[tuple[str, bytes | Problem]]:
    for uri, content in fetch_commit_objects(commit_objects(uris.join(run.uri, folder))):
        if content is not None:  # else it was rolled up after it was listed
            yield _relative_path(run, uri), content


def _rolled_up_commits(run: Run, folder: str) -> Iterator[tuple[str, bytes | Problem]]:
    for uri in rolled_up_files(uris.join(run.uri, folder)):
        path = _relative_path(run, uri)
        try:
            rows = read_rolled_up(uri)
        except FileNotFoundError:
            yield path, Problem(path, "is lost")
            continue
        except NOT_PARQUET as error:
            yield path, Problem(path, str(error))
            continue
        for row in rows:
            yield path, row["content"].encode()


class _Plan(NamedTuple):
    """The stored plan: for each part, by its id, the number of the update that planned it; and its own number."""

    updates: Mapping[str, int]
    number: int


def _read_plan(run: Run) -> tuple[_Plan, list[Problem]]:
    """The plan; without parts if it cannot be read."""
    try:
        updates = run.part_updates()
        update = run.plan_update()
    except DamagedRunError as error:
        is_lost = isinstance(error.__cause__, FileNotFoundError)
        return _Plan({}, 0), [Problem(PLAN_FILE, "is lost" if is_lost else f"cannot be read: {error.__cause__}")]
    plan = _Plan(updates, update.number if update else 0)
    # The record of a run that was killed at the start of an update is that of the plan before.
    if len(updates) != run.record.parts and update == run.record.last_update:
        return plan, [Problem(PLAN_FILE, f"has {len(updates)} parts, but the record says {run.record.parts}")]
    return plan, []


def current_files(
    commits: Iterable[Commit], compaction: Compaction | None, updates: Mapping[str, int]
) -> list[DataFile]:
    """The files that hold the rows of commits, and in a run that is being updated those of the state before.

    Args:
        commits: those that count.
        compaction: of the run; None if it has none.
        updates: the number of the update that planned each part, by id.
    """
    if compaction is None:
        return [file for commit in commits for file in commit.files]
    later = (commit for commit in commits if updates.get(commit.part_id, 0) > compaction.update)
    return [*compaction.files, *(file for commit in later for file in commit.files)]


def _relative_path(run: Run, uri: str) -> str:
    return uri.removeprefix(run.uri.rstrip("/") + "/")


def _check_commits(commits: Sequence[Commit], plan: Container[str]) -> Iterator[Problem]:
    for commit in commits:
        if commit.part_id not in plan:
            yield Problem(commit.full_path, f"the plan has no part {commit.part_id}")
        if sum(commit.error_codes.values()) != commit.errors:
            yield Problem(commit.full_path, f"records {commit.errors} errors, but by code {commit.error_codes}")
    for folder in dict.fromkeys(commit.folder for commit in commits):
        members = [commit for commit in commits if commit.folder == folder]
        paths = {(commit.part_id, commit.chunk): commit.full_path for commit in members}
        for chunk in non_contiguous_chunks(ledger_table(members)):
            end = "" if chunk.part_rows is None else f", and the part has {chunk.part_rows}"
            message = f"begins at row {chunk.first_row}, but the chunks before it hold {chunk.rows_before} rows{end}"
            yield Problem(paths[chunk.part_id, chunk.chunk], message)


def check_file(run: str, file: DataFile) -> tuple[list[str], _RowCounts]:
    """What is wrong with a file, and its rows by chunk."""
    try:
        data = objects.fetch(uris.join(run, file.path))
    except FileNotFoundError:
        return ["is lost"], _RowCounts()
    if problem := content_problem(data, file):
        return [problem], _RowCounts()
    try:
        source = pq.ParquetFile(io.BytesIO(data))
        if not is_readable(source.schema_arrow, file.table):
            return [f"is not a file of {file.table}: its columns differ"], _RowCounts()
        counts = _RowCounts()
        keys = chunk_keys(file.table)
        for batch in source.iter_batches(columns=keys):
            groups = pa.Table.from_batches([batch]).group_by(keys).aggregate([([], "count_all")])
            for row in groups.to_pylist():
                count = row.pop("count_all")
                counts[ChunkOfTable(file.table, **row)] += count
    except NOT_PARQUET as error:
        return [f"is not a Parquet file: {error}"], _RowCounts()
    rows = sum(counts.values())
    return ([] if rows == file.rows else [f"has {rows} rows, but was written with {file.rows}"]), counts


def chunk_keys(table: str) -> list[str]:
    """The columns of a table that say which rows are of one `ChunkOfTable`."""
    return ["part_id", "chunk", *["task"] * (table == "labels")]


def _check_counts(commits: Iterable[Commit], stored: _RowCounts, classifiers: Sequence[str]) -> Iterator[Problem]:
    """Check that each chunk has the rows that its commit says, and that there are no rows of other chunks."""
    committed = _RowCounts()
    paths: dict[tuple[str, int], str] = {}
    for commit in commits:
        paths.setdefault((commit.part_id, commit.chunk), commit.full_path)
        committed += committed_rows(commit, classifiers)
    for key in sorted({*committed, *stored}):
        if stored[key] != committed[key]:
            path = paths.get((key.part_id, key.chunk), f"{key.table}, part {key.part_id}, chunk {key.chunk}")
            yield Problem(path, f"{stored[key]} rows of {key.table} are stored, but {committed[key]} are committed")


def committed_rows(commit: Commit, classifiers: Sequence[str]) -> Counter[ChunkOfTable]:
    """The number of rows of a chunk by table and task, where it has any.

    Args:
        commit: of the chunk.
        classifiers: names of the classifiers that the run was created with.
    """
    names = classifiers if commit.classifiers is None else commit.classifiers
    rows = {("labels", name): commit.utterances for name in names}
    if not commit.folder:
        rows |= {("transcripts", ""): commit.utterances, ("errors", ""): commit.errors}
        if any(file.table == "posteriors" for file in commit.files):
            rows["posteriors", ""] = commit.utterances
    found = {ChunkOfTable(table, commit.part_id, commit.chunk, task): count for (table, task), count in rows.items()}
    return Counter({key: count for key, count in found.items() if count})


def _check_done(
    run: Run, commits: Sequence[Commit], plan: Iterable[str], files: Sequence[DataFile]
) -> Iterator[Problem]:
    table = ledger_table(commit for commit in commits if not commit.folder)
    done = set(parts_done(table).to_pylist())
    for part in plan:
        if part not in done:
            yield Problem(PLAN_FILE, f"part {part} is not completely committed, although the run is done")
    for addition in run.record.added:
        done = labelled_parts(commits, addition)
        for part in plan:
            if part not in done:
                names = " and ".join(addition.digests)
                yield Problem(PLAN_FILE, f"part {part} has no labels of {names}, which were added to the run")
    yield from _check_totals(run, Totals.from_ledger(table))
    named = {file.path for file in files}
    for item in objects.list_objects(run.uri):
        path = _relative_path(run, item.uri)
        below = path.split("/", 2)[-1] if path.startswith(f"{ADDITIONS}/") and run.record.adding is None else path
        if is_orphan(path, named) or (below != path and is_orphan(below, named)):
            yield Problem(path, "is an orphaned data file: neither a commit nor the compaction names it")


def labelled_parts(commits: Iterable[Commit], addition: Addition) -> set[str]:
    """The parts of which an addition has computed its labels, or the run itself, as it does later."""
    commits = list(commits)
    added = parts_done(ledger_table(commit for commit in commits if commit.folder == addition.folder))
    without = {
        commit.part_id
        for commit in commits
        if not commit.folder and not set(addition.digests).issubset(commit.classifiers or ())
    }
    return {*added.to_pylist(), *({commit.part_id for commit in commits if not commit.folder} - without)}


_COUNTED: Final = ("chunks", "utterances", "errors", "source_bytes", "error_codes")  # not floats, whose sums round
_COUNTED_LATER: Final = ("engines", "fallbacks", "splits")  # records of earlier versions lack them


def _check_totals(run: Run, sums: Totals) -> Iterator[Problem]:
    recorded = run.record.totals or Totals()
    stored_keys = run.record.values.get("totals") or {}
    for name in (*_COUNTED, *(name for name in _COUNTED_LATER if name in stored_keys)):
        if getattr(sums, name) != getattr(recorded, name):
            message = f"totals: {name} is {getattr(recorded, name)}, but the commits add up to {getattr(sums, name)}"
            yield Problem(RECORD, message)
