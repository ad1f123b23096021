"""Counts of segments of a long text: their sums are jiwer's counts of the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.scoring.counts import ErrorCounts, char_counts, word_counts
from pipeline.scoring.long_texts import segment_scores

TEXTS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "c"]), max_size=8).map(" ".join)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=5))
def test_segments_add_up_to_jiwers_counts_of_the_whole(reference, segments):
    hypothesis = " ".join(filter(None, segments))
    scores = segment_scores(reference, segments)
    assert sum(scores.words) == word_counts(reference, hypothesis)
    assert sum(scores.chars) == char_counts(reference, hypothesis)
    assert " ".join(filter(None, scores.references)) == reference
    for piece, segment, counts in zip(scores.references, segments, scores.words, strict=True):
        assert (counts.reference, counts.hypothesis) == (len(piece.split()), len(segment.split()))
        assert counts.errors == word_counts(piece, segment).errors


def test_each_segment_has_its_part_of_the_reference():
    scores = segment_scores("a b c d e f", ["a x", "", "c d", "z f q"])
    assert scores.references == ["a b", "", "c d", "e f"]
    assert scores.words == [
        ErrorCounts(1, 1, 0, 0),
        ErrorCounts(0, 0, 0, 0),
        ErrorCounts(2, 0, 0, 0),
        ErrorCounts(1, 1, 0, 1),
    ]


def test_lost_words_belong_to_the_segment_before_them():
    assert segment_scores("a b c d", ["a", "d"]).references == ["a b c", "d"]
    assert segment_scores("a b", ["", ""]).references == ["a b", ""]
    assert segment_scores("", ["a", ""]).words == [ErrorCounts(0, 0, 0, 1), ErrorCounts(0, 0, 0, 0)]
