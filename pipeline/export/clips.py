"""Utterances for training, with their audio: named in its object, or decoded and cut out of it.

What is cut out is what the model heard, but at 16 kHz: mono, by the readers of `sewd transcribe`, encoded as FLAC with
16 bits. An utterance is found by the object, times and channel of its row; one of a shard by its id, in the part of the
plan that it was read from, so that a shard is read once.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import pyarrow as pa
import soundfile

from pipeline.audio.decode import AudioSettings, LastRecording, read_segments
from pipeline.audio.samples import to_float32
from pipeline.corpus.parts import Part
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import open_object
from pipeline.errors import AudioError, ErrorCode, InputChangedError, UsageError
from pipeline.runs.recordings import IDENTITY, is_shard, recording_ids
from pipeline.runs.run import Run

COLUMNS: Final = (*IDENTITY, "text", "confidence", "speaker", "part_id")
"""The columns of `transcripts` that a clip is made of."""

RATE: Final = 16_000
"""Sample rate of audio that is cut out, Hz."""

_CONTAINERS: Final = frozenset({"tar", "tar_rows", "parquet"})
_CHANGED: Final = "changed since they were transcribed"

Row = Mapping[str, Any]


class Clip(NamedTuple):
    """An utterance with its audio.

    Attributes:
        utt_id: its id.
        recording: its id without what the pipeline appended for segments and channels.
        text: its transcript.
        confidence: of the transcript; None if it is empty.
        speaker: as the source names the speaker; None if it names none.
        uri: the object that holds its audio.
        start_s: where it begins in the recording.
        duration_s: its length.
        channel: the channel of the object that was transcribed, from 0; None: the mean of all.
        flac: the audio; None where it is only named.
    """

    utt_id: str
    recording: str
    text: str
    confidence: float | None
    speaker: str | None
    uri: str
    start_s: float
    duration_s: float
    channel: int | None
    flac: bytes | None = None


def references(run: Run, rows: pa.Table) -> Iterator[Clip]:
    """The clips of rows with `COLUMNS`, without their audio.

    Raises:
        UsageError: an utterance is inside of a shard, where no manifest can name it.
    """
    for row, recording in zip(rows.select(COLUMNS).to_pylist(), recording_ids(rows), strict=True):
        if is_shard(row["uri"]):
            raise UsageError(f"{row['uri']} is a shard, and a manifest cannot name the audio in it: use --audio cut")
        yield _clip(run, row, recording)


def _clip(run: Run, row: Row, recording: str) -> Clip:
    channels = run.record.config.get("channels", "mix")
    return Clip(
        utt_id=row["utt_id"],
        recording=recording,
        text=" ".join(row["text"].split()),
        confidence=row["confidence"],
        speaker=row["speaker"],
        uri=row["uri"],
        start_s=row["start_s"] or 0.0,
        duration_s=row["duration_s"],
        channel=channels if row["channel"] is None and isinstance(channels, int) else row["channel"],
    )


def cut_out(run: Run, rows: pa.Table, left_out: Counter[str]) -> Iterator[Clip]:
    """The clips of rows with `COLUMNS`, with their audio; one object is open at a time.

    Args:
        run: the run.
        rows: all rows of their parts that are wanted.
        left_out: where utterances are counted whose audio is no longer there or cannot be decoded, by the reason.

    Raises:
        StorageError: the audio could not be reached.
    """
    rows = rows.sort_by([(name, "ascending") for name in ("part_id", "uri", "channel", "start_s", "utt_id")])
    parts = {part.part_id: part for part in run.parts(set(rows["part_id"].unique().to_pylist()))}
    named = zip(rows.select(COLUMNS).to_pylist(), recording_ids(rows), strict=True)
    for (part_id, uri), group in itertools.groupby(named, lambda item: (item[0]["part_id"], item[0]["uri"])):
        wanted, part = list(group), parts.get(part_id)
        in_shard = part is not None and part.kind in _CONTAINERS and part.uri == uri
        found = _from_shard(part, wanted) if part and in_shard else _from_object(uri, part, wanted)
        missing = len(wanted)
        try:
            for row, recording, audio in found:
                missing -= 1
                clip = _clip(run, row, recording)
                try:
                    yield clip._replace(flac=_flac(audio, clip))
                except AudioError as error:
                    left_out[error.code.value] += 1
        except AudioError as error:
            left_out[error.code.value] += missing
        except InputChangedError:
            left_out[_CHANGED] += missing


_Wanted = Sequence[tuple[Row, str]]  # rows with the ids of their recordings
_Audio = tuple[bytes | BinaryIO, LastRecording]
_Found = Iterator[tuple[Row, str, _Audio]]


def _from_object(uri: str, part: Part | None, wanted: _Wanted) -> _Found:
    versions = {} if part is None else {item.uri: item.version for item in part.items}
    with _closing(open_object(uri, versions.get(uri))) as audio:
        yield from _with_audio(audio, wanted)


def _from_shard(part: Part, wanted: _Wanted) -> _Found:
    """Read a shard up to the last utterance that is wanted."""
    by_recording: dict[str, list[tuple[Row, str]]] = {}
    for row, recording in wanted:
        by_recording.setdefault(recording, []).append((row, recording))
    for utterance in read_part(part):
        if utterance.problem is None and (rows := by_recording.pop(utterance.utt_id, None)):
            with _closing(utterance.open()) as audio:
                yield from _with_audio(audio, rows)
        if not by_recording:
            return
    raise AudioError(ErrorCode.MISSING, f"{part.uri} has no such utterance any more")


def _with_audio(audio: bytes | BinaryIO, wanted: _Wanted) -> _Found:
    """Rows of one object, by channel and time, with what decodes each channel in one pass."""
    for _, group in itertools.groupby(wanted, lambda item: item[0]["channel"]):
        with contextlib.closing(LastRecording()) as last:
            yield from ((row, recording, (audio, last)) for row, recording in group)


def _flac(audio: _Audio, clip: Clip) -> bytes:
    """FLAC of an utterance: mono, 16 bits, `RATE`."""
    settings = AudioSettings(RATE, "mix" if clip.channel is None else clip.channel, skip_silence=False)
    source, last = audio
    pieces = read_segments(source, settings, offset_s=clip.start_s, duration_s=clip.duration_s, last=last)
    samples = np.concatenate([to_float32(piece.samples) for piece in pieces])
    buffer = io.BytesIO()
    soundfile.write(
        buffer, np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16), RATE, "PCM_16", format="FLAC"
    )
    return buffer.getvalue()


@contextlib.contextmanager
def _closing(audio: bytes | BinaryIO) -> Iterator[bytes | BinaryIO]:
    with contextlib.nullcontext() if isinstance(audio, bytes) else contextlib.closing(audio):
        yield audio
