"""The rows of a part: its utterances decoded and cut into segments. Bad data becomes a row here and nowhere else."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.audio.decode import AudioSettings, LastRecording, Segment, read_segments
from pipeline.audio.silence import Spans, levels
from pipeline.corpus.parts import Part
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import Utterance, broken_utterance
from pipeline.errors import AudioError, ErrorCode, InputChangedError
from pipeline.runs.retry import utterance_id
from pipeline.schemas import READ_ROW
from pipeline.secrets import without_secrets
from pipeline.stages.steps import Position, Skipped, Step


@dataclass(frozen=True)
class RowSettings:
    """How utterances become rows.

    Attributes:
        audio: sample rate, channels, longest segment, limits.
        min_samples: fewest samples that the models can use; shorter utterances are TOO_SHORT.
        allow_any_path: a manifest may name objects outside the store that it is in.
    """

    audio: AudioSettings
    min_samples: int
    allow_any_path: bool = False


class RowError(NamedTuple):
    """Why a row has no result: the columns `stage`, `code` and `message` of `ERRORS`."""

    stage: str
    code: str
    message: str

    @staticmethod
    def of(stage: str, error: AudioError) -> RowError:
        """The error of a stage."""
        return RowError(stage, error.code.value, without_secrets(error.message))


@dataclass(frozen=True, eq=False)
class ReadRow:
    """A row of `READ_ROW`: a decoded segment, or an error.

    Attributes:
        samples: (num_samples,) at the model's sample rate, little endian: int16, or float32 with full scale at 1. None
            in an error row.
        recording_reference: reference of the whole recording, in the row of the first of its segments.
        spans: (start, stop) of each span between long pauses, in samples; None where nothing is to be skipped.
        warning: what is wrong with the headers of the audio, all of which was read; None where nothing is.
        error: what is wrong; None for a decoded segment.
    """

    utt_id: str
    uri: str
    start_s: float | None
    duration_s: float | None
    channel: int | None
    byte_start: int | None
    byte_end: int | None
    reference: str | None
    reference_label: str | None
    speaker: str | None
    tags: str | None
    recording_reference: str | None = None
    warning: str | None = None
    samples: np.ndarray | None = None
    spans: Spans | None = None
    error: RowError | None = None

    @property
    def audio_s(self) -> float:
        """Seconds of audio for the model: none in an error row."""
        return 0.0 if self.error is not None or self.duration_s is None else self.duration_s

    def with_error(self, error: RowError) -> ReadRow:
        """This row as an error row."""
        return replace(self, samples=None, spans=None, error=error)


def part_steps(
    part: Part, settings: RowSettings, start: Position, skipped: Mapping[int, Skipped]
) -> Iterator[Step[ReadRow]]:
    """Read one part from `start` on, without the skipped utterances; see `pipeline.stages.quarantine`.

    Args:
        part: the part.
        settings: how utterances become rows.
        start: position to start at.
        skipped: utterances to skip, by number.

    Raises:
        StorageError: as `read_part`.
    """
    if part.items:
        # A process may have died of the reference file that is read before the audio: it is not read then, and the
        # error row is that of the audio.
        items = (item._replace(reference_uri=None) if i in skipped else item for i, item in enumerate(part.items))
        part = replace(part, items=tuple(items))
        skipped = {i: replace(s, position=Position(i, max(0, s.position.row))) for i, s in skipped.items()}
    utterances, retried = read_part(part, settings.allow_any_path), frozenset(part.retry)
    with contextlib.closing(LastRecording()) as last:
        uri = ""
        for index in itertools.count():
            skip = skipped.get(index)
            if skip is not None and skip.position.row < 0:
                if skip.position >= start:
                    rest = broken_utterance(part.name, part.uri, skip.error)  # the rest of the container
                    row = _row(rest, rest.utt_id, error=RowError.of("read", skip.error))
                    yield Step(Position(index + 1, -1), row=row, where=rest.where)
                return
            utterance = next(utterances, None)
            if utterance is None:
                return
            if index < start.utterance or (retried and utterance_id(utterance.utt_id) not in retried):
                continue
            if start <= Position(index, -1):  # of a part that is done again, carried commits count all bytes
                yield Step(Position(index, 0), size=0 if retried else utterance.size)
            if utterance.problem is None and utterance.uri != uri:
                last.close()  # before the next recording is fetched
                uri = utterance.uri
            done = start.row if index == start.utterance else 0
            for number, row in _numbered_rows(utterance, settings, done, skip, last):
                if number >= done:
                    yield Step(Position(index, number + 1), row=row, where=utterance.where)
            yield Step(Position(index + 1, -1))


def _numbered_rows(
    utterance: Utterance, settings: RowSettings, done: int, skip: Skipped | None, last: LastRecording
) -> Iterator[tuple[int, ReadRow]]:
    """The rows of an utterance with their numbers, up to the skipped one, which is an error row."""
    if skip is None or done < skip.position.row:
        rows = enumerate(utterance_rows(utterance, settings, last))
        yield from rows if skip is None else itertools.islice(rows, skip.position.row)
    if skip is not None:
        offset_s, duration_s = utterance.meta.span or (None, None)
        row = _row(utterance, utterance.utt_id, offset_s, duration_s, error=RowError.of("decode", skip.error))
        yield skip.position.row, row if skip.position.row == 0 else replace(row, reference=None)


def utterance_rows(utterance: Utterance, settings: RowSettings, last: LastRecording | None = None) -> Iterator[ReadRow]:
    """Decode one utterance into rows: one per segment, or an error row.

    A recording that is damaged, or replaced in storage, after some segments keeps them, and ends with an error row.

    Args:
        utterance: the utterance.
        settings: how utterances become rows.
        last: cache of the last recording, for several utterances of one recording.

    Raises:
        StorageError: the audio could not be reached.
    """
    offset_s, duration_s = utterance.meta.span or (None, None)
    stage = "read"
    is_first = True
    try:
        if utterance.problem is not None:
            raise utterance.problem
        audio = utterance.open()
        stage = "decode"
        with contextlib.nullcontext(audio) if isinstance(audio, bytes) else contextlib.closing(audio):
            wanted = settings.audio
            if utterance.channel is not None:  # `last` keeps recordings that are read with the same settings
                wanted, last = replace(wanted, channels=utterance.channel), None
            segments = read_segments(audio, wanted, offset_s=offset_s, duration_s=duration_s, last=last)
            for segment in segments:
                yield _segment_row(utterance, segment, settings, is_first=is_first)
                is_first = False
    except (AudioError, InputChangedError) as error:
        # An object that was replaced is no longer there, as one that was deleted.
        problem = error if isinstance(error, AudioError) else AudioError(ErrorCode.MISSING, str(error))
        row = _row(utterance, utterance.utt_id, offset_s, duration_s, error=RowError.of(stage, problem))
        yield row if is_first else replace(row, reference=None)


def _segment_row(utterance: Utterance, segment: Segment, settings: RowSettings, *, is_first: bool) -> ReadRow:
    utt_id = utterance.utt_id
    if segment.channel is not None:
        utt_id += f"#c{segment.channel}"
    end_s = segment.start_s + segment.duration_s
    if not (segment.whole or (utterance.fixed_id and segment.only)):
        utt_id += f"#{round(segment.start_s * 1000)}-{round(end_s * 1000)}"
    samples: np.ndarray | None
    samples, error = segment.samples.astype(segment.samples.dtype.newbyteorder("<"), copy=False), None
    if len(samples) < settings.min_samples:
        message = f"{len(samples)} samples; the model needs {settings.min_samples}"
        samples, error = None, RowError("decode", ErrorCode.TOO_SHORT.value, message)
    channel = segment.channel if segment.channel is not None else utterance.channel
    row = _row(utterance, utt_id, segment.start_s, segment.duration_s, channel, samples, error)
    has_pauses = samples is not None and segment.spans != ((0, len(samples)),)
    row = replace(row, warning=segment.warning or None, spans=segment.spans if has_pauses else None)
    if segment.only:
        return row
    # The reference belongs to the whole recording, not to one of its segments: it is kept in the row of the first.
    return replace(row, reference=None, recording_reference=row.reference if is_first else None)


def _row(
    utterance: Utterance,
    utt_id: str,
    start_s: float | None = None,
    duration_s: float | None = None,
    channel: int | None = None,
    samples: np.ndarray | None = None,
    error: RowError | None = None,
) -> ReadRow:
    return ReadRow(
        utt_id=utt_id,
        uri=utterance.uri,
        start_s=start_s,
        duration_s=duration_s,
        channel=channel,
        byte_start=utterance.byte_start,
        byte_end=utterance.byte_end,
        reference=utterance.meta.text,
        reference_label=utterance.meta.label,
        speaker=utterance.meta.speaker,
        tags=utterance.meta.tags,
        samples=samples,
        error=error,
    )


def read_rows(rows: Sequence[ReadRow], rate: int) -> pa.StructArray:
    """Rows as an array of type `READ_ROW`; `rate` is that of their samples, in Hz."""
    columns = [_column(column, rows, rate) for column in READ_ROW]
    return pa.StructArray.from_arrays(columns, fields=list(READ_ROW))


def _column(column: pa.Field, rows: Sequence[ReadRow], rate: int) -> pa.Array:
    if column.name == "samples":
        return _waveforms([row.samples for row in rows])
    if column.name == "spans":
        values: list[Any] = [
            None if row.spans is None else [edge for span in row.spans for edge in span] for row in rows
        ]
    elif column.name == "levels":
        values = [None if row.samples is None else levels(row.samples, rate).tobytes() for row in rows]
    elif column.name == "sample_type":
        values = [None if row.samples is None else row.samples.dtype.name for row in rows]
    elif column.name in RowError._fields:
        values = [None if row.error is None else getattr(row.error, column.name) for row in rows]
    else:
        values = [getattr(row, column.name) for row in rows]
    return pa.array(values, column.type)


def _waveforms(samples: Sequence[np.ndarray | None]) -> pa.LargeBinaryArray:
    """The bytes of waveforms as an array, copied once; Arrow's builder would copy megabytes each time it grows."""
    present = [waveform.view(np.uint8) for waveform in samples if waveform is not None]
    ends = np.cumsum([0, *(0 if waveform is None else waveform.nbytes for waveform in samples)], dtype=np.int64)
    validity = pa.array([waveform is not None for waveform in samples], pa.bool_())
    data = pa.allocate_buffer(int(ends[-1]))
    if present:
        np.concatenate(present, out=np.frombuffer(data, np.uint8))
    return pa.Array.from_buffers(
        pa.large_binary(), len(samples), [validity.buffers()[1], pa.py_buffer(ends), data], validity.false_count
    )
