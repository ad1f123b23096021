"""Clips for training: from manifests to batches that depend on (seed, epoch, place) alone.

Nothing here remembers what it gave before. The batches of an epoch are a function of the clips, the settings, the
seed and the epoch's number, and the augmentation of an utterance of the seed, the epoch and the utterance; so a
resumed training sees exactly what an undisturbed one would have seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.decode import AudioSettings, read_segments, to_float32
from pipeline.corpus.manifest import ManifestRow, parse_meta, resolve
from pipeline.errors import AudioError, RunFailedError, UsageError
from pipeline.scoring.normalize import normalize
from pipeline.storage import objects, uris
from pipeline.training.augment import Waveform, augment

_MAX_CLIP_S = 3600.0  # nothing as long is trained on; the decoder must not cut clips
_POOL_BATCHES = 30  # utterances are sorted by length within pools of about as many batches
_PAUSE_S = (0.02, 0.5)  # between joined clips; some run into each other, some are far apart
_SHORTEST_S = 0.01  # what an utterance counts for at least
_FLOOR = 3e-4  # of full scale: the noise that fills a pause, for digital silence would give the seam away


@dataclass(frozen=True)
class Clip:
    """One row of a manifest.

    Attributes:
        uri: where its audio is.
        offset_s: where it begins there; None: the whole file.
        duration_s: its length.
        text: normalised (`basic`), in lower case; None: it trains no CTC head.
        label: class; None: it trains no classifier.
        speaker: whose voice; clips are joined within one.
        weight: how often it comes in an epoch, on average.
    """

    uri: str
    offset_s: float | None
    duration_s: float
    text: str | None
    label: str | None
    speaker: str | None
    weight: float = 1.0


@dataclass(frozen=True)
class Utterance:
    """What is trained on: a clip, or several that are joined. `clips` are numbers; `key` seeds its augmentation."""

    clips: tuple[int, ...]
    text: str | None
    label: str | None
    duration_s: float
    key: int


@dataclass(frozen=True)
class DataSettings:
    """How clips become batches.

    Attributes:
        batch_s: seconds of audio a batch, padding counted in, before augmentation.
        join_max: join up to so many clips of one speaker, with pauses, into one utterance; 1: none.
        join_below_s: only clips with a text, no label, and shorter than this are joined.
        join_total_s: no joined utterance is longer.
        augment: probability of each augmentation by name; `trim` is for clips shorter than `join_below_s` alone.
        seed: of order, joins and augmentation.
    """

    batch_s: float = 60.0
    join_max: int = 1
    join_below_s: float = 1.5
    join_total_s: float = 12.0
    augment: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


# --------------------------------------------------------------------------------------------------- manifests
def load_manifest(uri: str, weight: float = 1.0) -> list[Clip]:
    """Read the rows of a JSON-lines manifest; rows without text and label are a `UsageError`, as is an empty file.

    Rows whose manifest states no duration are decoded to learn it.

    Raises:
        UsageError: the manifest is not there, or a row is not what it must be.
    """
    uri = uris.absolute(uri)
    try:
        rows = list(objects.lines(uri))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"there is no manifest {uri}") from error
    clips = []
    for number, (_, line) in enumerate(rows, 1):
        if not line.strip():
            continue
        try:
            row: ManifestRow = parse_meta(line, f"{uri}:{number}", ManifestRow)
        except AudioError as error:
            raise UsageError(error.message) from error
        if row.text is None and row.label is None:
            raise UsageError(f"{uri}:{number}: a row to train on has a text, a label, or both")
        clips.append(_clip(row, uri, weight))
    if not clips:
        raise UsageError(f"{uri} has no rows")
    return clips


def _clip(row: ManifestRow, manifest: str, weight: float) -> Clip:
    clip = Clip(
        uri=resolve(row.audio_filepath, manifest.rpartition("/")[0]),
        offset_s=row.offset,
        duration_s=row.duration or 0.0,
        text=None if row.text is None else normalize(row.text, "basic"),
        label=row.label,
        speaker=row.speaker,
        weight=weight,
    )
    if row.duration:
        return clip
    seconds = len(read_clip(clip)) / AudioSettings().sample_rate
    return dataclasses.replace(clip, duration_s=seconds)


def read_clip(clip: Clip) -> NDArray[np.int16]:
    """Decode a clip: mono, 16 kHz, int16 `(N,)`, half the memory of float32.

    Raises:
        RunFailedError: the audio cannot be read; says which.
    """
    settings = AudioSettings(max_segment_s=_MAX_CLIP_S, max_duration_s=_MAX_CLIP_S)
    source = Path(clip.uri) if "://" not in clip.uri and Path(clip.uri).is_file() else objects.fetch(clip.uri)
    duration = None if clip.offset_s is None else clip.duration_s or None
    try:
        segments = list(read_segments(source, settings, offset_s=clip.offset_s, duration_s=duration))
    except AudioError as error:
        raise RunFailedError(f"cannot train on {clip.uri}: {error}") from error
    samples = np.concatenate([to_float32(segment.samples) for segment in segments])
    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)


class ClipStore:
    """Clips and their samples, decoded when first asked for and kept."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = list(clips)
        self._samples: dict[int, NDArray[np.int16]] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def samples(self, index: int) -> NDArray[np.int16]:
        """The clip's samples, as `read_clip` gives them."""
        if index not in self._samples:
            self._samples[index] = read_clip(self.clips[index])
        return self._samples[index]


# ------------------------------------------------------------------------------------------------------- epochs
def rng_of(*keys: int | str) -> np.random.Generator:
    """A generator that depends on the keys alone: the same on every machine, unlike Python's salted `hash`."""
    digest = hashlib.sha256("\0".join(map(str, keys)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest[:16], np.uint64))


def epoch_utterances(clips: Sequence[Clip], settings: DataSettings, epoch: int) -> list[Utterance]:
    """What an epoch trains on, in random order: every clip `weight` times on average, short ones joined at random."""
    rng = rng_of(settings.seed, "order", epoch)
    copies = np.array([clip.weight for clip in clips])
    copies = np.floor(copies + rng.random(len(clips))).astype(int)
    order = rng.permutation(np.repeat(np.arange(len(clips)), copies)).tolist()
    joined: list[tuple[int, ...]] = []
    waiting: dict[str, list[int]] = {}  # by speaker: the clips of the utterance that is being joined
    wanted: dict[str, int] = {}
    for index in order:
        clip = clips[index]
        if settings.join_max < 2 or not clip.text or clip.label is not None or clip.duration_s >= settings.join_below_s:
            joined.append((index,))
            continue
        speaker = clip.speaker or f"\0{index}"
        run = waiting.setdefault(speaker, [])
        if run and sum(clips[i].duration_s + max(_PAUSE_S) for i in (*run, index)) > settings.join_total_s:
            joined.append(tuple(run))
            run.clear()
        if not run:
            wanted[speaker] = int(rng.integers(1, settings.join_max + 1))
        run.append(index)
        if len(run) == wanted[speaker]:
            joined.append(tuple(run))
            run.clear()
    joined += [tuple(run) for run in waiting.values() if run]
    return [_utterance(clips, members, key) for key, members in enumerate(joined)]


def _utterance(clips: Sequence[Clip], members: tuple[int, ...], key: int) -> Utterance:
    chosen = [clips[i] for i in members]
    texts = [clip.text for clip in chosen if clip.text is not None]
    return Utterance(
        clips=members,
        text=" ".join(texts) if texts else None,
        label=chosen[0].label if len(members) == 1 else None,
        duration_s=sum(clip.duration_s for clip in chosen) + (len(members) - 1) * sum(_PAUSE_S) / 2,
        key=key,
    )


def epoch_batches(
    clips: Sequence[Clip], settings: DataSettings, epoch: int, together: int = 1
) -> list[list[Utterance]]:
    """The batches of an epoch in the order of training: neighbours in length together, batches in random order.

    A batch holds at most `batch_s` of audio, padding counted in, or one utterance that is longer. Its number of rows is
    one of few (1, 2, 3, 4, 6, 8, 12, ...; the last of a pool has what is left), see `padded_width`.

    Args:
        clips: of the epoch.
        settings: see `DataSettings`.
        epoch: its number.
        together: so many batches of like length follow each other, from the first on: workers that go in step, and
            wait for the slowest, then have as much to do.
    """
    utterances = epoch_utterances(clips, settings, epoch)
    rng = rng_of(settings.seed, "batches", epoch)
    batches: list[list[Utterance]] = []
    pool: list[Utterance] = []
    filled = 0.0
    for utterance in utterances:
        pool.append(utterance)
        filled += utterance.duration_s
        if filled >= _POOL_BATCHES * settings.batch_s:
            batches += _cut(pool, settings.batch_s)
            pool, filled = [], 0.0
    batches += _cut(pool, settings.batch_s)
    # Those that make no whole group stand last, and are not always the shortest.
    rest = set(rng.permutation(len(batches))[: len(batches) % together].tolist())
    whole = [batch for number, batch in enumerate(batches) if number not in rest]
    groups = [whole[i : i + together] for i in range(0, len(whole), together)]
    return [batch for i in rng.permutation(len(groups)) for batch in groups[i]] + [batches[i] for i in sorted(rest)]


def _cut(pool: list[Utterance], batch_s: float) -> Iterator[list[Utterance]]:
    longest_first = sorted(pool, key=lambda u: -u.duration_s)
    while longest_first:
        rows = _few_sizes(int(batch_s / max(longest_first[0].duration_s, _SHORTEST_S)))
        yield longest_first[:rows]
        del longest_first[:rows]


def _few_sizes(number: int) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is at most `number`; 1 for less."""
    power = 1 << (max(1, number).bit_length() - 1)
    return power * 3 // 2 if power >= 2 and number >= power * 3 // 2 else power


def padded_width(samples: int) -> int:
    """The width, in samples, of a batch whose longest row has so many: the next of few.

    The CPU's library makes its kernels anew for every shape of bfloat16 product, a hundred and more to a shape of
    batch, and keeps thousands: with hundreds of shapes a step takes half as long again as with those that it knows.
    """
    step = 8000 if samples <= 64_000 else 16_000 if samples <= 192_000 else 32_000
    return -(-samples // step) * step


# ---------------------------------------------------------------------------------------------------- waveforms
def waveform(store: ClipStore, utterance: Utterance, settings: DataSettings, epoch: int) -> Waveform:
    """An utterance's samples as trained on: joined, augmented. Float32 `(N,)` at 16 kHz."""
    rng = rng_of(settings.seed, "utterance", epoch, utterance.key)
    of_clips = {name: chance for name, chance in settings.augment.items() if name == "trim"}
    of_all = {name: chance for name, chance in settings.augment.items() if name != "trim"}
    pieces: list[Waveform] = []
    for place, index in enumerate(utterance.clips):
        if place:
            pieces.append(_pause(rng))
        # What is cut off the ends of a sentence is whole words, which its text would still hold.
        is_short = store.clips[index].duration_s < settings.join_below_s
        pieces.append(augment(rng, to_float32(store.samples(index)), of_clips if is_short else {}))
    if len(utterance.clips) > 1:  # a string is not spoken from the first sample to the last
        pieces = [_pause(rng), *pieces, _pause(rng)]
    return augment(rng, np.concatenate(pieces), of_all)


def _pause(rng: np.random.Generator) -> Waveform:
    length = int(rng.uniform(*_PAUSE_S) * AudioSettings().sample_rate)
    return (rng.standard_normal(length) * _FLOOR).astype(np.float32)
