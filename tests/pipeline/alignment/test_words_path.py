"""Words of a text in a recording: the best of all paths on small cases; passages that only one of the two has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alignment import words_path as module
from pipeline.alignment.words_path import LENIENT, STRICT, Costs, NoPathError, WordsPath, words_path
from sewd_model.forced_alignment import least_frames

BLANK, DELIMITER = 0, 3


def random_scores(seed: int, frames: int, scale: float = 2.0) -> np.ndarray:
    logits = np.random.default_rng(seed).standard_normal((frames, 4)) * scale
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def score_of(path: WordsPath, costs: Costs) -> float:
    """Of a path on which some word is found."""
    total = -float(path.losses.sum())
    for marks, passage, each in (
        (path.stars, costs.star, costs.star_frame),
        (path.start_frames < 0, costs.skip, 0.0),
    ):
        if marks.any():
            total -= passage * int((np.diff(marks.astype(int), prepend=0) == 1).sum()) + each * int(marks.sum())
    return total


def best_score(log_probabilities: np.ndarray, words: list[list[int]], costs: Costs) -> float:
    """The score of the best of all sequences of states, each tried."""
    ids = [token for word in words for token in word]
    borders = {0, *np.cumsum([len(word) for word in words]).tolist()}
    # A state is its kind and its rank: tokens have odd ranks, blanks even ones.
    states = [("token", 2 * index + 1) for index in range(len(ids))]
    states += [("blank", 2 * index) for index in range(len(ids) + 1)]
    if np.isfinite(costs.star):
        states += [("star", 2 * index) for index in sorted(borders)]
    relative = log_probabilities - log_probabilities.max(axis=1, keepdims=True)

    def follows(one: tuple[str, int], other: tuple[str, int]) -> bool:
        step = other[1] - one[1]
        both = one[0] == other[0] == "token"
        return step in (0, 1) or (step == 2 and both and ids[one[1] // 2] != ids[other[1] // 2])

    best = -np.inf
    for path in itertools.product(states, repeat=len(relative)):
        if path and (path[0][1] > 1 or path[-1][1] < 2 * len(ids) - 1):
            continue
        if not all(itertools.starmap(follows, itertools.pairwise(path))):
            continue
        total, before = 0.0, "blank"
        for row, (kind, rank) in zip(relative, path, strict=True):
            if kind == "token":
                total += row[ids[rank // 2]]
            elif kind == "star":
                total -= costs.star_frame + (costs.star if before != "star" else 0.0)
            else:
                total += max(row[BLANK], row[DELIMITER]) if rank // 2 in borders else row[BLANK]
            before = kind
        best = max(best, total)
    return best


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=2), min_size=1, max_size=2),
    st.sampled_from([STRICT, Costs(star=0.5, star_frame=0.3)]),
)
def test_path_is_the_best_of_all(seed: int, frames: int, words: list[list[int]], costs: Costs) -> None:
    log_probabilities = random_scores(seed, frames)
    if least_frames([token for word in words for token in word]) > frames:
        with pytest.raises(NoPathError, match="does not fit into"):
            words_path(log_probabilities, words, BLANK, DELIMITER, costs)
        return
    found = words_path(log_probabilities, words, BLANK, DELIMITER, costs)
    assert score_of(found, costs) == pytest.approx(best_score(log_probabilities, words, costs), abs=1e-4)
    assert int(found.lengths.sum() + found.stars.sum()) == frames


@given(
    st.integers(0, 2**32 - 1), st.integers(30, 120), st.sampled_from([STRICT, Costs(star=3, star_frame=0.3, skip=4)])
)
def test_blocks_give_the_path_of_the_whole(seed: int, frames: int, costs: Costs) -> None:
    log_probabilities = random_scores(seed, frames)
    random = np.random.default_rng(seed)
    words = [random.integers(1, 3, random.integers(1, 5)).tolist() for _ in range(frames // 12)]
    whole = words_path(log_probabilities, words, BLANK, DELIMITER, costs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WHOLE", 0)
        patch.setattr(module, "_BLOCK", 7)
        blocks = words_path(log_probabilities, words, BLANK, DELIMITER, costs)
    if (whole.start_frames >= 0).any():  # of paths whose scores are equal but for rounding, any
        assert score_of(blocks, costs) == pytest.approx(score_of(whole, costs), abs=1e-3)


def clear_speech(words: list[list[int]], pause: int = 4) -> np.ndarray:
    """Log-probabilities of a model that is sure of each word: tokens of two frames with a blank between them."""
    tokens: list[int] = []
    for word in words:
        for token in word:
            tokens += [token, token, BLANK]
        tokens += [DELIMITER, *[BLANK] * pause]
    logits = np.eye(VOCABULARY)[tokens] * 12
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


VOCABULARY = 30


def sentences(seed: int, number: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(4, VOCABULARY, 5).tolist() for _ in range(number)]


def starts(path: WordsPath) -> list[int]:
    return path.start_frames.tolist()


@pytest.mark.parametrize("missing", [slice(0, 20), slice(30, 60), slice(90, 100)])
def test_passage_that_the_audio_lacks_moves_no_other_word(missing: slice) -> None:
    words = sentences(1, 100)
    spoken = [word for index, word in enumerate(words) if index not in range(100)[missing]]
    expected = starts(words_path(clear_speech(spoken), spoken, BLANK, DELIMITER, STRICT))
    found = words_path(clear_speech(spoken), words, BLANK, DELIMITER, LENIENT)
    assert starts(found) == [*expected[: missing.start], *[-1] * len(words[missing]), *expected[missing.start :]]
    assert not found.stars.any()


@pytest.mark.parametrize("missing", [slice(0, 20), slice(30, 60), slice(90, 100)])
def test_passage_that_the_text_lacks_moves_no_other_word(missing: slice) -> None:
    words = sentences(1, 100)
    written = [word for index, word in enumerate(words) if index not in range(100)[missing]]
    expected = starts(words_path(clear_speech(words), words, BLANK, DELIMITER, STRICT))
    found = words_path(clear_speech(words), written, BLANK, DELIMITER, LENIENT)
    assert starts(found) == [*expected[: missing.start], *expected[missing.stop :]]
    assert found.stars.sum() > 0.9 * (len(clear_speech(words)) * len(words[missing]) / 100)


def test_band_follows_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    words = sentences(2, 400)
    monkeypatch.setattr(module, "_WHOLE", 0)
    monkeypatch.setattr(module, "_BLOCK", 64)
    whole = words_path(clear_speech(words), words, BLANK, DELIMITER, LENIENT)
    monkeypatch.setattr(module, "BAND", 300)
    assert starts(words_path(clear_speech(words), words, BLANK, DELIMITER, LENIENT)) == starts(whole)


def test_empty_text_and_empty_audio() -> None:
    found = words_path(random_scores(1, 5), [], BLANK, DELIMITER, STRICT)
    assert (len(found.start_frames), len(found.stars)) == (0, 5)
    nothing = words_path(np.zeros((0, 4)), [[1, 2]], BLANK, DELIMITER, LENIENT)
    assert starts(nothing) == [-1]
    with pytest.raises(NoPathError):
        words_path(np.zeros((0, 4)), [[1]], BLANK, DELIMITER, STRICT)
    with pytest.raises(ValueError, match="has no tokens"):
        words_path(random_scores(1, 5), [[1], []], BLANK, DELIMITER, STRICT)


def test_times_are_those_of_ctc_segmentation() -> None:
    peer = pytest.importorskip("ctc_segmentation", reason="needs pip install ctc-segmentation, and a C compiler")
    words = sentences(3, 120)
    settings = peer.CtcSegmentationParameters(char_list=[chr(200 + index) for index in range(VOCABULARY)])
    settings.index_duration = 1.0
    tokens = np.array([token for word in words for token in [*word, DELIMITER]][:-1])
    truth, firsts = peer.prepare_token_list(settings, [tokens])
    frames, _, _ = peer.ctc_segmentation(settings, clear_speech(words), truth)
    expected = [round(frames[firsts[0] + 1 + 6 * index]) for index in range(len(words))]
    found = starts(words_path(clear_speech(words), words, BLANK, DELIMITER, STRICT))
    assert found[1:] == expected[1:]  # it needs a blank before the first word
