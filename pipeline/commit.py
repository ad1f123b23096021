"""Exactly once: content-named data files, and one small commit object a chunk that is written last.

The ordering argument. A chunk's data files carry the digest of their own bytes in their names and are put whole
(`storage.put`: synced and renamed, or one PUT). Only when all of them are there is the commit object put, whose name is
(part, ordinal) and whose content names them. Therefore:

* A commit that can be read names files that are complete: they were there before it.
* Killed before the commit: files that no commit names. Readers never see them, the next start does the chunk again, and
  finishing the run removes them.
* Two attempts at one chunk: each leaves whole files of its own names, and the commit that stands, whichever was put
  last, names one consistent set. The files of the other are orphans.

Nothing rests on conditional PUT, which not every store honours. Readers trust commits only: never list the data
directories of a run that is not done.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.schemas import TABLES

COMMITS = "commits"
READ_AHEAD = 256  # commits that are read at once: their text waits in memory for its turn
_NAME = re.compile(r"(?P<part>[0-9a-f]+)-(?P<chunk>\d+)(?P<last>\.last)?\.json")


@dataclass(frozen=True)
class DataFile:
    """A file that a commit names: its table, its path below the run, rows, bytes, and SHA-256."""

    table: str
    path: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """What one chunk left: the truth about it.

    Attributes:
        first_row: how many rows of the part come before it; the chunks of a part tile its rows.
        last: the part ends with this chunk, whose totals are `part_rows` and `part_audio_s`.
        workers: host:pid of the processes that read and recognised it.
        seconds: time spent in each stage.
    """

    part_id: str
    chunk: int
    first_row: int
    last: bool
    part_rows: int | None
    part_audio_s: float | None
    utterances: int
    errors: int
    error_codes: dict[str, int]
    audio_s: float
    source_bytes: int
    attempt: str
    workers: dict[str, str]
    seconds: dict[str, float]
    files: tuple[DataFile, ...] = field(default=())

    @property
    def path(self) -> str:
        """Where it lies below the run: under a hash prefix, so that commits list in parallel."""
        name = f"{self.part_id}-{self.chunk:05d}{'.last' if self.last else ''}.json"
        return f"{COMMITS}/{self.part_id[:2]}/{name}"


@dataclass(frozen=True)
class Committed:
    """The chunks of one part that are committed, as the names of their commits tell."""

    chunks: frozenset[int] = frozenset()
    last: int | None = None

    @property
    def done(self) -> bool:
        """Chunks 0..last are all there."""
        return self.last is not None and self.chunks.issuperset(range(self.last + 1))


def write_chunk(run: str, commit: Commit, tables: dict[str, pa.Table]) -> Commit:
    """Put the tables that hold rows, then the commit that names them; see the module's ordering argument."""
    files = tuple(_put_table(run, commit, name, table) for name, table in tables.items() if table.num_rows)
    commit = replace(commit, files=files)
    storage.put(storage.join(run, commit.path), json.dumps(asdict(commit), indent=1).encode())
    return commit


def _put_table(run: str, commit: Commit, name: str, table: pa.Table) -> DataFile:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"{name}/{commit.part_id}-{commit.chunk:05d}-{digest[:16]}.parquet"
    storage.put(storage.join(run, path), data)
    return DataFile(name, path, table.num_rows, len(data), digest)


def commit_objects(run: str) -> list[str]:
    """The URIs of a run's commits, in the order of their names."""
    found = storage.list_objects(storage.join(run, COMMITS))
    return [item.uri for item in found if _NAME.fullmatch(posixpath.basename(item.uri))]


def list_committed(run: str) -> dict[str, Committed]:
    """What is committed, by part: from one listing, without opening a commit."""
    names = (_NAME.fullmatch(posixpath.basename(uri)) for uri in commit_objects(run))
    return committed_of((m["part"], int(m["chunk"]), m["last"] is not None) for m in names if m is not None)


def committed_of(commits: Iterable[tuple[str, int, bool]]) -> dict[str, Committed]:
    """What is committed, by part: of (part, chunk, whether it is the part's last) of each commit."""
    chunks: dict[str, set[int]] = {}
    last: dict[str, int] = {}
    for part, chunk, is_last in commits:
        chunks.setdefault(part, set()).add(chunk)
        if is_last:
            last[part] = chunk
    return {part: Committed(frozenset(numbers), last.get(part)) for part, numbers in chunks.items()}


def commit_of(data: bytes) -> Commit:
    """A commit object's content.

    Raises:
        ValueError: it is none.
    """
    values = json.loads(data)
    try:
        commit = Commit(**{**values, "files": tuple(DataFile(**file) for file in values["files"])})
        numbers = (commit.chunk, commit.first_row, commit.utterances, commit.errors, *commit.error_codes.values())
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a commit: {error}") from error
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError("not a commit: a count is no number")
    return commit


def untiled(commits: Iterable[Commit]) -> Iterator[tuple[Commit, int]]:
    """The commits that do not follow row by row on those before them in their part, and how many rows these have.

    Also a last one whose rows do not complete the part's. Chunks of one part that were read at different times saw
    different inputs, if there are any. Where chunks before one are not committed yet, it must not begin before the end
    of those that are.
    """
    rows: dict[str, int] = {}  # where the next chunk of a part begins
    following: dict[str, int] = {}
    for commit in sorted(commits, key=lambda c: (c.part_id, c.chunk)):
        before = rows.get(commit.part_id, 0)
        follows = commit.chunk == following.get(commit.part_id, 0)
        end = commit.first_row + commit.utterances + commit.errors
        rows[commit.part_id], following[commit.part_id] = end, commit.chunk + 1
        begins_right = commit.first_row == before if follows else commit.first_row >= before
        if not begins_right or (commit.last and commit.part_rows != end):
            yield commit, before


def read_commits(run: str) -> Iterator[Commit]:
    """Every commit of a run, in the order of their names, read a few at a time."""
    uris = commit_objects(run)
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(uris), READ_AHEAD):
            yield from map(commit_of, pool.map(storage.fetch, uris[start : start + READ_AHEAD]))


def remove_orphans(run: str, files: Iterable[DataFile]) -> int:
    """Remove all data files but `files`, and temporary files of writers that were killed. Gives their number.

    Only where nothing writes to the run any more.
    """
    named = {file.path for file in files}
    base = storage.absolute(run).rstrip("/") + "/"
    orphans = [
        found.uri
        for found in storage.list_objects(run)
        if storage.is_temporary(found.uri) or is_orphan(found.uri.removeprefix(base), named)
    ]
    storage.delete(orphans)
    return len(orphans)


def is_orphan(path: str, named: set[str]) -> bool:
    """Whether `path`, below a run, is a data file and none of those named."""
    return path.partition("/")[0] in TABLES and path not in named
