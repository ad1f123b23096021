"""Find the long pauses of a recording, which hold nothing for a model to recognise.

A pause is a stretch of at least `MIN_PAUSE_S` that is either

* digital silence: no signal at all, up to a constant; or
* room noise: quieter than the loud parts of the recording by `BELOW_LOUD_DB` or more, and *steady*: within any half
  second of it the level varies by at most `STEADY_DB`. What is `FLOOR_DB` below the loud parts counts as steady.

Loudness alone cannot tell: the noise of one room may be louder than a speaker who is far away. Speech is never steady:
its syllables, four or five a second, raise and lower the level by more than that, also in noise that is 3 dB below it.
So a quiet voice beside a loud one is kept, and what is not steady (music, other voices, breathing) is kept also where
it is quiet. A recording that is steady as a whole, a tone or nothing but noise, has no loud part to be compared with
and is kept as well. Only ratios of levels count: a recording and the same recording amplified have the same pauses.

Of each pause, `MARGIN_S` next to sound is kept, less where louder noise begins (`MIN_MARGIN_S`, at least): soft
consonants begin and end there, and models hear the beginning and end of an utterance better with silence around it.
`python -m benchmarks.pauses` measures the values.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.audio.samples import Samples, to_float64

MIN_PAUSE_S: Final = 4.0
MARGIN_S: Final = 1.5
MIN_MARGIN_S: Final = 0.4
BELOW_LOUD_DB: Final = 12.0
STEADY_DB: Final = 6.0
FLOOR_DB: Final = 60.0
_STEADY_TOKENS_DB = 3.0  # in `steady_noise`: white noise varies by 1.5 dB, and speech in noise of its level by more
_FRAME_S = 0.020  # levels are measured in frames of this length,
_SMOOTHED = 3  # averaged over this many: the level of rumbling noise varies from frame to frame
_WINDOW = 25  # frames within which noise is steady
_BREAK = 2 * _SMOOTHED + 1  # frames of sound end a pause
_EARLIER = (0, 50)  # frames before the last place where sound is needed, at which it is looked for
_FILTER_STARTS = 3  # frames in which the filter forgets all but 1e-11 of its state
_HIGHEST_FLOOR = 1e-4  # of the square of a peak: the filter amplifies a signal by less than 2.5, and its start by 2
_LOUD = 99.0  # percentile of the frames' levels that is the level of the loud parts: not that of a single click
_HIGH_PASS_HZ = 100.0  # rumble and hum below speech are loud and vary
_DIGITAL_SILENCE = 1e-14  # mean square of a frame: -140 dBFS, below the last bit of 24

LEVEL_S: Final = 0.010  # what a value of `levels` covers
_SILENT_DB: Final = -128  # level of digital silence

Spans = tuple[tuple[int, int], ...]


class PauseFinder:
    """Finds the pauses of a recording that comes piece by piece, in the order of time.

    What is loud is known from the pieces so far, and the piece itself: the result for a piece does not depend on what
    comes after it. Levels that are not known yet make fewer pauses, never more.

    Args:
        rate: sample rate of the signal, Hz.
    """

    def __init__(self, rate: int) -> None:
        self._frame = max(1, round(_FRAME_S * rate))
        self._rate = rate
        self._loud = 0.0  # mean square

    def spans(self, samples: Samples, *, alone: bool = False) -> Spans:
        """Return the (start, stop) of the spans between the pauses of the next piece, in samples.

        Args:
            samples: (samples,), int16 or float32.
            alone: whether it is the only piece. The result is the same; most pieces without a pause are recognised
                faster, but what is loud in them is not known later.

        Returns:
            The spans, in order, without overlap: `((0, len(samples)),)` without a pause, `()` if all of it is a pause.
        """
        count = len(samples) // self._frame  # the last frame is longer where the samples are no whole number of them
        if not count or (alone and not self._may_pause(samples, count)):
            return ((0, len(samples)),)
        powers = self._powers(samples, count)
        self._loud = max(self._loud, float(np.percentile(powers, _LOUD)))
        silent = self._is_silent(powers)
        for first, stop in runs(~silent):
            silent[first:stop] = self._is_step(powers, first, stop)
        pauses = [(first, stop) for first, stop in runs(silent) if stop - first >= _frames(MIN_PAUSE_S)]
        edges = [0]
        for first, stop in pauses:
            edges.append(first + self._margin(powers[first:stop]) if first else 0)
            edges.append(stop - self._margin(powers[first:stop][::-1]) if stop < count else count)
        edges.append(count)
        spans = [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]
        return tuple(
            (start * self._frame, len(samples) if stop == count else stop * self._frame) for start, stop in spans
        )

    def _may_pause(self, samples: Samples, count: int) -> bool:
        """Whether there may be a pause: False if there is sound at places less than `MIN_PAUSE_S` apart."""
        shortest = _frames(MIN_PAUSE_S)
        peak = float(np.abs(to_float64(np.array([samples.min(), samples.max()]))).max())
        searched = 0
        while count - searched >= shortest:
            latest = min(searched + shortest - 1, count - _WINDOW)
            places = (latest - earlier for earlier in _EARLIER)
            place = next((place for place in places if self._is_sound(samples, count, place, peak)), None)
            if place is None:
                return True
            searched = place + _BREAK
        return False

    def _is_sound(self, samples: Samples, count: int, place: int, peak: float) -> bool:
        """Whether none of `_BREAK` frames is digital silence, or in a window of steady noise, however loud.

        Only the frames around the place are filtered. What was before them is unknown to the filter, and how loud the
        piece is remains unknown. Both are allowed for: the floor is one for the loudest piece, and above a higher floor
        more noise is steady.
        """
        around = _WINDOW + _SMOOTHED - 2
        first, stop = place - around, min(place + _BREAK + around, count)
        start = max(0, first - _FILTER_STARTS)
        part = samples[start * self._frame : stop * self._frame if stop < count else len(samples)]
        powers = self._powers(part, stop - start)[first - start :]
        quietest, loudest = _extremes(powers, max(_HIGHEST_FLOOR * peak**2, _DIGITAL_SILENCE))
        is_steady = loudest <= quietest * 10 ** (STEADY_DB / 10) * 1.0001
        is_digital = powers[around : around + _BREAK] < 10 * _DIGITAL_SILENCE * max(1.0, peak**2)
        return not (is_steady.any() or is_digital.any())

    def _margin(self, powers: np.ndarray) -> int:
        """Frames of a pause to keep, whose powers are given from the sound on: up to louder noise."""
        least = _frames(MIN_MARGIN_S)
        limit = max(powers[:least].max(), self._loud * 10 ** (-FLOOR_DB / 10)) * 10 ** (STEADY_DB / 10)
        louder = np.flatnonzero(powers[least : _frames(MARGIN_S)] > limit)
        return least + int(louder[0]) if len(louder) else _frames(MARGIN_S)

    def _powers(self, samples: Samples, count: int) -> np.ndarray:
        """The mean square of each frame, (count,), without rumble."""
        wide = _without_rumble(to_float64(samples), self._rate)
        starts = np.arange(count) * self._frame
        wide *= wide
        powers: np.ndarray = np.add.reduceat(wide, starts) / np.diff(np.append(starts, len(wide)))
        return powers

    def _is_silent(self, powers: np.ndarray) -> np.ndarray:
        """Whether each frame belongs to digital silence or to quiet, steady noise, (frames,)."""
        digital = powers < _DIGITAL_SILENCE
        if len(powers) < _WINDOW + _SMOOTHED - 1:
            return digital
        quietest, loudest = _extremes(powers, max(self._loud * 10 ** (-FLOOR_DB / 10), _DIGITAL_SILENCE))
        steady = loudest <= quietest * 10 ** (STEADY_DB / 10)
        quiet = loudest <= self._loud * 10 ** (-BELOW_LOUD_DB / 10)
        silent: np.ndarray = digital | _covered(steady & quiet, _WINDOW + _SMOOTHED - 1)
        return silent

    def _is_step(self, powers: np.ndarray, first: int, stop: int) -> bool:
        """Whether frames that are not silent by themselves only lead from one noise to another, or out of the piece.

        The level of noise changes where microphones and recordings do, and no steady window covers that place. The same
        is true of less than a window of noise that a cut has left at an end of the piece.
        """
        if first and stop < len(powers):
            if stop - first >= _BREAK:
                return False
            limit = max(powers[max(0, first - _WINDOW) : first].max(), powers[stop : stop + _WINDOW].max())
        else:
            if stop - first >= _WINDOW or len(powers) == stop - first:
                return False
            inner = powers[first + 2 * _SMOOTHED : stop] if first else powers[first : max(0, stop - 2 * _SMOOTHED)]
            limit = self._loud * 10 ** (-BELOW_LOUD_DB / 10)
            if len(inner) and inner.max() > inner.min() * 10 ** (STEADY_DB / 10):
                return False
        return bool(powers[first:stop].max() <= limit)


def _extremes(powers: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest smoothed power in each window of frames, not below `floor`."""
    smooth = sliding_window_view(powers, _SMOOTHED).mean(axis=1)
    windows = sliding_window_view(np.maximum(smooth, floor), _WINDOW)
    return windows.min(axis=1), windows.max(axis=1)


def _without_rumble(signal: np.ndarray, rate: int) -> np.ndarray:
    from scipy import signal as filters  # noqa: PLC0415 - takes almost a second; readers of runs do not need it

    sections, start = _high_pass(rate)
    # From this state on, a constant gives zeros from the first sample.
    filtered: np.ndarray = filters.sosfilt(sections, signal, zi=start * signal[0])[0]
    return filtered


@functools.cache
def _high_pass(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The filter, and its state after a constant of 1. The design takes as long as filtering five seconds."""
    from scipy import signal as filters  # noqa: PLC0415 - see above

    sections = filters.butter(2, min(_HIGH_PASS_HZ, rate / 4), "highpass", fs=rate, output="sos")
    return sections, filters.sosfilt_zi(sections)


def levels(samples: Samples, rate: int) -> np.ndarray:
    """Return the level of each `LEVEL_S` of a signal, in dBFS, as int8; -128 is silence, and the last may be shorter.

    Args:
        samples: (samples,), int16 or float32.
        rate: sample rate, Hz.
    """
    size = max(1, round(LEVEL_S * rate))
    wide = to_float64(samples)
    starts = np.arange(0, len(wide), size)
    lengths = np.diff(np.append(starts, len(wide)))
    means = np.add.reduceat(wide, starts) / lengths
    wide *= wide
    powers = np.add.reduceat(wide, starts) / lengths - means * means  # a constant is no sound
    decibels = 10 * np.log10(np.maximum(powers, _DIGITAL_SILENCE))
    return np.where(powers < _DIGITAL_SILENCE, _SILENT_DB, np.clip(np.rint(decibels), _SILENT_DB, 127)).astype(np.int8)


def steady_noise(levels: np.ndarray) -> np.ndarray:
    """Return whether half a second around each level holds nothing but noise, steady and far below speech.

    So what is marked lies a quarter of a second or more from any sound. Pauses of any length are found, from half a
    second on; nothing is marked in a signal that is steady as a whole. Noise must be steadier than in the long pauses
    that are not computed, since speech may be as quiet as the noise around it.

    Args:
        levels: (n,) of a signal, see `levels`.

    Returns:
        (n,) bool.
    """
    window = round(_WINDOW * _FRAME_S / LEVEL_S)
    smoothed = round(_SMOOTHED * _FRAME_S / LEVEL_S)
    noise = np.zeros(len(levels), bool)
    if len(levels) < window + smoothed - 1:
        return noise
    powers = 10.0 ** (levels / 10)
    loud = float(np.percentile(powers, _LOUD))
    smooth = sliding_window_view(powers, smoothed).mean(axis=1)
    windows = sliding_window_view(np.maximum(smooth, loud * 10 ** (-FLOOR_DB / 10)), window)
    quietest, loudest = windows.min(axis=1), windows.max(axis=1)
    steady = (loudest <= quietest * 10 ** (_STEADY_TOKENS_DB / 10)) & (loudest <= loud * 10 ** (-BELOW_LOUD_DB / 10))
    middle = (window + smoothed - 1) // 2
    noise[middle : middle + len(steady)] = steady
    return noise


def _covered(windows: np.ndarray, width: int) -> np.ndarray:
    """Whether each of (windows + width - 1) frames is in a window, of `width` frames, that is set."""
    padded = np.pad(windows, width - 1)
    return np.asarray(sliding_window_view(padded, width).any(axis=1))


def runs(values: np.ndarray) -> list[tuple[int, int]]:
    """The (start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], values.astype(np.int8), [0]))))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _frames(seconds: float) -> int:
    return round(seconds / _FRAME_S)
