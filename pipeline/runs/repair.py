"""Make again what is lost or damaged of a run, as far as that can be done, and say what cannot.

What each object is made again from:

* the record: its copy, which each start of a driver stores; status and totals come from the commits;
* the plan: a new listing of the inputs, if it gives the parts that are committed, as many as there were;
* the compaction: the compacted files, whose names contain the digest of their bytes; or the files of the commits;
* the rows of a lost or changed data file, or of a lost commit: the inputs. Their chunks lose their commits, and the
  next start of the same command transcribes them again. If the run was compacted, the rows of all other chunks are
  first written as files of their commits again, as they were before the run was finished. Where classifiers were added
  to the run, all chunks of such a part lose their commits, and the next start computes every head of the run for it.

The order makes a repair that is killed one that can be repeated: data is put before the commit that names it, and the
compaction is removed when every commit that has its rows names files of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import column_names
from pipeline.corpus.plan import plan
from pipeline.errors import DamagedRunError, UsageError
from pipeline.runs.additions import complete_record
from pipeline.runs.commit import (
    Commit,
    CommitName,
    DataFile,
    commit_objects,
    encode_commit,
    parse_commit,
    put_data_file,
    remove_orphans,
)
from pipeline.runs.compact import (
    COMPACTION,
    Compaction,
    compact_group,
    compaction_groups,
    read_compaction,
    write_compaction,
)
from pipeline.runs.damage import NOT_PARQUET
from pipeline.runs.lease import hold_lease
from pipeline.runs.ledger import (
    fetch_commit_objects,
    ledger_table,
    parts_done,
    read_rolled_up,
    remove_commits,
    remove_rolled_up,
    rolled_up_files,
)
from pipeline.runs.record import RunRecord
from pipeline.runs.run import PLAN_FILE, QUARANTINE, RECORD, RECORD_COPY, Run, write_plan
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals
from pipeline.runs.update import follow_plan
from pipeline.runs.verify import ChunkOfTable, check_file, chunk_keys, committed_rows, current_files, labelled_parts
from pipeline.schemas import TABLES
from pipeline.storage import objects, uris
from pipeline.storage.parquet import encode_table

_QUARANTINE_KEYS: Final = frozenset(("at", "machine", "deaths", "aside"))


@dataclass
class Repair:
    """What a repair did.

    Attributes:
        run: the run as it is stored afterwards.
        made: what was made again, a sentence each.
        impossible: what could not be made again, a sentence each.
        chunks: number of chunks whose rows were lost, and that the same command transcribes again.
        open_parts: number of parts that are not completely committed; None if it is not known, without a plan.
    """

    run: Run
    made: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    chunks: int = 0
    open_parts: int | None = None


class _Key(NamedTuple):
    """What names a commit: where it is kept, its part, and its chunk."""

    folder: str
    part_id: str
    chunk: int


@dataclass(frozen=True)
class _Stored:
    """A sound data file, and its rows by chunk."""

    file: DataFile
    rows: Counter[ChunkOfTable]


def repair(uri: str) -> Repair:
    """Repair the run at `uri`; see the module. Reads every byte of the run once.

    Raises:
        UsageError: there is no run, it is being overwritten, or a driver is working on it.
        DamagedRunError: its record is damaged and there is no copy of it.
        StorageError: storage could not be reached.
    """
    uri = uris.absolute(uri)
    _require_run(uri)
    with hold_lease(uri, uuid.uuid4().hex[:12]):
        result = _repaired_record(uri)
        with contextlib.suppress(DamagedRunError):
            result.run = follow_plan(result.run)
        if result.run.status == RunStatus.OVERWRITTEN:
            raise UsageError(f"{uri} holds the rest of a run that was being overwritten; repeat the overwrite")
        if result.run.status == RunStatus.UNKNOWN:
            raise UsageError(f"{uri}: its status is unknown to this version")
        with contextlib.suppress(DamagedRunError):  # the compaction is made again below
            result.run = complete_record(result.run, lambda: None)
        _remove_damaged_quarantine(result)
        commits = _sound_commits(result)
        _repair_plan(result, commits)
        _repair_data(result, commits)
        return result


def _plan_of(run: Run) -> tuple[dict[str, int], int] | None:
    """For each part of the plan the number of the update that planned it, and that of the plan; None if it is lost."""
    try:
        update = run.plan_update()
        return run.part_updates(), update.number if update else 0
    except DamagedRunError:
        return None


# ------------------------------------------------------------------------------------------------ record and plan
def _require_run(uri: str) -> None:
    if not any(objects.exists(uris.join(uri, name)) for name in (RECORD, RECORD_COPY)):
        raise UsageError(f"no run at {uri}: there is no {RECORD}")


def _repaired_record(uri: str) -> Repair:
    try:
        run = Run.open(uri)
        if run.record.fingerprint and run.record.config:
            if isinstance(run.record.values["status"], str):
                return Repair(run)
            return Repair(run.save(status=_status_without_record(run)), [f"{RECORD}: its status was made again"])
    except DamagedRunError:
        pass
    try:
        copy = RunRecord.parse(objects.fetch(uris.join(uri, RECORD_COPY)))
    except (FileNotFoundError, ValueError) as error:
        raise DamagedRunError(
            f"{uri}/{RECORD} is damaged, and there is no copy of it: it cannot be made again, because it says which "
            "models and settings made the rows. Transcribe to another --output; Parquet readers can read "
            f"{uri}/transcripts"
        ) from error
    run = Run(uri, copy)
    run = run.save(status=_status_without_record(run))
    return Repair(run, [f"{RECORD} was made again from its copy"])


def _status_without_record(run: Run) -> RunStatus:
    """A run whose plan was not finished gets the status from which the same command resumes it."""
    with contextlib.suppress(DamagedRunError):
        compaction, update = read_compaction(run.uri), run.plan_update()
        if compaction is not None and compaction.update == (update.number if update else 0):
            return RunStatus.DONE
    return RunStatus.STOPPED


def _repair_plan(result: Repair, commits: Iterable[Commit]) -> None:
    run = result.run
    try:
        if len(run.part_updates()) == run.record.parts:
            return
        problem = f"it has another number of parts than the record ({run.record.parts})"
    except DamagedRunError as error:
        problem = str(error)
    if run.record.updates:
        result.impossible.append(f"{PLAN_FILE}: {problem}; the plan of a run that was updated cannot be made again")
        return
    if run.record.source is not None:
        result.impossible.append(f"{PLAN_FILE}: {problem}; decode the posteriors of {run.record.source} to another run")
        return
    config = run.record.config
    try:
        names = column_names(config.get("columns", ()))
        parts = plan(
            config["inputs"], int(config["part_mib"] * 2**20), config.get("limit"), names, config.get("input_format")
        )
    except (UsageError, KeyError, TypeError, ValueError) as error:
        result.impossible.append(f"{PLAN_FILE}: {problem}; the inputs cannot be listed again: {error}")
        return
    ids = set(parts["part_id"].to_pylist())
    same = len(ids) == run.record.parts and sum(parts["bytes"].to_pylist()) == run.record.input_bytes
    if not same or any(commit.part_id not in ids for commit in commits):
        result.impossible.append(
            f"{PLAN_FILE} cannot be made again: the inputs are no longer those that the run was planned with"
        )
        return
    write_plan(run.uri, parts)
    result.made.append(f"{PLAN_FILE} was made again by listing the inputs")


def _remove_damaged_quarantine(result: Repair) -> None:
    """Remove records of deaths that cannot be read: deaths are counted again."""
    for item in objects.list_directory(uris.join(result.run.uri, QUARANTINE)):
        try:
            values = json.loads(objects.fetch(item.uri))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or not _QUARANTINE_KEYS.issubset(values):
            objects.delete([item.uri])
            result.made.append(f"{_relative(result.run, item.uri)} could not be read and was removed")


# --------------------------------------------------------------------------------------------------------- commits
def _sound_commits(result: Repair) -> list[Commit]:
    """Each chunk's commit once; commits that cannot be read are removed."""
    commits: dict[tuple[str, CommitName], Commit] = {}
    removed: list[str] = []
    for folder in result.run.record.folders:
        for uri, content in fetch_commit_objects(commit_objects(uris.join(result.run.uri, folder))):
            commit = _parsed(content)
            if commit is None or commit.full_path != _relative(result.run, uri):
                removed.append(uri)
            else:
                commits[folder, CommitName(commit.part_id, commit.chunk, commit.last)] = commit
        for uri in rolled_up_files(uris.join(result.run.uri, folder)):
            try:
                rows = read_rolled_up(uri)
            except NOT_PARQUET:
                removed.append(uri)
                continue
            for row in rows:
                if (commit := _parsed(row["content"].encode())) is not None:
                    commits.setdefault((folder, CommitName(commit.part_id, commit.chunk, commit.last)), commit)
    for uri in removed:
        result.made.append(f"{_relative(result.run, uri)} could not be read and was removed")
    objects.delete(removed)
    return list(commits.values())


def _parsed(content: bytes | None) -> Commit | None:
    try:
        return None if content is None else parse_commit(content)
    except ValueError:
        return None


def _remove_commits(run: Run, lost: Sequence[Commit]) -> None:
    names = {_key(commit) for commit in lost}
    for folder in run.record.folders:
        remove_commits(uris.join(run.uri, folder), _is_among(names, folder))


def _is_among(names: Collection[_Key], folder: str) -> Callable[[pa.Table], pa.Array]:
    """Whether each row of a table of chunks is a commit in `folder` that is among `names`."""

    def is_among(table: pa.Table) -> pa.Array:
        keys = zip(table["part_id"].to_pylist(), table["chunk"].to_pylist(), strict=True)
        return pa.array([_Key(folder, *key) in names for key in keys], pa.bool_())

    return is_among


# ------------------------------------------------------------------------------------------------------------ data
def _repair_data(result: Repair, commits: list[Commit]) -> None:
    run = result.run
    known = _plan_of(run)
    if known is None and run.record.updates:  # which commits count is not known: data and commits stay as they are
        if run.status == RunStatus.RUNNING:
            result.run = run.save(status=RunStatus.STOPPED, reason=None)
        return
    updates, number = known or ({}, 0)
    if number:
        commits = [commit for commit in commits if commit.part_id in updates]
    compaction, compaction_is_damaged = _compaction(run)
    is_updating = compaction is not None and compaction.update < number
    pending = run.record.adding
    begun = [commit for commit in commits if pending is not None and commit.folder == pending.folder]
    commits = [commit for commit in commits if pending is None or commit.folder != pending.folder]
    first = run.record.first_classifiers
    own = [file for commit in commits for file in commit.files]
    named = current_files(commits, compaction, updates)
    stored = list(_sound_files(run, named))
    sound = {each.file.path for each in stored}
    broken = [file.path for file in named if file.path not in sound]
    if compaction is None and (broken or compaction_is_damaged):
        # If the run was compacted, and only the object that says so is lost, the rows are in files that it named.
        stored += _sound_files(run, _compacted_files(run, {file.path for file in own}))
    homes = _homes(commits, stored, first)
    lost = [commit for commit in commits if _key(commit) not in homes]
    lost = _whole_parts(run, commits, lost) if run.record.added else lost
    lost = _whole_carried_parts(commits, lost, is_updating and (bool(lost) or bool(broken)))
    used = list(dict.fromkeys(file for files in homes.values() for file in files))
    rows = sum(sum(committed_rows(commit, first).values()) for commit in commits)
    committed_only = sum(file.rows for file in used) == rows
    open_parts = run.record.parts - len(_parts_done(commits))
    was_finished = run.status == RunStatus.DONE or compaction_is_damaged or (compaction is not None and not is_updating)
    complete = not lost and not open_parts and committed_only
    if was_finished and complete and (broken or compaction_is_damaged):
        _write_compaction(result, used, {file.path for file in own}, number)
    elif lost or broken or (was_finished and not complete):
        kept = {_key(commit) for commit in commits} - {_key(commit) for commit in lost}
        _uncompact(result, commits, {key: files for key, files in homes.items() if key in kept})
        parts = {commit.part_id for commit in lost}
        _remove_commits(run, [*lost, *(commit for commit in begun if commit.part_id in parts)])
        result.chunks = len(lost)
    result.made += [f"{path} is lost or was changed" for path in broken]
    gone = {_key(commit) for commit in lost}
    result.open_parts = run.record.parts - len(_parts_done(c for c in commits if _key(c) not in gone))
    _repair_status(result, commits, finished=run.status == RunStatus.DONE and complete and not is_updating)


def _parts_done(commits: Iterable[Commit]) -> list[str]:
    """The parts that the run itself has completely committed."""
    done: list[str] = parts_done(ledger_table(commit for commit in commits if not commit.folder)).to_pylist()
    return done


def _whole_parts(run: Run, commits: Sequence[Commit], lost: Sequence[Commit]) -> list[Commit]:
    """The commits of each part of which something is lost: a commit, its rows, or that of an addition."""
    parts = {commit.part_id for commit in lost}
    for addition in run.record.added:
        labelled = labelled_parts([commit for commit in commits if commit.part_id not in parts], addition)
        parts |= {commit.part_id for commit in commits} - labelled
    return [commit for commit in commits if commit.part_id in parts]


def _whole_carried_parts(commits: Sequence[Commit], lost: Sequence[Commit], is_unfinished: bool) -> list[Commit]:
    """The commits that are lost, with all of a part whose rows were carried over and cannot be carried over again.

    Args:
        commits: all that count.
        lost: those that are lost.
        is_unfinished: the rows that were to be carried over become unreadable.
    """
    done = frozenset(_parts_done(commits))
    carried = {commit.part_id for commit in commits if commit.carried}
    opened = carried & {commit.part_id for commit in lost}
    if is_unfinished:
        opened |= carried - done
    return [*lost, *(commit for commit in commits if commit.part_id in opened and commit not in lost)]


def _repair_status(result: Repair, commits: Sequence[Commit], *, finished: bool) -> None:
    run = result.run
    if not finished:
        if run.status in (RunStatus.DONE, RunStatus.RUNNING):
            result.run = run.save(status=RunStatus.STOPPED, reason=None)
        return
    compaction = read_compaction(run.uri)
    remove_orphans(run.uri, compaction.files if compaction else ())
    totals = Totals.from_ledger(ledger_table(commit for commit in commits if not commit.folder))
    if run.record.totals != totals:
        result.made.append("the totals in the record were made again from the commits")
        result.run = run.save(totals=totals)


def _compaction(run: Run) -> tuple[Compaction | None, bool]:
    """The compacted files, and whether the object that names them must be made again."""
    try:
        compaction = read_compaction(run.uri)
    except DamagedRunError:
        return None, True
    return compaction, compaction is None and run.status == RunStatus.DONE


def _sound_files(run: Run, files: Iterable[DataFile]) -> Iterator[_Stored]:
    for file in files:
        problems, rows = check_file(run.uri, file)
        if not problems:
            yield _Stored(file, rows)


def _compacted_files(run: Run, known: set[str]) -> Iterator[DataFile]:
    """The data files whose names have the digest of their content, without those in `known`."""
    for table in TABLES:
        for item in objects.list_directory(uris.join(run.uri, table)):
            path = _relative(run, item.uri)
            if path in known:
                continue
            data = objects.fetch(item.uri)
            digest = hashlib.sha256(data).hexdigest()
            if not path.endswith(f"-{digest[:16]}.parquet"):
                continue
            rows = pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
            yield DataFile(table, path, rows, len(data), digest)


def _homes(
    commits: Iterable[Commit], stored: Iterable[_Stored], classifiers: Sequence[str]
) -> dict[_Key, tuple[DataFile, ...]]:
    """The sound files that hold all rows of a commit; one that lacks rows is left out."""
    holders: dict[ChunkOfTable, list[tuple[DataFile, int]]] = {}
    for each in stored:
        for key, count in each.rows.items():
            holders.setdefault(key, []).append((each.file, count))
    homes: dict[_Key, tuple[DataFile, ...]] = {}
    for commit in commits:
        needed = committed_rows(commit, classifiers)
        files = [
            next((file for file, count in holders.get(key, ()) if count == needed[key]), None) for key in sorted(needed)
        ]
        if all(file is not None for file in files):
            homes[_key(commit)] = tuple(dict.fromkeys(filter(None, files)))
    return homes


def _write_compaction(result: Repair, files: Sequence[DataFile], own: set[str], update: int) -> None:
    """Name the files that hold all rows, compacted if they are still those of the commits."""
    if any(file.path in own for file in files):
        files = [compact_group(result.run.uri, *group) for group in compaction_groups(files)]
    write_compaction(result.run.uri, files, update, [addition.folder for addition in result.run.record.added])
    result.made.append(f"{COMPACTION} was made again: it names {len(files)} files")


def _uncompact(result: Repair, commits: Sequence[Commit], homes: dict[_Key, tuple[DataFile, ...]]) -> None:
    """Give each commit that is whole files of its own, and remove the compaction."""
    run = result.run
    first = run.record.first_classifiers
    owners = {key: _key(commit) for commit in commits if _key(commit) in homes for key in committed_rows(commit, first)}
    own = {file.path for commit in commits for file in commit.files}
    shared = {file: None for files in homes.values() for file in files if file.path not in own}
    parts: dict[_Key, list[DataFile]] = {}
    for file in shared:
        for key, table in _split(objects.fetch(uris.join(run.uri, file.path)), file.table, owners):
            if file in homes[key]:
                stem, data = f"{key.part_id}-{key.chunk:05d}", encode_table(table)
                parts.setdefault(key, []).append(
                    put_data_file(run.uri, file.table, stem, table.num_rows, data, key.folder)
                )
    for commit in commits:
        if (key := _key(commit)) in parts:
            files = [file for file in homes[key] if file.path in own] + parts[key]
            renewed = replace(commit, files=tuple(files))
            objects.put(uris.join(run.uri, renewed.full_path), encode_commit(renewed))
    for folder in run.record.folders:  # once the renewed commits are rolled up too, either could count
        remove_rolled_up(uris.join(run.uri, folder), _is_among(parts.keys(), folder))
    objects.delete([uris.join(run.uri, COMPACTION)])


def _split(data: bytes, name: str, owners: Mapping[ChunkOfTable, _Key]) -> Iterator[tuple[_Key, pa.Table]]:
    """The rows of each commit in a data file of the table `name`, in their order; without those that have no owner."""
    table = pq.read_table(io.BytesIO(data))
    rows: dict[_Key, list[int]] = {}
    columns = (table[column].to_pylist() for column in chunk_keys(name))
    for row, values in enumerate(zip(*columns, strict=True)):
        if (owner := owners.get(ChunkOfTable(name, *values))) is not None:
            rows.setdefault(owner, []).append(row)
    for owner, indices in rows.items():
        yield owner, table.take(pa.array(indices))


def _key(commit: Commit) -> _Key:
    return _Key(commit.folder, commit.part_id, commit.chunk)


def _relative(run: Run, uri: str) -> str:
    return uri.removeprefix(run.uri.rstrip("/") + "/")
