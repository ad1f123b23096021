"""The decode stage: a part of the plan in, chunks of waveforms out; a Ray CPU task.

A chunk is (part, ordinal), the unit of flow and commit. It closes by content alone, at so many seconds of audio or so
many rows, so that the same part gives the same chunks at every attempt, wherever it runs. The last chunk of a part says
so and holds the part's totals; a part of nothing but broken files, or of nothing, still gives one chunk.
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
from pipeline.corpus.sources import Utterance, read_part
from pipeline.errors import AudioError, ErrorCode
from pipeline.schemas import READ_CHUNK, READ_ROW, one_chunk
from pipeline.stages.child import run_in_child
from pipeline.stages.quarantine import START, Place, Record, Skipped, Step
from pipeline.storage import objects
from pipeline.storage.deadline import within


@dataclass(frozen=True)
class ReadSettings:
    """How parts become chunks.

    Attributes:
        audio: rate, channels, longest segment, caps.
        min_samples: fewest samples that the models can use; shorter utterances are TOO_SHORT.
        chunk_s: a chunk closes once it holds this much audio, seconds.
        chunk_rows: or this many rows.
        stop_uri: while an object lies here, no new chunk is begun.
        run: the run, for what has to be set aside.
        deadline_s: a process to which the next row does not come in this time hangs.
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
    began: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    audio_s: float = 0.0
    source_bytes: int = 0


def worker_name() -> str:
    """`host:pid` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def read_parts(parts: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    """The chunks of parts as `driver.find_left` gives them, with their `committed` chunks and their `record`.

    The first attempt at a part reads it here, each further one in children of this process: see `pipeline.stages.quarantine`.
    """
    for part in parts.to_pylist():
        committed, record = frozenset(part.pop("committed")), Record.parse(part.pop("record"))
        read = functools.partial(part_steps, part, settings)
        if task_attempt():
            steps = run_in_child(settings.run, part["part_id"], read, settings.deadline_s)
        else:
            steps = within(settings.deadline_s, read(START, record.aside))
        yield from read_chunks(part, committed, steps, settings)


def read_chunks(
    part: dict[str, Any], committed: frozenset[int], steps: Iterator[Step], settings: ReadSettings
) -> Iterator[pa.Table]:
    """Gather the rows of one part into chunks.

    Args:
        part: a row of the plan.
        committed: ordinals that are committed already; they are read past, not given out again.
        steps: of the part, from its start.
        settings: how.

    Yields:
        One-row tables of schema `READ_CHUNK`, in order. A part that is stopped half-way ends without a last chunk.

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
        # A full chunk stays open until there is a row for the next one: only then is it known not to be the last.
        if len(chunk.rows) >= settings.chunk_rows or chunk.audio_s >= settings.chunk_s:
            if chunk.ordinal not in committed:
                yield _table(part, chunk)
            chunk = _Chunk(chunk.ordinal + 1, rows)
            if objects.exists(settings.stop_uri):
                return
        _claim_id(row, step.where, taken)
        chunk.rows.append(row)
        sound_s = row["duration_s"] if row["code"] is None else 0.0
        chunk.audio_s += sound_s
        audio_s += sound_s
        rows += 1
    if chunk.ordinal not in committed:
        yield _table(part, chunk, last=True, part_rows=rows, part_audio_s=audio_s)


def _claim_id(row: dict[str, Any], where: str, taken: dict[str, str]) -> None:
    """Turn a row into an error row if its final id, `#start-end` and all, is taken by an earlier one of the part."""
    if row["code"] is not None:
        return
    if row["utt_id"] not in taken:
        taken[row["utt_id"]] = where
    else:
        message = f"{row['utt_id']} names both {taken[row['utt_id']]} and {where}"
        row |= _problem("read", AudioError(ErrorCode.DUPLICATE_ID, message)) | {"samples": None, "sample_type": None}


def part_steps(
    part: dict[str, Any], settings: ReadSettings, start: Place, aside: Mapping[int, Skipped]
) -> Iterator[Step]:
    """Read one part from `start` on, but for what is set aside, by utterance; see `pipeline.stages.quarantine`.

    Raises:
        StorageError: as `read_part`.
    """
    if part["kind"] == "files":
        # What lies before a file is its side-car, which is not read then; the file is the row that is lost.
        items = enumerate(part["items"])
        part = part | {"items": [item | ({"reference_uri": None} if i in aside else {}) for i, item in items]}
        aside = {i: replace(a, place=Place(i, max(0, a.place.row))) for i, a in aside.items()}
    utterances = read_part(part)
    with contextlib.closing(LastRecording()) as last:
        uri = ""
        for index in itertools.count():
            ending = aside.get(index)
            if ending is not None and ending.place.row < 0:
                if ending.place >= start:
                    lost = Utterance(part["name"], part["uri"], bytes)  # a container that cannot be read so far
                    row = _row(lost, lost.utt_id) | _problem("read", ending.error)
                    yield Step(Place(index + 1, -1), row=row, where=lost.where)
                return
            utterance = next(utterances, None)
            if utterance is None:
                return
            if index < start.utterance:
                continue
            if start <= Place(index, -1):
                yield Step(Place(index, 0), size=utterance.size)
            if utterance.problem is None and utterance.uri != uri:
                last.close()  # before another recording is fetched
                uri = utterance.uri
            done = start.row if index == start.utterance else 0
            for number, row in _numbered_rows(utterance, settings, done, ending, last):
                if number >= done:
                    yield Step(Place(index, number + 1), row=row, where=utterance.where)
            yield Step(Place(index + 1, -1))


def _numbered_rows(
    utterance: Utterance, settings: ReadSettings, done: int, ending: Skipped | None, last: LastRecording
) -> Iterator[tuple[int, dict[str, Any]]]:
    if ending is None or done < ending.place.row:
        rows = enumerate(utterance_rows(utterance, settings, last))
        yield from rows if ending is None else itertools.islice(rows, ending.place.row)
    if ending is not None:
        offset_s, duration_s = utterance.meta.span or (None, None)
        row = _row(utterance, utterance.utt_id, offset_s, duration_s) | _problem("decode", ending.error)
        yield ending.place.row, row


def utterance_rows(
    utterance: Utterance, settings: ReadSettings, last: LastRecording | None = None
) -> Iterator[dict[str, Any]]:
    """Decode one utterance into rows of `READ_ROW`: one a segment, or one that says what is wrong.

    This is the one place where bad data turns into a row. A recording that breaks off after some segments keeps them,
    and ends in an error row.
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
        yield _row(utterance, utterance.utt_id, offset_s, duration_s) | _problem(stage, error)


def _segment_row(utterance: Utterance, segment: Segment, settings: ReadSettings) -> dict[str, Any]:
    utt_id = utterance.utt_id
    if segment.channel is not None:
        utt_id += f"#c{segment.channel}"
    end_s = segment.start_s + segment.duration_s
    if not (segment.whole or (utterance.fixed_id and segment.only)):
        utt_id += f"#{round(segment.start_s * 1000)}-{round(end_s * 1000)}"
    row = _row(utterance, utt_id, segment.start_s, segment.duration_s, segment.channel)
    if not segment.only:
        row["reference"] = None  # it is the whole recording's, and no segment's
    samples = segment.samples
    if len(samples) < settings.min_samples:
        message = f"{len(samples)} samples, and the model needs {settings.min_samples}"
        return row | _problem("decode", AudioError(ErrorCode.TOO_SHORT, message))
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


def _problem(stage: str, error: AudioError) -> dict[str, Any]:
    return {"stage": stage, "code": error.code.value, "message": error.message}


def _table(part: dict[str, Any], chunk: _Chunk, last: bool = False, **totals: float) -> pa.Table:
    head = {
        "part_id": part["part_id"],
        "chunk": chunk.ordinal,
        "first_row": chunk.first_row,
        "last": last,
        "audio_s": chunk.audio_s,
        "source_bytes": chunk.source_bytes,
        "reader": worker_name(),
        "read_s": time.perf_counter() - chunk.began,
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
    """Their bytes as an array, copied once: Arrow's own builder grows as it goes, and moves megabytes each time."""
    sound = [waveform.view(np.uint8) for waveform in samples if waveform is not None]
    ends = np.cumsum([0, *(0 if waveform is None else waveform.nbytes for waveform in samples)], dtype=np.int64)
    there = pa.array([waveform is not None for waveform in samples], pa.bool_())
    data = pa.py_buffer(np.concatenate(sound) if sound else b"")
    return pa.Array.from_buffers(
        pa.large_binary(), len(samples), [there.buffers()[1], pa.py_buffer(ends), data], there.false_count
    )
