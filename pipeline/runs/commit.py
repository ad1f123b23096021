"""Exactly once: content-named data files, and one small commit object a chunk that is written last.

The ordering argument. A chunk's data files carry the digest of their own bytes in their names and are put whole
(`objects.put`: synced and renamed, or one PUT). Only when all of them are there is the commit object put, whose name is
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
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.runs.engine import Engine
from pipeline.schemas import TABLES
from pipeline.storage import objects, uris

COMMITS = "commits"
_NAME = re.compile(r"(?P<part>[0-9a-f]+)-(?P<chunk>\d+)(?P<last>\.last)?\.json")


class Name(NamedTuple):
    """Of a commit object: its part, its chunk, and whether the part ends with it."""

    part_id: str
    chunk: int
    last: bool


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
        engines: what computed it, of each backbone; after a fallback within the chunk, what went on. Commits of
            versions that did not tell have none.
        splits: batches that were halved for want of memory; None: not told.
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
    engines: tuple[Engine, ...] = ()
    splits: int | None = None
    files: tuple[DataFile, ...] = field(default=())

    @property
    def path(self) -> str:
        """Where it lies below the run: under a hash prefix, so that commits list in parallel."""
        name = f"{self.part_id}-{self.chunk:05d}{'.last' if self.last else ''}.json"
        return f"{COMMITS}/{self.part_id[:2]}/{name}"

    @property
    def engine(self) -> str | None:
        """What computed it, in words; None: not told."""
        return " and ".join(dict.fromkeys(map(str, self.engines))) or None

    @property
    def fallback(self) -> str | None:
        """Why that is not what was asked for, or not the fast one; None where it is."""
        return "; ".join(dict.fromkeys(filter(None, (engine.fallback for engine in self.engines)))) or None


def write_chunk(run: str, commit: Commit, tables: dict[str, pa.Table]) -> Commit:
    """Put the tables that hold rows, then the commit that names them; see the module's ordering argument."""
    files = tuple(_put_table(run, commit, name, table) for name, table in tables.items() if table.num_rows)
    commit = replace(commit, files=files)
    objects.put(uris.join(run, commit.path), content_of(commit))
    return commit


def content_of(commit: Commit) -> bytes:
    """A commit as the object that says it."""
    return json.dumps(asdict(commit), indent=1).encode()


def _put_table(run: str, commit: Commit, name: str, table: pa.Table) -> DataFile:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"{name}/{commit.part_id}-{commit.chunk:05d}-{digest[:16]}.parquet"
    objects.put(uris.join(run, path), data)
    return DataFile(name, path, table.num_rows, len(data), digest)


def commit_objects(run: str) -> list[str]:
    """The URIs of a run's commits that are objects, in the order of their names. Others may be rolled up already."""
    found = objects.list_objects(uris.join(run, COMMITS))
    return [item.uri for item in found if name_of(item.uri) is not None]


def name_of(uri: str) -> Name | None:
    """What the name of a commit object says; None for other objects."""
    match = _NAME.fullmatch(posixpath.basename(uri))
    return match and Name(match["part"], int(match["chunk"]), match["last"] is not None)


def commit_of(data: bytes) -> Commit:
    """A commit object's content.

    Raises:
        ValueError: it is none.
    """
    values = json.loads(data)
    try:
        files = tuple(DataFile(**file) for file in values["files"])
        engines = tuple(Engine(**engine) for engine in values.get("engines", ()))
        commit = Commit(**{**values, "files": files, "engines": engines})
        counts = (commit.chunk, commit.first_row, commit.utterances, commit.errors, commit.source_bytes)
        numbers = (*counts, *commit.error_codes.values(), *filter(None, [commit.part_rows, commit.splits]))
        seconds = (commit.audio_s, commit.seconds["compute"])
        words = (commit.engine, commit.fallback)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"not a commit: {error}") from error
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError("not a commit: a count is no number")
    if not all(isinstance(number, int | float) for number in seconds):
        raise ValueError("not a commit: a time is no number")
    if not all(isinstance(word, str | None) for word in words):
        raise ValueError("not a commit: a word is none")
    if not isinstance(commit.part_id, str) or not isinstance(commit.last, bool):
        raise ValueError("not a commit: no part is named")
    return commit


def remove_orphans(run: str, files: Iterable[DataFile]) -> int:
    """Remove all data files but `files`, and temporary files of writers that were killed. Gives their number.

    Only where nothing writes to the run any more.
    """
    named = {file.path for file in files}
    base = uris.absolute(run).rstrip("/") + "/"
    orphans = [
        found.uri
        for found in objects.list_objects(run)
        if objects.is_temporary(found.uri) or is_orphan(found.uri.removeprefix(base), named)
    ]
    objects.delete(orphans)
    return len(orphans)


def is_orphan(path: str, named: set[str]) -> bool:
    """Whether `path`, below a run, is a data file and none of those named."""
    return path.partition("/")[0] in TABLES and path not in named
