"""Kept posteriors: the greedy path is that of the logits, and values are as close as their quantisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sewd_model import greedy_path
from sewd_model.ctc import greedy_paths
from sewd_model.posteriors import LARGEST_COST, MOST_TOKENS, Posteriors, join, keep, keep_best

BLANK = 0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def random_logits(seed: int, frames: int, tokens: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((frames, tokens)) * scale).astype(np.float32)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 30),
    st.integers(1, 40),
    st.floats(0, 30),
    st.integers(0, 39),
    st.booleans(),
)
def test_greedy_path_is_that_of_the_logits(
    seed: int, frames: int, tokens: int, scale: float, blank: int, ties: bool
) -> None:
    blank %= tokens
    logits = random_logits(seed, frames, tokens, scale)
    if ties:
        logits = np.rint(logits)
    kept = keep(log_softmax(logits) if frames else logits, blank)
    best, log_probabilities = kept.best(blank)
    (path,) = greedy_paths(best, log_probabilities, [frames], blank)
    expected = greedy_path(logits, blank)
    assert path.token_ids.tolist() == expected.token_ids.tolist()
    assert path.start_frames.tolist() == expected.start_frames.tolist()
    assert path.end_frames.tolist() == expected.end_frames.tolist()
    assert path.probabilities == pytest.approx(expected.probabilities, abs=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 40), st.floats(0, 30))
def test_dense_values_are_those_that_were_kept(seed: int, frames: int, tokens: int, scale: float) -> None:
    full = log_softmax(random_logits(seed, frames, tokens, scale))
    dense = keep(full, BLANK).log_probabilities(tokens, BLANK)
    assert dense.shape == full.shape
    ranks = np.argsort(np.argsort(-full, axis=1, kind="stable"), axis=1)
    is_kept = (ranks < MOST_TOKENS) & (full > -LARGEST_COST)
    # One step of the quantisation is 2 * sqrt(cost * LARGEST_COST) / 255 nats wide at most; half of it is the error.
    assert np.abs(dense - full)[is_kept].max(initial=0.0) <= LARGEST_COST / 255 + 1e-4
    assert (dense[~is_kept & (ranks > 0)] <= -LARGEST_COST).all()
    columns = np.random.default_rng(seed).permutation(tokens)[: 1 + tokens // 2]
    some = keep(full, BLANK).log_probabilities(tokens, BLANK, columns.tolist())
    assert some.tolist() == dense[:, columns].tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 3))
def test_the_best_dense_value_is_that_of_the_best_token(seed: int, frames: int, tokens: int, scale: float) -> None:
    kept = keep(random_logits(seed, frames, tokens, scale), BLANK)  # of similar logits many are rounded to one value
    assert kept.log_probabilities(tokens, BLANK).argmax(1).tolist() == kept.best(BLANK)[0].tolist()


def test_sure_blanks_keep_nothing() -> None:
    logits = np.full((100, 32), -20.0, np.float32)
    logits[:, BLANK] = 0.0
    logits[50, 7] = 5.0
    kept = keep(log_softmax(logits), BLANK)
    assert kept.counts.sum() == kept.counts[50] == 2
    assert kept.tokens.tolist() == [7, BLANK]


@pytest.mark.filterwarnings("error")
def test_a_clip_that_is_not_finite_does_not_disturb_others() -> None:
    kept = keep_best(np.array([[1, 2], [2, 1]]), np.array([[np.nan, np.nan], [-0.1, -3.0]], np.float32), 0)
    alone = keep_best(np.array([[2, 1]]), np.array([[-0.1, -3.0]], np.float32), 0)
    assert kept.counts.tolist() == [1, *alone.counts]
    assert kept.tokens[1:].tolist() == alone.tokens.tolist()
    assert kept.costs[1:].tolist() == alone.costs.tolist()


def test_pieces_are_joined_at_their_frames() -> None:
    logits = log_softmax(random_logits(1, 20, 32, 3.0))
    pieces = [keep(logits[:5], BLANK), keep(logits[5:12], BLANK)]
    joined = join(pieces, [2, 9], 18)
    expected = np.concatenate([np.full(2, -1), logits[:5].argmax(1), np.full(2, -1), logits[5:12].argmax(1), [-1, -1]])
    best, _ = joined.best(BLANK)
    assert best.tolist() == np.where(expected < 0, BLANK, expected).tolist()


def test_no_pieces_are_blank() -> None:
    assert join([], [], 3).best(BLANK)[0].tolist() == [BLANK] * 3
    assert Posteriors(np.zeros(0, np.uint8), np.zeros(0, np.uint16), np.zeros(0, np.uint8)).log_probabilities(
        4, BLANK
    ).shape == (0, 4)
