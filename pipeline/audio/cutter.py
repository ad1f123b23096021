"""Cut a signal of any length into pieces of bounded length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from pipeline.audio.samples import Samples, owned

_MIN_REST_S = 1.0  # a cut leaves at least this much after it

Place = Callable[[Samples, int, int, int], int]
"""(signal, first, last, rate) -> where to cut: from `first` to `last`; what is behind `last` has no influence."""


class Cutter:
    """Collects blocks of a 1-D signal, and cuts it into pieces if it is longer than `max_segment_s`.

    Pieces are at most `max_segment_s / divisor` long and, but for the last, at least half of that. A cut is made only
    once a longest piece and a shortest rest are collected, and it depends only on the longest piece. So the sizes of
    the blocks have no influence on the cuts.

    Args:
        rate: sample rate of the signal, Hz.
        max_segment_s: a signal of up to this length is not cut, seconds.
        place: chooses the place of a cut in the second half of the longest piece.
        divisor: 1, or more for pieces that are shorter than the longest signal that is not cut.
    """

    def __init__(self, rate: int, max_segment_s: float, place: Place, divisor: int = 1) -> None:
        self._whole = math.floor(round(max_segment_s * rate, 3))  # 0.57 * 16000 is 9119.999...
        self._longest = self._whole // divisor
        self._shortest = self._longest // 2
        self._rest = min(round(_MIN_REST_S * rate), self._shortest)
        self._place, self._rate = place, rate
        self._is_cut = False
        self._pending: list[Samples] = []
        self._num_pending = 0

    def push(self, block: Samples) -> Iterator[Samples]:
        """Append a block, (samples,), and yield the pieces that are complete by now; they own their samples."""
        self._pending.append(block)
        self._num_pending += len(block)
        while self._num_pending > self._limit and self._num_pending >= self._longest + self._rest:
            yield self._cut(self._longest)

    def finish(self) -> list[Samples]:
        """Return what is left: one piece or two; none where nothing is left."""
        pieces = []
        if self._num_pending > self._limit:
            pieces.append(self._cut(self._num_pending - self._rest))
        if self._num_pending:
            pieces.append(owned(self._pending[0]) if len(self._pending) == 1 else np.concatenate(self._pending))
        self._pending, self._num_pending = [], 0
        return pieces

    @property
    def _limit(self) -> int:
        """What is longer than this is cut."""
        return self._longest if self._is_cut else self._whole

    def _cut(self, latest: int) -> Samples:
        signal = np.concatenate(self._pending)
        position = self._place(signal, self._shortest, latest, self._rate)
        self._is_cut = True
        # Copies: a view would keep the whole buffer alive as long as the segment lives.
        self._pending, self._num_pending = [signal[position:].copy()], len(signal) - position
        return signal[:position].copy()
