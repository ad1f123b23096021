"""Decode with libsndfile, through python-soundfile: WAV and its relatives, FLAC, Ogg (Vorbis, Opus), MP3 and others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import soundfile

from pipeline.audio.containers import Container
from pipeline.audio.samples import Samples
from pipeline.audio.spans import END_TOLERANCE_S
from pipeline.errors import AudioError, ErrorCode

BLOCK_VALUES = 1 << 20  # decode at most this many values at a time (4 MiB of float32), and
_BLOCK_S = 10.0  # at most this many seconds, so that resampling from 1 kHz up does not inflate a block

# libsndfile formats and codings whose seek is exact to the sample (all were tried). Elsewhere it is not exact (MP3,
# Opus, Vorbis at the end, PAF, SDS) or does not exist (GSM, G.72x): those are decoded from the start, and frames before
# the requested part are dropped.
_EXACT_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST"})
_EXACT_CODINGS = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})
_UNKNOWN_FRAMES = 1 << 62  # libsndfile returns SF_COUNT_MAX for a FLAC whose STREAMINFO leaves the total open

# libsndfile error numbers (src/sndfile.h, src/common.h). For an unknown format it tries last to read a Sound Designer
# resource fork, whose messages (7, 149-153) depend on the working directory and not on the bytes. (If that directory
# holds a file `._` or a folder `.AppleDouble`, libsndfile 1.2 mistakes it for the fork, and recognises no MP3.)
_UNRECOGNISED = frozenset({1, 7, *range(149, 154)})
_UNIMPLEMENTED = frozenset({4, 18})


class SndfileRefusedError(Exception):
    """libsndfile did not open a file.

    Attributes:
        reason: libsndfile's message; the same for the same bytes.
        is_foreign: whether libsndfile does not know or does not implement the format. Else the file is malformed.
        is_unimplemented: whether libsndfile knows the format, but does not implement it.
    """

    def __init__(self, error: soundfile.SoundFileError) -> None:
        code = getattr(error, "code", 0)
        self.reason = "Format not recognised." if code in _UNRECOGNISED else _message(error)
        self.is_unimplemented = code in _UNIMPLEMENTED
        self.is_foreign = code in _UNRECOGNISED | _UNIMPLEMENTED
        super().__init__(self.reason)


def _message(error: soundfile.SoundFileError) -> str:
    """Return libsndfile's message without python-soundfile's prefix, which contains an object's address."""
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string) or f"error {error.code}."
    return str(error)


@contextlib.contextmanager
def open_sndfile(container: Container) -> Iterator[SndfileReader]:
    """Open a recording with libsndfile.

    Raises:
        SndfileRefusedError: libsndfile cannot read it.
    """
    source = container.view
    source.seek(0)
    try:
        file = _SequentialFile(source, "r")
    except soundfile.SoundFileError as error:
        source.reraise()
        raise SndfileRefusedError(error) from error
    with contextlib.closing(file):
        source.reraise()
        yield SndfileReader(file, container)


class _SequentialFile(soundfile.SoundFile):  # type: ignore[misc, unused-ignore]
    """A SoundFile whose reads continue where the last one ended, without a seek.

    python-soundfile seeks after every read to the current position. That has effects: blocks of an Opus or MP3 file
    then differ from the same file read in one call, and a cut FLAC fails with "Internal psf_fseek() failed."
    """

    def seekable(self) -> bool:
        return False

    def can_seek(self) -> bool:
        return bool(super().seekable())


class SndfileReader:
    """A recording opened with libsndfile; see `decoders.Reader` for its attributes and its contract.

    Attributes:
        exact_seek: whether `blocks` can start at any frame without decoding those before it.
    """

    def __init__(self, file: _SequentialFile, container: Container) -> None:
        self._source, self._file, self._container = container.view, file, container
        self.rate: int = file.samplerate
        self.channels: int = file.channels
        header_frames: int | None = file.frames if file.frames < _UNKNOWN_FRAMES else None
        # MPEG audio without a Xing header has no length: libsndfile estimates it from the first frame's bit rate.
        is_estimate = file.subtype.startswith("MPEG") and not container.contents.has_frame_count
        self.num_frames = None if is_estimate else header_frames
        self.estimated_frames = self.num_frames
        self.num_decoded = 0
        is_exact_format = file.format in _EXACT_FORMATS
        self.exact_seek = is_exact_format and file.subtype in _EXACT_CODINGS
        self._tail: Samples | None = None  # the last decoded frames, where there is no seeking back to them
        self.is_int16 = is_exact_format and file.subtype == "PCM_16" and self.channels == 1
        self._source.ran_out = False

    @property
    def earliest(self) -> int:
        """The first frame at which `blocks` can start without opening the file again."""
        return self.num_decoded - (0 if self._tail is None else len(self._tail))

    def blocks(self, start: int, stop: int, dtype: str) -> Iterator[Samples]:
        """Decode the frames [start, stop); see `decoders.Reader.blocks`."""
        position = start if self.exact_seek else self.num_decoded
        if self.num_decoded == 0 and self._file.can_seek():
            # Also to 0: after this seek mpg123 rounds some samples differently, and soundfile.read does seek.
            self._call(self._file.seek, position)
        if start < position and self._tail is not None:
            yield self._tail[start - position :][: stop - start].copy()  # a segment owns its samples
        largest = max(1, min(BLOCK_VALUES // self.channels, round(_BLOCK_S * self.rate)))
        while position < stop:
            count = min(largest, (stop if position >= start else start) - position)
            block: Samples = self._call(self._file.read, count, dtype=dtype, always_2d=True)
            if not len(block):
                self.num_decoded = position
                self._check_end(min(stop, self.num_frames) if self.num_frames is not None else 0)
                return
            first, position = position, position + len(block)
            self.num_decoded = position
            if not self.exact_seek:
                # A part of unknown length is decoded beyond its end by the tolerance, and parts may overlap by as much;
                # one more frame for each of two parts whose seconds are rounded differently.
                before = block if self._tail is None else np.concatenate([self._tail, block])
                self._tail = before[-(2 * round(END_TOLERANCE_S * self.rate) + 2) :].copy()
            if first >= start:
                yield block

    def _check_end(self, declared: int) -> None:
        """Raise an AudioError if the recording ended before `declared` frames."""
        missing = declared - self.num_decoded
        # Some encoders count the Xing frame itself: then nothing is missing, and there is one frame less than declared.
        slack = self._container.slack_at(self.rate) if self._container.demuxer == "mp3" else 0
        if missing > slack:
            message = f"{declared} frames are declared, but only {self.num_decoded} could be decoded"
            raise AudioError(ErrorCode.TRUNCATED, message)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call libsndfile; raise what the source raised, else libsndfile's error as an AudioError."""
        try:
            result = function(*args, **kwargs)
        except soundfile.SoundFileError as error:
            self._source.reraise()
            code = ErrorCode.TRUNCATED if self._source.ran_out else ErrorCode.UNDECODABLE
            total = "an unknown number" if self.num_frames is None else self.num_frames
            message = f"libsndfile: {_message(error)} After {self.num_decoded} frames of {total}."
            raise AudioError(code, message) from error
        self._source.reraise()
        return result
