"""A RUN: the directory or prefix that a corpus leaves, and how to read one.

`run.json` holds configuration, fingerprint, versions, totals and status; `plan.parquet` the parts; the data files are
those that commits name (`pipeline.runs.commit`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.corpus.plan import PLAN
from pipeline.errors import UsageError
from pipeline.runs.commit import Commit, DataFile
from pipeline.runs.compact import read_compaction
from pipeline.runs.lease import is_free
from pipeline.runs.ledger import committed, error_codes, ledger, parts_done, read_commits, utterances_by
from pipeline.schemas import TABLES
from pipeline.storage import objects, retry, uris

T = TypeVar("T")
RECORD = "run.json"
PLAN_FILE = "plan.parquet"
QUARANTINE = "quarantine"  # what `pipeline.stages.quarantine` records, one object a part
UNKNOWN = "unknown"


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Totals:
    """Sums over the commits of a run.

    Attributes:
        error_codes: rows without a transcript, by code.
        engines: transcripts by what computed them, in words; `unknown` where their commits do not tell.
        fallbacks: transcripts by the reason why they, or their labels, were not computed by what was asked for, or
            not by the fast one.
        splits: batches that were halved for want of memory.
    """

    chunks: int = 0
    utterances: int = 0
    errors: int = 0
    audio_s: float = 0.0
    source_bytes: int = 0
    compute_s: float = 0.0
    error_codes: dict[str, int] = dataclasses.field(default_factory=dict)
    engines: dict[str, int] = dataclasses.field(default_factory=dict)
    fallbacks: dict[str, int] = dataclasses.field(default_factory=dict)
    splits: int = 0

    def __add__(self, other: Totals) -> Totals:
        sums: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(self)):
            here, there = getattr(self, name), getattr(other, name)
            sums[name] = _by_key(here, there) if isinstance(here, dict) else here + there
        return Totals(**sums)

    @property
    def error_rate(self) -> float:
        """Share of the rows that failed; 0 where there are none."""
        return self.errors / max(self.errors + self.utterances, 1)

    @property
    def warnings(self) -> list[str]:
        """What whoever reads the run's figures should know of how they came about; nothing, as a rule."""
        told = [
            f"{number:,} of {self.utterances:,} transcripts, or their labels, were computed by a fallback: {reason}"
            for reason, number in self.fallbacks.items()
        ]
        halved = f"times that a batch was halved for want of memory: {self.splits:,}"
        return [*told, halved] if self.splits else told

    @staticmethod
    def of(table: pa.Table) -> Totals:
        """The sums over a ledger."""
        names = ("utterances", "errors", "audio_s", "source_bytes", "compute_s", "splits")
        sums = {name: pc.sum(table[name], min_count=0).as_py() for name in names}
        engines = utterances_by(table, "engine")
        fallbacks = utterances_by(table, "fallback")
        return Totals(
            chunks=len(table),
            **sums,
            error_codes=error_codes(table),
            engines=_sorted({engine or UNKNOWN: number for engine, number in engines.items()}),
            fallbacks=_sorted({reason: number for reason, number in fallbacks.items() if reason is not None}),
        )

    @staticmethod
    def of_chunk(commit: Commit) -> Totals:
        """The same of one commit."""
        return Totals(
            chunks=1,
            utterances=commit.utterances,
            errors=commit.errors,
            audio_s=commit.audio_s,
            source_bytes=commit.source_bytes,
            compute_s=commit.seconds["compute"],
            error_codes=_sorted(commit.error_codes),
            engines={commit.engine or UNKNOWN: commit.utterances} if commit.utterances else {},
            fallbacks={commit.fallback: commit.utterances} if commit.utterances and commit.fallback else {},
            splits=commit.splits or 0,
        )


def _by_key(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return _sorted({key: a.get(key, 0) + b.get(key, 0) for key in a | b})


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


@dataclass(frozen=True)
class Run:
    """A run on storage. Opening it reads `run.json`; everything else is read when it is asked for."""

    uri: str
    record: dict[str, Any]

    @staticmethod
    def open(uri: str | os.PathLike[str]) -> Run:
        """The run at `uri`.

        Raises:
            UsageError: there is none.
        """
        uri = uris.absolute(os.fspath(uri))
        try:
            record: dict[str, Any] = json.loads(objects.fetch(uris.join(uri, RECORD)))
        except json.JSONDecodeError as error:
            raise UsageError(f"{uri}/{RECORD} is damaged: {error}") from error
        except FileNotFoundError as error:
            raise UsageError(f"no run at {uri}: there is no {RECORD}") from error
        return Run(uri, record)

    def save(self, **changes: Any) -> Run:
        """Write `run.json` with `changes` to the record; gives the run as it is now."""
        data = json.dumps(self.record | changes, indent=2).encode()
        objects.put(uris.join(self.uri, RECORD), data)
        return Run(self.uri, json.loads(data))

    @property
    def status(self) -> str:
        """Running, stopped, failed or done. A driver that was killed leaves `running`."""
        return str(self.record["status"])

    def is_interrupted(self) -> bool:
        """Whether it is `running` by its record, and its driver is known to be gone."""
        # Looked at again last: a driver that ends meanwhile writes how, then gives its lease back.
        return self.status == "running" and is_free(self.uri) and Run.open(self.uri).status == "running"

    def plan(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The parts, of schema `PLAN`."""
        with objects.open_read(uris.join(self.uri, PLAN_FILE)) as file:
            return pq.read_table(file, columns=columns)

    def plan_without(self, done: pa.Array) -> pa.Table:
        """The parts that are not among `done`, by id; a plan of millions is never whole in memory."""
        with objects.open_read(uris.join(self.uri, PLAN_FILE)) as file:
            batches = pq.ParquetFile(file).iter_batches(batch_size=1 << 16)
            left = [batch.filter(pc.invert(pc.is_in(batch["part_id"], done))) for batch in batches]
        return pa.Table.from_batches(left, schema=PLAN)

    def commits(self) -> Iterator[Commit]:
        """Every commit."""
        return read_commits(self.uri)

    def totals(self) -> Totals:
        """Sums over the commits; those that the record of a finished run holds."""
        if self.status == "done":
            return Totals(**self.record["totals"])
        return Totals.of(ledger(self.uri))

    def parts_done(self) -> set[str]:
        """Ids of the parts whose chunks are all committed."""
        return set(parts_done(committed(self.uri)).to_pylist())

    def files(self) -> dict[str, list[DataFile]]:
        """By table (`transcripts`, `labels`, `errors`): the files that hold its committed rows."""
        compacted = read_compaction(self.uri)
        named = compacted if compacted is not None else [file for commit in self.commits() for file in commit.files]
        return {table: [file for file in named if file.table == table] for table in TABLES}

    def read(self, call: Callable[[dict[str, list[DataFile]]], T]) -> T:
        """`call` on the files that hold the committed rows, patient in bad weather.

        Once more, on the files that there are then, where the run was finished meanwhile and its small files are gone.

        Raises:
            StorageError: the weather does not clear.
            FileNotFoundError: a file that the run names is lost.
        """
        files = self.files()
        try:
            return retry.with_retries(self.uri, lambda: call(files))
        except FileNotFoundError:
            if (compacted := self.files()) == files:
                raise
            return retry.with_retries(self.uri, lambda: call(compacted))

    def rows(self, table: str) -> int:
        """How many rows of a table are committed."""
        return sum(file.rows for file in self.files()[table])

    def dataset(self, table: str) -> pads.Dataset:
        """The committed rows of `transcripts`, `labels` or `errors`, at any time, also while the run goes on.

        A run that is finished meanwhile takes the dataset's files away: open it again (`read` does).
        """
        return open_files(self.uri, table, [file.path for file in self.files()[table]])


def open_files(uri: str, table: str, paths: Sequence[str]) -> pads.Dataset:
    """Data files of the run at `uri`, named below it, as one dataset."""
    if not paths:
        return pads.dataset(TABLES[table].empty_table())
    fs, root = uris.filesystem(uri)
    return pads.dataset([uris.join(root, path) for path in paths], TABLES[table], "parquet", filesystem=fs)


def write_plan(uri: str, plan: pa.Table) -> None:
    """Store the plan. It is written before `run.json`: a run that has a record has its plan."""
    sink = pa.BufferOutputStream()
    pq.write_table(plan.cast(PLAN), sink, compression="zstd")
    objects.put(uris.join(uri, PLAN_FILE), sink.getvalue().to_pybytes())
