"""The decode stage, a Ray CPU task: a part of the plan in, chunks of waveforms out.

A chunk is (part, ordinal), the unit of flow and commit. It closes by content alone, at a number of seconds of audio or
of rows, so that the same part gives the same chunks at every attempt, wherever it runs. The last chunk of a part is
marked as such and holds the totals of the part. A part with only broken files, or without any, still gives one chunk.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.audio.decode import AudioSettings, LastRecording, Segment, read_segments
from pipeline.cluster.ray_private import task_attempt
from pipeline.corpus.parts import Part
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import Utterance, broken_utterance
from pipeline.errors import AudioError, ErrorCode
from pipeline.schemas import READ_CHUNK, READ_ROW, one_chunk
from pipeline.stages.child import run_in_child
from pipeline.stages.quarantine import START, Position, Record, Skipped, Step
from pipeline.storage import objects
from pipeline.storage.deadline import with_deadline


@dataclass(frozen=True)
class ReadSettings:
    """How parts become chunks.

    Attributes:
        audio: sample rate, channels, longest segment, limits.
        min_samples: fewest samples that the models can use; shorter utterances are TOO_SHORT.
        chunk_s: a chunk closes when it holds this many seconds of audio,
        chunk_rows: or this many rows.
        stop_uri: while this object exists, no new chunk is started.
        run: URI of the run, for its quarantine.
        deadline_s: a process that takes longer than this for a row hangs.
    """

    audio: AudioSettings
    min_samples: int
    chunk_s: float
    chunk_rows: int
    stop_uri: str
    run: str
    deadline_s: float


@dataclass
class _Chunk:
    ordinal: int
    first_row: int = 0
    started: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    audio_s: float = 0.0
    source_bytes: int = 0


def worker_name() -> str:
    """`host:pid` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def read_parts(parts: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    """Yield the chunks of parts: rows of the plan with their `committed` chunks and their quarantine `record`.

    The first attempt at a part reads it in this process, further attempts in child processes, see
    `pipeline.stages.quarantine`.

    Yields:
        One-row tables of schema `READ_CHUNK`.

    Raises:
        StorageError: the input could not be reached, or is not what was planned.
        RunFailedError: child processes die although they skip what killed them.
    """
    for planned in parts.to_pylist():
        part = Part.from_row(planned)
        committed, record = frozenset(planned["committed"]), Record.parse(planned["record"])
        read = functools.partial(part_steps, part, settings)
        if task_attempt():
            steps = run_in_child(settings.run, part.part_id, read, settings.deadline_s)
        else:
            steps = with_deadline(settings.deadline_s, read(START, record.skipped))
        yield from read_chunks(part, committed, steps, settings)


def read_chunks(
    part: Part, committed: frozenset[int], steps: Iterator[Step], settings: ReadSettings
) -> Iterator[pa.Table]:
    """Gather the rows of one part into chunks.

    Args:
        part: the part.
        committed: ordinals of committed chunks; these are read but not yielded again.
        steps: the steps of the part, from its start.
        settings: how parts become chunks.

    Yields:
        One-row tables of schema `READ_CHUNK`, in order. A stopped part ends without a last chunk.

    Raises:
        StorageError: the input could not be reached, or is not what was planned.
    """
    if objects.exists(settings.stop_uri):
        return
    chunk = _Chunk(0)
    rows, audio_s = 0, 0.0
    taken: dict[str, str] = {}
    for step in steps:
        chunk.source_bytes += step.size
        if (row := step.row) is None:
            continue
        # A full chunk stays open until the next row comes: only then is it known not to be the last.
        if len(chunk.rows) >= settings.chunk_rows or chunk.audio_s >= settings.chunk_s:
            if chunk.ordinal not in committed:
                yield _table(part, chunk)
            chunk = _Chunk(chunk.ordinal + 1, rows)
            if objects.exists(settings.stop_uri):
                return
        _claim_id(row, step.where, taken)
        chunk.rows.append(row)
        row_s = row["duration_s"] if row["code"] is None else 0.0
        chunk.audio_s += row_s
        audio_s += row_s
        rows += 1
    if chunk.ordinal not in committed:
        yield _table(part, chunk, last=True, part_rows=rows, part_audio_s=audio_s)


def _claim_id(row: dict[str, Any], where: str, taken: dict[str, str]) -> None:
    """Turn a row into an error row if an earlier row of the part has its final id, with its `#start-end`."""
    if row["code"] is not None:
        return
    if row["utt_id"] not in taken:
        taken[row["utt_id"]] = where
    else:
        message = f"{row['utt_id']} names both {taken[row['utt_id']]} and {where}"
        row |= _error_columns("read", AudioError(ErrorCode.DUPLICATE_ID, message)) | {
            "samples": None,
            "sample_type": None,
        }


def part_steps(part: Part, settings: ReadSettings, start: Position, skipped: Mapping[int, Skipped]) -> Iterator[Step]:
    """Read one part from `start` on, without the skipped utterances; see `pipeline.stages.quarantine`.

    Raises:
        StorageError: as `read_part`.
    """
    if part.items:
        # A process may have died of the reference file that is read before the audio: it is not read then, and the
        # error row is that of the audio.
        items = (item._replace(reference_uri=None) if i in skipped else item for i, item in enumerate(part.items))
        part = replace(part, items=tuple(items))
        skipped = {i: replace(s, position=Position(i, max(0, s.position.row))) for i, s in skipped.items()}
    utterances = read_part(part)
    with contextlib.closing(LastRecording()) as last:
        uri = ""
        for index in itertools.count():
            skip = skipped.get(index)
            if skip is not None and skip.position.row < 0:
                if skip.position >= start:
                    lost = broken_utterance(part.name, part.uri, skip.error)  # the rest of the container
                    row = _row(lost, lost.utt_id) | _error_columns("read", skip.error)
                    yield Step(Position(index + 1, -1), row=row, where=lost.where)
                return
            utterance = next(utterances, None)
            if utterance is None:
                return
            if index < start.utterance:
                continue
            if start <= Position(index, -1):
                yield Step(Position(index, 0), size=utterance.size)
            if utterance.problem is None and utterance.uri != uri:
                last.close()  # before the next recording is fetched
                uri = utterance.uri
            done = start.row if index == start.utterance else 0
            for number, row in _numbered_rows(utterance, settings, done, skip, last):
                if number >= done:
                    yield Step(Position(index, number + 1), row=row, where=utterance.where)
            yield Step(Position(index + 1, -1))


def _numbered_rows(
    utterance: Utterance, settings: ReadSettings, done: int, skip: Skipped | None, last: LastRecording
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of an utterance with their numbers, up to the skipped one, which is an error row."""
    if skip is None or done < skip.position.row:
        rows = enumerate(utterance_rows(utterance, settings, last))
        yield from rows if skip is None else itertools.islice(rows, skip.position.row)
    if skip is not None:
        offset_s, duration_s = utterance.meta.span or (None, None)
        row = _row(utterance, utterance.utt_id, offset_s, duration_s) | _error_columns("decode", skip.error)
        yield skip.position.row, row


def utterance_rows(
    utterance: Utterance, settings: ReadSettings, last: LastRecording | None = None
) -> Iterator[dict[str, Any]]:
    """Decode one utterance into rows of `READ_ROW`: one per segment, or an error row.

    Bad data becomes a row here and nowhere else. A recording that is damaged after some segments keeps them, and ends
    with an error row.

    Args:
        utterance: the utterance.
        settings: how parts become chunks.
        last: cache of the last recording, for several utterances of one recording.
    """
    offset_s, duration_s = utterance.meta.span or (None, None)
    stage = "read"
    try:
        if utterance.problem is not None:
            raise utterance.problem
        audio = utterance.open()
        stage = "decode"
        with contextlib.nullcontext(audio) if isinstance(audio, bytes) else contextlib.closing(audio):
            segments = read_segments(audio, settings.audio, offset_s=offset_s, duration_s=duration_s, last=last)
            for segment in segments:
                yield _segment_row(utterance, segment, settings)
    except AudioError as error:
        yield _row(utterance, utterance.utt_id, offset_s, duration_s) | _error_columns(stage, error)


def _segment_row(utterance: Utterance, segment: Segment, settings: ReadSettings) -> dict[str, Any]:
    utt_id = utterance.utt_id
    if segment.channel is not None:
        utt_id += f"#c{segment.channel}"
    end_s = segment.start_s + segment.duration_s
    if not (segment.whole or (utterance.fixed_id and segment.only)):
        utt_id += f"#{round(segment.start_s * 1000)}-{round(end_s * 1000)}"
    row = _row(utterance, utt_id, segment.start_s, segment.duration_s, segment.channel)
    if not segment.only:
        row["reference"] = None  # it belongs to the whole recording
    samples = segment.samples
    if len(samples) < settings.min_samples:
        message = f"{len(samples)} samples; the model needs {settings.min_samples}"
        return row | _error_columns("decode", AudioError(ErrorCode.TOO_SHORT, message))
    return row | {
        "samples": samples.astype(samples.dtype.newbyteorder("<"), copy=False),
        "sample_type": samples.dtype.name,
    }


def _row(
    utterance: Utterance,
    utt_id: str,
    start_s: float | None = None,
    duration_s: float | None = None,
    channel: int | None = None,
) -> dict[str, Any]:
    return {
        "utt_id": utt_id,
        "uri": utterance.uri,
        "start_s": start_s,
        "duration_s": duration_s,
        "channel": channel,
        "byte_start": utterance.byte_start,
        "byte_end": utterance.byte_end,
        "reference": utterance.meta.text,
        "reference_label": utterance.meta.label,
        "speaker": utterance.meta.speaker,
        "tags": utterance.meta.tags,
        "code": None,
    }


def _error_columns(stage: str, error: AudioError) -> dict[str, Any]:
    return {"stage": stage, "code": error.code.value, "message": error.message}


def _table(part: Part, chunk: _Chunk, last: bool = False, **totals: float) -> pa.Table:
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
    columns = [
        _waveforms([row.get("samples") for row in chunk.rows])
        if kind.name == "samples"
        else pa.array([row.get(kind.name) for row in chunk.rows], kind.type)
        for kind in READ_ROW
    ]
    rows = pa.StructArray.from_arrays(columns, fields=list(READ_ROW))
    return one_chunk(READ_CHUNK, head, rows)


def _waveforms(samples: Sequence[np.ndarray | None]) -> pa.LargeBinaryArray:
    """The bytes of waveforms as an array, copied once; Arrow's builder would copy megabytes each time it grows."""
    present = [waveform.view(np.uint8) for waveform in samples if waveform is not None]
    ends = np.cumsum([0, *(0 if waveform is None else waveform.nbytes for waveform in samples)], dtype=np.int64)
    validity = pa.array([waveform is not None for waveform in samples], pa.bool_())
    data = pa.py_buffer(np.concatenate(present) if present else b"")
    return pa.Array.from_buffers(
        pa.large_binary(), len(samples), [validity.buffers()[1], pa.py_buffer(ends), data], validity.false_count
    )
