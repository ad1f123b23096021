import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.scoring.compounds import MAX_PARTS, join_like
from pipeline.scoring.counts import ErrorCounts, score_columns, word_counts

TEXT = st.lists(st.text("ab", min_size=1, max_size=3), max_size=5).map(" ".join)
REPEATS = st.lists(st.sampled_from(["a", "aa", "aaa", "b", "ab"]), max_size=6).map(" ".join)
PAIRS = st.tuples(TEXT, TEXT) | st.tuples(REPEATS, REPEATS)


def errors(reference, text):
    return word_counts(reference, text).errors


def segmentations(text):
    """All ways to split the same letters into words."""
    letters = text.replace(" ", "")
    for cuts in itertools.product(["", " "], repeat=max(len(letters) - 1, 0)):
        yield "".join(map("".join, itertools.zip_longest(letters, cuts, fillvalue="")))


def cheapest_alignment(wanted, found):
    """The fewest errors of all alignments by edits, and matches of one word with up to `MAX_PARTS` of equal letters."""
    if not wanted or not found:
        return len(wanted) + len(found)
    best = 1 + min(
        cheapest_alignment(wanted[1:], found),
        cheapest_alignment(wanted, found[1:]),
        cheapest_alignment(wanted[1:], found[1:]),
    )
    for parts in range(1, MAX_PARTS + 1):
        if "".join(wanted[:parts]) == found[0] and len(wanted) >= parts:
            best = min(best, cheapest_alignment(wanted[parts:], found[1:]))
        if "".join(found[:parts]) == wanted[0] and len(found) >= parts:
            best = min(best, cheapest_alignment(wanted[1:], found[parts:]))
    return best


@pytest.mark.parametrize(
    ("reference", "hypothesis", "joined"),
    [
        ("icecream", "ice cream", "icecream"),
        ("ice cream", "icecream", "ice cream"),
        ("the data base is full", "the database is fool", "the data base is fool"),
        ("a n d r e", "andre", "andre"),  # more than `MAX_PARTS`
        ("n a s a", "nasa", "n a s a"),
        ("ice cream", "ice scream", "ice scream"),
        ("can not", "cannot cannot", "can not cannot"),
        ("ab c", "a bc", "a bc"),  # neither side is one word
        ("", "a b", "a b"),
        ("a b", "", ""),
        ("a b", "a b", "a b"),
        ("x y", "xy", "x y"),
        ("eis krem", "krem eis", "krem eis"),
    ],
)
def test_known_compounds(reference, hypothesis, joined):
    assert join_like(reference, hypothesis) == joined


@given(pair=PAIRS)
def test_the_letters_stay_and_errors_never_grow(pair):
    reference, hypothesis = pair
    joined = join_like(reference, hypothesis)
    assert joined.replace(" ", "") == hypothesis.replace(" ", "")
    assert joined == " ".join(joined.split())
    assert errors(reference, joined) <= errors(reference, hypothesis)


@hypothesis_settings(max_examples=60)
@given(reference=TEXT, hypothesis=st.lists(st.text("ab", min_size=1, max_size=3), max_size=4).map(" ".join))
def test_the_errors_are_not_below_those_of_the_best_split(reference, hypothesis):
    best = min(errors(reference, text) for text in segmentations(hypothesis))
    joined = errors(reference, join_like(reference, hypothesis))
    assert best <= joined
    sizes = sorted((len(reference.split()), len(hypothesis.split())))
    if best == 0 and sizes[0] == 1 and sizes[1] <= MAX_PARTS:
        assert joined == 0


@given(pair=st.tuples(*[st.lists(st.text("ab", min_size=1, max_size=2), max_size=4).map(" ".join)] * 2))
def test_the_alignment_is_the_cheapest_of_all(pair):
    reference, hypothesis = pair
    assert errors(reference, join_like(reference, hypothesis)) == cheapest_alignment(
        reference.split(), hypothesis.split()
    )


@given(words=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=6), data=st.data())
def test_a_reference_that_is_only_split_differently_has_no_errors(words, data):
    """Each word is split into up to `MAX_PARTS`, or up to so many words are joined."""
    heard, at = [], 0
    while at < len(words):
        joined = data.draw(st.integers(1, min(MAX_PARTS, len(words) - at)))
        stretch = "".join(words[at : at + joined])
        if joined == 1:
            cuts = data.draw(st.sets(st.integers(1, len(stretch)), max_size=MAX_PARTS - 1))
            edges = [0, *sorted(cuts), len(stretch)]
            heard += [stretch[a:b] for a, b in itertools.pairwise(edges) if a < b]
        else:
            heard.append(stretch)
        at += joined
    assert join_like(" ".join(words), " ".join(heard)) == " ".join(words)


@given(pair=PAIRS)
def test_joining_twice_never_adds_errors_and_keeps_a_perfect_match(pair):
    reference, hypothesis = pair
    once = join_like(reference, hypothesis)
    twice = join_like(reference, once)
    assert errors(reference, twice) <= errors(reference, once)
    if errors(reference, once) == 0:
        assert once == twice == reference


def test_one_pass_is_not_a_fixed_point():
    """A known limit: words that a match has split are not joined with their neighbours in the same pass."""
    once = join_like("a b bcd", "ab c d")
    assert (once, join_like("a b bcd", once)) == ("a b c d", "a bcd")


def test_character_errors_may_rise():
    """A known limit: the alignment is chosen by words alone."""
    plain, joined = (
        score_columns(["ba a ab"], ["bba baa bb bab bb"], "none", compounds=compounds) for compounds in (False, True)
    )
    cost = [
        ErrorCounts(
            *(columns["char_" + name][0].as_py() for name in ("hits", "substitutions", "deletions", "insertions"))
        )
        for columns in (plain, joined)
    ]
    assert cost[1].errors > cost[0].errors


@given(rows=st.lists(PAIRS, min_size=1, max_size=5))
def test_scored_columns_hold_the_joined_text_and_its_counts(rows):
    references, texts = map(list, zip(*rows, strict=True))
    columns = score_columns(texts, references, "none", compounds=True)
    joined = [join_like(reference, text) for reference, text in rows]
    assert columns["normalized_text"].to_pylist() == joined
    assert columns["normalized_reference"].to_pylist() == references
    for row, (reference, text) in enumerate(zip(references, joined, strict=True)):
        counts = ErrorCounts(*(columns[n][row].as_py() for n in ("hits", "substitutions", "deletions", "insertions")))
        assert counts == word_counts(reference, text)


def test_compounds_are_joined_after_normalising():
    columns = score_columns(["Ice-cream!", "x"], ["ICECREAM", None], "basic", compounds=True)
    assert columns["normalized_text"].to_pylist() == ["icecream", None]
    assert columns["hits"].to_pylist() == [1, None]
