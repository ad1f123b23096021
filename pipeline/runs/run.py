"""A RUN: the directory or prefix that holds the results of a corpus, and how to read it.

`run.json` holds configuration, fingerprint, versions, totals and status; `plan.parquet` holds the parts; the data files
are those that the commits of these parts name (`pipeline.runs.commit`). Commits of other parts, which an update of the
plan left behind (`pipeline.runs.update`), do not count.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.parts import PLAN, Part
from pipeline.decoding.acoustics import Acoustics
from pipeline.errors import DamagedRunError, UsageError
from pipeline.runs import frames
from pipeline.runs.commit import Commit, DataFile
from pipeline.runs.compact import read_compaction
from pipeline.runs.damage import NOT_PARQUET, damaged, first_damaged_file, first_lost_file
from pipeline.runs.fingerprint import has_earlier_rules
from pipeline.runs.lease import is_lease_free
from pipeline.runs.ledger import of_parts, parts_done, read_commits, read_committed_chunks, read_ledger
from pipeline.runs.record import PlanUpdate, RunRecord
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals
from pipeline.schemas import TABLES
from pipeline.storage import objects, retry, uris
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.parquet import encode_table

if TYPE_CHECKING:
    import pyarrow.dataset as pads

T = TypeVar("T")
RECORD: Final = "run.json"
RECORD_COPY: Final = "control/run.json"  # as it was when the driver was started last
PLAN_FILE: Final = "plan.parquet"
_PLAN_BATCH: Final = 1 << 16
_LISTINGS: Final = 3  # of commits that are removed meanwhile
QUARANTINE: Final = "quarantine"  # one object for each part that `pipeline.stages.quarantine` keeps a record of


def now() -> str:
    """The current time: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Run:
    """A run on storage. Opening it reads `run.json`; everything else is read on request.

    Attributes:
        uri: the directory or prefix, absolute.
        record: the content of `run.json` when it was read.
    """

    uri: str
    record: RunRecord

    @staticmethod
    def open(uri: str | os.PathLike[str]) -> Run:
        """The run at `uri`.

        Raises:
            UsageError: there is no run.
            DamagedRunError: its record is damaged or lost.
            StorageError: storage could not be reached.
        """
        uri = uris.absolute(os.fspath(uri))
        try:
            record = RunRecord.parse(objects.fetch(uris.join(uri, RECORD)))
        except ValueError as error:
            raise damaged(uri, RECORD, f"is damaged ({error})") from error
        except FileNotFoundError as error:
            if objects.exists(uris.join(uri, RECORD_COPY)):
                raise damaged(uri, RECORD, "is lost") from error
            raise UsageError(f"no run at {uri}: there is no {RECORD}") from error
        if "status" not in record.values:
            raise damaged(uri, RECORD, "is damaged (it has no status)")
        return Run(uri, record)

    def with_changes(self, **changes: Any) -> Run:
        """The run with `changes` to its record, which are not written yet: see `RunRecord.updated`."""
        return Run(self.uri, self.record.updated(**changes))

    def save(self, **changes: Any) -> Run:
        """Write `run.json` with `changes` to the record, and return the run as it is stored now.

        Raises:
            ValueError: a change has another type than the record's; nothing is written.
            StorageError: it could not be written.
        """
        data = self.record.updated(**changes).encode()
        record = RunRecord.parse(data)  # before it is stored: nobody could open the run
        objects.put(uris.join(self.uri, RECORD), data)
        return Run(self.uri, record)

    def save_copy(self) -> None:
        """Store a copy of the record, from which `pipeline.runs.repair` makes a lost one again."""
        objects.put(uris.join(self.uri, RECORD_COPY), self.record.encode())

    @property
    def status(self) -> RunStatus:
        """The recorded status. A run whose driver was killed keeps `running`: see `is_interrupted`."""
        return self.record.status

    @property
    def acoustics(self) -> Acoustics:
        """What is needed to read its posteriors without the model.

        Raises:
            UsageError: the run keeps no posteriors.
            DamagedRunError: its record is damaged.
        """
        found = self.record.acoustics
        if found is None:
            source = f"; those that it was made of are in {self.record.source}" if self.record.source else ""
            kept = "they are kept by `sewd transcribe --keep-posteriors`"
            raise UsageError(f"{self.uri} has no posteriors: {kept}{source}")
        return found

    def is_interrupted(self) -> bool:
        """Whether the recorded status is `running` although its driver is known to be gone."""
        # The record is read again last: a driver that ends meanwhile first writes its status, then releases its lease.
        return (
            self.status == RunStatus.RUNNING
            and is_lease_free(self.uri)
            and Run.open(self.uri).status == RunStatus.RUNNING
        )

    def is_updating(self) -> bool:
        """Whether the run was finished before, and is being updated: readers see its rows as they were then."""
        return self.status != RunStatus.DONE and read_compaction(self.uri) is not None

    def plan(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The parts, of schema `PLAN`; all columns, or those named.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        with self._open_plan() as file:
            table = pq.read_table(file, columns=columns)
            return table.select(columns) if columns else table

    def plan_batches(self) -> Iterator[pa.RecordBatch]:
        """The parts, of schema `PLAN`, some thousands at a time.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        with self._open_plan() as file:
            yield from map(_with_added_columns, pq.ParquetFile(file).iter_batches(batch_size=_PLAN_BATCH))

    def plan_update(self) -> PlanUpdate | None:
        """The update that wrote the stored plan; None if it is the one that created the run. Reads its footer only.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        return PlanUpdate.from_metadata(self.plan_metadata())

    def plan_metadata(self) -> Mapping[bytes, bytes]:
        """The metadata of the stored plan; reads its footer only.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        with self._open_plan() as file:
            return pq.read_schema(file).metadata or {}

    def counted_parts(self) -> pa.Array | None:
        """Ids of the parts whose commits count; None if all do: the plan was never updated.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        return None if self.plan_update() is None else self.plan(["part_id"])["part_id"].combine_chunks()

    def plan_without(self, done: pa.Array) -> pa.Table:
        """The parts whose ids are not among `done`; a plan of millions of parts is never whole in memory.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        with self._open_plan() as file:
            batches = pq.ParquetFile(file).iter_batches(batch_size=_PLAN_BATCH)
            remaining = [
                _with_added_columns(batch.filter(pc.invert(pc.is_in(batch["part_id"], done)))) for batch in batches
            ]
            return pa.Table.from_batches(remaining, schema=PLAN)

    def part_updates(self) -> dict[str, int]:
        """The id of each part, and the number of the update that planned it; reads every column of the plan.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        with self._open_plan() as file:
            found: dict[str, int] = {}
            for batch in map(_with_added_columns, pq.ParquetFile(file).iter_batches(batch_size=_PLAN_BATCH)):
                numbers = batch["update"].fill_null(0).to_pylist()
                found.update(zip(batch["part_id"].to_pylist(), numbers, strict=True))
            return found

    def plan_size(self) -> int:
        """Number of parts in the stored plan; reads its footer only.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        with self._open_plan() as file:
            return int(pq.read_metadata(file).num_rows)

    @contextlib.contextmanager
    def _open_plan(self) -> Iterator[BinaryIO]:
        try:
            with objects.open_read(uris.join(self.uri, PLAN_FILE)) as file:
                yield file
        except FileNotFoundError as error:
            raise damaged(self.uri, PLAN_FILE, "is lost") from error
        except NOT_PARQUET as error:
            raise damaged(self.uri, PLAN_FILE, f"cannot be read ({error})") from error

    def parts(self, part_ids: Collection[str]) -> list[Part]:
        """The parts with these ids, in the order of the plan.

        Raises:
            DamagedRunError: the plan is lost or cannot be read.
        """
        with self._open_plan() as file:
            ids = pa.array(sorted(part_ids), pa.string())
            batches = pq.ParquetFile(file).iter_batches(batch_size=_PLAN_BATCH)
            earlier = has_earlier_rules(self.record.fingerprint)
            return [
                Part.from_row(row, earlier)
                for batch in batches
                for row in batch.filter(pc.is_in(batch["part_id"], ids)).to_pylist()
            ]

    def commits(self) -> Iterator[Commit]:
        """Every commit that counts.

        Raises:
            DamagedRunError: a commit or the plan cannot be read.
        """
        return self.commits_below("")

    def all_commits(self) -> Iterator[Commit]:
        """Every commit that counts, and those of finished additions of classifiers.

        Raises:
            DamagedRunError: a commit or the plan cannot be read.
        """
        folders = ["", *(addition.folder for addition in self.record.added)]
        return itertools.chain.from_iterable(map(self.commits_below, folders))

    def commits_below(self, folder: str) -> Iterator[Commit]:
        """Every commit that counts among those in `folder`, see `Commit.folder`.

        Raises:
            DamagedRunError: a commit or the plan cannot be read.
        """
        parts = self.counted_parts()
        counted = None if parts is None else frozenset(parts.to_pylist())
        commits = read_commits(uris.join(self.uri, folder))
        return (commit for commit in commits if counted is None or commit.part_id in counted)

    def ledger(self) -> pa.Table:
        """A row of schema `LEDGER` for each commit that counts.

        Raises:
            DamagedRunError: a commit or the plan cannot be read.
        """
        return of_parts(_listed(lambda: read_ledger(self.uri)).table, self.counted_parts())

    def totals(self) -> Totals:
        """Sums over the commits. A finished run has them in its record."""
        if self.status == RunStatus.DONE and self.record.totals is not None:
            return self.record.totals
        return Totals.from_ledger(self.ledger())

    def parts_done(self) -> set[str]:
        """Ids of the parts whose chunks are all committed."""
        chunks = _listed(lambda: read_committed_chunks(self.uri))
        return set(parts_done(of_parts(chunks, self.counted_parts())).to_pylist())

    def unfinished_parts(self, folder: str = "") -> int:
        """Number of parts of the plan whose chunks are not all committed below `folder`, see `Commit.folder`."""
        ids = self.plan(["part_id"])["part_id"]
        done = parts_done(read_committed_chunks(uris.join(self.uri, folder)))
        return len(ids) - (pc.sum(pc.is_in(ids, done), min_count=0).as_py() or 0)

    def files(self) -> dict[str, list[DataFile]]:
        """The files that hold the committed rows, by table."""
        files = _listed(self._files)
        return {table: [file for file in files if file.table == table] for table in TABLES}

    def _files(self) -> list[DataFile]:
        compaction = read_compaction(self.uri)
        if compaction is None:
            files = [file for commit in self.all_commits() for file in commit.files]
            compaction = read_compaction(self.uri)  # finishing a run removes commits after it has stored this
        return files if compaction is None else list(compaction.files)

    def read(self, call: Callable[[dict[str, list[DataFile]]], T]) -> T:
        """The result of `call` on the files that hold the committed rows; transient storage errors are retried.

        If the run is finished meanwhile, its small files are gone: then `call` is made once more, on the new files.

        Raises:
            StorageError: storage errors last longer than the retries.
            DamagedRunError: a file that the run names is lost or was changed.
        """
        files = self.files()
        try:
            return self._read(call, files)
        except (FileNotFoundError, DamagedRunError):
            if (compacted := self.files()) == files:
                raise
            return self._read(call, compacted)

    def _read(self, call: Callable[[dict[str, list[DataFile]]], T], files: dict[str, list[DataFile]]) -> T:
        named = [file for table in files.values() for file in table]

        def attempt() -> T:
            try:
                return call(files)
            except FileNotFoundError as error:
                raise first_lost_file(self.uri, named) or error from error
            except (pa.ArrowException, OSError) as error:
                # Arrow's errors about the content of a file have no number; those of the system and of clients do.
                if getattr(error, "errno", None) is None and (damage := first_damaged_file(self.uri, named)):
                    raise damage from error
                raise

        return retry.with_retries(self.uri, attempt)

    def rows(self, table: str) -> int:
        """Number of committed rows of a table."""
        return sum(file.rows for file in self.files()[table])

    def dataset(self, table: str) -> pads.Dataset:
        """The committed rows of a table of `pipeline.schemas.TABLES`, at any time, also while the run is in progress.

        If the run is finished meanwhile, the files of the dataset are removed: open it again (`read` does that).

        Raises:
            UsageError: there is no such table.
        """
        check_table(table)
        return open_files(self.uri, table, [file.path for file in self.files()[table]])

    def to_arrow(self, table: str = "transcripts", columns: str | Sequence[str] | None = None) -> pa.Table:
        """The committed rows of a table in memory; all columns, or those named: a name, or several.

        Rows of a run in progress are those that were committed when this was called.

        Raises:
            UsageError: there is no such table, or it has no such column.
            StorageError: the run could not be read, after retries.
            DamagedRunError: a file that the run names is lost or was changed.
        """
        check_table(table)
        columns = [columns] if isinstance(columns, str) else columns
        if missing := [name for name in columns or () if name not in TABLES[table].names]:
            raise UsageError(f"{table} has no column {', '.join(missing)}: it has {', '.join(TABLES[table].names)}")
        wanted = None if columns is None else list(columns)

        def read(files: Mapping[str, Sequence[DataFile]]) -> pa.Table:
            return open_files(self.uri, table, [file.path for file in files[table]]).to_table(columns=wanted)

        return self.read(read)

    def to_pandas(self, table: str = "transcripts", columns: str | Sequence[str] | None = None) -> Any:
        """As `to_arrow`, a `pandas.DataFrame`; raises UsageError too if pandas is not installed."""
        return frames.pandas_frame(lambda: self.to_arrow(table, columns))

    def to_polars(self, table: str = "transcripts", columns: str | Sequence[str] | None = None) -> Any:
        """As `to_arrow`, a `polars.DataFrame`; raises UsageError too if Polars is not installed."""
        return frames.polars_frame(lambda: self.to_arrow(table, columns))

    def duckdb(self) -> Any:
        """A connection of DuckDB with a view of each table of `pipeline.schemas.TABLES`, which is read when queried.

        They hold the rows that were committed when this was called, of all tables. Open another connection
        when a run in progress has been finished.

        Raises:
            UsageError: DuckDB is not installed.
        """

        def read() -> dict[str, pads.Dataset]:
            files = self.files()  # one listing: a chunk that is committed meanwhile is in no view
            return {table: open_files(self.uri, table, [file.path for file in files[table]]) for table in TABLES}

        return frames.duckdb_connection(read)


def check_table(name: str) -> None:
    """Raise UsageError unless a run has a table of this name."""
    if name not in TABLES:
        raise UsageError(f"a run has no table {name!r}: it has {', '.join(TABLES)}")


def _listed(read: Callable[[], T]) -> T:
    """The result of `read`, which lists commits; again if the end of an update removes some before they are read."""
    for _ in range(_LISTINGS - 1):
        with contextlib.suppress(FileNotFoundError):
            return read()
    return read()


def open_files(uri: str, table: str, paths: Sequence[str]) -> pads.Dataset:
    """Data files of the run at `uri` as one dataset; `paths` are relative to the run."""
    import pyarrow.dataset as pads  # noqa: PLC0415 - loads pandas, if there is one

    if not paths:
        return pads.dataset(TABLES[table].empty_table())
    fs, root = arrow_filesystem(uri)
    return pads.dataset([uris.join(root, path) for path in paths], TABLES[table], "parquet", filesystem=fs)


def _with_added_columns(plan: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of `PLAN`; those that an earlier version did not write are null."""
    return pa.RecordBatch.from_arrays([_column(plan, field) for field in PLAN], schema=PLAN)


def _column(plan: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in plan.schema.names:
        return pa.nulls(len(plan), field.type)
    column = plan[field.name]
    if column.type == field.type:
        return column
    names = {inner.name for inner in column.type.value_type}  # of `items`: a later version added a field
    inner = list(field.type.value_type)
    fields = [column.values.field(f.name) if f.name in names else pa.nulls(len(column.values), f.type) for f in inner]
    return pa.ListArray.from_arrays(column.offsets, pa.StructArray.from_arrays(fields, fields=inner))


def write_plan(uri: str, plan: pa.Table) -> None:
    """Store the plan. It is written before `run.json`: a run that has a record has its plan.

    Args:
        uri: of the run.
        plan: of schema `PLAN`; its metadata is stored, too.
    """
    schema = PLAN.with_metadata({**PLAN.metadata, **(plan.schema.metadata or {})})  # with what was left out
    objects.put(uris.join(uri, PLAN_FILE), encode_table(plan.cast(schema)))
