"""The plan of a run that is made of the kept posteriors of another, its source, and the rows of a part of it.

The new run has the parts and the chunks of its source, with the same rows in the same order: only what is decoded from
posteriors is new. Rows with errors and labels are those of the source, and so are the counts of each commit. A part of
its plan, of the kind `posteriors`, has in `state` the commits of the part, and the row groups of the source that hold
its rows. So planning reads the commits and one column of each table, and a worker reads only what its part needs.

The source must be finished: then its rows are in the files that `compaction.json` names, and no later start of a driver
removes them, unless it updates the run. `source_digest` changes with any of these files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.parts import PLAN
from pipeline.errors import InputChangedError, UsageError
from pipeline.runs.commit import Commit, DataFile, encode_commit, parse_commit
from pipeline.runs.compact import read_compaction
from pipeline.runs.damage import NOT_PARQUET, damaged
from pipeline.runs.run import Run
from pipeline.runs.status import RunStatus
from pipeline.schemas import TABLES
from pipeline.storage import clients, objects, uris

KIND: Final = "posteriors"  # of a part
READ_TABLES: Final = ("posteriors", "labels", "errors")
COLUMN_BYTES: Final = 1 << 16  # of a column of a row group, and of what describes a file
GROUP_BYTES: Final = 1 << 20  # of a row group, which has about two
_KEPT_COLUMNS: Final = ("part_id", "ordinal", "bytes", "rows")  # of a part of the source; the others are null or empty


class ChunkRows(NamedTuple):
    """One commit of the source, and its rows in each of `READ_TABLES`."""

    commit: Commit
    rows: dict[str, pa.Table]


def require_source(run: Run) -> None:
    """Check that a run can be the source of another.

    Raises:
        UsageError: it keeps no posteriors, or is not finished.
        DamagedRunError: its record is damaged.
    """
    _ = run.acoustics
    if run.status != RunStatus.DONE:
        raise UsageError(
            f"posteriors are decoded of a finished run, and {run.uri} is {run.status}: run its command first"
        )


def source_digest(source: Run) -> str:
    """A digest of all rows of the source: those of its posteriors, its labels and its errors."""
    names = sorted(file.sha256 for file in _files(source) if file.table in READ_TABLES)
    return hashlib.sha256("".join(names).encode()).hexdigest()


def _files(source: Run) -> tuple[DataFile, ...]:
    compaction = read_compaction(source.uri)
    if compaction is None:
        raise damaged(source.uri, "compaction.json", "is lost")
    return compaction.files


# ---------------------------------------------------------------------------------------------------- planning
def plan_redecoding(source: Run) -> pa.Table:
    """The parts of a run that is made of the posteriors of `source`, of schema `PLAN`.

    Raises:
        DamagedRunError: a file of the source is lost or damaged.
        StorageError: storage could not be reached.
    """
    files = [file for file in _files(source) if file.table in READ_TABLES and file.rows]
    with ThreadPoolExecutor(clients.MAX_CONNECTIONS) as pool:
        found = pool.map(lambda file: list(_groups_of_parts(source.uri, file)), files)
        groups: dict[str, list[tuple[str, str, int]]] = {}
        for file, of_file in zip(files, found, strict=True):
            for part_id, group in of_file:
                groups.setdefault(part_id, []).append((file.table, file.path, group))
    commits: dict[str, list[Commit]] = {}
    for commit in source.all_commits():
        commits.setdefault(commit.part_id, []).append(commit)
    batches = [_with_states(batch, commits, groups) for batch in source.plan_batches()]
    return pa.Table.from_batches(batches, PLAN)


def _groups_of_parts(run: str, file: DataFile) -> Iterator[tuple[str, int]]:
    """Each part that has rows in a row group of a file, and the number of that row group."""
    try:
        with objects.open_read(uris.join(run, file.path), block_bytes=COLUMN_BYTES) as opened:
            source = pq.ParquetFile(opened, read_dictionary=["part_id"])
            column = source.read(["part_id"], use_threads=False)["part_id"].combine_chunks()
            sizes = [source.metadata.row_group(group).num_rows for group in range(source.num_row_groups)]
    except FileNotFoundError as error:
        raise damaged(run, file.path, "is lost") from error
    except NOT_PARQUET as error:
        raise damaged(run, file.path, f"cannot be read ({error})") from error
    edges = np.cumsum([0, *sizes]).tolist()
    for group, (start, end) in enumerate(itertools.pairwise(edges)):
        for part_id in pc.unique(column.slice(start, end - start)).to_pylist():
            yield part_id, group


def _with_states(
    batch: pa.RecordBatch,
    commits: Mapping[str, Sequence[Commit]],
    groups: Mapping[str, Sequence[tuple[str, str, int]]],
) -> pa.RecordBatch:
    """Parts of the plan of the source as those of the new plan."""
    states = [_encode_state(commits.get(part, ()), groups.get(part, ())) for part in batch["part_id"].to_pylist()]
    empty = {name: pa.array([[]] * len(batch), PLAN.field(name).type) for name in ("items", "duplicates")}
    kept = {name: batch[name] for name in _KEPT_COLUMNS}
    columns = {"kind": pa.array([KIND] * len(batch)), "state": pa.array(states), **empty, **kept}
    arrays = [columns.get(field.name, pa.nulls(len(batch), field.type)) for field in PLAN]
    return pa.RecordBatch.from_arrays(arrays, schema=PLAN)


def _encode_state(commits: Iterable[Commit], groups: Iterable[tuple[str, str, int]]) -> str:
    # Those of additions first: a part counts as done once all of its own chunks are committed.
    ordered = sorted(commits, key=lambda commit: (not commit.folder, commit.folder, commit.chunk))
    values = [encode_commit(replace(commit, files=())).decode() for commit in ordered]
    return json.dumps({"commits": values, "groups": list(groups)}, separators=(",", ":"))


# ----------------------------------------------------------------------------------------------------- reading
def read_part(source: str, state: str, done: frozenset[int]) -> Iterator[ChunkRows]:
    """The chunks of a part that are not done, in the order in which they are to be committed.

    Args:
        source: URI of the source.
        state: of the part, as its plan has it.
        done: the chunks of the run itself that are committed; those of additions come before them.

    Raises:
        InputChangedError: the rows are not those that were planned: the source was changed.
        StorageError: storage could not be reached.
    """
    values = json.loads(state)
    commits = [parse_commit(each.encode()) for each in values["commits"]]
    commits = [commit for commit in commits if not done or (not commit.folder and commit.chunk not in done)]
    if not commits:
        return
    tables = _read_groups(source, values["groups"], commits[0].part_id)
    for commit in commits:
        of_chunk = {name: table.filter(pc.equal(table["chunk"], commit.chunk)) for name, table in tables.items()}
        tasks = pa.array(commit.classifiers or (), pa.string())
        of_chunk["labels"] = of_chunk["labels"].filter(pc.is_in(of_chunk["labels"]["task"], tasks))
        if commit.folder:
            of_chunk = {name: rows if name == "labels" else rows.slice(0, 0) for name, rows in of_chunk.items()}
        elif (of_chunk["posteriors"].num_rows, of_chunk["errors"].num_rows) != (commit.utterances, commit.errors):
            raise InputChangedError(f"{source} was changed: part {commit.part_id} has other rows than were planned")
        yield ChunkRows(commit, of_chunk)


def _read_groups(source: str, groups: Iterable[Sequence[Any]], part_id: str) -> dict[str, pa.Table]:
    """The rows of a part in each of `READ_TABLES`."""
    rows = {name: [TABLES[name].empty_table()] for name in READ_TABLES}
    for (table, path), numbers in itertools.groupby(groups, key=lambda group: (group[0], group[1])):
        try:
            with objects.open_read(uris.join(source, path), block_bytes=GROUP_BYTES) as file:
                found = pq.ParquetFile(file).read_row_groups([number for _, _, number in numbers])
        except FileNotFoundError as error:
            raise InputChangedError(f"{source} was changed: {path} is gone") from error
        rows[table].append(found.filter(pc.equal(found["part_id"], part_id)).cast(TABLES[table]))
    return {name: pa.concat_tables(tables) for name, tables in rows.items()}
