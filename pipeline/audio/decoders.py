"""Open a recording with the decoder that its content needs: libsndfile where it knows the format, else FFmpeg."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from pipeline.audio.containers import Container
from pipeline.audio.ffmpeg import open_ffmpeg
from pipeline.audio.samples import Samples
from pipeline.audio.sndfile import SndfileRefusedError, open_sndfile
from pipeline.audio.source import Source
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


@contextlib.contextmanager
def open_recording(source: Source, container: Container) -> Iterator[Reader]:
    """Open a recording with the decoder for its content.

    Raises:
        AudioError: UNSUPPORTED or UNDECODABLE where no decoder reads it.
    """
    with contextlib.ExitStack() as stack:
        yield _open(source, container, stack)


def _open(source: Source, container: Container, stack: contextlib.ExitStack) -> Reader:
    if container.demuxer == "mp3" and container.exceeds_sndfile:
        reason = "the MP3 has a variable rate and no Xing header"
        return stack.enter_context(open_ffmpeg(source, container, reason))
    try:
        return stack.enter_context(open_sndfile(source, container))
    except SndfileRefusedError as refusal:
        return _open_refused(source, container, refusal, stack)


def _open_refused(
    source: Source, container: Container, refusal: SndfileRefusedError, stack: contextlib.ExitStack
) -> Reader:
    """Open with FFmpeg what libsndfile refused, if FFmpeg may know the format."""
    # libsndfile reports a WAV whose coding it does not know as malformed. It would have recognised an MP3.
    is_for_ffmpeg = refusal.is_foreign or container.demuxer == "wav"
    if is_for_ffmpeg and container.demuxer not in (None, "mp3"):
        return stack.enter_context(open_ffmpeg(source, container, refusal.reason))
    if refusal.is_unimplemented:
        raise AudioError(ErrorCode.UNSUPPORTED, f"libsndfile: {refusal.reason}")
    head = source.read_at(0, 16)
    raise AudioError(ErrorCode.UNDECODABLE, f"libsndfile: {refusal.reason} The file begins with {head!r}.")
