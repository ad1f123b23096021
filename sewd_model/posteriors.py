"""What a CTC head says of each frame, in a few bytes: the most probable tokens and their quantised log-probabilities.

A trained CTC model is certain of most frames: a blank, or one token. So a frame keeps only the tokens that are not
improbable, and a frame that is surely blank keeps none. Parquet stores the runs of zeros that follow in almost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS: Final = 8  # of a frame
LARGEST_VOCABULARY: Final = 1 << 16  # tokens whose ids fit
LARGEST_COST: Final = 8.0  # nats: a token with less than exp(-8) of the probability is not kept
SURE_BLANK: Final = 0.001  # nats: a frame whose blank costs less, with no other token to keep, keeps none
_LEVELS: Final = 255


@dataclass(frozen=True, eq=False)
class Posteriors:
    """The kept tokens of each frame of a clip. The cost of a token is minus the logarithm of its probability, in nats.

    Attributes:
        counts: `(T,)` uint8, the tokens that a frame keeps; 0: it is surely blank.
        tokens: `(sum(counts),)` uint16, the kept tokens of each frame, frames end to end, the best of a frame first.
        costs: of the same shape, uint8: `LARGEST_COST * (cost / 255) ** 2` nats, finer where tokens are probable.
    """

    counts: NDArray[np.uint8]
    tokens: NDArray[np.uint16]
    costs: NDArray[np.uint8]

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.counts)

    def best(self, blank: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best token of each frame, exactly that of the head, and its log-probability: `(T,)` each."""
        tokens = np.full(self.num_frames, blank, np.int64)
        log_probabilities = np.zeros(self.num_frames, np.float32)
        some = self.counts > 0
        firsts = (np.cumsum(self.counts, dtype=np.int64) - self.counts)[some]
        tokens[some] = self.tokens[firsts]
        log_probabilities[some] = -_cost(self.costs[firsts])
        return tokens, log_probabilities

    def log_probabilities(
        self, num_tokens: int, blank: int, columns: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Return `(T, num_tokens)` log-probabilities; what a frame did not keep shares what is left, or little.

        A frame is not normalised: the kept tokens have the values that were kept. The best token of a frame is the best
        here, too, where the value of another was rounded to its own.

        Args:
            num_tokens: V.
            blank: id of the blank.
            columns: different tokens; return these columns only, in this order.
        """
        frames = np.repeat(np.arange(self.num_frames), self.counts)
        kept = -_cost(self.costs)
        is_first = np.zeros(len(kept), bool)
        is_first[(np.cumsum(self.counts, dtype=np.int64) - self.counts)[self.counts > 0]] = True
        kept -= np.where(is_first, np.float32(0), np.float32(_TIE))
        mass = np.bincount(frames, np.exp(kept, dtype=np.float64), self.num_frames)
        others = np.maximum(num_tokens - self.counts.astype(np.int64), 1)
        with np.errstate(divide="ignore"):
            left = np.log(np.clip(1.0 - mass, 0.0, None) / others)
        floor = np.clip(left, -LARGEST_COST - _BELOW, -LARGEST_COST)
        floor[self.counts == 0] = -LARGEST_COST - _BELOW
        chosen = np.arange(num_tokens) if columns is None else np.asarray(columns, np.int64)
        column_of = np.full(num_tokens, -1, np.int64)
        column_of[chosen] = np.arange(len(chosen))
        dense = np.repeat(floor.astype(np.float32)[:, None], len(chosen), axis=1)
        if column_of[blank] >= 0:
            dense[self.counts == 0, column_of[blank]] = 0.0
        wanted = column_of[self.tokens] >= 0
        dense[frames[wanted], column_of[self.tokens[wanted]]] = kept[wanted]
        return dense


_TIE: Final = 1e-5  # nats: no more than what is lost in float32
_BELOW: Final = 3.0  # nats: a token that was not kept costs at most this much more than the largest cost


def keep(logits: NDArray[np.floating[Any]], blank: int) -> Posteriors:
    """Keep the probable tokens of each frame.

    Args:
        logits: `(T, V)` of one clip, finite, V at most `LARGEST_VOCABULARY`; log-probabilities are logits, too.
        blank: id of the blank.

    Returns:
        At least the best token of each frame that is not surely blank: the lowest id of equal ones, as `greedy_path`.
    """
    scores = np.asarray(logits, np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :MOST_TOKENS]  # (T, k)
    best = np.take_along_axis(scores, order, axis=1)
    with np.errstate(under="ignore"):
        total = np.log(np.exp(scores - best[:, :1]).sum(axis=1, keepdims=True))
    return keep_best(order, best - best[:, :1] - total, blank)


def keep_best(tokens: NDArray[np.integer[Any]], log_probabilities: NDArray[np.floating[Any]], blank: int) -> Posteriors:
    """Keep the probable of the best tokens of each frame.

    Args:
        tokens: `(T, k)`, the best first.
        log_probabilities: `(T, k)`, in descending order.
        blank: id of the blank.
    """
    costs = np.maximum(-np.asarray(log_probabilities, np.float32), 0.0)
    is_kept = costs < LARGEST_COST
    is_kept[:, :1] = True
    sure = (is_kept.sum(axis=1) == 1) & (tokens[:, 0] == blank) & (costs[:, 0] < SURE_BLANK)
    is_kept[sure] = False
    with np.errstate(invalid="ignore"):  # a clip with a logit that is not finite has no result
        levels = np.rint(np.sqrt(np.minimum(costs[is_kept], LARGEST_COST) / LARGEST_COST) * _LEVELS).astype(np.uint8)
    return Posteriors(is_kept.sum(axis=1).astype(np.uint8), tokens[is_kept].astype(np.uint16), levels)


def split(posteriors: Posteriors, num_frames: Sequence[int] | NDArray[np.integer[Any]]) -> list[Posteriors]:
    """Return the posteriors of each of several clips that lie end to end, from the number of frames of each."""
    ends = np.cumsum(num_frames, dtype=np.int64)
    before = np.concatenate(([0], np.cumsum(posteriors.counts, dtype=np.int64)))  # tokens before each frame
    starts = ends - np.asarray(num_frames, np.int64)
    edges = zip(starts.tolist(), ends.tolist(), before[starts].tolist(), before[ends].tolist(), strict=True)
    return [
        Posteriors(posteriors.counts[start:end], posteriors.tokens[first:last], posteriors.costs[first:last])
        for start, end, first, last in edges
    ]


def join(pieces: Sequence[Posteriors], first_frames: Sequence[int], num_frames: int) -> Posteriors:
    """Return the posteriors of a clip from those of its pieces; frames of none are surely blank.

    Args:
        pieces: in order, without overlap.
        first_frames: the frame of the clip that each begins with.
        num_frames: frames of the clip, at least up to the end of the last piece.
    """
    counts = np.zeros(num_frames, np.uint8)
    for piece, first in zip(pieces, first_frames, strict=True):
        counts[first : first + piece.num_frames] = piece.counts
    columns = [(piece.tokens, piece.costs) for piece in pieces]
    tokens = np.concatenate([np.zeros(0, np.uint16), *(tokens for tokens, _ in columns)])
    return Posteriors(counts, tokens, np.concatenate([np.zeros(0, np.uint8), *(costs for _, costs in columns)]))


def _cost(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    shares = levels.astype(np.float32) / np.float32(_LEVELS)
    return np.multiply(shares * shares, np.float32(LARGEST_COST), dtype=np.float32)
