"""Synthetic signals and audio files for tests. Signals are float32 arrays (frames, channels), full scale at 1."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile


@functools.cache
def aac(seconds: float, container: str = "ipod", rate: int = 16_000, channels: int = 1) -> bytes:
    """Return speech-like audio as AAC; cached, because encoding is slow."""
    return encode_av(speech_like(seconds, rate, channels), rate, container, "aac")


def speech_like(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return bursts of tones between stretches of near silence, below full scale: float32 (frames, channels).

    Channels differ, no two bursts are alike, and the noise floor has no two equal frames.

    Args:
        seconds: duration.
        rate: sample rate, Hz.
        channels: number of channels.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    frames = round(seconds * rate)
    t = np.arange(frames) / rate
    x = 0.002 * rng.standard_normal((frames, channels))
    begin = round(0.05 * rate)
    while begin < frames:
        length = round(rng.uniform(0.15, 0.6) * rate)
        burst = slice(begin, begin + length)
        envelope = np.sin(np.pi * np.arange(length) / length)[: frames - begin, None]
        for pitch in rng.uniform(100, min(3000, rate / 2.5), 3):
            tone = np.sin(2 * np.pi * pitch * t[burst])[:, None]
            x[burst] += 0.15 * envelope * tone * rng.uniform(0.4, 1, channels)
        begin += length + round(rng.uniform(0.08, 0.4) * rate)
    return np.clip(x, -0.9, 0.9).astype(np.float32)


def encode(x: np.ndarray, rate: int, container: str = "WAV", coding: str = "PCM_16", **options: Any) -> bytes:
    """Return `x`, (frames,) or (frames, channels), as a file encoded by libsndfile."""
    file = io.BytesIO()
    channels = 1 if x.ndim == 1 else x.shape[1]
    with soundfile.SoundFile(
        file, "w", samplerate=rate, channels=channels, format=container, subtype=coding, **options
    ) as sound:
        sound.write(x)
    return file.getvalue()


class _Pipe:
    """A file that can only be written onwards."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def getvalue(self) -> bytes:
        return bytes(self.data)


def encode_av(x: np.ndarray, rate: int, container: str, codec: str, pipe: bool = False, **options: str) -> bytes:
    """Return `x`, (frames, 1 or 2 channels), as a file encoded by FFmpeg.

    With `pipe` the writer cannot go back to its header: sizes in it stay unknown. `options` are those of the container.
    """
    import av

    file = _Pipe() if pipe else io.BytesIO()
    layout = {1: "mono", 2: "stereo"}[x.shape[1]]
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.layout = layout
        if codec.startswith("wma"):
            stream.bit_rate = 48_000 * x.shape[1]  # without one these encoders refuse
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x.T), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, layout, rate, context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def png() -> bytes:
    """Return a PNG image of one black pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


class BrokenFile(io.BytesIO):
    """A file that raises after `good_bytes` bytes were read: a network that fails."""

    def __init__(self, data: bytes, good_bytes: int, failure: Callable[[], BaseException]) -> None:
        super().__init__(data)
        self._good_bytes, self._failure = good_bytes, failure

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._good_bytes -= len(data)
        if self._good_bytes < 0:
            raise self._failure()
        return data
