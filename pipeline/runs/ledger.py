"""What is committed, as one table: from commits that were rolled up, and those that still are objects of their own.

A run of a million chunks would leave a million commit objects, and opening each costs a request. Whenever
`ROLL_UP_COMMITS` of them have gathered, the driver writes their content to one Parquet file,
`commits/rolled/DIGEST.parquet`, and removes the objects.

The ordering argument. The file is put whole before the first object is removed, and readers list the objects before
they list the files: a commit that is no object any more when the objects are listed is in a file when the files are.
An object that goes away between its listing and its reading is in a file, too, that the later listing shows. Killed
between, a commit is in both and counts once. Two attempts at one chunk, one of them rolled up: each names one
consistent set of files, none of which is removed before the run is compacted, and readers agree on which they take:
the object before a file, and of files the first by name.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.runs.commit import COMMITS, Commit, commit_objects, commit_of, name_of
from pipeline.schemas import field
from pipeline.storage import objects, uris

ROLLED = f"{COMMITS}/rolled"
ROLL_UP_COMMITS = 2_500
READ_AHEAD = 256  # commits that are read at once: their text waits in memory for its turn

COMMITTED = pa.schema(
    [
        field("part_id", pa.string(), "part"),
        field("chunk", pa.int32(), "ordinal"),
        field("last", pa.bool_(), "the part ends with it"),
    ]
)
_WORDS = pa.dictionary(pa.int32(), pa.string())  # a few, in a million rows
LEDGER = pa.schema(
    [
        *COMMITTED,
        field("first_row", pa.int64(), "rows of the part that come before it"),
        field("part_rows", pa.int64(), "rows of the part, where it is the last"),
        field("utterances", pa.int64(), "rows with a transcript"),
        field("errors", pa.int64(), "rows without"),
        field("error_codes", pa.map_(pa.string(), pa.int64()), "rows without a transcript, by code"),
        field("audio_s", pa.float64(), "audio transcribed", "s"),
        field("source_bytes", pa.int64(), "planned bytes got through", "bytes"),
        field("compute_s", pa.float64(), "time in the model", "s"),
        field("engine", _WORDS, "what computed it; null: not told"),
        field("fallback", _WORDS, "why that is not what was asked for, or not the fast one; null where it is"),
        field("splits", pa.int64(), "batches that were halved for want of memory; null: not told"),
    ]
)
TOLD_SINCE = frozenset(("engine", "fallback", "splits"))  # by this version; files of earlier ones lack them
_ROLLED_FILE = pa.schema([*LEDGER, field("content", pa.string(), "the commit object, as it was")])


_IN_ORDER = [("part_id", "ascending"), ("chunk", "ascending")]


# ---------------------------------------------------------------------------------------------------- writing
def roll_up(run: str, contents: Iterable[bytes]) -> None:
    """Put the contents of commit objects as one file, then remove the objects; see the module's ordering argument."""
    rows = sorted((_row(commit_of(data)) | {"content": data.decode()} for data in contents), key=_key)
    if not rows:
        return
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_ROLLED_FILE), buffer, compression="zstd")
    data = buffer.getvalue()
    objects.put(uris.join(run, ROLLED, f"{hashlib.sha256(data).hexdigest()[:16]}.parquet"), data)
    objects.delete([uris.join(run, commit_of(row["content"].encode()).path) for row in rows])


def ledger_of(commits: Iterable[Commit]) -> pa.Table:
    """Commits as a table of schema `LEDGER`."""
    return pa.Table.from_pylist([_row(commit) for commit in commits], schema=LEDGER)


def _row(commit: Commit) -> dict[str, Any]:
    values = {name: getattr(commit, name) for name in LEDGER.names if name not in ("error_codes", "compute_s")}
    return values | {"error_codes": list(commit.error_codes.items()), "compute_s": commit.seconds["compute"]}


def _key(row: dict[str, Any]) -> tuple[str, int, bool]:
    return row["part_id"], row["chunk"], row["last"]


# ---------------------------------------------------------------------------------------------------- reading
def committed(run: str) -> pa.Table:
    """Part, chunk and whether it is the last (`COMMITTED`) of all that is committed; opens no commit object."""
    names = [name_of(uri) for uri in commit_objects(run)]
    objects = pa.Table.from_pylist([name._asdict() for name in names if name is not None], schema=COMMITTED)
    return _each_once([objects, *_read(rolled_files(run), COMMITTED.names)])


def ledger(run: str, also: list[bytes] | None = None) -> pa.Table:
    """One row of schema `LEDGER` for each chunk that is committed.

    Args:
        run: the RUN directory or prefix.
        also: is given the content of each commit that is still an object, if it is not None.

    Raises:
        FileNotFoundError: a commit that was listed is lost.
    """
    contents: list[bytes] = []
    gone: list[str] = []
    for uri, data in read_objects(commit_objects(run)):
        if data is None:
            gone.append(uri)
        else:
            contents.append(data)
    if also is not None:
        also += contents
    table = _each_once([ledger_of(map(commit_of, contents)), *_read(rolled_files(run), LEDGER.names)])
    _check_rolled(gone, table)
    return table


def read_commits(run: str) -> Iterator[Commit]:
    """Every commit of a run once: the objects in the order of their names, a few at a time, then those rolled up.

    Raises:
        FileNotFoundError: a commit that was listed is lost.
    """
    seen: set[tuple[str, int, bool]] = set()
    gone: list[str] = []
    for uri, data in read_objects(commit_objects(run)):
        if data is None:
            gone.append(uri)
            continue
        commit = commit_of(data)
        seen.add((commit.part_id, commit.chunk, commit.last))
        yield commit
    files = rolled_files(run)
    keys = _read(files, COMMITTED.names)
    each = _each_once(keys) if keys else COMMITTED.empty_table()
    _check_rolled(gone, each)
    twice = sum(map(len, keys)) > len(each)  # then what was read has to be remembered, else not
    for uri in files:
        for row in _table(uri, [*COMMITTED.names, "content"]).to_pylist():
            if _key(row) not in seen:
                yield commit_of(row["content"].encode())
                if twice:
                    seen.add(_key(row))


def rolled_files(run: str) -> list[str]:
    """The URIs of the files that hold commits which were rolled up, by name."""
    found = objects.list_objects(uris.join(run, ROLLED))
    return [item.uri for item in found if item.uri.endswith(".parquet") and not objects.is_temporary(item.uri)]


def read_objects(paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
    """Each object's content; None where it is gone, which it is once it was rolled up."""
    with ThreadPoolExecutor(uris.CONNECTIONS) as pool:
        for start in range(0, len(paths), READ_AHEAD):
            some = paths[start : start + READ_AHEAD]
            yield from zip(some, pool.map(_fetch, some), strict=True)


def _fetch(uri: str) -> bytes | None:
    try:
        return objects.fetch(uri)
    except FileNotFoundError:
        return None


def _read(files: Sequence[str], columns: Sequence[str]) -> list[pa.Table]:
    with ThreadPoolExecutor(uris.CONNECTIONS) as pool:
        return list(pool.map(lambda uri: _table(uri, columns), files))


def _table(uri: str, columns: Sequence[str]) -> pa.Table:
    # Whole, and not by columns: it is a few MB, and each range would be a request.
    file = pq.ParquetFile(io.BytesIO(objects.fetch(uri)))
    table = file.read([name for name in columns if name in file.schema_arrow.names])
    for name in TOLD_SINCE.intersection(columns).difference(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), _ROLLED_FILE.field(name).type))
    return table.select(columns).cast(pa.schema([_ROLLED_FILE.field(name) for name in columns]))


def _each_once(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of the tables without those that an earlier one has.

    A chunk that was committed both as the last of its part and as another is twice in it: two attempts saw different
    inputs, and `non_contiguous_chunks` says so.
    """
    table = pa.concat_tables(tables)
    numbered = table.select(COMMITTED.names).append_column("row", pa.array(np.arange(len(table))))
    first = numbered.group_by(COMMITTED.names).aggregate([("row", "min")])["row_min"]
    return table if len(first) == len(table) else table.take(pa.array(np.sort(first.to_numpy())))


def _check_rolled(gone: Sequence[str], table: pa.Table) -> None:
    if not gone:
        return
    there = {(row["part_id"], row["chunk"], row["last"]) for row in table.select(COMMITTED.names).to_pylist()}
    for uri in gone:
        name = name_of(uri)
        if name not in there:
            raise FileNotFoundError(uri)


# ------------------------------------------------------------------------------------------------ what it says
def parts_done(table: pa.Table) -> pa.Array:
    """Ids of the parts whose chunks 0..last are all there, of a table that has the columns of `COMMITTED`."""
    if not table.num_rows:
        return pa.array([], pa.string())
    parts = table["part_id"].combine_chunks().dictionary_encode()
    part, chunk = parts.indices.to_numpy(), table["chunk"].to_numpy()
    end = np.full(len(parts.dictionary), -1)
    ends = table["last"].to_numpy()
    np.maximum.at(end, part[ends], chunk[ends])
    wanted = chunk <= end[part]
    chunks = np.unique(np.stack([part[wanted], chunk[wanted]]), axis=1)
    there = np.bincount(chunks[0], minlength=len(end))
    return parts.dictionary.filter(pa.array((end >= 0) & (there == end + 1)))


def chunks_of(table: pa.Table, parts: pa.Array) -> dict[str, list[int]]:
    """The committed chunks of some parts, in order."""
    chunks: dict[str, list[int]] = {}
    some = table.filter(pc.is_in(table["part_id"], parts)).select(["part_id", "chunk"])
    some = some.group_by(["part_id", "chunk"]).aggregate([]).sort_by(_IN_ORDER)
    for part, chunk in zip(some["part_id"].to_pylist(), some["chunk"].to_pylist(), strict=True):
        chunks.setdefault(part, []).append(chunk)
    return chunks


def non_contiguous_chunks(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a ledger that do not follow on those before them in their part, with their number as `before`.

    Also a last one whose rows do not complete the part's. Chunks of one part that were read at different times saw
    different inputs, if there are any. Where chunks before one are not committed yet, it must not begin before the end
    of those that are.
    """
    if not table.num_rows:
        return []
    table = table.sort_by(_IN_ORDER)
    part = table["part_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    chunk, first = table["chunk"].to_numpy(), table["first_row"].to_numpy()
    end = first + table["utterances"].to_numpy() + table["errors"].to_numpy()
    same = np.r_[False, part[1:] == part[:-1]]
    before = np.where(same, np.r_[0, end[:-1]], 0)
    follows = chunk == np.where(same, np.r_[0, chunk[:-1] + 1], 0)
    begins_right = np.where(follows, first == before, first >= before)
    rows = table["part_rows"].fill_null(-1).to_numpy()
    wrong = ~begins_right | (table["last"].to_numpy() & (rows != end))
    found: list[dict[str, Any]] = table.filter(pa.array(wrong)).to_pylist()
    return [row | {"before": int(number)} for row, number in zip(found, before[wrong], strict=True)]


def error_codes(table: pa.Table) -> dict[str, int]:
    """Rows of a ledger that failed, by code."""
    entries = table["error_codes"].combine_chunks()
    codes = pa.table({"code": entries.keys, "count": entries.items})
    sums = codes.group_by("code").aggregate([("count", "sum")]).sort_by("code")
    return dict(zip(sums["code"].to_pylist(), sums["count_sum"].to_pylist(), strict=True))


def utterances_by(table: pa.Table, column: str) -> dict[str | None, int]:
    """Transcripts of a ledger by what its rows say in `column`: `engine` or `fallback`."""
    some = table.select([column, "utterances"]).filter(pc.greater(table["utterances"], 0)).unify_dictionaries()
    sums = some.group_by(column).aggregate([("utterances", "sum")])
    return dict(zip(sums[column].to_pylist(), sums["utterances_sum"].to_pylist(), strict=True))
