"""What the headers of a corpus say: hours, rates, channels, what cannot be read; and how fast a few of them decode.

Where there are many recordings, a sample is read: files by suffix, rows of tables, or whole parts of shards and Parquet
files. Sums are ratio estimates by size, with their sampling error (W. G. Cochran, Sampling Techniques, 1977, chapters 6
and 9). The sample is the same each time.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pipeline.audio.decode import AudioSettings, Header, read_header
from pipeline.audio.silence import levels
from pipeline.corpus.ahead import READ_AHEAD, SMALL_BYTES, opened_ahead
from pipeline.corpus.layouts.files import FILES
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.layouts.tar import TAR
from pipeline.corpus.layouts.tar_rows import TAR_ROWS
from pipeline.corpus.naming import suffix
from pipeline.corpus.parts import Item, Part
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import ObjectOpener, Utterance
from pipeline.errors import AudioError, InputChangedError, RunFailedError
from pipeline.secrets import without_secrets
from pipeline.stages.child_process import ChildDiedError, child_steps
from pipeline.stages.rows import RowSettings, utterance_rows
from pipeline.stages.steps import START, Position, Skipped, Step

MAX_HEADERS: Final = 2000  # of files of one format, or of rows
MAX_CONTAINERS: Final = 6  # parts of shards and Parquet files, which are read whole
MAX_DECODED: Final = 48  # of one format
MAX_DECODED_S: Final = 120.0  # of one recording
EXAMPLES: Final = 3
DEADLINE_S: Final = 60.0  # for the header of a recording, and to decode MAX_DECODED_S of it twice
MAX_DEATHS: Final = 5
ROWS_A_STEP: Final = 10_000  # of manifests and tables, of which all are read to choose some
NORMAL_95: Final = 1.96
_CONTAINERS: Final = (TAR.kind, TAR_ROWS.kind, PARQUET.kind)


@dataclass
class Work:
    """The work of a run on recordings, estimated.

    Attributes:
        read_cpu_s: CPU seconds of reading and decoding.
        read_s: seconds of one reader.
        clips: of the model, by the power of two nearest to their length in seconds: their seconds, and their number.
    """

    read_cpu_s: float = 0.0
    read_s: float = 0.0
    clips: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        """The work on both."""
        clips = dict(self.clips)
        for length, (seconds, number) in other.clips.items():
            before = clips.get(length, (0.0, 0.0))
            clips[length] = (before[0] + seconds, before[1] + number)
        return Work(self.read_cpu_s + other.read_cpu_s, self.read_s + other.read_s, clips)

    def times(self, factor: float) -> Work:
        """The work on so much audio of the same kind."""
        clips = {length: (seconds * factor, number * factor) for length, (seconds, number) in self.clips.items()}
        return Work(self.read_cpu_s * factor, self.read_s * factor, clips)


@dataclass
class Recordings:
    """What the headers say of recordings.

    Attributes:
        number: how many there are, estimated where shards were not all read.
        read: how many headers were read.
        unstated: how many of them state no length; their audio is not in `audio_s`.
        audio_s: their audio, in seconds, estimated where not all headers were read.
        variance: of that estimate, by sampling; 0 where all headers were read.
        rates: recordings that were read, by sample rate in Hz.
        channels: recordings that were read, by number of channels.
        failed: those that were read whose headers, or rows, show an error, by its code.
        examples: a few of them: `uri`, `code`, `message`.
        work: what a run does for them; empty where nothing was timed.
    """

    number: float = 0.0
    read: int = 0
    unstated: int = 0
    audio_s: float = 0.0
    variance: float = 0.0
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)
    work: Work = field(default_factory=Work)

    def __add__(self, other: Recordings) -> Recordings:
        """Both together."""
        return Recordings(
            self.number + other.number,
            self.read + other.read,
            self.unstated + other.unstated,
            self.audio_s + other.audio_s,
            self.variance + other.variance,
            self.rates + other.rates,
            self.channels + other.channels,
            self.failed + other.failed,
            (self.examples + other.examples)[:EXAMPLES],
            self.work + other.work,
        )

    @property
    def error_s(self) -> float:
        """Half the width of the 95 % interval of `audio_s` by sampling."""
        return NORMAL_95 * math.sqrt(self.variance)

    @property
    def failed_share(self) -> float:
        """Share of the recordings that were read that have an error, 0..1."""
        return self.failed.total() / self.read if self.read else 0.0

    def to_json(self) -> dict[str, Any]:
        """As `sewd plan --json` prints it."""
        return {
            "recordings": round(self.number),
            "headers_read": self.read,
            "no_length": self.unstated,
            "hours": self.audio_s / 3600,
            "hours_error": self.error_s / 3600,
            "rates": dict(self.rates),
            "channels": dict(self.channels),
            "failed_share": self.failed_share,
            "failed": dict(self.failed),
            "examples": self.examples,
        }


class _Unit(NamedTuple):
    """What is sampled: a file, a row, or a part of containers; with its size, to which its audio is compared."""

    size: float
    part: Part
    utterance: Utterance | None = None


def row_settings(audio: AudioSettings, min_samples: int = 0) -> RowSettings:
    """How recordings are decoded for models: their audio settings, and the fewest samples that they accept."""
    return RowSettings(audio, min_samples)


def examine(
    parts: Sequence[Part],
    settings: RowSettings,
    *,
    allow_any_path: bool,
    timed: bool,
    deadline_s: float = DEADLINE_S,
) -> Recordings:
    """Read the headers of parts, or of a sample of them, in a child process; one `Recordings` for all.

    A recording that kills the child, or on which it hangs, cannot be read; another child begins anew.

    Args:
        parts: of one format.
        settings: how a run decodes, with its limits.
        allow_any_path: a manifest may name objects outside the store that it is in.
        timed: decode a few recordings, and estimate the work of a run.
        deadline_s: a child that takes longer than this for a recording hangs; time in storage does not count.

    Raises:
        StorageError: an input could not be reached.
        RunFailedError: children die although they skip what killed them, or of too many recordings.
    """
    steps_from = functools.partial(steps, tuple(parts), settings, allow_any_path, timed)
    skipped: dict[int, Skipped] = {}
    while True:
        position = START
        try:
            with child_steps(steps_from, START, skipped, deadline_s) as found:
                for step in found:
                    if step is not None and step.row is not None:
                        return step.row
                    position = position if step is None else step.next
        except ChildDiedError as death:
            if position == START or position.utterance in skipped or len(skipped) >= MAX_DEATHS:
                raise RunFailedError(f"the processes that read headers die, the last one {death}") from death
            message = f"the process that read it ended {death}"
            skipped[position.utterance] = Skipped(position, death.code, message)


def steps(
    parts: Sequence[Part],
    settings: RowSettings,
    allow_any_path: bool,
    timed: bool,
    _: Position = START,
    skipped: Mapping[int, Skipped] = MappingProxyType({}),
) -> Iterator[Step[Recordings]]:
    """As `examine`, in this process: a step before each recording or container is read, and the result as the last."""
    total, places = Recordings(), itertools.count(1)
    for stratum in _strata(parts, allow_any_path):
        if stratum is None:
            yield Step(START)  # no row is skipped here: a process that dies of one ends the plan
        else:
            total += yield from _stratum(*stratum, settings, allow_any_path, timed, places, skipped)
    yield Step(Position(next(places), 0), row=total)


def _strata(parts: Sequence[Part], allow_any_path: bool) -> Iterator[tuple[list[_Unit], int, float] | None]:
    """Samples of units, each with the number and size of all units that it stands for; None while rows are read."""
    generator = random.Random(0)
    containers = [part for part in parts if part.kind in _CONTAINERS]
    if containers:
        chosen = generator.sample(containers, min(MAX_CONTAINERS, len(containers)))
        yield [_Unit(part.bytes, part) for part in chosen], len(containers), sum(part.bytes for part in containers)
    by_suffix: dict[str, list[Item]] = {}
    for part in parts:
        for item in part.items if part.kind == FILES.kind else ():
            by_suffix.setdefault(suffix(item.uri), []).append(item)
    for items in by_suffix.values():
        sample = [items[i] for i in sorted(generator.sample(range(len(items)), min(MAX_HEADERS, len(items))))]
        units = [_Unit(item.size, Part(FILES.kind, item.size, items=(item,))) for item in sample]
        yield units, len(items), sum(item.size for item in items)
    tables = [part for part in parts if part.kind not in (*_CONTAINERS, FILES.kind)]
    if tables:
        chosen_rows: list[Utterance] = []
        number = 0
        for utterance in itertools.chain.from_iterable(read_part(part, allow_any_path) for part in tables):
            number += 1  # a reservoir: there may be millions of rows
            if number % ROWS_A_STEP == 0:
                yield None
            if len(chosen_rows) < MAX_HEADERS:
                chosen_rows.append(utterance)
            elif (place := generator.randrange(number)) < MAX_HEADERS:
                chosen_rows[place] = utterance
        yield [_Unit(1.0, tables[0], utterance) for utterance in chosen_rows], number, number


def _stratum(
    units: Sequence[_Unit],
    number: int,
    size: float,
    settings: RowSettings,
    allow_any_path: bool,
    timed: bool,
    places: Iterator[int],
    skipped: Mapping[int, Skipped],
) -> Generator[Step[Recordings], None, Recordings]:
    found, audio, counts = Recordings(), [], []
    timer = _Timer(settings, len(units)) if timed else None
    for unit, utterances in _opened(units, allow_any_path):
        seconds, count = 0.0, 0
        reading = iter(utterances)
        while True:
            place = next(places)
            yield Step(Position(place, 0))
            if place in skipped:  # the rest of a container
                found.read += 1
                _add_failure(found, unit.part.uri, skipped[place].error)
                break
            if (utterance := next(reading, None)) is None:
                break
            place = next(places)
            yield Step(Position(place, 0))
            if place in skipped:
                utterance = replace(utterance, problem=skipped[place].error)
            count += 1
            seconds += _count(utterance, settings.audio, found, timer, unit)
        audio.append(seconds)
        counts.append(count)
    if not units:
        return found
    sizes = [unit.size for unit in units]
    scale = size / sum(sizes) if sum(sizes) else number / len(units)
    found.audio_s = sum(audio) * scale
    found.number = sum(counts) * scale if units[0].part.kind in _CONTAINERS else number
    found.variance = _variance(sizes, audio, number)
    if timer is not None and timer.audio_s:
        found.work = timer.work.times(found.audio_s / timer.audio_s)
    return found


def _variance(sizes: Sequence[float], values: Sequence[float], number: int) -> float:
    """Variance of the ratio estimate of the sum of `values` over `number` units, of which these are a sample."""
    count = len(values)
    if count >= number or count < 2:
        return 0.0 if count >= number else math.inf
    ratio = sum(values) / sum(sizes) if sum(sizes) else 0.0
    squares = sum((value - ratio * size) ** 2 for value, size in zip(values, sizes, strict=True)) / (count - 1)
    return number**2 * (1 - count / number) / count * squares


def _opened(units: Sequence[_Unit], allow_any_path: bool) -> Iterator[tuple[_Unit, Iterable[Utterance]]]:
    """Each unit with its utterances; small remote objects are fetched ahead."""
    if units and units[0].part.kind in _CONTAINERS:
        for unit in units:
            yield unit, read_part(unit.part, allow_any_path)
        return
    described = (
        unit.utterance or next(read_part(unit.part, allow_any_path)) for unit in units
    )  # of a file, its reference is read here too, as a run does
    for unit, utterance in zip(units, opened_ahead(described, READ_AHEAD), strict=True):
        yield unit, (utterance,)


def _count(utterance: Utterance, audio: AudioSettings, found: Recordings, timer: _Timer | None, unit: _Unit) -> float:
    """Count an utterance by its header; returns its seconds, 0 where it cannot be read."""
    found.read += 1
    try:
        header = _header(utterance, audio)
    except (AudioError, InputChangedError) as error:
        _add_failure(found, utterance.where, error)
        return 0.0
    found.rates[header.rate] += 1
    found.channels[header.channels] += 1
    offset_s, duration_s = utterance.meta.span or (None, None)
    found.unstated += header.duration_s is None and duration_s is None
    whole_s = max(0.0, (header.duration_s or 0.0) - (offset_s or 0.0))
    seconds = whole_s if duration_s is None else min(duration_s, whole_s or duration_s)
    if audio.channels == "split" and utterance.channel is None:
        seconds *= header.channels
    if timer is not None:
        timer.maybe_decode(utterance, seconds, unit)
    return seconds


def _add_failure(found: Recordings, where: str, error: AudioError | InputChangedError) -> None:
    code = error.code.value if isinstance(error, AudioError) else "MISSING"
    found.failed[code] += 1
    if len(found.examples) < EXAMPLES:
        message = error.message if isinstance(error, AudioError) else str(error)
        found.examples.append({"uri": without_secrets(where), "code": code, "message": without_secrets(message)})


def _header(utterance: Utterance, settings: AudioSettings) -> Header:
    if utterance.problem is not None:
        raise utterance.problem
    opener = getattr(utterance.open, "__self__", None)
    opener = getattr(opener, "opener", utterance.open)
    if isinstance(opener, ObjectOpener) and utterance.size > SMALL_BYTES and "://" in opener.uri:
        source: Any = opener.read(opener.find(), SMALL_BYTES)  # by ranges: only the headers are fetched
    else:
        source = utterance.open()
    with contextlib.nullcontext() if isinstance(source, bytes) else contextlib.closing(source):
        return read_header(source, settings)


class _Timer:
    """Decodes some of the utterances that it is shown, as readers do, and adds up what that takes."""

    def __init__(self, settings: RowSettings, units: int) -> None:
        self._settings, self._units = settings, units
        self._random = random.Random(1)
        self._decoded = 0
        self.audio_s = 0.0  # of the utterances whose work is in `work`
        self.work = Work()

    def maybe_decode(self, utterance: Utterance, duration_s: float, unit: _Unit) -> None:
        """Decode the utterance, whose length its header states, with the probability that makes MAX_DECODED of all."""
        in_unit = 1.0
        if unit.part.kind in _CONTAINERS:
            in_unit = unit.part.rows or max(1.0, unit.part.bytes / max(1, utterance.size))
        if self._decoded and self._random.random() * self._units * in_unit >= MAX_DECODED:
            return
        if not self._decoded:
            self._decode(utterance)  # not timed: the first time loads the decoder
        self._decoded += 1
        started, cpu_started = time.perf_counter(), time.process_time()
        decoded_s, clips = self._decode(utterance)
        if not decoded_s:
            return
        spent = Work(time.process_time() - cpu_started, time.perf_counter() - started, clips.clips)
        self.work += spent.times(max(duration_s, decoded_s) / decoded_s)
        self.audio_s += max(duration_s, decoded_s)

    def _decode(self, utterance: Utterance) -> tuple[float, Work]:
        """Decode the first MAX_DECODED_S of an utterance; returns its seconds, and its clips for the model."""
        decoded_s, clips = 0.0, Work()
        rate = self._settings.audio.sample_rate
        for row in utterance_rows(utterance, self._settings):
            if row.samples is None:
                continue
            levels(row.samples, rate)  # which readers compute too
            for start, stop in row.spans if row.spans is not None else ((0, len(row.samples)),):
                seconds = (stop - start) / rate
                clips += Work(clips={_length(seconds): (seconds, 1.0)})
            decoded_s += row.audio_s
            if decoded_s >= MAX_DECODED_S:
                break
        return decoded_s, clips


def _length(seconds: float) -> int:
    return round(math.log2(max(seconds, 1 / 16)))
