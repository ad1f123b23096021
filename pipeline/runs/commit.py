"""Exactly once: data files named by their content, and one small commit object for each chunk, written last.

The ordering argument. The names of a chunk's data files contain the digest of their bytes, and each file is put whole
(`objects.put`: synced and renamed, or one PUT). The commit object is put only when all of them are stored; its name is
(part, chunk), and its content names them. Therefore:

* A commit that can be read names complete files: they were stored before it.
* Killed before the commit: the files are orphans, named by no commit. Readers never see them, the next start processes
  the chunk again, and finishing the run removes them.
* Two attempts at one chunk: each writes complete files under its own names, and the commit that was put last names one
  consistent set. The files of the other attempt are orphans.

Nothing depends on conditional PUT, which not every store supports. Readers trust commits only: never list the data
directories of a run that is not done.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

import pyarrow as pa

from pipeline.schemas import TABLES
from pipeline.storage import objects, uris
from pipeline.storage.parquet import encode_table
from sewd_model.engine_status import EngineStatus

COMMITS: Final = "commits"
_NAME = re.compile(r"(?P<part>[0-9a-f]+)-(?P<chunk>\d+)(?P<last>\.last)?\.json")


class CommitName(NamedTuple):
    """What the name of a commit object says: its part, its chunk, and whether that is the last chunk of the part."""

    part_id: str
    chunk: int
    last: bool


@dataclass(frozen=True)
class DataFile:
    """A data file as a commit names it.

    Attributes:
        table: the table whose rows it holds.
        path: its path, relative to the run.
        rows: number of rows.
        size: in bytes.
        sha256: digest of its bytes, in hex.
    """

    table: str
    path: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """The result of one chunk, as its commit object records it.

    Attributes:
        part_id: the part that the chunk belongs to.
        chunk: ordinal in the part.
        first_row: number of rows of the part before this chunk; the chunks of a part cover its rows without gaps.
        last: the chunk is the last of its part, whose totals are `part_rows` and `part_audio_s`.
        part_rows: rows of the whole part; None unless `last`.
        part_audio_s: audio of the whole part, in seconds; None unless `last`.
        utterances: rows with a transcript.
        errors: rows without one.
        error_codes: rows without a transcript, by error code.
        audio_s: audio in the chunk, in seconds.
        source_bytes: planned input bytes that were processed.
        attempt: the start of the driver that it belongs to.
        workers: host:pid of the processes that read and recognised it.
        seconds: time spent in each stage.
        engines: the engine of each backbone that computed it; if one fell back within the chunk, the engine after
            that. Empty for commits of versions that did not record it.
        splits: number of times that a batch was halved because memory ran out; None: not recorded.
        skipped_s: silence in it that the model did not compute, in seconds; 0 in commits of earlier versions.
        warned: rows with a transcript and a warning about their file; 0 in commits of earlier versions.
        classifiers: names of the classifiers whose labels it has for each of its `utterances`; None in commits of
            earlier versions: all that the run was created with.
        carried: its rows were carried over from the part that this part does again (`pipeline.runs.retry`).
        folder: where the commit is kept, relative to the run. Empty: at its root. Else it is one of an addition
            (`pipeline.runs.additions`), whose `utterances` are rows with labels, and which has no transcripts and no
            rows of errors.
        files: its data files.
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
    engines: tuple[EngineStatus, ...] = ()
    splits: int | None = None
    skipped_s: float = 0.0
    warned: int = 0
    classifiers: tuple[str, ...] | None = None
    carried: bool = False
    folder: str = ""
    files: tuple[DataFile, ...] = field(default=())

    @property
    def path(self) -> str:
        """Path of the commit object, relative to `folder`. A hash prefix lets commits be listed in parallel."""
        name = f"{self.part_id}-{self.chunk:05d}{'.last' if self.last else ''}.json"
        return f"{COMMITS}/{self.part_id[:2]}/{name}"

    @property
    def full_path(self) -> str:
        """Path of the commit object, relative to the run."""
        return posixpath.join(self.folder, self.path)

    @property
    def engine(self) -> str | None:
        """A description of what computed the chunk; None: not recorded."""
        return " and ".join(dict.fromkeys(map(str, self.engines))) or None

    @property
    def fallback(self) -> str | None:
        """Why that is not the requested or the fastest engine; None where it is."""
        return "; ".join(dict.fromkeys(filter(None, (engine.fallback for engine in self.engines)))) or None


def write_chunk(run: str, commit: Commit, tables: dict[str, pa.Table]) -> Commit:
    """Put the tables that have rows, then the commit that names them; see the module's ordering argument.

    Returns:
        The commit, with its `files`.
    """
    stem = f"{commit.part_id}-{commit.chunk:05d}"
    files = tuple(
        put_data_file(run, name, stem, table.num_rows, encode_table(table), commit.folder)
        for name, table in tables.items()
        if table.num_rows
    )
    commit = replace(commit, files=files)
    objects.put(uris.join(run, commit.full_path), encode_commit(commit))
    return commit


def put_data_file(run: str, table: str, stem: str, rows: int, content: bytes, folder: str = "") -> DataFile:
    """Put a Parquet file of `rows` rows of `table`, named by `stem` and the digest of its content, below `folder`."""
    digest = hashlib.sha256(content).hexdigest()
    path = posixpath.join(folder, table, f"{stem}-{digest[:16]}.parquet")
    file = DataFile(table, path, rows, len(content), digest)
    objects.put(uris.join(run, file.path), content)
    return file


def encode_commit(commit: Commit) -> bytes:
    """The content of the commit object."""
    values = asdict(commit) | {"engines": [_engine_to_json(engine) for engine in commit.engines]}
    return json.dumps(values, indent=1).encode()


# The key of an engine's `batching` in a commit object is `way`: commits that exist keep being read.
def _engine_to_json(engine: EngineStatus) -> dict[str, Any]:
    return {"way" if name == "batching" else name: value for name, value in asdict(engine).items()}


def _engine_from_json(values: dict[str, Any]) -> EngineStatus:
    return EngineStatus(**{"batching" if name == "way" else name: value for name, value in values.items()})


def commit_objects(run: str) -> list[str]:
    """The URIs of the commits of a run that are objects of their own, by name; others may have been rolled up."""
    return [item.uri for item in objects.list_objects(uris.join(run, COMMITS)) if parse_commit_name(item.uri)]


def parse_commit_name(uri: str) -> CommitName | None:
    """What the name of a commit object says; None for other objects."""
    match = _NAME.fullmatch(posixpath.basename(uri))
    return match and CommitName(match["part"], int(match["chunk"]), match["last"] is not None)


def data_file_from_json(values: Any) -> DataFile:
    """A data file as a commit or a compaction lists it.

    Raises:
        ValueError: `values` is not one.
    """
    try:
        file = DataFile(**values)
    except TypeError as error:
        raise ValueError(f"not a data file: {error}") from error
    if not all(isinstance(text, str) for text in (file.table, file.path, file.sha256)) or file.table not in TABLES:
        raise ValueError(f"not a data file: {values}")
    if not all(isinstance(number, int) for number in (file.rows, file.size)):
        raise ValueError(f"not a data file: {values}")
    if not is_below(file.path):
        raise ValueError(f"not a data file of this run: {file.path!r}")
    return file


def is_below(path: str) -> bool:
    """Whether a relative path stays below the run; who can write to a run must not reach other files of its user."""
    return not path.startswith("/") and ".." not in path.split("/")


def parse_commit(data: bytes) -> Commit:
    """The commit that a commit object holds.

    Raises:
        ValueError: `data` is not a commit.
    """
    try:
        values = json.loads(data)
        files = tuple(map(data_file_from_json, values["files"]))
        engines = tuple(_engine_from_json(engine) for engine in values.get("engines", ()))
        classifiers = None if (names := values.get("classifiers")) is None else tuple(map(str, names))
        commit = Commit(**{**values, "files": files, "engines": engines, "classifiers": classifiers})
        counts = [commit.chunk, commit.first_row, commit.utterances, commit.errors, commit.source_bytes, commit.warned]
        counts += [*commit.error_codes.values(), *filter(None, [commit.part_rows, commit.splits])]
        times = (commit.audio_s, commit.skipped_s, commit.seconds["compute"])
        texts = (commit.engine, commit.fallback)
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a commit: {error}") from error
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("not a commit: a count is not an integer")
    if not all(isinstance(time, int | float) for time in times):
        raise ValueError("not a commit: a time is not a number")
    if not all(isinstance(text, str | None) for text in texts):
        raise ValueError("not a commit: the engine or its fallback is not text")
    if not all(isinstance(text, str) for text in (commit.part_id, commit.folder)) or not all(
        isinstance(flag, bool) for flag in (commit.last, commit.carried)
    ):
        raise ValueError("not a commit: it does not name its part")
    if not is_below(commit.full_path):
        raise ValueError(f"not a commit: it would be outside of the run, at {commit.full_path!r}")
    return commit


def remove_orphans(run: str, files: Iterable[DataFile]) -> int:
    """Remove every data file that is not one of `files`, and temporary files of writers that were killed.

    Call it only while nothing writes to the run.

    Returns:
        The number of files removed.
    """
    named = {file.path for file in files}
    base = uris.absolute(run).rstrip("/") + "/"
    orphans = [
        item.uri
        for item in objects.list_objects(run)
        if objects.is_temporary(item.uri) or is_orphan(item.uri.removeprefix(base), named)
    ]
    objects.delete(orphans)
    return len(orphans)


def is_orphan(path: str, named: set[str]) -> bool:
    """Whether `path`, relative to a run, is a data file and not in `named`."""
    return path.partition("/")[0] in TABLES and path not in named
