"""Word errors under a time constraint: only words that were spoken at about the same time can match.

The time-constrained word error rate (tcWER) of meeteval (von Neumann et al. 2023, MeetEval) for one speaker or channel:
the fewest substitutions, deletions and insertions, where a word of the reference is aligned with a word of the
transcript only if their times overlap. Each word of the transcript is the middle of its time, extended by a collar on
both sides; a segment of the reference is divided among its words by their numbers of characters.

Words that are far apart in time can never match, so a row of the table of alignments has the words of a few seconds
only: the memory grows with the length of the texts, and the time with that length and the words per collar.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.scoring.counts import ErrorCounts

DEFAULT_COLLAR_S: Final = 5.0
"""As in meeteval's examples and in the CHiME challenges."""

_ERROR: Final = 1 << 32  # a cost is errors * 2^32 - hits: of the alignments with the fewest errors, that with most hits

Floats = npt.NDArray[np.float64]


class TimedWord(NamedTuple):
    """A normalised word and when it was spoken, in seconds."""

    word: str
    start_s: float
    end_s: float


def spread(words: Sequence[str], start_s: float, end_s: float) -> list[TimedWord]:
    """Divide a time among the words that were spoken in it, by their numbers of characters."""
    ends = np.cumsum([0, *map(len, words)], dtype=np.float64)
    times = start_s + (end_s - start_s) * ends / (ends[-1] or 1)
    return [TimedWord(word, *times[index : index + 2].tolist()) for index, word in enumerate(words)]


def time_constrained_counts(
    reference: Iterable[TimedWord], hypothesis: Iterable[TimedWord], collar_s: float = DEFAULT_COLLAR_S
) -> ErrorCounts:
    """Counts of the time-constrained alignment with the fewest errors.

    Both texts are in the order given, which should be that of time. The total is meeteval's. Of several alignments with
    as few errors the one with the most hits is counted.
    """
    ref, hyp = list(reference), list(hypothesis)
    numbers = {word: number for number, word in enumerate({timed.word for timed in (*ref, *hyp)})}
    ref_words, hyp_words = (np.array([numbers[timed.word] for timed in words], np.int64) for words in (ref, hyp))
    middles = np.array([(timed.start_s + timed.end_s) / 2 for timed in hyp], np.float64)
    ref_times = np.array([timed[1:] for timed in ref], np.float64).reshape(-1, 2)
    cost = _cost(ref_words, ref_times, hyp_words, np.stack([middles - collar_s, middles + collar_s], axis=1))
    hits = -cost % _ERROR
    errors = (cost + hits) // _ERROR
    substitutions = len(ref) + len(hyp) - 2 * hits - errors
    return ErrorCounts(hits, substitutions, len(ref) - hits - substitutions, len(hyp) - hits - substitutions)


def _cost(ref: npt.NDArray[np.int64], ref_times: Floats, hyp: npt.NDArray[np.int64], hyp_times: Floats) -> int:
    """The lowest cost of an alignment.

    `row[j]` is the cost of the reference words so far and the first `j` words of the hypothesis. A row is computed
    from `low` to `high`: words before `low` overlap with no further word of the reference, and words from `high` on
    with none so far. Left of the range one more word of the reference is one more deletion, right of it one more word
    of the hypothesis one more insertion.
    """
    latest_hyp_end = np.maximum.accumulate(hyp_times[:, 1])
    earliest_hyp_start = np.minimum.accumulate(hyp_times[::-1, 0])[::-1]
    earliest_ref_start = np.minimum.accumulate(ref_times[::-1, 0])[::-1]
    latest_ref_end = np.maximum.accumulate(ref_times[:, 1])
    lows = np.searchsorted(latest_hyp_end, earliest_ref_start, "right").tolist()
    highs = np.searchsorted(earliest_hyp_start, latest_ref_end, "left").tolist()
    row = np.arange(len(hyp) + 1, dtype=np.int64) * _ERROR
    steps = row.copy()
    filled = 0  # cells up to here are of the previous row; those right of it follow by insertions
    for number, low in enumerate(lows):
        high = max(highs[number], low)
        if high > filled:
            row[filled + 1 : high + 1] = row[filled] + steps[1 : high - filled + 1]
            filled = high
        diagonal = row[low:high]
        overlap = (hyp_times[low:high, 0] < ref_times[number, 1]) & (hyp_times[low:high, 1] > ref_times[number, 0])
        step = np.where(hyp[low:high] == ref[number], -1, _ERROR)
        best = row[low : high + 1] + _ERROR
        best[1:] = np.where(overlap, np.minimum(best[1:], diagonal + step), best[1:])
        offsets = steps[: high - low + 1]
        row[low : high + 1] = np.minimum.accumulate(best - offsets) + offsets
    return int(row[filled] + steps[len(hyp) - filled])
