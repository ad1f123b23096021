"""The read stage, a Ray CPU task: a part of the plan in, chunks of waveforms out.

A chunk is (part, ordinal), the unit of flow and commit. It closes by content alone, at a number of seconds of audio or
of rows, so that the same part gives the same chunks at every attempt, wherever it runs. The last chunk of a part is
marked as such and holds the totals of the part. A part with only broken files, or without any, still gives one chunk.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import pyarrow as pa

from pipeline.cluster.ray_private import task_attempt
from pipeline.corpus.ahead import READ_AHEAD
from pipeline.corpus.parts import Part
from pipeline.errors import AudioError, ErrorCode
from pipeline.schemas import READ_CHUNK, one_chunk
from pipeline.stages.child import run_in_child
from pipeline.stages.quarantine import Record
from pipeline.stages.rows import ReadRow, RowError, RowSettings, part_steps, read_rows
from pipeline.stages.steps import START, Step
from pipeline.storage import objects
from pipeline.storage.deadline import with_deadline


@dataclass(frozen=True, kw_only=True)
class ReadSettings(RowSettings):
    """How parts become chunks.

    Attributes:
        chunk_s: a chunk closes when it holds this many seconds of audio,
        chunk_rows: or this many rows.
        stop_uri: while this object exists, no new chunk is started.
        run: URI of the run, for its quarantine.
        deadline_s: a process that takes longer than this for a row hangs.
        earlier_rules: make ids and rows as version 0.1.0 did, which began the run.
    """

    chunk_s: float
    chunk_rows: int
    stop_uri: str
    run: str
    deadline_s: float
    earlier_rules: bool = False


@dataclass(frozen=True)
class Before:
    """Chunks of a part that were carried over (`pipeline.runs.retry`), their rows, and their audio in seconds."""

    chunks: int = 0
    rows: int = 0
    audio_s: float = 0.0


@dataclass
class _Chunk:
    ordinal: int
    first_row: int = 0
    started: float = field(default_factory=time.perf_counter)
    rows: list[ReadRow] = field(default_factory=list)
    audio_s: float = 0.0
    source_bytes: int = 0


def worker_name() -> str:
    """`host:pid` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def read_parts(parts: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    """Yield the chunks of parts: rows of the plan with what `pipeline.driver.remaining` adds to them.

    The first attempt at a part reads it in this process, further attempts in child processes, see
    `pipeline.stages.quarantine`.

    Yields:
        One-row tables of schema `READ_CHUNK`.

    Raises:
        StorageError: the input could not be reached, or is not what was planned.
        RunFailedError: child processes die although they skip what killed them.
    """
    for planned in parts.to_pylist():
        committed, record = frozenset(planned["committed"]), Record.parse(planned["record"])
        failed = {row["utt_id"]: row["code"] for row in planned.get("failed") or ()}
        before = Before(**values) if (values := planned.get("carried")) else Before()
        # After a death nothing is read before its turn: the next one is known to be of the utterance whose turn it is.
        # Of a part whose other rows were carried over, only what is retried is read.
        ahead = 0 if task_attempt() or record.deaths or before.chunks else READ_AHEAD
        part = Part.from_row(planned, settings.earlier_rules, ahead)
        if not before.chunks:
            part = replace(part, retry=())  # nothing was carried over: all of it is read
        read = functools.partial(part_steps, part, settings)
        if task_attempt():
            steps = run_in_child(settings.run, part.part_id, read, settings.deadline_s)
        else:
            steps = with_deadline(settings.deadline_s, read(START, record.skipped))
        yield from read_chunks(part, committed, steps, settings, failed, before)


def read_chunks(
    part: Part,
    committed: frozenset[int],
    steps: Iterator[Step[ReadRow]],
    settings: ReadSettings,
    failed: Mapping[str, str] = MappingProxyType({}),
    before: Before = Before(),
) -> Iterator[pa.Table]:
    """Gather the rows of one part into chunks.

    Args:
        part: the part.
        committed: ordinals of committed chunks; these are read but not yielded again.
        steps: the steps of the part, from its start.
        settings: how parts become chunks.
        failed: codes of rows that become error rows although they may be decoded now, by their ids.
        before: what of the part comes before what is read.

    Yields:
        One-row tables of schema `READ_CHUNK`, in order. A stopped part ends without a last chunk.

    Raises:
        StorageError: the input could not be reached, or is not what was planned.
    """
    if objects.exists(settings.stop_uri):
        return
    rate = settings.audio.sample_rate
    chunk = _Chunk(before.chunks, before.rows)
    rows, audio_s = before.rows, before.audio_s
    ids = _UniqueIds()
    for step in steps:
        chunk.source_bytes += step.size
        if (row := step.row) is None:
            continue
        # A full chunk stays open until the next row comes: only then is it known not to be the last.
        if len(chunk.rows) >= settings.chunk_rows or chunk.audio_s >= settings.chunk_s:
            if chunk.ordinal not in committed:
                yield _table(part, chunk, rate)
            chunk = _Chunk(chunk.ordinal + 1, rows)
            if objects.exists(settings.stop_uri):
                return
        row = ids.check(row, step.where)
        if row.error is None and row.utt_id in failed:
            row = row.with_error(RowError("read", failed[row.utt_id], "the run has no transcript of it"))
        chunk.rows.append(row)
        chunk.audio_s += row.audio_s
        audio_s += row.audio_s
        rows += 1
    if chunk.ordinal not in committed:
        yield _table(part, chunk, rate, last=True, part_rows=rows, part_audio_s=audio_s)


class _UniqueIds:
    """Turns a row into an error row if an earlier row of the part has its final id, with its `#start-end`."""

    def __init__(self) -> None:
        self._where: dict[str, str] = {}

    def check(self, row: ReadRow, where: str) -> ReadRow:
        if row.error is not None:
            return row
        if (first := self._where.get(row.utt_id)) is None:
            self._where[row.utt_id] = where
            return row
        message = f"{row.utt_id} names both {first} and {where}"
        return row.with_error(RowError.of("read", AudioError(ErrorCode.DUPLICATE_ID, message)))


def _table(part: Part, chunk: _Chunk, rate: int, last: bool = False, **totals: float) -> pa.Table:
    head = {
        "part_id": part.part_id,
        "chunk": chunk.ordinal,
        "first_row": chunk.first_row,
        "last": last,
        "audio_s": chunk.audio_s,
        "source_bytes": chunk.source_bytes,
        "reader": worker_name(),
        "read_s": time.perf_counter() - chunk.started,
        "read_at": time.time(),
    } | totals
    return one_chunk(READ_CHUNK, head, read_rows(chunk.rows, rate))
