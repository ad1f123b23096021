"""Training data: from clips to batches that depend on seed, epoch and position alone.

Nothing here keeps state. The batches of an epoch are a function of the clips, the settings, the seed and the number of
the epoch; the augmentation of an utterance is a function of seed, epoch and utterance. So a resumed training
sees exactly what an undisturbed one sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.samples import to_float32
from pipeline.training.augment import SAMPLE_RATE, Waveform, augment
from pipeline.training.settings import DataSettings

_POOL_BATCHES = 30  # utterances are sorted by length within pools of about this many batches
_PAUSE_S = (0.02, 0.5)  # between joined clips, in seconds
_SHORTEST_S = 0.01  # the least that an utterance counts for
_FLOOR = 3e-4  # of full scale: noise in pauses, since digital silence would mark the joins


@dataclass(frozen=True)
class Clip:
    """One utterance of the training or validation data.

    Attributes:
        utt_id: its id, as a run names it.
        duration_s: length in seconds.
        text: normalised (`basic`), in lower case; None: the clip does not train the CTC head.
        label: class; None: the clip does not train the classifier.
        speaker: speaker; only clips of one speaker are joined.
        weight: how often an epoch takes it, on average.
    """

    utt_id: str
    duration_s: float
    text: str | None
    label: str | None
    speaker: str | None
    weight: float = 1.0


@dataclass(frozen=True)
class Utterance:
    """A clip, or several joined clips. `clips` are indexes; `key` seeds the augmentation."""

    clips: tuple[int, ...]
    text: str | None
    label: str | None
    duration_s: float
    key: int


class ClipStore:
    """Clips and their samples at 16 kHz: int16 (num_samples,) each, half the memory of float32."""

    def __init__(self, clips: Sequence[Clip], samples: Sequence[NDArray[np.int16]]) -> None:
        self.clips = list(clips)
        self._samples = list(samples)

    def __len__(self) -> int:
        return len(self.clips)

    def samples(self, index: int) -> NDArray[np.int16]:
        """The samples of a clip."""
        return self._samples[index]


# ------------------------------------------------------------------------------------------------------- epochs
def generator_for(*keys: int | str) -> np.random.Generator:
    """A generator that depends on the keys only, and is the same on every machine (unlike Python's salted `hash`)."""
    digest = hashlib.sha256("\0".join(map(str, keys)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest[:16], np.uint64))


def epoch_utterances(clips: Sequence[Clip], settings: DataSettings, epoch: int) -> list[Utterance]:
    """The utterances of an epoch in random order: every clip `weight` times on average, short ones joined at random."""
    rng = generator_for(settings.seed, "order", epoch)
    copies = np.array([clip.weight for clip in clips])
    copies = np.floor(copies + rng.random(len(clips))).astype(int)
    order = rng.permutation(np.repeat(np.arange(len(clips)), copies)).tolist()
    joined: list[tuple[int, ...]] = []
    waiting: dict[str, list[int]] = {}  # by speaker: the clips of the utterance under construction
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
    """The batches of an epoch in random order; utterances of similar length share a batch.

    A batch holds at most `batch_s` of audio, with padding, or one longer utterance. Its number of rows is one of a few
    (1, 2, 3, 4, 6, 8, 12, ...; the last of a pool has the rest), see `padded_width`.

    Args:
        clips: the clips.
        settings: how clips become batches.
        epoch: number of the epoch.
        together: this many batches of similar length follow each other: workers that step together, and wait for the
            slowest, then have equal work.
    """
    utterances = epoch_utterances(clips, settings, epoch)
    rng = generator_for(settings.seed, "batches", epoch)
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
    # Batches that fill no whole group come last, and are not always the shortest.
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
    """The largest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is at most `number`, and at least 1."""
    power = 1 << (max(1, number).bit_length() - 1)
    return power * 3 // 2 if power >= 2 and number >= power * 3 // 2 else power


def padded_width(samples: int) -> int:
    """The width of a batch whose longest row has `samples` samples: the next of a few widths.

    oneDNN generates its kernels for each shape of a bfloat16 product, over a hundred per batch shape, and caches
    thousands. With hundreds of batch shapes a step takes half as long again as with cached kernels.
    """
    step = 8000 if samples <= 64_000 else 16_000 if samples <= 192_000 else 32_000
    return -(-samples // step) * step


# ---------------------------------------------------------------------------------------------------- waveforms
def waveform(store: ClipStore, utterance: Utterance, settings: DataSettings, epoch: int) -> Waveform:
    """The training samples of an utterance, joined and augmented: float32 (num_samples,) at 16 kHz."""
    rng = generator_for(settings.seed, "utterance", epoch, utterance.key)
    clip_chances = {name: chance for name, chance in settings.augment.items() if name == "trim"}
    utterance_chances = {name: chance for name, chance in settings.augment.items() if name != "trim"}
    pieces: list[Waveform] = []
    for place, index in enumerate(utterance.clips):
        if place:
            pieces.append(_pause(rng))
        # Trimming a sentence would remove whole words, which its text would still contain.
        is_short = store.clips[index].duration_s < settings.join_below_s
        pieces.append(augment(rng, to_float32(store.samples(index)), clip_chances if is_short else {}))
    if len(utterance.clips) > 1:  # real recordings begin and end with a pause
        pieces = [_pause(rng), *pieces, _pause(rng)]
    return augment(rng, np.concatenate(pieces), utterance_chances)


def _pause(rng: np.random.Generator) -> Waveform:
    length = int(rng.uniform(*_PAUSE_S) * SAMPLE_RATE)
    return (rng.standard_normal(length) * _FLOOR).astype(np.float32)
