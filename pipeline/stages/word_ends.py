"""Where words end: the end of their sound.

CTC models emit a token once they are certain of it, and blanks until the next: the last token of a word ends long
before its sound does, the earlier the longer its last sound is. So a word is extended into the blanks behind it for as
long as the sound lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pipeline.audio.silence import LEVEL_S
from sewd_model import Word

LONGEST_S: Final = 0.4  # a word is extended by at most this much
BELOW_WORD_DB: Final = 35  # sound that is this much quieter than the word is no part of it,
ABOVE_QUIET_DB: Final = 6  # nor is what is hardly louder than the quietest place behind the word
CLOSURE_S: Final = 0.1  # the closure of a stop consonant: quiet within the word


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
    behind = levels[end:limit]
    within = levels[first:end]
    if not behind or not within:
        return word.end_s
    threshold = max(max(within) - BELOW_WORD_DB, min(behind) + ABOVE_QUIET_DB)
    sounds = 0  # how many levels behind the word its sound lasts
    for index, level in enumerate(behind):
        if level > threshold:
            if (index - sounds) * LEVEL_S > CLOSURE_S:
                break
            sounds = index + 1
    return max(word.end_s, (end + sounds) * LEVEL_S) if sounds else word.end_s
