"""Open a recording with the decoder that its content needs: libsndfile where it knows the format, else FFmpeg."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from pipeline.audio.containers import ONLY_SNDFILE, Container
from pipeline.audio.ffmpeg import FfmpegReader, open_ffmpeg
from pipeline.audio.samples import Samples
from pipeline.audio.sndfile import SndfileReader, SndfileRefusedError, open_sndfile
from pipeline.errors import AudioError, ErrorCode


class Reader(Protocol):
    """An opened recording.

    Attributes:
        rate: sample rate, Hz.
        channels: how many.
        num_frames: its length, where the header is reliable; else None.
        estimated_frames: its length by the header, good enough for a limit; None where the header does not tell.
        num_decoded: the position after the last decoded frame.
        is_int16: whether int16 holds the samples without loss: 16-bit PCM, one channel.
    """

    rate: int
    channels: int
    num_frames: int | None
    estimated_frames: int | None
    num_decoded: int
    is_int16: bool

    def blocks(self, start: int, stop: int, dtype: str) -> Iterator[Samples]:
        """Decode the frames [start, stop), or up to the end of the recording if that comes first.

        Args:
            start: first frame.
            stop: the frame after the last.
            dtype: "int16" where `is_int16`, or "float32" with full scale at 1.

        Yields:
            Consecutive blocks, (frames, channels).

        Raises:
            AudioError: the bytes cannot be decoded, or end before `stop` and before the declared end.
        """


class Recording:
    """An opened recording; a `Reader`, which continues with FFmpeg where libsndfile fails.

    libsndfile loses its place in some valid files. FFmpeg then decodes from the start, and the frames that libsndfile
    has decoded are dropped.

    Attributes:
        container: what was opened.
        keeps_place: whether it can only be decoded onwards, so that it is worth keeping open for the next part.
    """

    def __init__(self, container: Container, stack: contextlib.ExitStack) -> None:
        self.container, self._stack = container, stack
        self._reader = _open(container, stack)
        reader = self._reader
        self.rate, self.channels, self.is_int16 = reader.rate, reader.channels, reader.is_int16
        self.num_frames, self.estimated_frames = reader.num_frames, reader.estimated_frames

    @property
    def num_decoded(self) -> int:
        """The position after the last decoded frame."""
        return self._reader.num_decoded

    @property
    def keeps_place(self) -> bool:
        """Whether libsndfile decodes it, and cannot enter it in the middle."""
        return isinstance(self._reader, SndfileReader) and not self._reader.exact_seek

    @property
    def earliest(self) -> int:
        """The first frame at which `blocks` can start without opening the file again; needs `keeps_place`."""
        return self._reader.earliest if isinstance(self._reader, SndfileReader) else self._reader.num_decoded

    def blocks(self, start: int, stop: int, dtype: str) -> Iterator[Samples]:
        """Decode the frames [start, stop); see `Reader.blocks`."""
        position = start
        try:
            for block in self._reader.blocks(start, stop, dtype):
                position += len(block)
                yield block
        except AudioError as failure:
            if isinstance(self._reader, FfmpegReader) or not _is_for_ffmpeg(self.container):
                raise
            self._reader = self._second_reader(failure)
            try:
                for block in self._reader.blocks(position, stop, dtype):
                    yield _as_int16(block) if dtype == "int16" else block
            except AudioError as second:
                if second.code is ErrorCode.UNSUPPORTED:
                    raise
                raise failure from second

    def _second_reader(self, failure: AudioError) -> FfmpegReader:
        """Open with FFmpeg what libsndfile failed to decode; raise that failure if FFmpeg fails as well."""
        try:
            second = self._stack.enter_context(open_ffmpeg(self.container, failure.message))
        except AudioError:
            raise failure from None
        if (second.rate, second.channels) != (self.rate, self.channels):
            raise failure
        return second


def _as_int16(block: Samples) -> Samples:
    return np.clip(np.rint(block * np.float32(32768)), -32768, 32767).astype(np.int16)


@contextlib.contextmanager
def open_recording(container: Container) -> Iterator[Recording]:
    """Open a recording with the decoder for its content.

    Raises:
        AudioError: UNSUPPORTED or UNDECODABLE where no decoder reads it.
    """
    with contextlib.ExitStack() as stack:
        yield Recording(container, stack)


def _is_for_ffmpeg(container: Container) -> bool:
    return container.demuxer is not None and container.demuxer not in ONLY_SNDFILE


def _open(container: Container, stack: contextlib.ExitStack) -> SndfileReader | FfmpegReader:
    if container.contents.avoids_sndfile:
        return stack.enter_context(open_ffmpeg(container, container.contents.avoids_sndfile + "."))
    try:
        reader = stack.enter_context(open_sndfile(container))
    except SndfileRefusedError as refusal:
        return _open_refused(container, refusal, stack)
    held = container.frames_at(reader.rate)
    if held is None or reader.num_frames is None or abs(reader.num_frames - held) <= container.slack_at(reader.rate):
        return reader
    # libsndfile misreads the header, or the walk does; what FFmpeg decodes is compared with the walk.
    try:
        reason = f"takes {held} frames for {reader.num_frames}."
        return stack.enter_context(open_ffmpeg(container, reason)) if _is_for_ffmpeg(container) else reader
    except AudioError:
        return reader


def _open_refused(container: Container, refusal: SndfileRefusedError, stack: contextlib.ExitStack) -> FfmpegReader:
    """Open with FFmpeg what libsndfile refused, if FFmpeg may know the format."""
    head = container.view.read_at(0, 16)
    failure = AudioError(ErrorCode.UNDECODABLE, f"libsndfile: {refusal.reason} The file begins with {head!r}.")
    if refusal.is_unimplemented:
        failure = AudioError(ErrorCode.UNSUPPORTED, f"libsndfile: {refusal.reason}")
    if not _is_for_ffmpeg(container):
        raise failure
    return stack.enter_context(open_ffmpeg(container, refusal.reason))
