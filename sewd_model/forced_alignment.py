"""Forced alignment: the most probable frames of the tokens of a known text, by Viterbi over the CTC lattice.

The lattice of `n` tokens has `2n + 1` states: an optional blank, the first token, an optional blank, and so on. A frame
stays in its state or moves to the next; between two unequal tokens it may leave out the blank (Graves et al. 2006,
section 4.1, with the maximum in place of the sum).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sewd_model.ctc import GreedyPath


def least_frames(token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> int:
    """Return the fewest frames that a text takes: one for each token, and a blank between equal neighbours."""
    ids = np.asarray(token_ids, np.int64)
    return len(ids) + int(np.count_nonzero(ids[1:] == ids[:-1]))


def align(
    log_probabilities: NDArray[np.floating[Any]],
    token_ids: Sequence[int] | NDArray[np.integer[Any]],
    blank: int,
) -> GreedyPath:
    """Return the most probable path of a text: of all paths that collapse to it, that with the highest product.

    Time and memory are those of `T * (2n + 1)` float64; for recordings of hours see `pipeline.alignment`.

    Args:
        log_probabilities: `(T, V)` of one clip: log-softmax of the logits, or `Posteriors.log_probabilities`.
        token_ids: `(n,)`, the tokens of the text, with delimiters and without blanks; may be empty.
        blank: id of the blank.

    Returns:
        The tokens with their frames; probabilities as those of a greedy path.

    Raises:
        ValueError: the text does not fit into the frames (see `least_frames`), no path has a probability above 0, or a
            token is the blank or not in the vocabulary.
    """
    ids = np.asarray(token_ids, np.int64)
    num_frames, num_tokens = log_probabilities.shape
    if np.any((ids < 0) | (ids >= num_tokens) | (ids == blank)):
        msg = f"the tokens of a text are ids from 0 to {num_tokens - 1} other than that of the blank, {blank}"
        raise ValueError(msg)
    if least_frames(ids) > num_frames:
        msg = f"a text of {len(ids)} tokens takes at least {least_frames(ids)} frames, and there are {num_frames}"
        raise ValueError(msg)
    if not num_frames:
        return GreedyPath(ids, ids, ids, np.zeros(0, np.float32), 0)
    scores = _viterbi(log_probabilities, ids, blank)
    states = _best_states(scores, ids)  # (T,)
    # Every token has a state of its own, so the frames of each are one run.
    starts = np.searchsorted(states, 2 * np.arange(len(ids)) + 1)
    ends = np.searchsorted(states, 2 * np.arange(len(ids)) + 1, side="right")
    emitted = np.append(ids, blank)[np.where(states % 2, states // 2, -1)]
    sums = np.append(0.0, np.cumsum(log_probabilities[np.arange(num_frames), emitted], dtype=np.float64))
    probabilities = np.exp((sums[ends] - sums[starts]) / (ends - starts))
    return GreedyPath(ids, starts, ends, probabilities.astype(np.float32), num_frames)


def _viterbi(log_probabilities: NDArray[np.floating[Any]], ids: NDArray[np.int64], blank: int) -> NDArray[np.float64]:
    """`(T, 2n + 1)`: the log-probability of the best path over the first frames that ends in a state."""
    scores = np.empty((len(log_probabilities), 2 * len(ids) + 1))
    scores[:, ::2] = log_probabilities[:, blank, None]  # at first the frame's own
    scores[:, 1::2] = log_probabilities[:, ids]
    scores[0, 2:] = -np.inf
    best = np.empty(scores.shape[1])
    from_blank, from_token = best[1:], best[3::2]
    skip = np.where(ids[1:] == ids[:-1], -np.inf, 0.0)  # two states on, from a token to the next
    skipped = np.empty(len(skip))
    for before, row in itertools.pairwise(scores):
        best[0] = before[0]
        np.maximum(before[1:], before[:-1], out=from_blank)
        np.add(before[1:-2:2], skip, out=skipped)
        np.maximum(from_token, skipped, out=from_token)
        np.add(row, best, out=row)
    return scores


def _best_states(scores: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The states of the best path, `(T,)`: of equal paths, that which enters each state last."""
    num_frames, num_states = scores.shape
    state = num_states - 1
    if num_states > 1 and scores[-1, state - 1] > scores[-1, state]:
        state -= 1
    if scores[-1, state] == -np.inf:
        msg = "no path of the text has a probability above 0"
        raise ValueError(msg)
    can_skip = np.zeros(num_states, np.bool_)
    can_skip[3::2] = ids[1:] != ids[:-1]
    states = np.empty(num_frames, np.int64)
    states[-1] = state
    for frame in range(num_frames - 2, -1, -1):
        row = scores[frame]
        from_state, best = state, row[state]
        if state and row[state - 1] > best:
            from_state, best = state - 1, row[state - 1]
        if can_skip[state] and row[state - 2] > best:
            from_state = state - 2
        state = from_state
        states[frame] = state
    return states
