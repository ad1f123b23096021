"""Ends of words by the level of the sound."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.stages.word_ends import sound_ends
from sewd_model import Word

QUIET = -90


def ends(
    words: list[tuple[float, float]], sound: list[tuple[float, float, int]], background: int = QUIET
) -> list[float]:
    """Ends of words (start, end) over sounds (start, end, dB), in two seconds."""
    levels = np.full(200, background, np.int8)
    for start, stop, level in sound:
        levels[round(start * 100) : round(stop * 100)] = level
    return sound_ends([Word("w", start, end, 1.0) for start, end in words], levels)


@pytest.mark.parametrize("background", [-128, QUIET, -50, -35])
@pytest.mark.parametrize("last", [0.0, 0.05, 0.2, 0.3])
def test_a_word_ends_with_its_sound_in_silence_and_in_noise(background, last):
    assert ends([(0.5, 0.8)], [(0.4, 0.8 + last, -20)], background) == [pytest.approx(0.8 + last)]


def test_a_word_is_never_shortened_or_extended_into_the_next_or_by_more_than_the_most():
    assert ends([(0.5, 0.8)], [(0.5, 0.6, -20)]) == [0.8]
    first, second = ends([(0.5, 0.8), (0.9, 1.0)], [(0.5, 1.9, -20)])
    assert first <= 0.9
    assert second == pytest.approx(1.0)  # the sound is the same up to the limit: nothing says that it ends
    assert ends([(0.5, 0.8)], [(0.5, 1.15, -20), (1.15, 1.9, -60)]) == [pytest.approx(1.15)]


def test_the_closure_of_a_stop_belongs_to_the_word_and_a_later_sound_does_not():
    assert ends([(0.5, 0.8)], [(0.5, 0.85, -20), (0.93, 0.97, -35)]) == [pytest.approx(0.97)]
    assert ends([(0.5, 0.8)], [(0.5, 0.85, -20), (1.0, 1.1, -20)]) == [pytest.approx(0.85)]


def test_words_at_the_end_and_no_words():
    assert ends([], []) == []
    assert ends([(1.9, 2.0)], [(1.5, 2.0, -20)]) == [2.0]
    assert ends([(1.9, 2.04)], [(1.5, 2.0, -20)]) == [2.04]
