"""Starts and ends of words by the level of the sound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages.word_ends import DELAY_S, EARLIEST_S, sound_ends, sound_starts
from sewd_model import Word

QUIET = -90


def ends(
    words: list[tuple[float, float]], sound: list[tuple[float, float, int]], background: int = QUIET, times=sound_ends
) -> list[float]:
    """Ends of words (start, end) over sounds (start, end, dB), in two seconds."""
    levels = np.full(200, background, np.int8)
    for start, stop, level in sound:
        levels[round(start * 100) : round(stop * 100)] = level
    return times([Word("w", start, end, 1.0) for start, end in words], levels)


def starts(words, sound, background=QUIET):
    return ends(words, sound, background, times=sound_starts)


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


@pytest.mark.parametrize("background", [-128, QUIET, -50, -35])
@pytest.mark.parametrize("before", [0.0, 0.05, 0.15, 0.22])
def test_a_word_begins_with_its_sound_in_silence_and_in_noise(background, before):
    found = starts([(0.5, 0.8)], [(0.5 - before, 0.9, -20)], background)
    assert found == [pytest.approx(0.5 - before)]


def test_a_word_that_follows_without_a_pause_begins_a_little_before_its_first_token():
    first, second = starts([(0.5, 0.8), (1.2, 1.4)], [(0.5, 1.9, -20)])
    assert (first, second) == (pytest.approx(0.5), pytest.approx(1.2 - DELAY_S))
    assert starts([(0.5, 0.8), (0.83, 1.0)], [(0.5, 1.9, -20)])[1] == pytest.approx(0.8)  # the word before it is there
    assert starts([(1.0, 1.2)], [(0.1, 1.9, -20)]) == [pytest.approx(1.0 - DELAY_S)]


def test_a_sound_before_a_pause_belongs_to_the_word_before_it():
    (_, second) = starts([(0.5, 0.6), (1.0, 1.2)], [(0.5, 0.7, -20), (0.95, 1.4, -20)])
    assert second == pytest.approx(0.95)
    assert starts([(1.0, 1.2)], [(0.78, 0.82, -30), (0.95, 1.4, -20)]) == [pytest.approx(0.95)]
    assert starts([(1.0, 1.2)], [(0.88, 0.9, -30), (0.95, 1.4, -20)]) == [pytest.approx(0.88)]  # a stop and its closure


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 15)), max_size=8),
    st.lists(st.integers(-100, 0), min_size=200, max_size=200),
)
def test_times_are_in_order_and_hold_the_tokens(gaps, levels):
    words, now = [], 0
    for gap, length in gaps:
        words.append(Word("w", 0.02 * (now + gap), 0.02 * (now + gap + length), 1.0))
        now += gap + length
    levels = np.array(levels, np.int8)
    begun = sound_starts(words, levels)
    moved = [replace(word, start_s=start) for word, start in zip(words, begun, strict=True)]
    ended = sound_ends(moved, levels)
    for index, word in enumerate(words):
        assert word.start_s - EARLIEST_S - 0.01 <= begun[index] <= word.start_s
        assert ended[index] >= word.end_s
        assert index == 0 or begun[index] >= words[index - 1].end_s - 0.011
        assert index == 0 or begun[index] >= ended[index - 1] - 0.011


def test_no_words_and_words_at_the_beginning():
    assert starts([], []) == []
    assert starts([(0.0, 0.2)], [(0.0, 1.0, -20)]) == [0.0]
    assert starts([(0.02, 0.2)], [(0.0, 1.0, -20)]) == [pytest.approx(0.0)]
