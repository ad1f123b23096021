"""Is a run what its commits say: every commit, file, checksum and count, and the plan equal to what is committed.

What must hold, for a run that nobody writes to, done or not: each commit object can be read, is named after its
content, belongs to a part of the plan, and its chunk follows row by row on those before it; each file that counts
(those of the commits, or the compacted ones once the run has them) is there, whole, with the bytes that its SHA-256
promises; and its rows, chunk by chunk, are as many as the commits say. And for a run that is done: every part of the
plan is committed to its last chunk, the totals of the record are the commits' sums, and there is no data file that
nothing names.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.runs.commit import Commit, DataFile, commit_objects, commit_of, is_orphan
from pipeline.runs.compact import COMPACTION, read_compaction
from pipeline.runs.ledger import ledger_of, non_contiguous_chunks, parts_done, read_objects, rolled_files
from pipeline.runs.run import PLAN_FILE, Run, Totals
from pipeline.schemas import TABLES
from pipeline.storage import objects, uris

FILES_AT_ONCE = 4

# (table, part, chunk) -> rows
Counts = Counter[tuple[str, str, int]]


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it must be: `path` below the run, and what is wrong with it."""

    path: str
    message: str


@dataclass(frozen=True)
class Verification:
    """What was looked at, and what is wrong; nothing is, where `problems` is empty."""

    problems: tuple[Problem, ...]
    parts: int
    parts_done: int
    commits: int
    files: int
    rows: int
    size: int


def verify(run: Run) -> Verification:
    """Check a run; see the module. Reads every byte of it once.

    A run that is finished while it is looked at is looked at again: its small files are gone then.

    Raises:
        StorageError: it could not be reached.
    """
    found = _verify(run)
    again = Run.open(run.uri)
    return found if again.status == run.status or not found.problems else _verify(again)


def _verify(run: Run) -> Verification:
    problems: list[Problem] = []
    commits = list(_read_commits(run, problems))
    plan = _read_plan(run, problems)
    problems += _check_commits(commits, set(plan))
    try:
        compacted = read_compaction(run.uri)
    except (ValueError, KeyError, TypeError) as error:
        problems.append(Problem(COMPACTION, f"cannot be read: {error}"))
        compacted = []
    files = compacted if compacted is not None else [file for commit in commits for file in commit.files]
    found = Counts()
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for file, (wrong, counts) in zip(files, pool.map(lambda file: _check_file(run.uri, file), files), strict=True):
            problems += [Problem(file.path, message) for message in wrong]
            found += counts
    problems += _check_counts(commits, found, len(run.record["fingerprint"]["classifiers"]))
    if run.status == "done":
        problems += _check_done(run, commits, plan, files)
    done = len(parts_done(ledger_of(commits)))
    rows, size = sum(file.rows for file in files), sum(file.size for file in files)
    return Verification(tuple(problems), len(plan), done, len(commits), len(files), rows, size)


def _read_commits(run: Run, problems: list[Problem]) -> Iterator[Commit]:
    """Each chunk's commit once, as readers take it: the object, or what it was rolled up to."""
    seen: set[tuple[str, int, bool]] = set()
    for path, data in itertools.chain(_objects(run), _rolled_up(run, problems)):
        try:
            commit = commit_of(data)
        except ValueError as error:
            problems.append(Problem(path, f"cannot be read: {error}"))
            continue
        if path.endswith(".json") and path != commit.path:
            problems.append(Problem(path, f"says that it is {commit.path}"))
        if (commit.part_id, commit.chunk, commit.last) not in seen:
            seen.add((commit.part_id, commit.chunk, commit.last))
            yield commit


def _objects(run: Run) -> Iterator[tuple[str, bytes]]:
    for uri, data in read_objects(commit_objects(run.uri)):
        if data is not None:  # else it was rolled up since it was listed
            yield _below(run, uri), data


def _rolled_up(run: Run, problems: list[Problem]) -> Iterator[tuple[str, bytes]]:
    for uri in rolled_files(run.uri):
        path, data = _below(run, uri), objects.fetch(uri)
        if not path.endswith(f"/{hashlib.sha256(data).hexdigest()[:16]}.parquet"):
            problems.append(Problem(path, "is not the file that was written: its SHA-256 differs"))
            continue
        for content in pq.read_table(io.BytesIO(data), columns=["content"])["content"].to_pylist():
            yield path, content.encode()


def _read_plan(run: Run, problems: list[Problem]) -> list[str]:
    try:
        plan: list[str] = run.plan(["part_id"])["part_id"].to_pylist()
    except FileNotFoundError:
        problems.append(Problem(PLAN_FILE, "is lost"))
        return []
    except pa.ArrowException as error:
        problems.append(Problem(PLAN_FILE, f"cannot be read: {error}"))
        return []
    if len(plan) != run.record["parts"]:
        problems.append(Problem(PLAN_FILE, f"has {len(plan)} parts, and {run.record['parts']} were planned"))
    return plan


def _below(run: Run, uri: str) -> str:
    return uri.removeprefix(run.uri.rstrip("/") + "/")


def _check_commits(commits: Sequence[Commit], plan: set[str]) -> Iterator[Problem]:
    for commit in commits:
        if commit.part_id not in plan:
            yield Problem(commit.path, f"the plan has no part {commit.part_id}")
        if sum(commit.error_codes.values()) != commit.errors:
            yield Problem(commit.path, f"{commit.errors} errors, but {commit.error_codes}")
    paths = {(commit.part_id, commit.chunk): commit.path for commit in commits}
    for row in non_contiguous_chunks(ledger_of(commits)):
        end = f", and the part has {row['part_rows']}" if row["last"] else ""
        message = f"begins at row {row['first_row']}, {row['before']} come before it{end}"
        yield Problem(paths[row["part_id"], row["chunk"]], message)


def _check_file(run: str, file: DataFile) -> tuple[list[str], Counts]:
    """What is wrong with a file, and its rows by chunk."""
    try:
        data = objects.fetch(uris.join(run, file.path))
    except FileNotFoundError:
        return ["is lost"], Counts()
    if len(data) != file.size:
        return [f"has {len(data)} bytes, and was written with {file.size}"], Counts()
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return ["is not the file that was written: its SHA-256 differs"], Counts()
    try:
        source = pq.ParquetFile(io.BytesIO(data))
    except pa.ArrowException as error:
        return [f"is no Parquet file: {error}"], Counts()
    if not source.schema_arrow.equals(TABLES[file.table]):
        return [f"is no file of {file.table}: its columns differ"], Counts()
    counts = Counts()
    for batch in source.iter_batches(columns=["part_id", "chunk"]):
        groups = pa.Table.from_batches([batch]).group_by(["part_id", "chunk"]).aggregate([([], "count_all")])
        for row in groups.to_pylist():
            counts[file.table, row["part_id"], row["chunk"]] += row["count_all"]
    rows = sum(counts.values())
    return ([] if rows == file.rows else [f"has {rows} rows, and was written with {file.rows}"]), counts


def _check_counts(commits: Iterable[Commit], found: Counts, classifiers: int) -> Iterator[Problem]:
    """Rows by chunk are those that its commit says, and there are none of other chunks."""
    said = Counts()
    paths: dict[tuple[str, int], str] = {}
    for commit in commits:
        key = commit.part_id, commit.chunk
        paths[key] = commit.path
        rows = {"transcripts": commit.utterances, "labels": commit.utterances * classifiers, "errors": commit.errors}
        said.update({(table, *key): count for table, count in rows.items()})
    for table, part, chunk in sorted({*said, *found}):
        want, have = said[table, part, chunk], found[table, part, chunk]
        if want != have:
            path = paths.get((part, chunk), f"{table}, part {part}, chunk {chunk}")
            yield Problem(path, f"{have} rows of {table}, and {want} are committed")


def _check_done(
    run: Run, commits: Sequence[Commit], plan: Sequence[str], files: Sequence[DataFile]
) -> Iterator[Problem]:
    table = ledger_of(commits)
    done = set(parts_done(table).to_pylist())
    for part in plan:
        if part not in done:
            yield Problem(PLAN_FILE, f"part {part} is not committed to its end, and the run is called done")
    sums, recorded = Totals.of(table), Totals(**run.record["totals"])
    since = [name for name in ("engines", "fallbacks", "splits") if name in run.record["totals"]]  # of later versions
    for name in ("chunks", "utterances", "errors", "source_bytes", "error_codes", *since):
        if getattr(sums, name) != getattr(recorded, name):
            message = f"totals: {getattr(recorded, name)} {name}, and the commits say {getattr(sums, name)}"
            yield Problem("run.json", message)
    named = {file.path for file in files}
    for item in objects.list_objects(run.uri):
        if is_orphan(path := _below(run, item.uri), named):
            yield Problem(path, "is a data file that nothing names")
