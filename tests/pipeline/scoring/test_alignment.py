from collections import Counter

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scoring.alignment import MAX_EXAMPLES, Confusion, align, confusions
from pipeline.scoring.counts import ErrorCounts, word_counts

TEXT = st.lists(st.sampled_from(["a", "b", "ab", "it's", "नम"]), max_size=8).map(" ".join)
ROWS = st.lists(st.tuples(st.sampled_from(["u1", "u2", "u3", "u4", "u5"]), TEXT, TEXT), max_size=12)


@given(reference=TEXT, hypothesis=TEXT)
def test_an_alignment_contains_both_texts_and_agrees_with_the_counts(reference, hypothesis):
    steps = align(reference, hypothesis)
    assert " ".join(reference_words for _, reference_words, _ in steps if reference_words) == reference
    assert " ".join(hypothesis_words for _, _, hypothesis_words in steps if hypothesis_words) == hypothesis
    sizes = Counter()
    for op, reference_words, hypothesis_words in steps:
        sizes[op] += max(len(reference_words.split()), len(hypothesis_words.split()))
        assert (reference_words == hypothesis_words) == (op == "equal")
        assert op != "delete" or hypothesis_words == ""
        assert op != "insert" or reference_words == ""
        assert op != "substitute" or len(reference_words.split()) == len(hypothesis_words.split()) == 1
    kinds = ErrorCounts(*(sizes[op] for op in ("equal", "substitute", "delete", "insert")))
    assert kinds == word_counts(reference, hypothesis)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "steps"),
    [
        ("", "", []),
        ("a b", "", [("delete", "a b", "")]),
        ("", "a b", [("insert", "", "a b")]),
        ("a b c", "a b c", [("equal", "a b c", "a b c")]),
        (
            "a b c d",
            "a x y d",
            [("equal", "a", "a"), ("substitute", "b", "x"), ("substitute", "c", "y"), ("equal", "d", "d")],
        ),
    ],
)
def test_known_alignments(reference, hypothesis, steps):
    assert align(reference, hypothesis) == steps


@given(rows=ROWS, top=st.integers(0, 4))
def test_confusions_are_the_most_frequent_edits_of_all_rows(rows, top):
    counts: dict = {"substitute": Counter(), "delete": Counter(), "insert": Counter()}
    seen: dict = {}
    for utt_id, reference, hypothesis in rows:
        output = jiwer.process_words(reference, hypothesis)
        for chunk in output.alignments[0]:
            if chunk.type == "equal":
                continue
            reference_words = output.references[0][chunk.ref_start_idx : chunk.ref_end_idx] or [""] * 99
            hypothesis_words = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx] or [""] * 99
            for pair in zip(reference_words, hypothesis_words, strict=False):
                counts[chunk.type][pair] += 1
                seen.setdefault(pair, {})[utt_id] = None
    expected = {
        kind: [
            Confusion(*pair, count, tuple(seen[pair])[:MAX_EXAMPLES])
            for pair, count in sorted(of_kind.items(), key=lambda item: (-item[1], item[0]))[:top]
        ]
        for kind, of_kind in counts.items()
    }
    assert confusions(rows, top) == expected


def test_each_example_is_named_once_and_their_number_is_limited():
    top = confusions([("u1", "a b a", "x b x"), *((f"v{i}", "a", "x") for i in range(9))], 5)
    assert top["substitute"] == [Confusion("a", "x", 11, ("u1", "v0", "v1"))]
    assert (top["delete"], top["insert"]) == ([], [])
