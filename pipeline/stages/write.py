"""The write stage, a Ray CPU task: numbers become words, error counts and labels, and each chunk is committed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.commit import Commit, encode_commit, write_chunk
from pipeline.runs.lease import require_lease
from pipeline.schemas import ERRORS, field
from pipeline.secrets import without_secrets
from pipeline.stages.texts import TextSettings, labels, posteriors, transcripts
from sewd_model.engine_status import EngineStatus

MAX_FAILED_REPORTED = 20
_FAILED = pa.struct([(name, pa.string()) for name in ("utt_id", "uri", "stage", "code", "message")])

# All that the driver sees of a chunk: ids and counters.
CHUNK_STATS = pa.schema(
    [
        field("commit", pa.binary(), "the commit object"),
        field("failed", pa.list_(_FAILED), "the first rows without a transcript"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class WriteSettings(TextSettings):
    """How numbers become rows, and where these are committed.

    Attributes:
        run: the RUN directory or prefix.
        attempt: id of this start of the driver.
        keep_posteriors: write the posteriors, too.
        folder: where commits are kept, relative to the run; see `Commit.folder`.
    """

    run: str
    attempt: str
    keep_posteriors: bool = False
    folder: str = ""


def write_chunks(chunks: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write and commit each chunk of a `RECOGNIZED_CHUNK` table; returns one row of `CHUNK_STATS` for each.

    Raises:
        StorageError: the run could not be written.
        LeaseLostError: another driver has taken over the run.
    """
    return pa.Table.from_pylist(
        [_write(chunks.slice(index, 1), settings) for index in range(chunks.num_rows)], schema=CHUNK_STATS
    )


def _write(chunk: pa.Table, settings: WriteSettings) -> dict[str, Any]:
    started = time.perf_counter()
    head = chunk.drop_columns("rows").to_pylist()[0]
    rows = pa.Table.from_struct_array(chunk["rows"].combine_chunks().flatten())
    lineage = {
        "part_id": pa.array([head["part_id"]] * len(rows), pa.string()),
        "chunk": pa.array([head["chunk"]] * len(rows), pa.int32()),
    }
    for name, column in lineage.items():
        rows = rows.append_column(name, column)
    is_error = pc.is_valid(rows["code"])
    errors = rows.filter(is_error)
    kept = pc.coalesce(errors["recording_reference"], errors["reference"])
    errors = errors.set_column(errors.column_names.index("recording_reference"), "recording_reference", kept)
    recognized = rows.filter(pc.invert(is_error))
    tables = {"labels": labels(recognized, settings)}
    if not settings.folder:
        tables |= {
            "transcripts": transcripts(recognized, settings),
            "errors": errors.select(ERRORS.names).cast(ERRORS),
        }
        if settings.keep_posteriors:
            tables["posteriors"] = posteriors(recognized)
    commit = Commit(
        part_id=head["part_id"],
        chunk=head["chunk"],
        first_row=head["first_row"],
        last=head["last"],
        part_rows=head["part_rows"],
        part_audio_s=head["part_audio_s"],
        utterances=len(recognized),
        errors=len(errors),
        error_codes={e["values"]: e["counts"] for e in pc.value_counts(errors["code"]).to_pylist()},
        audio_s=head["audio_s"],
        source_bytes=head["source_bytes"],
        attempt=settings.attempt,
        workers={"reader": head["reader"], "recognizer": head["recognizer"]},
        seconds={
            "read": head["read_s"],
            "queue": head["queue_s"],
            "compute": head["compute_s"],
            "rows": time.perf_counter() - started,
        },
        engines=tuple(EngineStatus(**engine) for engine in head["engines"]),
        splits=head["splits"],
        skipped_s=head["skipped_s"],
        warned=len(recognized) - recognized["warning"].null_count,
        classifiers=tuple(task for task, _ in settings.classifiers),
        folder=settings.folder,
    )
    require_lease(settings.run, settings.attempt)
    commit = write_chunk(settings.run, commit, tables)
    return {
        "commit": encode_commit(commit),
        "failed": [
            row | {"uri": without_secrets(row["uri"])}  # for the log and for messages
            for row in errors.slice(0, MAX_FAILED_REPORTED).select(_FAILED.names).to_pylist()
        ],
    }
