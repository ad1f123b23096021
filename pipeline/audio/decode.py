"""From the bytes of one recording to segments at the model's rate, in bounded memory.

`read_segments` is the whole surface; the rest of the file is how it keeps four promises:

* *The very samples.* What comes out equals `soundfile.read(dtype="float32")`, the mean over channels, and one
  call of `soxr.resample` over the whole recording. soxr's stream gives the same bits as its one call whatever
  the block size, so one streaming path serves clips of a second and recordings of a day.
* *Bounded memory.* A recording is read in blocks and cut as it goes; no more than one segment, one second and
  a block are held, of one channel.
* *Nothing is lost in silence.* What the container promises (`pipeline.audio.containers`) is held against the bytes, and
  against what was decoded.
* *Bad weather is not bad data.* Decoders read through callbacks that swallow exceptions; `Source` remembers
  an exception of the file underneath and raises it as it was.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, Protocol

import numpy as np
import soundfile
import soxr

from pipeline.audio.containers import Container, Source, check_container, walk_mpeg
from pipeline.errors import AudioError, ErrorCode

try:
    import av
except ImportError:  # the `ffmpeg` extra: m4a, webm, wma and the like
    av = None  # type: ignore[assignment]

Samples = np.ndarray[Any, np.dtype[Any]]

_BLOCK_VALUES = 1 << 20  # read at most this many values at a time (4 MiB of float32), and
_BLOCK_S = 10.0  # at most this many seconds, so that resampling 1 kHz up does not blow a block up
_SLACK_S = 0.1  # manifests round: a request may miss the recording's end by this much
_PAUSE_S = 0.020  # segments are cut in the quietest frame of this length
_LEAST_REST_S = 1.0  # no cut leaves less than this behind
_MIN_RATE = 1000  # Hz; below it, a header is taken for damaged

# libsndfile formats and codings whose seek is exact to the sample (tried for all). Elsewhere it is not (MP3,
# Opus, Vorbis at the end, PAF, SDS) or not there (GSM, G.72x): those are decoded from the start and skipped.
_EXACT_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST"})
_EXACT_CODINGS = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})
_UNKNOWN_FRAMES = 1 << 62  # libsndfile says SF_COUNT_MAX for a FLAC whose STREAMINFO leaves the total open

# libsndfile error numbers (src/sndfile.h, src/common.h). An unknown format ends in an attempt to read a Sound
# Designer resource fork, whose words (7, 149-153) depend on the working directory and not on the bytes. (Where that
# holds a file `._` or a folder `.AppleDouble`, libsndfile 1.2 takes it for the fork, and recognises no MP3.)
_UNRECOGNISED = frozenset({1, 7, *range(149, 154)})
_UNIMPLEMENTED = frozenset({4, 18})
_NOT_RECOGNISED = "Format not recognised."


@dataclass(frozen=True)
class AudioSettings:
    """What the model wants, and what is refused. All of it belongs in a run's fingerprint.

    Attributes:
        sample_rate: the model's rate, Hz.
        channels: "mix" takes the mean, "split" makes an utterance of each channel, k takes channel k.
        max_segment_s: nothing longer comes out.
        max_duration_s: cap on the part of a recording that is asked for (all of it, or offset and duration).
        max_channels: cap.
        max_rate: cap, Hz.
    """

    sample_rate: int = 16_000
    channels: Literal["mix", "split"] | int = "mix"
    max_segment_s: float = 60.0
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


@dataclass(frozen=True, eq=False)
class Segment:
    """One utterance for the model; owns its samples.

    Attributes:
        start_s: where it begins in the recording, seconds.
        duration_s: its length, seconds: `len(samples) / sample_rate`.
        samples: 1-D at the model's rate. int16 where the source is 16-bit PCM, mono, at that rate; else
            float32 with full scale at 1. `to_float32` makes one of both.
        channel: the channel's number where channels are split, else None.
        whole: True where this one segment is all of the recording (or of that channel of it).
        only: True where it is all of the part that was asked for; follows from `whole`.
    """

    start_s: float
    duration_s: float
    samples: Samples
    channel: int | None
    whole: bool
    only: bool


def to_float32(samples: Samples) -> Samples:
    """Samples as float32 with full scale at 1.

    int16 becomes, bit for bit, what libsndfile would have read as float32; float32 passes through as it is,
    uncopied. Any other dtype is a `TypeError`.
    """
    if samples.dtype == np.float32:
        return samples
    if samples.dtype != np.int16:
        raise TypeError(f"samples are int16 or float32, got {samples.dtype}")
    floats: Samples = samples.astype(np.float32)
    floats *= np.float32(1 / 32768)
    return floats


def read_segments(
    source: bytes | BinaryIO | Path,
    settings: AudioSettings,
    *,
    offset_s: float | None = None,
    duration_s: float | None = None,
    last: LastRecording | None = None,
) -> Generator[Segment, None, None]:
    """Decode a recording, bring it to the model's rate, and cut it into segments of at most `max_segment_s`.

    Segments tile the part that is asked for: laid end to end they are its samples, none lost and none twice.
    They come in the order of time, channel after channel where channels are split (each channel is a pass of
    its own over the bytes, so memory does not grow with the number of channels). A cut falls in the middle of
    the quietest 20 ms of the second half of the longest segment allowed, and leaves at least a second behind.
    The result depends on the bytes and the settings alone.

    Args:
        source: the whole file, as bytes, as a path, or as a seekable binary file, which stays open and is
            read from its beginning.
        settings: rate, channels, caps.
        offset_s: where the part begins; None is the beginning. Exact to the sample in every format.
        duration_s: its length; None is all that is left. May miss the recording's end by 0.1 s.
        last: where the recording of the call before may still be open.

    Yields:
        At least one segment, unless an error is raised.

    Raises:
        AudioError: the bytes, or the request, are at fault. Where the fault shows only in the middle of a
            long recording, the segments before it have been yielded, and are sound.
        OSError: and whatever else reading `source` raises, as it is.
    """
    with contextlib.ExitStack() as stack:
        if last is not None and (going_on := last.take(source, offset_s, stack)) is not None:
            (column,) = _columns(settings.channels, going_on.channels)
            yield from _channel(going_on, settings, column, offset_s, duration_s)
            last.keep(source, going_on, duration_s, stack)
            return
        view = Source(stack.enter_context(source.open("rb")) if isinstance(source, Path) else source)
        if view.size == 0:
            raise AudioError(ErrorCode.EMPTY_FILE, "0 bytes")
        container = check_container(view)
        with contextlib.ExitStack() as first:
            reader = first.enter_context(_open(view, container))
            _check_caps(reader, settings)
            columns = _columns(settings.channels, reader.channels)
            yield from _channel(reader, settings, columns[0], offset_s, duration_s)
            if last is not None and len(columns) == 1:
                last.keep(source, reader, duration_s, first)
        for column in columns[1:]:
            with _open(view, container) as reader:
                yield from _channel(reader, settings, column, offset_s, duration_s)


class LastRecording:
    """Keeps a recording open from one call of `read_segments` to the next, which has the same settings.

    What cannot be entered in the middle is decoded from its start. With this, parts of one recording that are asked for
    in the order of time, with the same bytes object, are decoded in one pass by libsndfile, and not in one each; they
    come out the same. Parts may overlap by 0.1 s. A call that fails, or is given up, leaves nothing open.
    """

    def __init__(self) -> None:
        self._source: bytes | None = None
        self._reader: _SoundFileReader | None = None
        self._opened = contextlib.ExitStack()

    def close(self) -> None:
        """Close what is open, if anything is."""
        self._opened.close()
        self._source, self._reader = None, None

    def take(self, source: object, offset_s: float | None, stack: contextlib.ExitStack) -> _SoundFileReader | None:
        """The reader of `source`, to be closed by `stack`, if it can still give what is at `offset_s`; else None."""
        reader, start_s = self._reader, offset_s or 0.0
        # The first frame is the nearest; of an offset that is no number it is left to others to say so.
        if reader is None or self._source is not source or not reader.earliest <= start_s * reader.rate + 0.49:
            self.close()
            return None
        stack.enter_context(self._opened.pop_all())
        self.close()
        return reader

    def keep(self, source: object, reader: _Reader, duration_s: float | None, stack: contextlib.ExitStack) -> None:
        """Keep a reader, and what `stack` would close, if its format cannot be entered in the middle.

        Unless `duration_s`, of the part that was read, is None: then nothing is left.
        """
        if duration_s is None or not isinstance(source, bytes):
            return
        if isinstance(reader, _SoundFileReader) and not reader.exact_seek:
            self._source, self._reader, self._opened = source, reader, stack.pop_all()


class _Column(NamedTuple):
    """Which column of a block becomes the signal, and the number that its segments carry."""

    column: int | None  # None is the mean
    label: int | None


def _columns(wanted: Literal["mix", "split"] | int, channels: int) -> list[_Column]:
    if wanted == "mix":
        return [_Column(None, None)]
    if wanted == "split":
        return [_Column(k, k) for k in range(channels)]
    if wanted >= channels:
        message = f"channel {wanted} (from 0) of a recording with {channels}"
        raise AudioError(ErrorCode.NO_SUCH_CHANNEL, message)
    return [_Column(wanted, None)]


def _check_caps(reader: _Reader, settings: AudioSettings) -> None:
    for value, cap, what in (
        (reader.channels, settings.max_channels, "channels"),
        (reader.rate, settings.max_rate, "Hz"),
    ):
        if value > cap:
            raise AudioError(ErrorCode.TOO_LARGE, f"{value} {what}, the cap is {cap}")
    if reader.rate < _MIN_RATE:
        raise AudioError(ErrorCode.UNSUPPORTED, f"a sample rate of {reader.rate} Hz, the least is {_MIN_RATE}")


def _channel(
    reader: _Reader,
    settings: AudioSettings,
    column: _Column,
    offset_s: float | None,
    duration_s: float | None,
) -> Iterator[Segment]:
    """The segments of one channel of an opened recording."""
    rate, out_rate = reader.rate, settings.sample_rate
    span = _Span.of(offset_s, duration_s, rate, reader.frames)
    cap = math.floor(settings.max_duration_s * rate)
    known_length = (span.stop or reader.estimated_frames or 0) - span.start
    if known_length > cap:
        raise _too_long(known_length / rate, settings)

    lossless = reader.lossless16 and rate == out_rate
    stream = None if rate == out_rate else soxr.ResampleStream(rate, out_rate, 1, dtype="float32")
    cutter = _Cutter(out_rate, settings.max_segment_s)
    done = 0  # samples handed out

    def segment(samples: Samples, *, whole: bool = False, only: bool = False) -> Segment:
        nonlocal done
        start_s = span.start / rate + done / out_rate
        done += len(samples)
        return Segment(start_s, len(samples) / out_rate, samples, column.label, whole, only)

    position = span.start
    for block in reader.blocks(span.start, span.look_until, "int16" if lossless else "float32"):
        part = block if span.stop is None else block[: max(0, span.stop - position)]
        if len(part):
            if position + len(part) - span.start > cap:
                raise _too_long((position + len(part) - span.start) / rate, settings)
            signal = _signal(part, column.column, position, rate)
            for samples in cutter.push(signal if stream is None else stream.resample_chunk(signal)):
                yield segment(samples)
        position += len(block)
    total = reader.frames if reader.frames is not None else reader.decoded
    if total == 0:
        raise AudioError(ErrorCode.NO_SAMPLES, "decodes to 0 frames")
    if span.stop is None or position < span.look_until:  # the recording ended: now its length is known
        span.check(total, rate)
    if stream is not None:
        for samples in cutter.push(stream.resample_chunk(np.zeros(0, np.float32), last=True)):
            yield segment(samples)
    rest = cutter.finish()
    if done == 0 and not rest:
        raise AudioError(ErrorCode.NO_SAMPLES, f"{total} frames at {rate} Hz are no sample at {out_rate} Hz")
    only = done == 0 and len(rest) == 1
    whole = only and span.is_all(max(position, total), rate)
    for samples in rest:
        yield segment(samples, whole=whole, only=only)


def _too_long(seconds: float, settings: AudioSettings) -> AudioError:
    return AudioError(ErrorCode.TOO_LARGE, f"{seconds:.1f} s, the cap is {settings.max_duration_s:.1f} s")


def _signal(block: Samples, index: int | None, position: int, rate: int) -> Samples:
    """One column of a block, or its mean, contiguous and finite. `position` is that of its first frame."""
    mixed = block if index is None else block[:, index : index + 1]
    if mixed.dtype != np.int16:
        finite = np.isfinite(mixed).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            at = position + first
            raise AudioError(ErrorCode.NON_FINITE, f"frame {at} ({at / rate:.3f} s) holds {mixed[first].tolist()}")
    column = mixed[:, 0] if mixed.shape[1] == 1 else mixed.mean(axis=1)
    return np.ascontiguousarray(column)


@dataclass(frozen=True)
class _Span:
    """The part of a recording that is asked for, in frames of the source.

    Attributes:
        start: first frame.
        stop: one past the last, clipped to the recording where its length is known; None is the end.
        look_until: how far to decode. Where the length is not known, a little beyond `stop`, which tells
            whether the part is all of the recording.
    """

    start: int
    stop: int | None
    look_until: int
    words: str

    @classmethod
    def of(cls, offset_s: float | None, duration_s: float | None, rate: int, frames: int | None) -> _Span:
        offset = 0.0 if offset_s is None else offset_s
        words = f"offset {offset} s" + ("" if duration_s is None else f", duration {duration_s} s")
        if not 0 <= offset < math.inf:
            raise AudioError(ErrorCode.OUT_OF_RANGE, f"{words}: the offset must be 0 or more")
        if duration_s is not None and not 0 < duration_s < math.inf:
            raise AudioError(ErrorCode.OUT_OF_RANGE, f"{words}: the duration must be more than 0")
        start = round(offset * rate)
        stop = None if duration_s is None else start + max(1, round(duration_s * rate))
        if frames is None:
            look_until = _UNKNOWN_FRAMES if stop is None else stop + round(_SLACK_S * rate) + 1
            return cls(start, stop, look_until, words)
        span = cls(start, stop, frames, words)
        if frames:
            span.check(frames, rate)
        stop = frames if stop is None else min(stop, frames)
        return cls(start, stop, stop, words)

    def check(self, total: int, rate: int) -> None:
        """Hold the request against the recording's length."""
        message = f"{self.words}, but the recording lasts {total / rate:.3f} s"
        if self.start > 0 and self.start >= total:
            raise AudioError(ErrorCode.OUT_OF_RANGE, message)
        if self.stop is not None and self.stop > total + round(_SLACK_S * rate):
            raise AudioError(ErrorCode.OUT_OF_RANGE, message)

    def is_all(self, total: int, rate: int) -> bool:
        """Whether no more than 0.1 s of the recording lies outside."""
        after = 0 if self.stop is None else max(0, total - self.stop)
        return self.start + after <= round(_SLACK_S * rate)


class _Cutter:
    """Gathers a signal and cuts it into pieces of at most `max_segment_s`, at pauses.

    A cut is made when a longest piece and a least rest are there, and looks at the second half of the longest
    piece alone, so how the signal came in blocks decides nothing.
    """

    def __init__(self, rate: int, max_segment_s: float) -> None:
        self._longest = math.floor(round(max_segment_s * rate, 3))  # 0.57 * 16000 is 9119.999...
        self._shortest = self._longest // 2
        self._rest = min(round(_LEAST_REST_S * rate), self._shortest)
        self._frame = max(1, round(_PAUSE_S * rate))
        self._pending: list[Samples] = []
        self._count = 0

    def push(self, x: Samples) -> Iterator[Samples]:
        self._pending.append(x)
        self._count += len(x)
        while self._count >= self._longest + self._rest:
            yield self._cut(self._longest)

    def finish(self) -> list[Samples]:
        """What is left: one piece, two, or none of an empty signal."""
        pieces = []
        if self._count > self._longest:
            pieces.append(self._cut(self._count - self._rest))
        if self._count:
            pieces.append(_owned(self._pending[0]) if len(self._pending) == 1 else np.concatenate(self._pending))
        self._pending, self._count = [], 0
        return pieces

    def _cut(self, latest: int) -> Samples:
        x = np.concatenate(self._pending)
        window = x[self._shortest : latest]
        frames = window[: len(window) // self._frame * self._frame].reshape(-1, self._frame)
        at = latest
        if len(frames):
            wide = frames.astype(np.int64 if x.dtype == np.int16 else np.float64)
            at = self._shortest + int(np.argmin((wide * wide).sum(axis=1))) * self._frame + self._frame // 2
        # Copies: a view would keep the whole buffer alive for as long as the segment lives.
        self._pending, self._count = [x[at:].copy()], len(x) - at
        return x[:at].copy()


def _owned(x: Samples) -> Samples:
    """`x`, copied where it is a part of something larger, which would live as long as it does."""
    return x if x.base is None or getattr(x.base, "nbytes", -1) == x.nbytes else x.copy()


class _Reader(Protocol):
    """An opened recording.

    Attributes:
        rate: Hz.
        channels: how many.
        frames: its length, where the header can be trusted to tell; else None.
        estimated_frames: its length as the header has it, good enough for a cap; None where there is no telling.
        decoded: the position behind the last frame decoded.
        lossless16: whether int16 holds all there is: 16-bit PCM, mono.
    """

    rate: int
    channels: int
    frames: int | None
    estimated_frames: int | None
    decoded: int
    lossless16: bool

    def blocks(self, start: int, stop: int, dtype: str) -> Iterator[Samples]:
        """Arrays (frames, channels) that tile [start, stop), or end with the recording.

        A recording that breaks off before `stop` and before the end that it promises is an `AudioError`.
        """


@contextlib.contextmanager
def _open(source: Source, container: Container) -> Iterator[_Reader]:
    """Choose a decoder by content: libsndfile where it knows the format, else PyAV."""
    if container.demuxer == "mp3" and container.beyond_sndfile:
        with _open_av(source, container, "the MP3 has a variable rate and no Xing header") as reader:
            yield reader
        return
    source.seek(0)
    try:
        file = _Sequential(source, "r")
    except soundfile.SoundFileError as error:
        source.reraise()
        code = getattr(error, "code", 0)
        words = _NOT_RECOGNISED if code in _UNRECOGNISED else _words(error)
    else:
        with contextlib.closing(file):
            source.reraise()
            yield _SoundFileReader(source, file, container)
        return
    # A WAV of a coding that is foreign to libsndfile counts as malformed there. MP3 it would have recognised.
    foreign = code in _UNRECOGNISED | _UNIMPLEMENTED or container.demuxer == "wav"
    if foreign and container.demuxer not in (None, "mp3"):
        with _open_av(source, container, words) as reader:
            yield reader
        return
    if code in _UNIMPLEMENTED:
        raise AudioError(ErrorCode.UNSUPPORTED, f"libsndfile: {words}")
    begins = source.read_at(0, 16)
    raise AudioError(ErrorCode.UNDECODABLE, f"libsndfile: {words} The file begins with {begins!r}.")


def _words(error: soundfile.SoundFileError) -> str:
    """The words of libsndfile without the prefix, which names the Python object and its address."""
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string) or f"error {error.code}."
    return str(error)


class _Sequential(soundfile.SoundFile):  # type: ignore[misc, unused-ignore]
    """A SoundFile that reads on from where it is.

    python-soundfile seeks after every read to where the file already stands. That is not neutral: blocks of
    an Opus or MP3 file then differ from the same file read in one go, and a cut FLAC fails with "Internal
    psf_fseek() failed."
    """

    def seekable(self) -> bool:
        return False

    def can_seek(self) -> bool:
        return bool(super().seekable())


class _SoundFileReader:
    """What libsndfile reads."""

    def __init__(self, source: Source, file: _Sequential, container: Container) -> None:
        self._source, self._file, self._container = source, file, container
        self.rate: int = file.samplerate
        self.channels: int = file.channels
        header_frames: int | None = file.frames if file.frames < _UNKNOWN_FRAMES else None
        # MPEG audio without a Xing header has no length: libsndfile guesses it from the first frame's bit rate.
        guessed = file.subtype.startswith("MPEG") and not container.has_frame_count
        self.frames = None if guessed else header_frames
        self.estimated_frames = self.frames
        self.decoded = 0
        exact = file.format in _EXACT_FORMATS
        self.exact_seek = exact and file.subtype in _EXACT_CODINGS
        self._tail: Samples | None = None  # the last frames decoded, where there is no seeking back to them
        self.lossless16 = exact and file.subtype == "PCM_16" and self.channels == 1
        source.ran_out = False

    @property
    def earliest(self) -> int:
        """The first frame that `blocks` can begin with."""
        return self.decoded - (0 if self._tail is None else len(self._tail))

    def blocks(self, start: int, stop: int, dtype: str) -> Iterator[Samples]:
        position = start if self.exact_seek else self.decoded
        if self.decoded == 0 and self._file.can_seek():
            # Also to 0: after this seek mpg123 rounds some samples otherwise, and soundfile.read does seek.
            self._call(self._file.seek, position)
        if start < position and self._tail is not None:
            yield self._tail[start - position :][: stop - start].copy()  # a segment owns its samples
        largest = max(1, min(_BLOCK_VALUES // self.channels, round(_BLOCK_S * self.rate)))
        while position < stop:
            count = min(largest, (stop if position >= start else start) - position)
            block: Samples = self._call(self._file.read, count, dtype=dtype, always_2d=True)
            if not len(block):
                self.decoded = position
                self._check_end(min(stop, self.frames) if self.frames is not None else 0)
                return
            first, position = position, position + len(block)
            self.decoded = position
            if not self.exact_seek:
                # What a part of unknown length looks beyond its end, as much again by which parts may overlap, and a
                # frame by which two parts' roundings differ.
                before = block if self._tail is None else np.concatenate([self._tail, block])
                self._tail = before[-(2 * round(_SLACK_S * self.rate) + 2) :].copy()
            if first >= start:
                yield block

    def _check_end(self, promised: int) -> None:
        missing = promised - self.decoded
        if missing <= 0:
            return
        # Some encoders count the Xing frame itself; then the end is there, and one frame less than promised.
        if self._container.demuxer == "mp3" and missing <= 2 * 1152 and not self._container.short_of_bytes:
            walk = walk_mpeg(self._source, self._container.mpeg_start)
            if walk is not None and not walk.cut:
                return
        message = f"{promised} frames promised, {self.decoded} decoded"
        raise AudioError(ErrorCode.TRUNCATED, message)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call libsndfile; raise what went wrong underneath, else what it says of the data."""
        try:
            result = function(*args, **kwargs)
        except soundfile.SoundFileError as error:
            self._source.reraise()
            code = ErrorCode.TRUNCATED if self._source.ran_out else ErrorCode.UNDECODABLE
            of = "an unknown number" if self.frames is None else self.frames
            message = f"libsndfile: {_words(error)} After {self.decoded} frames of {of}."
            raise AudioError(code, message) from error
        self._source.reraise()
        return result


@contextlib.contextmanager
def _open_av(source: Source, container: Container, words: str) -> Iterator[_Reader]:
    """Open with PyAV. `words` is why libsndfile does not do it."""
    if av is None:
        hint = f"{words} PyAV may read it: pip install 'sewd-pipeline[ffmpeg]'"
        raise AudioError(ErrorCode.UNSUPPORTED, hint)
    source.seek(0)
    source.ran_out = False
    try:
        # The demuxer is named, never probed: probing takes text for a playlist, and playlists open other files.
        opened = av.open(source, format=container.demuxer, metadata_errors="ignore")
    except av.FFmpegError as error:
        source.reraise()
        raise _av_error(error, source, container, 0, words) from error
    with opened:
        source.reraise()
        yield _AvReader(source, opened, container)


def _av_error(error: Exception, source: Source, container: Container, decoded: int, words: str = "") -> AudioError:
    missing_decoder = isinstance(error, (av.DecoderNotFoundError, av.codec.codec.UnknownCodecError))
    if missing_decoder:
        code = ErrorCode.UNSUPPORTED
    elif source.ran_out and not container.complete and decoded:
        code = ErrorCode.TRUNCATED
    else:
        code = ErrorCode.UNDECODABLE
    before = f"libsndfile: {words} " if words else ""
    after = f" After {decoded} frames." if decoded else ""
    strerror = getattr(error, "strerror", None) or str(error)
    return AudioError(code, f"{before}FFmpeg ({container.demuxer}): {strerror}.{after}")


class _AvReader:
    """What FFmpeg reads: the first audio stream."""

    def __init__(self, source: Source, opened: Any, container: Container) -> None:
        self._source, self._container = source, container
        self.lossless16 = False
        self.frames: int | None = None  # a container's duration counts encoder padding in or out as it likes
        self.decoded = 0
        if not opened.streams.audio:
            kinds = ", ".join(stream.type for stream in opened.streams) or "none"
            raise AudioError(ErrorCode.UNDECODABLE, f"no audio stream (streams: {kinds})")
        stream = opened.streams.audio[0]
        if stream.codec_context is None:
            raise AudioError(ErrorCode.UNSUPPORTED, "FFmpeg knows no decoder for the audio stream")
        self._frames = opened.decode(stream)
        self._first = self._next()
        if self._first is None:
            self.rate, self.channels = stream.codec_context.sample_rate, max(1, stream.codec_context.channels)
        else:  # not the header: with spectral band replication the decoder doubles the rate
            self.rate, self.channels = self._first.sample_rate, self._first.layout.nb_channels
        trusted = container.demuxer in ("mp4", "matroska", "asf") and opened.duration is not None
        self.estimated_frames = opened.duration * self.rate // av.time_base if trusted else None

    def _next(self) -> Any:
        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV met a stream that began late
            self._source.reraise()
            raise _av_error(error, self._source, self._container, self.decoded) from error
        self._source.reraise()
        return frame

    def blocks(self, start: int, stop: int, dtype: str) -> Iterator[Samples]:
        del dtype  # float32: see lossless16
        frame, self._first = self._first, None
        while frame is not None and self.decoded < stop:
            if frame.sample_rate != self.rate or frame.layout.nb_channels != self.channels:
                message = (
                    f"after {self.decoded} frames, {self.rate} Hz x {self.channels} channels becomes "
                    f"{frame.sample_rate} Hz x {frame.layout.nb_channels}"
                )
                raise AudioError(ErrorCode.UNSUPPORTED, message)
            values = _av_values(frame)
            block = values[max(0, start - self.decoded) : stop - self.decoded]
            self.decoded += len(values)
            if len(block):
                yield block
            frame = self._next()


_AV_TYPES: Final = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}


def _av_values(frame: Any) -> Samples:
    """An FFmpeg frame as float32 (frames, channels), full scale at 1."""
    dtype, channels = np.dtype(_AV_TYPES[frame.format.name.removesuffix("p")]), frame.layout.nb_channels
    # Not frame.to_ndarray(): it takes every plane that PyAV counts, and from 8 channels on PyAV counts
    # pointers behind the last one and reads them (a crash with 16-channel AAC; PyAV 18).
    if frame.format.is_planar:
        planes = [np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes[:channels]]
        x: Samples = np.stack(planes, axis=1)
    else:
        x = np.frombuffer(frame.planes[0], dtype, frame.samples * channels).reshape(-1, channels)
    if dtype == np.uint8:
        return (x.astype(np.float32) - 128) / 128
    if dtype.kind == "i":
        return (x.astype(np.float64) / 2.0 ** (8 * dtype.itemsize - 1)).astype(np.float32)
    return x.astype(np.float32)
