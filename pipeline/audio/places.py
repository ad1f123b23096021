"""Where a recording is cut: places at which, by the levels of the signal, nobody speaks."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.audio.samples import Samples
from pipeline.audio.silence import FLOOR_DB, LEVEL_S, levels, runs

_SMOOTHED: Final = 5  # levels averaged: within a word, closures and weak sounds are shorter
_QUIET, _LOUD = 5.0, 95.0  # percentiles of the levels that are the level of pauses and that of speech
_SHARE: Final = 0.3  # of the range between the two, from below, that is a pause
_STRETCH_S: Final = 0.020


def longest_pause(signal: Samples, first: int, last: int, rate: int) -> int:
    """Return the middle of the longest quiet stretch between two positions of a signal.

    A pause between sentences is longer than one between words, and no word is cut. Quiet is what is nearer to the
    level of pauses than to that of speech, in the window itself: the noise, or music, of this recording.

    Args:
        signal: (samples,), int16 or float32.
        first: first position to consider.
        last: last position.
        rate: sample rate, Hz.
    """
    size = round(LEVEL_S * rate)
    decibels = levels(signal[first : first + (last - first) // size * size], rate)
    if len(decibels) < _SMOOTHED:
        return (first + last) // 2
    smooth = 10 * np.log10(sliding_window_view(10.0 ** (decibels / 10), _SMOOTHED).mean(axis=1))
    loud = np.percentile(smooth, _LOUD)
    quiet = max(np.percentile(smooth, _QUIET), loud - FLOOR_DB)
    start, stop = max(runs(smooth <= quiet + _SHARE * (loud - quiet)), key=lambda run: run[1] - run[0])
    return first + (start + stop + _SMOOTHED - 1) * size // 2


def quietest_20ms(signal: Samples, first: int, last: int, rate: int) -> int:
    """Return the middle of the quietest 20 ms between two positions: how versions up to 0.1.0 cut.

    Args:
        signal: (samples,), int16 or float32.
        first: first position to consider.
        last: last position.
        rate: sample rate, Hz.
    """
    size = max(1, round(_STRETCH_S * rate))
    window = signal[first:last]
    stretches = window[: len(window) // size * size].reshape(-1, size)
    if not len(stretches):
        return last
    wide = stretches.astype(np.int64 if signal.dtype == np.int16 else np.float64)
    return first + int(np.argmin((wide * wide).sum(axis=1))) * size + size // 2
