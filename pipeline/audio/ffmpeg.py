"""Decode with FFmpeg, through PyAV, which is optional (the extra `ffmpeg`): M4A, WebM, WMA, AAC and others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from pipeline.audio.containers import Container
from pipeline.audio.samples import Samples
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

_DTYPES: Final = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}


@contextlib.contextmanager
def open_ffmpeg(source: Source, container: Container, reason: str) -> Iterator[FfmpegReader]:
    """Open a recording with FFmpeg.

    Args:
        source: the recording.
        container: its container, which has a `demuxer`.
        reason: why libsndfile does not decode it; part of error messages.

    Raises:
        AudioError: UNSUPPORTED where PyAV or a decoder is not installed; UNDECODABLE or TRUNCATED where FFmpeg cannot
            read the bytes.
    """
    if av is None:
        hint = f"{reason} PyAV may be able to read it: pip install 'sewd-pipeline[ffmpeg]'"
        raise AudioError(ErrorCode.UNSUPPORTED, hint)
    source.seek(0)
    source.ran_out = False
    try:
        # The demuxer is given, never probed: probing takes text for a playlist, and playlists open other files.
        opened = av.open(source, format=container.demuxer, metadata_errors="ignore")
    except av.FFmpegError as error:
        source.reraise()
        raise _audio_error(error, source, container, 0, reason) from error
    with opened:
        source.reraise()
        yield FfmpegReader(source, opened, container)


def _audio_error(
    error: Exception, source: Source, container: Container, num_decoded: int, reason: str = ""
) -> AudioError:
    if isinstance(error, (av.DecoderNotFoundError, av.codec.codec.UnknownCodecError)):
        code = ErrorCode.UNSUPPORTED
    elif source.ran_out and not container.is_complete and num_decoded:
        code = ErrorCode.TRUNCATED
    else:
        code = ErrorCode.UNDECODABLE
    before = f"libsndfile: {reason} " if reason else ""
    after = f" After {num_decoded} frames." if num_decoded else ""
    description = getattr(error, "strerror", None) or str(error)
    return AudioError(code, f"{before}FFmpeg ({container.demuxer}): {description}.{after}")


class FfmpegReader:
    """The first audio stream of a recording opened with FFmpeg; see `decoders.Reader` for its attributes and contract.

    Raises:
        AudioError: UNDECODABLE where there is no audio stream, UNSUPPORTED where FFmpeg has no decoder for it.
    """

    def __init__(self, source: Source, opened: Any, container: Container) -> None:
        self._source, self._container = source, container
        self.is_int16 = False
        self.num_frames: int | None = None  # containers disagree on whether a duration includes encoder padding
        self.num_decoded = 0
        if not opened.streams.audio:
            kinds = ", ".join(stream.type for stream in opened.streams) or "none"
            raise AudioError(ErrorCode.UNDECODABLE, f"no audio stream (streams: {kinds})")
        stream = opened.streams.audio[0]
        if stream.codec_context is None:
            raise AudioError(ErrorCode.UNSUPPORTED, "FFmpeg has no decoder for the audio stream")
        self._frames = opened.decode(stream)
        self._first = self._next_frame()
        if self._first is None:
            self.rate, self.channels = stream.codec_context.sample_rate, max(1, stream.codec_context.channels)
        else:  # not from the header: with spectral band replication the decoder doubles the rate
            self.rate, self.channels = self._first.sample_rate, self._first.layout.nb_channels
        has_duration = container.demuxer in ("mp4", "matroska", "asf") and opened.duration is not None
        self.estimated_frames = opened.duration * self.rate // av.time_base if has_duration else None

    def _next_frame(self) -> Any:
        """Return FFmpeg's next frame, which holds many frames of audio; None at the end."""
        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, IndexError) as error:  # IndexError: of PyAV, for a stream that begins late
            self._source.reraise()
            raise _audio_error(error, self._source, self._container, self.num_decoded) from error
        self._source.reraise()
        return frame

    def blocks(self, start: int, stop: int, dtype: str) -> Iterator[Samples]:
        """Decode the frames [start, stop) as float32, whatever `dtype` is; see `decoders.Reader.blocks`."""
        del dtype  # `is_int16` is False
        frame, self._first = self._first, None
        while frame is not None and self.num_decoded < stop:
            if frame.sample_rate != self.rate or frame.layout.nb_channels != self.channels:
                message = (
                    f"after {self.num_decoded} frames, {self.rate} Hz x {self.channels} channels becomes "
                    f"{frame.sample_rate} Hz x {frame.layout.nb_channels}"
                )
                raise AudioError(ErrorCode.UNSUPPORTED, message)
            values = _values(frame)
            block = values[max(0, start - self.num_decoded) : stop - self.num_decoded]
            self.num_decoded += len(values)
            if len(block):
                yield block
            frame = self._next_frame()


def _values(frame: Any) -> Samples:
    """Return an FFmpeg frame as float32 (frames, channels) with full scale at 1."""
    dtype, channels = np.dtype(_DTYPES[frame.format.name.removesuffix("p")]), frame.layout.nb_channels
    # Not frame.to_ndarray(): it reads every plane that PyAV counts, and from 8 channels on PyAV counts pointers beyond
    # the last one (a crash with 16-channel AAC; PyAV 18).
    if frame.format.is_planar:
        planes = [np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes[:channels]]
        values: Samples = np.stack(planes, axis=1)
    else:
        values = np.frombuffer(frame.planes[0], dtype, frame.samples * channels).reshape(-1, channels)
    if dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if dtype.kind == "i":
        return (values.astype(np.float64) / 2.0 ** (8 * dtype.itemsize - 1)).astype(np.float32)
    return values.astype(np.float32)
