"""Where words begin and end: where their sound does.

CTC models emit a token once they are certain of it, and blanks until the next. The first token of a word begins about
60 ms after its sound, later still after a fricative, and the last one ends long before the sound does, the earlier the
longer it is. So a word is extended into the blanks around it for as far as the sound reaches. Where words follow each
other without a pause, no level shows the border: it is `DELAY_S` before the first token.

The frames themselves are not the reason: frame i is computed from samples 320 i to 320 i + 400, so the time at which it
begins, 20 ms times i, is that of the sound in its middle less 12.5 ms.

Errors are measured by `python -m benchmarks.word_times`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pipeline.audio.silence import LEVEL_S
from sewd_model import Word

EARLIEST_S: Final = 0.25  # a word begins at most this much before its first token
DELAY_S: Final = 0.06  # of the first token of a word after the beginning of its sound: median, see above
LONGEST_S: Final = 0.4  # a word is extended by at most this much
BELOW_WORD_DB: Final = 35  # sound that is this much quieter than the word is no part of it,
ABOVE_QUIET_DB: Final = 6  # nor is what is hardly louder than the quietest place beside the word
CLOSURE_S: Final = 0.1  # the closure of a stop consonant: quiet within the word


def sound_starts(words: Sequence[Word], levels: np.ndarray) -> list[float]:
    """Return the start of each word, in seconds: its first token or earlier, at or after the end of the word before it.

    Args:
        words: of one utterance, in order, with the times of their tokens.
        levels: (n,) of the utterance, see `pipeline.audio.silence.levels`.
    """
    decibels = levels.tolist()
    ends = [0.0, *(word.end_s for word in words)]
    return [_sound_start(word, before_s, decibels) for word, before_s in zip(words, ends, strict=False)]


def _sound_start(word: Word, before_s: float, levels: list[int]) -> float:
    first, end = round(word.start_s / LEVEL_S), round(word.end_s / LEVEL_S)
    limit = round(max(before_s, word.start_s - EARLIEST_S) / LEVEL_S)
    before, within = levels[limit:first][::-1], levels[first:end]
    if not before or not within:
        return word.start_s
    sounds = _sound(before, within)
    if sounds >= len(before) - 1 or min(before) >= max(within) - ABOVE_QUIET_DB:  # no pause: the word before it sounds
        return min(word.start_s, max(before_s, word.start_s - DELAY_S))
    return min(word.start_s, (first - sounds) * LEVEL_S) if sounds else word.start_s


def sound_ends(words: Sequence[Word], levels: np.ndarray) -> list[float]:
    """Return the end of each word, in seconds: that of its last token or later, at most the start of the next word.

    Args:
        words: of one utterance, in order, with the ends of their last tokens.
        levels: (n,) of the utterance, see `pipeline.audio.silence.levels`.
    """
    if not words:
        return []
    decibels = levels.tolist()  # words are short: lists of a few numbers are faster than arrays
    starts = [*(word.start_s for word in words[1:]), len(decibels) * LEVEL_S]
    return [_sound_end(word, next_start_s, decibels) for word, next_start_s in zip(words, starts, strict=True)]


def _sound_end(word: Word, next_start_s: float, levels: list[int]) -> float:
    first, end = round(word.start_s / LEVEL_S), round(word.end_s / LEVEL_S)
    limit = round(min(next_start_s, word.end_s + LONGEST_S) / LEVEL_S)
    sounds = _sound(levels[end:limit], levels[first:end])
    return max(word.end_s, (end + sounds) * LEVEL_S) if sounds else word.end_s


def _sound(beside: list[int], within: list[int]) -> int:
    """How many levels beside a word its sound lasts; the first of them is next to it."""
    if not beside or not within:
        return 0
    threshold = max(max(within) - BELOW_WORD_DB, min(beside) + ABOVE_QUIET_DB)
    sounds = 0
    for index, level in enumerate(beside):
        if level > threshold:
            if (index - sounds) * LEVEL_S > CLOSURE_S:
                break
            sounds = index + 1
    return sounds
