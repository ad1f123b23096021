"""The stage of a redecoding, a Ray CPU task: kept posteriors of a part in, committed chunks out. Loads no model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.decoding.rows import unpacked_levels
from pipeline.runs.commit import Commit, encode_commit, write_chunk
from pipeline.runs.lease import require_lease
from pipeline.runs.redecoding import ChunkRows, read_part
from pipeline.stages.read import worker_name
from pipeline.stages.texts import transcripts
from pipeline.stages.write import CHUNK_STATS, WriteSettings
from pipeline.storage import objects


@dataclass(frozen=True, kw_only=True)
class RedecodeSettings(WriteSettings):
    """How posteriors become rows, and where these are committed.

    Attributes:
        source: URI of the run that keeps the posteriors.
        stop_uri: while this object exists, no new chunk is started.
    """

    source: str
    stop_uri: str


def redecode_parts(parts: pa.Table, settings: RedecodeSettings) -> Iterator[pa.Table]:
    """Decode and commit the chunks of parts that are not committed; yields one row of `CHUNK_STATS` for each.

    Args:
        parts: rows of the plan, with the column `committed` of `pipeline.driver.remaining`.
        settings: what is decoded, how, and where to.

    Raises:
        StorageError: the source or the run could not be reached, or the source was changed.
        LeaseLostError: another driver has taken over the run.
    """
    for part in parts.select(["state", "committed"]).to_pylist():
        started = time.perf_counter()
        for chunk in read_part(settings.source, part["state"], frozenset(part["committed"])):
            if objects.exists(settings.stop_uri):
                return
            commit = _write(chunk, settings, time.perf_counter() - started)
            if not commit.folder:
                yield pa.Table.from_pylist([{"commit": encode_commit(commit), "failed": []}], schema=CHUNK_STATS)
            started = time.perf_counter()


def _write(chunk: ChunkRows, settings: RedecodeSettings, read_s: float) -> Commit:
    started = time.perf_counter()
    rows = chunk.rows["posteriors"]
    levels = rows.schema.get_field_index("levels")
    rows = rows.set_column(levels, "levels", unpacked_levels(rows["levels"]))
    tables = {
        "transcripts": transcripts(rows, settings),
        "labels": chunk.rows["labels"],
        "errors": chunk.rows["errors"],
    }
    seconds = {"read": read_s, "queue": 0.0, "compute": time.perf_counter() - started, "rows": 0.0}
    workers = {"reader": worker_name(), "recognizer": worker_name()}
    commit = replace(chunk.commit, attempt=settings.attempt, workers=workers, seconds=seconds, carried=False)
    require_lease(settings.run, settings.attempt)
    return write_chunk(settings.run, commit, tables)
