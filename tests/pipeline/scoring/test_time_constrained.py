"""Time-constrained counts against brute force, jiwer and meeteval."""

from __future__ import annotations

import functools

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scoring.counts import ErrorCounts
from pipeline.scoring.time_constrained import TimedWord, spread, time_constrained_counts

WORDS = st.sampled_from(["a", "bb", "ccc", "dddd"])
TIMES = st.integers(0, 40).map(
    lambda tenths: tenths / 4
)  # exact in binary, so that both sides compare the same numbers


@st.composite
def segments(draw) -> list[tuple[str, float, float]]:
    """Segments (text, start, end) in the order of their starts; they may overlap and be empty."""
    drawn = draw(st.lists(st.tuples(st.lists(WORDS, max_size=5), TIMES, TIMES), max_size=6))
    return sorted(
        ((" ".join(words), min(times), max(times)) for words, *times in drawn), key=lambda segment: segment[1]
    )


def timed(found: list[tuple[str, float, float]]) -> list[TimedWord]:
    return [word for text, start_s, end_s in found for word in spread(text.split(), start_s, end_s)]


def brute_force(ref: list[TimedWord], hyp: list[TimedWord], collar_s: float) -> int:
    @functools.cache
    def errors(i: int, j: int) -> int:
        if i == len(ref) or j == len(hyp):
            return len(ref) - i + len(hyp) - j
        best = 1 + min(errors(i + 1, j), errors(i, j + 1))
        middle = (hyp[j].start_s + hyp[j].end_s) / 2
        if ref[i].start_s < middle + collar_s and ref[i].end_s > middle - collar_s:
            best = min(best, errors(i + 1, j + 1) + (ref[i].word != hyp[j].word))
        return best

    return errors(0, 0)


@given(segments(), segments(), st.sampled_from([0.0, 0.25, 1.0, 5.0]))
def test_errors_are_the_fewest_under_the_constraint(reference, hypothesis, collar_s):
    ref, hyp = timed(reference), timed(hypothesis)
    counts = time_constrained_counts(ref, hyp, collar_s)
    assert counts.errors == brute_force(ref, hyp, collar_s)
    assert (counts.reference, counts.hypothesis) == (len(ref), len(hyp))


@given(segments(), segments())
def test_without_a_constraint_errors_are_jiwers(reference, hypothesis):
    ref, hyp = timed(reference), timed(hypothesis)
    counts = time_constrained_counts(ref, hyp, 1e9)
    if ref:
        output = jiwer.process_words(" ".join(w.word for w in ref), " ".join(w.word for w in hyp))
        assert counts.errors == output.substitutions + output.deletions + output.insertions
    else:
        assert counts == ErrorCounts(0, 0, 0, len(hyp))


@given(segments(), segments(), st.sampled_from([0.0, 0.25, 1.0, 5.0]))
def test_errors_are_meetevals(reference, hypothesis, collar_s):
    wer = pytest.importorskip("meeteval.wer", reason="needs meeteval")
    io = pytest.importorskip("meeteval.io", reason="needs meeteval")
    sides = [
        io.SegLST([{"words": text, "start_time": start, "end_time": end} for text, start, end in side])
        for side in (reference, hypothesis)
    ]
    if not all(any(text for text, *_ in side) for side in (reference, hypothesis)):
        return  # meeteval refuses some empty sides
    expected = wer.time_constrained_siso_word_error_rate(*sides, collar=collar_s)
    counts = time_constrained_counts(timed(reference), timed(hypothesis), collar_s)
    assert (counts.errors, counts.reference) == (expected.errors, expected.length)


def test_words_far_apart_do_not_match():
    ref = [TimedWord("yes", 0.0, 1.0), TimedWord("no", 100.0, 101.0)]
    hyp = [TimedWord("no", 0.0, 1.0), TimedWord("yes", 100.0, 101.0)]
    assert time_constrained_counts(ref, hyp, 5.0) == ErrorCounts(0, 2, 0, 0)
    assert time_constrained_counts(ref, hyp, 1000.0).errors == 2
    assert time_constrained_counts(ref, hyp[:1], 5.0) == ErrorCounts(0, 1, 1, 0)
    assert time_constrained_counts(ref, hyp[:1], 1000.0) == ErrorCounts(1, 0, 1, 0)


def test_a_time_is_divided_by_characters():
    assert spread(["a", "bbb"], 2.0, 4.0) == [TimedWord("a", 2.0, 2.5), TimedWord("bbb", 2.5, 4.0)]
    assert spread([], 2.0, 4.0) == []
