"""Decoding in tests: the formats to try, and what `read_segments` must return for a file."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from pipeline.audio.decode import AudioSettings, Segment, read_segments
from pipeline.audio.samples import to_float32
from pipeline.errors import AudioError, ErrorCode

SETTINGS = AudioSettings()

RATES = (8000, 11025, 16000, 22050, 44100, 48000)
FORMATS = [  # container, coding, sample rates and numbers of channels that the format can have
    *[("WAV", coding, RATES, (1, 2)) for coding in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
    *[("WAV", coding, RATES, (1, 2)) for coding in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")],
    ("WAV", "GSM610", RATES, (1,)),
    ("WAV", "G721_32", RATES, (1,)),
    ("WAVEX", "PCM_16", RATES, (1, 2)),
    ("RF64", "PCM_16", RATES, (1, 2)),
    ("W64", "PCM_24", RATES, (1, 2)),
    ("AIFF", "PCM_16", RATES, (1, 2)),
    ("AIFF", "FLOAT", RATES, (1, 2)),
    ("AU", "PCM_16", RATES, (1, 2)),
    ("CAF", "PCM_16", RATES, (1, 2)),
    ("CAF", "ALAC_16", RATES, (1, 2)),
    ("NIST", "PCM_16", RATES, (1, 2)),
    ("FLAC", "PCM_16", RATES, (1, 2)),
    ("FLAC", "PCM_24", RATES, (1, 2)),
    ("OGG", "VORBIS", RATES, (1, 2)),
    ("OGG", "OPUS", (8000, 16000, 48000), (1, 2)),
    ("MP3", "MPEG_LAYER_III", RATES, (1, 2)),
]


def expected_samples(data: bytes, rate: int = 16_000) -> np.ndarray:
    """Return what decoding must yield, (samples,) float32: one read, the mean over channels, one resampling."""
    x, source_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    x = x.mean(axis=1)
    return x if source_rate == rate else soxr.resample(x, source_rate, rate)


def read_single_segment(data: bytes | BinaryIO, settings: AudioSettings = SETTINGS, **request: float) -> Segment:
    """Return the segment of a recording that has exactly one."""
    (segment,) = read_segments(data, settings, **request)
    return segment


def concatenated(segments: list[Segment]) -> np.ndarray:
    """Return the samples of segments end to end, (samples,) float32."""
    return np.concatenate([to_float32(segment.samples) for segment in segments])


def error_code_of(data: bytes | BinaryIO, settings: AudioSettings = SETTINGS, **request: float) -> ErrorCode | None:
    """Return the code of the error that reading raises; None where it raises none."""
    try:
        for _ in read_segments(data, settings, **request):
            pass
    except AudioError as error:
        assert error.message  # noqa: PT017 - no error goes unexplained
        return error.code
    return None


def truncated(data: bytes, share: float) -> bytes:
    """Return the first `share` of the bytes."""
    return data[: int(len(data) * share)]
