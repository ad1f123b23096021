"""Forced alignment: the best path of a text is the best of all its paths, each tried on small cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sewd_model import greedy_path
from sewd_model.ctc import GreedyPath
from sewd_model.forced_alignment import align, least_frames

BLANK = 0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def random_scores(seed: int, frames: int, tokens: int, scale: float = 2.0) -> np.ndarray:
    logits = np.random.default_rng(seed).standard_normal((frames, tokens)) * scale
    return log_softmax(logits) if frames else logits


def collapsed(frames: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(frames) if token != BLANK]


def frames_of(path: GreedyPath) -> list[int]:
    """The token of each frame of a path."""
    frames = np.full(path.num_frames, BLANK)
    for token, start, end in zip(path.token_ids, path.start_frames, path.end_frames, strict=True):
        frames[start:end] = token
    return frames.tolist()


def score(log_probabilities: np.ndarray, frames: list[int] | tuple[int, ...]) -> float:
    return float(sum(log_probabilities[index, token] for index, token in enumerate(frames)))


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.lists(st.integers(1, 3), max_size=4))
def test_path_is_the_best_of_all(seed: int, frames: int, ids: list[int]) -> None:
    log_probabilities = random_scores(seed, frames, 4)
    paths = [path for path in itertools.product(range(4), repeat=frames) if collapsed(path) == ids]
    assert bool(paths) == (least_frames(ids) <= frames)
    if not paths:
        with pytest.raises(ValueError, match=f"takes at least {least_frames(ids)} frames, and there are {frames}"):
            align(log_probabilities, ids, BLANK)
        return
    found = align(log_probabilities, ids, BLANK)
    assert found.token_ids.tolist() == ids
    assert found.num_frames == frames
    assert collapsed(tuple(frames_of(found))) == ids
    best = max(score(log_probabilities, path) for path in paths)
    assert score(log_probabilities, frames_of(found)) == pytest.approx(best)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.1, 20), st.integers(0, 7))
def test_text_of_the_greedy_path_has_its_frames(seed: int, frames: int, scale: float, blank: int) -> None:
    log_probabilities = random_scores(seed, frames, 8, scale).astype(np.float32)
    greedy = greedy_path(log_probabilities, blank)
    found = align(log_probabilities, greedy.token_ids, blank)
    assert found.start_frames.tolist() == greedy.start_frames.tolist()
    assert found.end_frames.tolist() == greedy.end_frames.tolist()
    assert found.probabilities == pytest.approx(greedy.probabilities, rel=1e-4)


def test_double_letters_have_a_blank_between_them() -> None:
    log_probabilities = log_softmax(np.eye(3)[[0, 1, 1, 1, 1, 0]] * 5.0)
    path = align(log_probabilities, [1, 1], BLANK)
    assert frames_of(path).count(BLANK) == 3
    assert (path.start_frames[1:] > path.end_frames[:-1]).all()


def test_empty_text_is_blanks() -> None:
    path = align(random_scores(0, 5, 3), [], BLANK)
    assert (len(path.token_ids), path.num_frames) == (0, 5)


def test_one_frame() -> None:
    log_probabilities = random_scores(0, 1, 3)
    path = align(log_probabilities, [2], BLANK)
    assert (path.start_frames.tolist(), path.end_frames.tolist()) == ([0], [1])
    assert path.probabilities == pytest.approx(np.exp(log_probabilities[0, 2]))


@pytest.mark.parametrize("wrong", [BLANK, 3, -1])
def test_tokens_are_of_the_vocabulary(wrong: int) -> None:
    with pytest.raises(ValueError, match="ids from 0 to 2 other than that of the blank, 0"):
        align(random_scores(0, 5, 3), [1, wrong], BLANK)


def test_impossible_text_is_an_error() -> None:
    log_probabilities = np.where(np.arange(3) == 1, -np.inf, 0.0)[None, :].repeat(4, axis=0)
    with pytest.raises(ValueError, match="no path of the text"):
        align(log_probabilities, [1], BLANK)
