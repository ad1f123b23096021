"""All commits of a run as one table: those that are objects of their own, and those that were rolled up into files.

A run of a million chunks would leave a million commit objects, and opening each costs a request. Whenever there are
`ROLL_UP_COMMITS` of them, the driver writes their content to one Parquet file, `commits/rolled/DIGEST.parquet`, and
removes the objects.

The ordering argument. The file is put whole before the first object is removed, and readers list the objects before
they list the files: a commit that is no longer an object when the objects are listed is in a file when the files are
listed. An object that is removed between its listing and its reading is in a file, too, which the later listing shows.
Killed in between, a commit is in both and counts once. Two attempts at one chunk, one of them rolled up: each names one
consistent set of files, none of which is removed before the run is compacted, and all readers choose the same one: the
object before a file, and the first of several files by name.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.runs.commit import COMMITS, Commit, CommitName, commit_objects, parse_commit, parse_commit_name
from pipeline.runs.damage import NOT_PARQUET, damaged
from pipeline.schemas import field
from pipeline.storage import clients, objects, uris
from pipeline.storage.parquet import encode_table

ROLLED_UP: Final = f"{COMMITS}/rolled"
ROLL_UP_COMMITS: Final = 2_500
READ_AHEAD: Final = 256  # commit objects that are read at once and held in memory until they are used

COMMITTED_CHUNKS: Final = pa.schema(
    [
        field("part_id", pa.string(), "part of the plan"),
        field("chunk", pa.int32(), "ordinal of the chunk in the part"),
        field("last", pa.bool_(), "whether it is the last chunk of the part"),
    ]
)
_FEW_STRINGS: Final = pa.dictionary(pa.int32(), pa.string())  # few distinct values in a million rows
LEDGER: Final = pa.schema(
    [
        *COMMITTED_CHUNKS,
        field("first_row", pa.int64(), "rows of the part before this chunk"),
        field("part_rows", pa.int64(), "rows of the whole part; null unless this is its last chunk"),
        field("utterances", pa.int64(), "rows with a transcript"),
        field("errors", pa.int64(), "rows without a transcript"),
        field("error_codes", pa.map_(pa.string(), pa.int64()), "rows without a transcript, by error code"),
        field("audio_s", pa.float64(), "audio in the chunk", "s"),
        field("source_bytes", pa.int64(), "planned input bytes that were processed", "bytes"),
        field("compute_s", pa.float64(), "time in the model", "s"),
        field("engine", _FEW_STRINGS, "description of what computed the chunk; null: not recorded"),
        field("fallback", _FEW_STRINGS, "why that is not the requested or the fastest engine; null where it is"),
        field("splits", pa.int64(), "times that a batch was halved because memory ran out; null: not recorded"),
        field("skipped_s", pa.float64(), "silence that the model did not compute; null: not recorded", "s"),
        field("warned", pa.int64(), "transcripts with a warning about their file; 0 or null: perhaps not recorded"),
        field("carried", pa.bool_(), "whether its rows were carried over, see `Commit.carried`; null: no"),
    ]
)
# Files of earlier versions lack them.
ADDED_COLUMNS: Final = frozenset(("engine", "fallback", "splits", "skipped_s", "warned", "carried"))
_ROLLED_UP_FILE: Final = pa.schema([*LEDGER, field("content", pa.string(), "content of the commit object, unchanged")])
_CHUNK_ORDER: Final = [("part_id", "ascending"), ("chunk", "ascending")]


class Ledger(NamedTuple):
    """What is committed.

    Attributes:
        table: one row of schema `LEDGER` for each committed chunk.
        objects: the content of each commit that is still an object of its own.
    """

    table: pa.Table
    objects: list[bytes]


@dataclass(frozen=True)
class NonContiguousChunk:
    """A committed chunk that does not follow the chunks before it, or does not complete its part as it should.

    Attributes:
        part_id: its part.
        chunk: ordinal in the part.
        first_row: where the chunk begins in the part.
        rows_before: where the chunks before it end.
        part_rows: rows of the whole part; None unless the chunk is the last one.
    """

    part_id: str
    chunk: int
    first_row: int
    rows_before: int
    part_rows: int | None


# ---------------------------------------------------------------------------------------------------- writing
def roll_up(run: str, contents: Iterable[bytes]) -> None:
    """Put the contents of commit objects as one file, then remove the objects; see the module's ordering argument."""
    rows = sorted((_row(parse_commit(data)) | {"content": data.decode()} for data in contents), key=_name)
    if not rows:
        return
    put_rolled_up(run, pa.Table.from_pylist(rows, schema=_ROLLED_UP_FILE))
    objects.delete([uris.join(run, parse_commit(row["content"].encode()).path) for row in rows])


def put_rolled_up(run: str, rows: pa.Table) -> None:
    """Put one file of rolled-up commits; `rows` have the columns of `LEDGER` and `content`."""
    data = encode_table(rows.cast(_ROLLED_UP_FILE))
    objects.put(uris.join(run, ROLLED_UP, f"{hashlib.sha256(data).hexdigest()[:16]}.parquet"), data)


def read_rolled_up(uri: str) -> list[dict[str, Any]]:
    """The rows of one file of rolled-up commits, with the columns of `LEDGER` and `content`.

    Raises:
        ValueError: the file was changed after it was written.
    """
    data = objects.fetch(uri)
    if not uri.endswith(f"/{hashlib.sha256(data).hexdigest()[:16]}.parquet"):
        raise ValueError("was changed after it was written: its SHA-256 differs")
    rows: list[dict[str, Any]] = _rolled_up_table(data, _ROLLED_UP_FILE.names).to_pylist()
    return rows


def remove_commits(run: str, is_removed: Callable[[pa.Table], pa.Array]) -> None:
    """Remove commits, whether they are objects of their own or were rolled up.

    Args:
        run: the run.
        is_removed: given a table of schema `COMMITTED_CHUNKS`, whether each row is a commit to remove.
    """
    remove_rolled_up(run, is_removed)
    named = [(uri, name) for uri in commit_objects(run) if (name := parse_commit_name(uri)) is not None]
    table = pa.Table.from_pylist([name._asdict() for _, name in named], schema=COMMITTED_CHUNKS)
    objects.delete([uri for (uri, _), remove in zip(named, is_removed(table).to_pylist(), strict=True) if remove])


def remove_rolled_up(run: str, is_removed: Callable[[pa.Table], pa.Array]) -> None:
    """Remove rolled-up commits; see `remove_commits`. A file of them is removed when another holds those that stay."""
    for uri in rolled_up_files(run):
        table = _read_file(uri, _ROLLED_UP_FILE.names)
        kept = table.filter(pc.invert(is_removed(table.select(COMMITTED_CHUNKS.names))))
        if len(kept) < len(table):
            if len(kept):
                put_rolled_up(run, kept)
            objects.delete([uri])


def ledger_table(commits: Iterable[Commit]) -> pa.Table:
    """Commits as a table of schema `LEDGER`."""
    return pa.Table.from_pylist([_row(commit) for commit in commits], schema=LEDGER)


def _row(commit: Commit) -> dict[str, Any]:
    values = {name: getattr(commit, name) for name in LEDGER.names if name not in ("error_codes", "compute_s")}
    return values | {"error_codes": list(commit.error_codes.items()), "compute_s": commit.seconds["compute"]}


def _name(row: dict[str, Any]) -> CommitName:
    return CommitName(row["part_id"], row["chunk"], row["last"])


# ---------------------------------------------------------------------------------------------------- reading
def read_committed_chunks(run: str) -> pa.Table:
    """A row of schema `COMMITTED_CHUNKS` for each committed chunk; opens no commit object."""
    names = [parse_commit_name(uri) for uri in commit_objects(run)]
    table = pa.Table.from_pylist([name._asdict() for name in names if name], schema=COMMITTED_CHUNKS)
    return _without_duplicates([table, *_read_files(rolled_up_files(run), COMMITTED_CHUNKS.names)])


def read_ledger(run: str) -> Ledger:
    """Everything that is committed.

    Raises:
        FileNotFoundError: a commit that was listed is lost.
        DamagedRunError: a commit cannot be read.
    """
    contents: list[bytes] = []
    commits: list[Commit] = []
    removed: list[str] = []
    for uri, data in fetch_commit_objects(commit_objects(run)):
        if data is None:
            removed.append(uri)
        else:
            commits.append(_parse(run, uri, data))
            contents.append(data)
    committed = ledger_table(commits)
    table = _without_duplicates([committed, *_read_files(rolled_up_files(run), LEDGER.names)])
    _check_rolled_up(removed, table)
    return Ledger(table, contents)


def read_commits(run: str) -> Iterator[Commit]:
    """Every commit of a run once: the objects by name, a few at a time, then those that were rolled up.

    Raises:
        FileNotFoundError: a commit that was listed is lost.
        DamagedRunError: a commit cannot be read.
    """
    seen: set[CommitName] = set()
    removed: list[str] = []
    for uri, data in fetch_commit_objects(commit_objects(run)):
        if data is None:
            removed.append(uri)
            continue
        commit = _parse(run, uri, data)
        seen.add(CommitName(commit.part_id, commit.chunk, commit.last))
        yield commit
    files = rolled_up_files(run)
    tables = _read_files(files, COMMITTED_CHUNKS.names)
    chunks = _without_duplicates(tables) if tables else COMMITTED_CHUNKS.empty_table()
    _check_rolled_up(removed, chunks)
    has_duplicates = sum(map(len, tables)) > len(chunks)  # only then the names have to be remembered
    for uri in files:
        for row in _read_file(uri, [*COMMITTED_CHUNKS.names, "content"]).to_pylist():
            if _name(row) not in seen:
                yield _parse(run, uri, row["content"].encode())
                if has_duplicates:
                    seen.add(_name(row))


def _parse(run: str, uri: str, data: bytes) -> Commit:
    """The commit that an object, or a row of a file of rolled-up commits, holds."""
    try:
        return parse_commit(data)
    except ValueError as error:
        raise damaged(run, uri, f"cannot be read ({error})") from error


def rolled_up_files(run: str) -> list[str]:
    """The URIs of the files that hold rolled-up commits, by name."""
    stored = objects.list_objects(uris.join(run, ROLLED_UP))
    return [item.uri for item in stored if item.uri.endswith(".parquet") and not objects.is_temporary(item.uri)]


def fetch_commit_objects(paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
    """Each URI and the content of its object; None if the object was removed, as it is once it is rolled up."""
    with ThreadPoolExecutor(clients.MAX_CONNECTIONS) as pool:
        for start in range(0, len(paths), READ_AHEAD):
            batch = paths[start : start + READ_AHEAD]
            yield from zip(batch, pool.map(_fetch, batch), strict=True)


def _fetch(uri: str) -> bytes | None:
    try:
        return objects.fetch(uri)
    except FileNotFoundError:
        return None


def _read_files(files: Sequence[str], columns: Sequence[str]) -> list[pa.Table]:
    with ThreadPoolExecutor(clients.MAX_CONNECTIONS) as pool:
        return list(pool.map(lambda uri: _read_file(uri, columns), files))


def _read_file(uri: str, columns: Sequence[str]) -> pa.Table:
    # Fetched whole, not by columns: the file is a few MB, and each range would be a request.
    data = objects.fetch(uri)
    try:
        return _rolled_up_table(data, columns)
    except NOT_PARQUET as error:
        raise damaged(uri.partition(f"/{ROLLED_UP}/")[0], uri, f"cannot be read ({error})") from error


def _rolled_up_table(data: bytes, columns: Sequence[str]) -> pa.Table:
    file = pq.ParquetFile(io.BytesIO(data))
    table = file.read([name for name in columns if name in file.schema_arrow.names])
    for name in ADDED_COLUMNS.intersection(columns).difference(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), _ROLLED_UP_FILE.field(name).type))
    return table.select(columns).cast(pa.schema([_ROLLED_UP_FILE.field(name) for name in columns]))


def _without_duplicates(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of the tables, without those that an earlier table has.

    A chunk that was committed both as the last of its part and as an earlier one stays twice: two attempts saw
    different inputs, which `non_contiguous_chunks` reports.
    """
    table = pa.concat_tables(tables)
    numbered = table.select(COMMITTED_CHUNKS.names).append_column("row", pa.array(np.arange(len(table))))
    first = numbered.group_by(COMMITTED_CHUNKS.names).aggregate([("row", "min")])["row_min"]
    return table if len(first) == len(table) else table.take(pa.array(np.sort(first.to_numpy())))


def _check_rolled_up(removed: Sequence[str], table: pa.Table) -> None:
    """Check that every commit object that was removed after it was listed is in `table`."""
    if not removed:
        return
    names = {_name(row) for row in table.select(COMMITTED_CHUNKS.names).to_pylist()}
    for uri in removed:
        if parse_commit_name(uri) not in names:
            raise FileNotFoundError(uri)


# --------------------------------------------------------------------------------------------------- queries
def of_parts(table: pa.Table, parts: pa.Array | None) -> pa.Table:
    """The rows of a ledger, or of committed chunks, whose parts are among `parts`; all of them where it is None."""
    return table if parts is None else table.filter(pc.is_in(table["part_id"], parts))


def parts_done(table: pa.Table) -> pa.Array:
    """Ids of the parts whose chunks 0..last are all in `table`, which has the columns of `COMMITTED_CHUNKS`."""
    if not table.num_rows:
        return pa.array([], pa.string())
    parts = table["part_id"].combine_chunks().dictionary_encode()
    part, chunk, is_last = parts.indices.to_numpy(), table["chunk"].to_numpy(), table["last"].to_numpy()
    last_chunk = np.full(len(parts.dictionary), -1)
    np.maximum.at(last_chunk, part[is_last], chunk[is_last])
    needed = chunk <= last_chunk[part]
    distinct = np.unique(np.stack([part[needed], chunk[needed]]), axis=1)
    committed = np.bincount(distinct[0], minlength=len(last_chunk))
    return parts.dictionary.filter(pa.array((last_chunk >= 0) & (committed == last_chunk + 1)))


def chunks_by_part(table: pa.Table, parts: pa.Array) -> dict[str, list[int]]:
    """The committed chunks of `parts`, in order."""
    chunks: dict[str, list[int]] = {}
    rows = table.filter(pc.is_in(table["part_id"], parts)).select(["part_id", "chunk"])
    rows = rows.group_by(["part_id", "chunk"]).aggregate([]).sort_by(_CHUNK_ORDER)
    for part, chunk in zip(rows["part_id"].to_pylist(), rows["chunk"].to_pylist(), strict=True):
        chunks.setdefault(part, []).append(chunk)
    return chunks


def non_contiguous_chunks(table: pa.Table) -> list[NonContiguousChunk]:
    """The chunks of a ledger that do not begin where the chunks before them in their part end.

    A last chunk that does not complete the rows of its part is reported, too. The cause is that the chunks of one part
    were read at different times and saw different inputs. Where the chunks just before a chunk are not committed yet,
    it must only not begin before the end of those that are.
    """
    if not table.num_rows:
        return []
    table = table.sort_by(_CHUNK_ORDER)
    part = table["part_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    chunk, first_row = table["chunk"].to_numpy(), table["first_row"].to_numpy()
    end = first_row + table["utterances"].to_numpy() + table["errors"].to_numpy()
    same_part = np.r_[False, part[1:] == part[:-1]]
    rows_before = np.where(same_part, np.r_[0, end[:-1]], 0)
    is_next = chunk == np.where(same_part, np.r_[0, chunk[:-1] + 1], 0)
    begins_right = np.where(is_next, first_row == rows_before, first_row >= rows_before)
    part_rows = table["part_rows"].fill_null(-1).to_numpy()
    wrong = ~begins_right | (table["last"].to_numpy() & (part_rows != end))
    names = ["part_id", "chunk", "first_row", "part_rows"]
    rows = table.select(names).filter(pa.array(wrong)).to_pylist()
    return [
        NonContiguousChunk(**row, rows_before=int(number)) for row, number in zip(rows, rows_before[wrong], strict=True)
    ]


def error_codes(table: pa.Table) -> dict[str, int]:
    """The rows of a ledger that failed, by error code."""
    entries = table["error_codes"].combine_chunks()
    codes = pa.table({"code": entries.keys, "count": entries.items})
    sums = codes.group_by("code").aggregate([("count", "sum")]).sort_by("code")
    return dict(zip(sums["code"].to_pylist(), sums["count_sum"].to_pylist(), strict=True))


def utterances_by(table: pa.Table, column: str) -> dict[str | None, int]:
    """The transcripts of a ledger by the value of `column`: `engine` or `fallback`."""
    rows = table.select([column, "utterances"]).filter(pc.greater(table["utterances"], 0)).unify_dictionaries()
    sums = rows.group_by(column).aggregate([("utterances", "sum")])
    return dict(zip(sums[column].to_pylist(), sums["utterances_sum"].to_pylist(), strict=True))
