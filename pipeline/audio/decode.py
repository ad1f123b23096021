"""From the bytes of one recording to segments at the model's rate, in bounded memory.

Callers use `read_segments`. It and the modules below it keep four promises:

* *Exact samples.* The result equals `soundfile.read(dtype="float32")`, the mean over channels, and one call of
  `soxr.resample` over the whole recording. soxr's stream returns the same bits as its single call, whatever the block
  size, so one streaming path serves clips of a second and recordings of a day.
* *Bounded memory.* A recording is decoded in blocks and cut as it is decoded. At most one segment, one second and one
  block are held, of one channel.
* *No silent loss.* What the container declares (`pipeline.audio.containers`) is compared with the bytes, and with what
  was decoded.
* *Storage errors are not data errors.* Decoders read through callbacks that swallow exceptions; `source.Source` stores
  an exception of the underlying file and raises it unchanged.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple

import numpy as np
import soxr

from pipeline.audio import places, voice
from pipeline.audio.containers import Container, check_container
from pipeline.audio.cutter import Cutter, Place
from pipeline.audio.decoders import Recording, open_recording
from pipeline.audio.samples import Samples
from pipeline.audio.silence import PauseFinder, Spans
from pipeline.audio.source import Source
from pipeline.audio.spans import Span
from pipeline.errors import AudioError, ErrorCode

# Full scale is 1. Writers of floats also put 16-bit or 32-bit integers, up to 2^31, which the model normalises. Larger
# values are damage (one flipped bit of an exponent), and overflow in the sums of float32 and float16 later on.
_MAX_LEVEL = np.float32(2.0**31)
_MIN_RATE = 1000  # Hz; a lower rate means that the header is damaged


CUTS: Final[dict[str, tuple[Place, int]]] = {
    "pause": (places.longest_pause, 4),
    "vad": (voice.longest_silence, 4),
    "quietest": (places.quietest_20ms, 1),
}
"""By name: what chooses the place of a cut, and by how much segments are shorter than what is not cut. `quietest` is
that of runs without the setting: they are resumed as they began."""


@dataclass(frozen=True)
class AudioSettings:
    """What the model needs, and the limits on recordings. All of it belongs in a run's fingerprint.

    Attributes:
        sample_rate: the model's rate, Hz.
        channels: "mix" takes the mean, "split" makes an utterance of each channel, k takes channel k (from 0).
        max_segment_s: longer recordings are cut into segments, seconds.
        cut: where, see `CUTS`.
        skip_silence: find long pauses, which the model does not compute.
        max_duration_s: limit on the requested part of a recording (all of it, or offset and duration), seconds.
        max_channels: limit on the number of channels.
        max_rate: limit on the recording's sample rate, Hz.

    Raises:
        ValueError: a value is out of range.
    """

    sample_rate: int = 16_000
    channels: Literal["mix", "split"] | int = "mix"
    max_segment_s: float = 60.0
    cut: str = "pause"
    skip_silence: bool = True
    max_duration_s: float = 24 * 3600.0
    max_channels: int = 64
    max_rate: int = 384_000

    def __post_init__(self) -> None:
        if self.sample_rate < _MIN_RATE:
            raise ValueError(f"sample_rate is in Hz and at least {_MIN_RATE}, got {self.sample_rate}")
        if self.channels not in ("mix", "split") and not (isinstance(self.channels, int) and self.channels >= 0):
            raise ValueError(f"channels is 'mix', 'split' or a channel's number from 0, got {self.channels!r}")
        if not 0.1 <= self.max_segment_s < math.inf:
            raise ValueError(f"max_segment_s is at least 0.1, got {self.max_segment_s}")
        if self.cut not in CUTS:
            raise ValueError(f"cut is one of {', '.join(CUTS)}, got {self.cut!r}")
        if self.cut == "vad" and self.sample_rate != voice.RATE:
            raise ValueError(f"voice activity needs a model for {voice.RATE} Hz, not {self.sample_rate}")


@dataclass(frozen=True, eq=False)
class Segment:
    """One utterance for the model; owns its samples.

    Attributes:
        start_s: where it begins in the recording, seconds.
        duration_s: its length, seconds: `len(samples) / sample_rate`.
        samples: (samples,) at the model's rate. int16 where the source is 16-bit PCM, mono, at that rate; else float32
            with full scale at 1. `samples.to_float32` converts both.
        channel: the channel's number where channels are split, else None.
        whole: True where this one segment is all of the recording (or of that channel of it).
        only: True where it is all of the requested part; follows from `whole`.
        spans: (start, stop) of each span between long pauses, in samples; see `pipeline.audio.silence`.
        warning: what is wrong with the file's headers, although all its audio is read; empty where nothing is.
    """

    start_s: float
    duration_s: float
    samples: Samples
    channel: int | None
    whole: bool
    only: bool
    spans: Spans = ()
    warning: str = ""


def read_segments(
    source: bytes | BinaryIO | Path,
    settings: AudioSettings,
    *,
    offset_s: float | None = None,
    duration_s: float | None = None,
    last: LastRecording | None = None,
) -> Generator[Segment, None, None]:
    """Decode a recording, resample it to the model's rate, and cut it into segments if it is long.

    Segments tile the requested part: concatenated they are its samples, none missing and none twice. They come in the
    order of time, channel after channel where channels are split (each channel is a separate pass over the bytes, so
    memory does not grow with the number of channels). What is longer than `max_segment_s` is cut into segments of an
    eighth to a quarter of it, where nobody speaks; the last may be as short as a second. The result depends only on the
    bytes and the settings.

    Args:
        source: the whole file, as bytes, as a path, or as a seekable binary file, which stays open and is read from its
            beginning.
        settings: rate, channels, limits.
        offset_s: start of the part, seconds; None is the beginning. Exact to the sample in every format.
        duration_s: length of the part, seconds; None is everything after `offset_s`. The part may end up to 0.1 s after
            the recording.
        last: where the recording of the previous call may still be open.

    Yields:
        At least one segment, unless an error is raised.

    Raises:
        AudioError: the bytes or the request are at fault. If the fault is found in the middle of a long recording, the
            segments before it have been yielded, and are correct.
        OSError: and whatever else reading `source` raises, unchanged.
    """
    with contextlib.ExitStack() as stack:
        if last is not None and (open_reader := last.take(source, offset_s, stack)) is not None:
            stack.enter_context(_bad_bytes(open_reader.container.view))
            (selection,) = _selections(settings.channels, open_reader.channels)
            yield from _read_channel(open_reader, settings, selection, offset_s, duration_s)
            last.keep(source, open_reader, duration_s, stack)
            return
        view = Source(stack.enter_context(source.open("rb")) if isinstance(source, Path) else source)
        if view.size == 0:
            raise AudioError(ErrorCode.EMPTY_FILE, "the file has 0 bytes")
        stack.enter_context(_bad_bytes(view))
        container = last.container(source, view) if last is not None else check_container(view)
        with contextlib.ExitStack() as first_pass:
            reader = first_pass.enter_context(open_recording(container))
            _check_limits(reader, settings)
            selections = _selections(settings.channels, reader.channels)
            yield from _read_channel(reader, settings, selections[0], offset_s, duration_s)
            if last is not None and len(selections) == 1:
                last.keep(source, reader, duration_s, first_pass)
        for selection in selections[1:]:
            with open_recording(container) as reader:
                yield from _read_channel(reader, settings, selection, offset_s, duration_s)


@dataclass(frozen=True)
class Header:
    """What the header of a recording states.

    Attributes:
        rate: sample rate, Hz.
        channels: how many.
        duration_s: its length, seconds; None where the header does not state it.
    """

    rate: int
    channels: int
    duration_s: float | None


def read_header(source: bytes | BinaryIO, settings: AudioSettings) -> Header:
    """Describe a recording without decoding it: what its containers declare is compared with its bytes.

    Args:
        source: the whole file, as `read_segments` takes it.
        settings: limits.

    Raises:
        AudioError: as `read_segments`, where the header or the size of the file show it.
        OSError: and whatever else reading `source` raises, unchanged.
    """
    view = Source(source)
    if view.size == 0:
        raise AudioError(ErrorCode.EMPTY_FILE, "the file has 0 bytes")
    with _bad_bytes(view):
        container = check_container(view)
        with open_recording(container) as reader:
            _check_limits(reader, settings)
            _selections(settings.channels, reader.channels)
            frames = reader.num_frames or container.frames_at(reader.rate) or reader.estimated_frames
            if frames is not None and frames > settings.max_duration_s * reader.rate:
                raise _too_long(frames / reader.rate, settings)
            return Header(reader.rate, reader.channels, None if frames is None else frames / reader.rate)


@contextlib.contextmanager
def _bad_bytes(view: Source) -> Iterator[None]:
    """Turn whatever a decoder raises on the bytes into an AudioError; what reading them raises passes unchanged.

    The one broad `except` of decoding: PyAV, numpy and soxr raise ValueError, KeyError, IndexError, OverflowError and
    others on damaged headers, and no list of them is complete.
    """
    try:
        yield
    except (AudioError, AssertionError):
        raise
    except MemoryError as error:
        raise AudioError(ErrorCode.TOO_LARGE, f"a decoder needs more memory than there is: {error}") from error
    except Exception as error:
        if view.raised(error):
            raise
        raise AudioError(ErrorCode.UNDECODABLE, f"the decoder raised {type(error).__name__}: {error}") from error


class LastRecording:
    """Keeps a recording open from one call of `read_segments` to the next, which has the same settings.

    A format that cannot be entered in the middle is decoded from its start. With this class, parts of one recording
    that are requested in the order of time, with the same bytes object, are decoded in one pass by libsndfile, and not
    in one pass each. The segments are the same. Parts may overlap by 0.1 s. A call that fails, or is abandoned, leaves
    nothing open.
    """

    def __init__(self) -> None:
        self._source: bytes | None = None
        self._reader: Recording | None = None
        self._open_files = contextlib.ExitStack()
        self._walked: tuple[bytes, Container] | None = None

    def close(self) -> None:
        """Close the recording if one is open, and forget what it holds."""
        self._close_reader()
        self._walked = None

    def _close_reader(self) -> None:
        self._open_files.close()
        self._source, self._reader = None, None

    def container(self, source: object, view: Source) -> Container:
        """Return `check_container(view)`, without walking the same bytes object again."""
        if self._walked is not None and self._walked[0] is source:
            return self._walked[1]
        self._walked = None
        container = check_container(view)
        if isinstance(source, bytes):
            self._walked = source, container
        return container

    def take(self, source: object, offset_s: float | None, stack: contextlib.ExitStack) -> Recording | None:
        """Return the open reader of `source` if it can still decode from `offset_s`; else close it and return None.

        `stack` then closes the reader.
        """
        reader, start_s = self._reader, offset_s or 0.0
        # 0.49: the offset is rounded to the nearest frame. The comparison also fails for NaN, which `Span` reports.
        if reader is None or self._source is not source or not reader.earliest <= start_s * reader.rate + 0.49:
            self._close_reader()
            return None
        stack.enter_context(self._open_files.pop_all())
        self._close_reader()
        return reader

    def keep(self, source: object, reader: Recording, duration_s: float | None, stack: contextlib.ExitStack) -> None:
        """Keep `reader` open, and what `stack` would close, if its format cannot be entered in the middle.

        Nothing is kept if `duration_s`, of the part that was read, is None: then nothing is left to decode.
        """
        if duration_s is None or not isinstance(source, bytes):
            return
        if reader.keeps_place:
            self._source, self._reader, self._open_files = source, reader, stack.pop_all()


class _Selection(NamedTuple):
    """Which column of a block becomes the signal (None: the mean of all), and the number that its segments carry."""

    column: int | None
    label: int | None


def _selections(wanted: Literal["mix", "split"] | int, channels: int) -> list[_Selection]:
    if wanted == "mix":
        return [_Selection(None, None)]
    if wanted == "split":
        return [_Selection(k, k) for k in range(channels)]
    if wanted >= channels:
        message = f"no channel {wanted} (counted from 0): the recording has {channels}"
        raise AudioError(ErrorCode.NO_SUCH_CHANNEL, message)
    return [_Selection(wanted, None)]


def _check_limits(reader: Recording, settings: AudioSettings) -> None:
    for value, limit, unit in (
        (reader.channels, settings.max_channels, "channels"),
        (reader.rate, settings.max_rate, "Hz"),
    ):
        if value > limit:
            raise AudioError(ErrorCode.TOO_LARGE, f"{value} {unit}, the limit is {limit}")
    if reader.rate < _MIN_RATE:
        raise AudioError(ErrorCode.UNSUPPORTED, f"a sample rate of {reader.rate} Hz, the minimum is {_MIN_RATE}")


def _read_channel(
    reader: Recording,
    settings: AudioSettings,
    selection: _Selection,
    offset_s: float | None,
    duration_s: float | None,
) -> Iterator[Segment]:
    """Yield the segments of one channel of an opened recording."""
    rate, out_rate = reader.rate, settings.sample_rate
    span = Span.of(offset_s, duration_s, rate, reader.num_frames)
    max_frames = math.floor(settings.max_duration_s * rate)
    known_length = (span.stop or reader.estimated_frames or 0) - span.start
    if known_length > max_frames:
        raise _too_long(known_length / rate, settings)

    is_int16 = reader.is_int16 and rate == out_rate
    resampler = None if rate == out_rate else soxr.ResampleStream(rate, out_rate, 1, dtype="float32")
    place, divisor = CUTS[settings.cut]
    cutter = Cutter(out_rate, settings.max_segment_s, place, divisor)
    pauses = PauseFinder(out_rate) if settings.skip_silence else None
    num_yielded = 0  # samples

    def segment(samples: Samples, *, whole: bool = False, only: bool = False) -> Segment:
        nonlocal num_yielded
        start_s = span.start / rate + num_yielded / out_rate
        num_yielded += len(samples)
        _check_level(samples, start_s, out_rate)
        warning = reader.container.warning
        spans = pauses.spans(samples, alone=only) if pauses is not None else ((0, len(samples)),)
        return Segment(start_s, len(samples) / out_rate, samples, selection.label, whole, only, spans, warning)

    position = span.start
    for block in reader.blocks(span.start, span.decode_until, "int16" if is_int16 else "float32"):
        part = block if span.stop is None else block[: max(0, span.stop - position)]
        if len(part):
            if position + len(part) - span.start > max_frames:
                raise _too_long((position + len(part) - span.start) / rate, settings)
            signal = _signal(part, selection.column, position, rate)
            for samples in cutter.push(signal if resampler is None else resampler.resample_chunk(signal)):
                yield segment(samples)
        position += len(block)
    total = reader.num_frames if reader.num_frames is not None else reader.num_decoded
    if total == 0:
        raise AudioError(ErrorCode.NO_SAMPLES, "the recording has 0 frames")
    if span.stop is None or position < span.decode_until:  # the recording ended: now its length is known
        span.check(total, rate)
    if duration_s is None or position < span.decode_until:
        reader.container.check(max(position, reader.num_decoded), rate)
    if resampler is not None:
        for samples in cutter.push(resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
            yield segment(samples)
    rest = cutter.finish()
    if num_yielded == 0 and not rest:
        raise AudioError(ErrorCode.NO_SAMPLES, f"{total} frames at {rate} Hz are less than one sample at {out_rate} Hz")
    only = num_yielded == 0 and len(rest) == 1
    whole = only and span.is_whole(max(position, total), rate)
    for samples in rest:
        yield segment(samples, whole=whole, only=only)


def _too_long(seconds: float, settings: AudioSettings) -> AudioError:
    return AudioError(ErrorCode.TOO_LARGE, f"{seconds:.1f} s, the limit is {settings.max_duration_s:.1f} s")


def _check_level(samples: Samples, start_s: float, rate: int) -> None:
    """Check a segment after mixing and resampling, which can overflow.

    Raises:
        AudioError: NON_FINITE where a value is NaN or infinite, or over `2 * _MAX_LEVEL`: resampling overshoots.
    """
    if samples.dtype == np.int16:
        return
    is_sound = np.abs(samples) <= 2 * _MAX_LEVEL
    if not is_sound.all():
        index = int(np.argmin(is_sound))
        message = f"after resampling, the sample at {start_s + index / rate:.3f} s is {samples[index]}"
        raise AudioError(ErrorCode.NON_FINITE, message)


def _signal(block: Samples, column: int | None, position: int, rate: int) -> Samples:
    """Return one column of a block (frames, channels), or the mean of all, as contiguous (frames,).

    Args:
        block: int16, or float32.
        column: which one; None is the mean of all.
        position: of the block's first frame in the recording, for error messages.
        rate: sample rate, Hz, for error messages.

    Raises:
        AudioError: NON_FINITE where a value is NaN or infinite, or over `_MAX_LEVEL`.
    """
    columns = block if column is None else block[:, column : column + 1]
    if columns.dtype != np.int16:
        is_sound = np.abs(columns) <= _MAX_LEVEL  # False for NaN
        if not is_sound.all():
            index = int(np.argmin(is_sound.all(axis=1)))
            frame = position + index
            message = f"frame {frame} ({frame / rate:.3f} s) contains {columns[index].tolist()}"
            raise AudioError(ErrorCode.NON_FINITE, message)
    signal = columns[:, 0] if columns.shape[1] == 1 else columns.mean(axis=1)
    return np.ascontiguousarray(signal)
