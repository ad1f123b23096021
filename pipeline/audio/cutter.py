"""Cut a signal of any length into pieces of bounded length, at pauses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pipeline.audio.samples import Samples, owned

_PAUSE_S = 0.020  # a cut is in the middle of the quietest stretch of this length
_MIN_REST_S = 1.0  # a cut leaves at least this much after it


class Cutter:
    """Collects blocks of a 1-D signal and cuts it into pieces of at most `max_segment_s`.

    A cut is made only once a longest piece and a shortest rest are collected, and it depends only on the second half of
    the longest piece. So the sizes of the blocks have no influence on the cuts.

    Args:
        rate: sample rate of the signal, Hz.
        max_segment_s: longest piece, seconds.
    """

    def __init__(self, rate: int, max_segment_s: float) -> None:
        self._longest = math.floor(round(max_segment_s * rate, 3))  # 0.57 * 16000 is 9119.999...
        self._shortest = self._longest // 2
        self._rest = min(round(_MIN_REST_S * rate), self._shortest)
        self._stretch = max(1, round(_PAUSE_S * rate))
        self._pending: list[Samples] = []
        self._num_pending = 0

    def push(self, block: Samples) -> Iterator[Samples]:
        """Append a block, (samples,), and yield the pieces that are complete by now; they own their samples."""
        self._pending.append(block)
        self._num_pending += len(block)
        while self._num_pending >= self._longest + self._rest:
            yield self._cut(self._longest)

    def finish(self) -> list[Samples]:
        """Return what is left: one piece or two; none where nothing is left."""
        pieces = []
        if self._num_pending > self._longest:
            pieces.append(self._cut(self._num_pending - self._rest))
        if self._num_pending:
            pieces.append(owned(self._pending[0]) if len(self._pending) == 1 else np.concatenate(self._pending))
        self._pending, self._num_pending = [], 0
        return pieces

    def _cut(self, latest: int) -> Samples:
        signal = np.concatenate(self._pending)
        window = signal[self._shortest : latest]
        stretches = window[: len(window) // self._stretch * self._stretch].reshape(-1, self._stretch)
        position = latest
        if len(stretches):
            wide = stretches.astype(np.int64 if signal.dtype == np.int16 else np.float64)
            quietest = int(np.argmin((wide * wide).sum(axis=1)))
            position = self._shortest + quietest * self._stretch + self._stretch // 2
        # Copies: a view would keep the whole buffer alive as long as the segment lives.
        self._pending, self._num_pending = [signal[position:].copy()], len(signal) - position
        return signal[:position].copy()
