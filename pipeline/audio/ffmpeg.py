"""Decode with FFmpeg, through PyAV: M4A, WebM, WMA, AAC and others, and what libsndfile cannot or would misread."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, Final

import av
import numpy as np

from pipeline.audio.containers import Container
from pipeline.audio.flac import stream_info
from pipeline.audio.samples import Samples
from pipeline.errors import AudioError, ErrorCode

_DTYPES: Final = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}


@contextlib.contextmanager
def open_ffmpeg(container: Container, reason: str) -> Iterator[FfmpegReader]:
    """Open a recording with FFmpeg.

    Args:
        container: the recording, which has a `demuxer`.
        reason: why libsndfile does not decode it; part of error messages.

    Raises:
        AudioError: UNSUPPORTED where FFmpeg has no decoder; UNDECODABLE or TRUNCATED where it cannot read the bytes.
    """
    source = container.view
    source.seek(0)
    source.ran_out = False
    try:
        # The demuxer is given, never probed: probing takes text for a playlist, and playlists open other files.
        opened = av.open(source, format=container.demuxer, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:  # ValueError: of PyAV, for a demuxer that this FFmpeg lacks
        source.reraise()
        raise _audio_error(error, container, 0, reason) from error
    with opened:
        source.reraise()
        yield FfmpegReader(opened, container)


def _audio_error(error: Exception, container: Container, num_decoded: int, reason: str = "") -> AudioError:
    # "Patch welcome": a mode that FFmpeg does not implement, such as the comfort noise of AMR.
    missing = (av.DecoderNotFoundError, av.codec.codec.UnknownCodecError, av.PatchWelcomeError)
    if isinstance(error, missing):
        code = ErrorCode.UNSUPPORTED
    elif container.view.ran_out and not container.is_complete and num_decoded:
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

    def __init__(self, opened: Any, container: Container) -> None:
        self._source, self._container = container.view, container
        self.is_int16 = False
        self.num_frames: int | None = None  # containers disagree on whether a duration includes encoder padding
        self.num_decoded = 0
        if not opened.streams.audio:
            kinds = ", ".join(stream.type for stream in opened.streams) or "none"
            raise AudioError(ErrorCode.UNDECODABLE, f"no audio stream (streams: {kinds})")
        stream = opened.streams.audio[0]
        if stream.codec_context is None:
            raise AudioError(ErrorCode.UNSUPPORTED, "FFmpeg has no decoder for the audio stream")
        self._digest = _FlacDigest.of(container)
        stream.codec_context.thread_count = 1
        if container.demuxer in ("flac", "ogg", "wv", "tta"):  # else FFmpeg decodes damaged frames to noise
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        self._frames = _decoded(opened, stream, skips_junk=container.demuxer == "mp3")
        self._first = self._next_frame()
        if self._first is None:
            self.rate, self.channels = stream.codec_context.sample_rate, max(1, stream.codec_context.channels)
        else:  # not from the header: with spectral band replication the decoder doubles the rate
            self.rate, self.channels = self._first.sample_rate, self._first.layout.nb_channels
        self._widens = container.contents.channels > self.channels  # mono frames among stereo frames
        self.channels = max(self.channels, container.contents.channels)
        has_duration = container.demuxer in ("mp4", "matroska", "asf") and opened.duration is not None
        held = container.frames_at(self.rate)
        self.estimated_frames = opened.duration * self.rate // av.time_base if has_duration else held

    def _next_frame(self) -> Any:
        """Return FFmpeg's next frame, which holds many frames of audio; None at the end."""
        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, IndexError) as error:  # IndexError: of PyAV, for a stream that begins late
            self._source.reraise()
            raise _audio_error(error, self._container, self.num_decoded) from error
        self._source.reraise()
        return frame

    def blocks(self, start: int, stop: int, dtype: str) -> Iterator[Samples]:
        """Decode the frames [start, stop) as float32, whatever `dtype` is; see `decoders.Reader.blocks`."""
        del dtype  # `is_int16` is False
        frame, self._first = self._first, None
        while frame is not None and self.num_decoded < stop:
            if self._digest is not None:
                self._digest.update(frame)
            has_channels = self._container.demuxer == "mp3" or frame.layout.nb_channels == self.channels
            if frame.sample_rate != self.rate or not has_channels:
                message = (
                    f"after {self.num_decoded} frames, {self.rate} Hz x {self.channels} channels becomes "
                    f"{frame.sample_rate} Hz x {frame.layout.nb_channels}"
                )
                raise AudioError(ErrorCode.UNSUPPORTED, message)
            values = _values(frame)
            if values.shape[1] < self.channels:  # a mono frame of an MP3 with stereo frames
                values = np.repeat(values, self.channels, axis=1)
            block = values[max(0, start - self.num_decoded) : stop - self.num_decoded]
            self.num_decoded += len(values)
            if len(block):
                yield block
            frame = self._next_frame()
        if frame is None and self._digest is not None:
            self._digest.check()


def _decoded(opened: Any, stream: Any, skips_junk: bool) -> Iterator[Any]:
    """The decoded frames of a stream. Junk between MPEG frames is skipped; the walk has counted the frames."""
    if not skips_junk:
        yield from opened.decode(stream)
        return
    for packet in opened.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        yield from frames


class _FlacDigest:
    """The MD5 of decoded FLAC, which its header states: FFmpeg decodes some damaged frames without an error."""

    def __init__(self, expected: bytes, bits: int) -> None:
        self._expected, self._bits, self._md5 = expected, bits, hashlib.md5(usedforsecurity=False)

    @classmethod
    def of(cls, container: Container) -> _FlacDigest | None:
        """The digest of a FLAC file that states one."""
        info = stream_info(container.view) if container.demuxer == "flac" else None
        return cls(info.md5, info.bits) if info is not None and info.md5.strip(b"\0") else None

    def update(self, frame: Any) -> None:
        """Add an FFmpeg frame: its samples interleaved, little endian, in as many bytes as their bits need."""
        values = _native(frame)
        size = (self._bits + 7) // 8
        values = (values >> (8 * values.dtype.itemsize - self._bits)).astype("<i4")
        self._md5.update(values.reshape(-1, 1).view(np.uint8)[:, :size].tobytes())

    def check(self) -> None:
        """Raise UNDECODABLE if the digest is not the expected one."""
        if self._md5.digest() != self._expected:
            message = "FFmpeg (flac): the MD5 of the decoded samples is not the one in the header"
            raise AudioError(ErrorCode.UNDECODABLE, message)


def _native(frame: Any) -> Samples:
    """Return an FFmpeg frame as (frames, channels), in its own type."""
    dtype, channels = np.dtype(_DTYPES[frame.format.name.removesuffix("p")]), frame.layout.nb_channels
    # Not frame.to_ndarray(): it reads every plane that PyAV counts, and from 8 channels on PyAV counts pointers beyond
    # the last one (a crash with 16-channel AAC; PyAV 18).
    if frame.format.is_planar:
        planes = [np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes[:channels]]
        values: Samples = np.stack(planes, axis=1)
    else:
        values = np.frombuffer(frame.planes[0], dtype, frame.samples * channels).reshape(-1, channels)
    return values


def _values(frame: Any) -> Samples:
    """Return an FFmpeg frame as float32 (frames, channels) with full scale at 1."""
    values = _native(frame)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return (values.astype(np.float64) / 2.0 ** (8 * values.dtype.itemsize - 1)).astype(np.float32)
    return values.astype(np.float32)
