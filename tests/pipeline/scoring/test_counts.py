import pickle
import random

import jiwer
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.schemas import SCORE_FIELDS
from pipeline.scoring.counts import ErrorCounts, char_counts, count_rows, score_columns, word_counts
from pipeline.scoring.normalize import normalize

# Few words of few letters: alignments with many ties, repeats and empties.
TEXT = st.lists(st.text("abé", min_size=1, max_size=3), max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=70)  # more rows than one call to jiwer takes
COUNTS = st.builds(ErrorCounts, *[st.integers(0, 10**12)] * 4)
COUNT_NAMES = [field.name for field in SCORE_FIELDS if pa.types.is_integer(field.type)]


def of_jiwer(output):
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)


def row_counts(columns, row, prefix):
    names = ("hits", "substitutions", "deletions", "insertions")
    return ErrorCounts(*(columns[prefix + name][row].as_py() for name in names))


# ErrorCounts: a monoid with views


@given(a=COUNTS, b=COUNTS, c=COUNTS)
def test_counts_add_up_in_any_order_and_grouping(a, b, c):
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + ErrorCounts.zero() == a
    assert sum([a, b, c]) == a + b + c
    assert (a + b).errors == a.errors + b.errors
    assert (a + b).reference == a.reference + b.reference
    assert (a + b).hypothesis == a.hypothesis + b.hypothesis


def test_adding_anything_but_counts_is_a_type_error():
    for other in (1, (0, 0, 0, 0), None):
        with pytest.raises(TypeError):
            ErrorCounts.zero() + other
    with pytest.raises(TypeError):
        1 + ErrorCounts.zero()


@pytest.mark.parametrize("position", range(4))
def test_negative_counts_are_refused(position):
    with pytest.raises(ValueError, match="negative"):
        ErrorCounts(*(-1 if i == position else 1 for i in range(4)))


def test_rate_is_errors_over_reference_and_may_exceed_one():
    assert ErrorCounts(hits=6, substitutions=1, deletions=1, insertions=2).error_rate == 0.5
    assert ErrorCounts(hits=0, substitutions=1, deletions=0, insertions=2).error_rate == 3.0


def test_insertions_against_empty_references_have_no_rate_alone_and_count_in_a_sum():
    silence, speech = word_counts("", "talks over silence"), word_counts("one two three", "one two three")
    assert silence.error_rate is None
    assert (silence + speech).error_rate == 1.0
    assert jiwer.wer(["", "one two three"], ["talks over silence", "one two three"]) == 1.0


def test_counts_pickle():
    counts = ErrorCounts(1, 2, 3, 4)
    assert pickle.loads(pickle.dumps(counts)) == counts


# One pair


@pytest.mark.parametrize(
    ("reference", "hypothesis", "words", "chars"),
    [
        ("", "", (0, 0, 0, 0), (0, 0, 0, 0)),
        ("", "a b", (0, 0, 0, 2), (0, 0, 0, 3)),
        ("a b", "", (0, 0, 2, 0), (0, 0, 3, 0)),
        ("a b", "a b", (2, 0, 0, 0), (3, 0, 0, 0)),
        ("a b", "ab", (0, 1, 1, 0), (2, 0, 1, 0)),  # the space is a character
        ("the cat sat", "the bat sat on", (2, 1, 0, 1), (10, 1, 0, 3)),
        ("नमस्ते", "नमस्त", (0, 1, 0, 0), (5, 0, 1, 0)),  # code points
    ],
)
def test_known_counts(reference, hypothesis, words, chars):
    assert word_counts(reference, hypothesis) == ErrorCounts(*words)
    assert char_counts(reference, hypothesis) == ErrorCounts(*chars)


@given(reference=TEXT, hypothesis=TEXT)
def test_one_pair_equals_jiwer(reference, hypothesis):
    assert word_counts(reference, hypothesis) == of_jiwer(jiwer.process_words(reference, hypothesis))
    assert char_counts(reference, hypothesis) == of_jiwer(jiwer.process_characters(reference, hypothesis))


@given(reference=TEXT, hypothesis=TEXT)
def test_lengths_are_those_of_the_texts(reference, hypothesis):
    words, chars = word_counts(reference, hypothesis), char_counts(reference, hypothesis)
    assert (words.reference, words.hypothesis) == (len(reference.split()), len(hypothesis.split()))
    assert (chars.reference, chars.hypothesis) == (len(reference), len(hypothesis))


@pytest.mark.parametrize("count", [word_counts, char_counts])
@given(reference=TEXT, hypothesis=TEXT)
def test_swapping_the_texts_keeps_the_distance_and_turns_deletions_into_insertions(count, reference, hypothesis):
    counts, swapped = count(reference, hypothesis), count(hypothesis, reference)
    assert counts.errors == swapped.errors
    assert counts.deletions - counts.insertions == swapped.insertions - swapped.deletions
    # S alone is symmetric only where the shortest alignment is unique.


def test_substitutions_are_not_symmetric_if_alignments_tie():
    """The module's docstring states this fact."""
    reference, hypothesis = "a c c c b a b", "b a b b c"
    assert word_counts(reference, hypothesis).substitutions != word_counts(hypothesis, reference).substitutions


@given(n=st.integers(0, 6), deleted=st.sets(st.integers(0, 5)), substituted=st.sets(st.integers(0, 5)))
def test_unambiguous_edits_are_counted_as_made_and_swap_exactly(n, deleted, substituted):
    assume(not (deleted and substituted))  # either kind alone has one shortest alignment
    reference = [f"w{i}" for i in range(n)]
    hypothesis = [f"x{i}" if i in substituted else w for i, w in enumerate(reference) if i not in deleted]
    num_deleted, num_substituted = len(deleted & set(range(n))), len(substituted & set(range(n)))
    counts = word_counts(" ".join(reference), " ".join(hypothesis))
    assert counts == ErrorCounts(n - num_deleted - num_substituted, num_substituted, num_deleted, 0)
    swapped = word_counts(" ".join(hypothesis), " ".join(reference))
    assert swapped == ErrorCounts(counts.hits, num_substituted, 0, num_deleted)


# Many rows


@given(pairs=PAIRS)
def test_rows_are_counted_as_single_pairs_are(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    columns = count_rows(references, hypotheses)
    for row, (reference, hypothesis) in enumerate(pairs):
        assert row_counts(columns, row, "") == word_counts(reference, hypothesis)
        assert row_counts(columns, row, "char_") == char_counts(reference, hypothesis)
        assert columns["ref_words"][row].as_py() == len(reference.split())
        assert columns["ref_chars"][row].as_py() == len(reference)


@given(pairs=PAIRS, seed=st.integers(0, 2**32))
def test_totals_equal_jiwers_in_any_order_of_rows(pairs, seed):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    columns = count_rows([r for r, _ in shuffled], [h for _, h in shuffled])
    totals = {
        prefix: sum((row_counts(columns, row, prefix) for row in range(len(pairs))), ErrorCounts.zero())
        for prefix in ("", "char_")
    }
    assert totals[""] == of_jiwer(jiwer.process_words(references, hypotheses))
    assert totals["char_"] == of_jiwer(jiwer.process_characters(references, hypotheses))


def test_unequal_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="2 references, but 1 hypotheses"):
        count_rows(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 texts, but 2 references"):
        score_columns(["a"], ["a", "b"], "basic")


# Columns


def test_score_columns_are_the_score_fields_in_order():
    columns = score_columns(["A b"], ["a, B!"], "basic")
    assert list(columns) == [field.name for field in SCORE_FIELDS]
    assert [column.type for column in columns.values()] == [field.type for field in SCORE_FIELDS]
    table = pa.table(columns, schema=pa.schema(SCORE_FIELDS))
    table.validate(full=True)
    assert table.to_pylist() == [
        {
            "normalized_text": "a b",
            "normalized_reference": "a b",
            "ref_words": 2,
            "hits": 2,
            "substitutions": 0,
            "deletions": 0,
            "insertions": 0,
            "ref_chars": 3,
            "char_hits": 3,
            "char_substitutions": 0,
            "char_deletions": 0,
            "char_insertions": 0,
        }
    ]


def test_every_field_has_its_meaning_and_every_count_its_unit():
    for field in SCORE_FIELDS:
        assert field.nullable
        assert field.metadata[b"meaning"]
        assert (b"unit" in field.metadata) == pa.types.is_integer(field.type)


def test_a_missing_reference_is_null_in_every_column_and_an_empty_one_is_a_reference():
    columns = score_columns(["a b", "a b", "", "?!"], [None, "", "...", None], "basic")
    assert all(column[row].as_py() is None for column in columns.values() for row in (0, 3))
    assert row_counts(columns, 1, "") == ErrorCounts(0, 0, 0, 2)
    assert columns["ref_words"].to_pylist() == [None, 0, 0, None]
    assert columns["normalized_text"].to_pylist() == [None, "a b", "", None]
    assert columns["normalized_reference"].to_pylist() == [None, "", "", None]


@pytest.mark.parametrize("references", [[], [None, None]])
def test_rows_without_any_reference_keep_their_types(references):
    columns = score_columns(["x"] * len(references), references, "basic")
    assert [column.type for column in columns.values()] == [field.type for field in SCORE_FIELDS]
    assert all(len(column) == column.null_count == len(references) for column in columns.values())


def test_arrow_input_equals_lists():
    texts, references = ["a", "B b", "c"], ["a", None, "d c"]
    expected = score_columns(texts, references, "basic")
    array = pa.array(references, pa.string())
    assert score_columns(pa.array(texts), array, "basic") == expected
    assert score_columns(pa.chunked_array([texts[:1], texts[1:]]), pa.chunked_array([array]), "basic") == expected
    sliced = score_columns(pa.array(["x", *texts]).slice(1), pa.array([None, *references]).slice(1), "basic")
    assert sliced == expected


@given(pairs=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=40))
def test_any_unicode_can_be_scored(pairs):
    pairs = [tuple(t.encode("utf-8", "ignore").decode() for t in pair) for pair in pairs]
    columns = score_columns([h for _, h in pairs], [r for r, _ in pairs], "basic")
    for row, pair in enumerate(pairs):
        reference, hypothesis = (normalize(text, "basic") for text in pair)
        assert columns["normalized_reference"][row].as_py() == reference
        assert row_counts(columns, row, "") == of_jiwer(jiwer.process_words(reference, hypothesis))
        assert row_counts(columns, row, "char_") == of_jiwer(jiwer.process_characters(reference, hypothesis))


def test_a_null_text_beside_a_reference_is_refused():
    with pytest.raises(ValueError, match="row 1"):
        score_columns(pa.array(["a", None]), ["a", "b"], "basic")
    assert score_columns(pa.array([None], pa.string()), [None], "basic")["hits"].null_count == 1


@pytest.mark.parametrize("rows", [[], ["a"]])
def test_an_unknown_normalizer_is_refused_even_without_rows(rows):
    with pytest.raises(UsageError):
        score_columns(rows, rows, "nope")


def test_count_columns_of_a_long_text():
    """The aligner uses another algorithm for long texts; the counts still add up to the lengths."""
    rng = random.Random(0)
    reference = " ".join(rng.choices(["ab", "ba", "c", "dd"], k=3000))
    hypothesis = " ".join(rng.choices(["ab", "ba", "c", "dd"], k=2900))
    columns = count_rows([reference], [hypothesis])
    words, chars = row_counts(columns, 0, ""), row_counts(columns, 0, "char_")
    assert (words.reference, words.hypothesis) == (3000, 2900)
    assert (chars.reference, chars.hypothesis) == (len(reference), len(hypothesis))
    assert set(columns) == set(COUNT_NAMES)


# MER and WIL


@settings(max_examples=40)
@given(pairs=PAIRS)
def test_match_error_rate_and_information_lost_of_a_corpus_are_jiwers(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assume(any(references) and any(hypotheses))  # what stands for nothing to divide by is our own
    output = jiwer.process_words(references, hypotheses)
    total = sum((word_counts(r, h) for r, h in pairs), ErrorCounts.zero())
    assert total.match_error_rate == pytest.approx(output.mer, abs=1e-12)
    assert total.information_lost == pytest.approx(output.wil, abs=1e-12)
    assert 1 - total.information_lost == pytest.approx(output.wip, abs=1e-12)


@given(counts=COUNTS)
def test_match_error_rate_and_information_lost_are_shares(counts):
    if counts.match_error_rate is not None:
        assert 0 <= counts.match_error_rate <= min(1, counts.error_rate or 1)
    if counts.information_lost is not None:
        assert 0 <= counts.information_lost <= 1
    assert (counts.match_error_rate is None) == (counts.reference == counts.hypothesis == 0)
    assert (counts.information_lost is None) == (counts.reference == 0)


@pytest.mark.parametrize(
    ("counts", "mer", "wil"),
    [
        ((0, 0, 0, 0), None, None),
        ((0, 0, 0, 3), 1.0, None),  # talk over silence: no reference whose information could be lost
        ((0, 0, 3, 0), 1.0, 1.0),
        ((3, 0, 0, 0), 0.0, 0.0),
        ((0, 2, 0, 1), 1.0, 1.0),
        ((3, 0, 0, 3), 0.5, 0.5),
        ((2, 1, 1, 0), 0.5, 1 - 2 / 4 * 2 / 3),
    ],
)
def test_known_match_error_rates_and_information_lost(counts, mer, wil):
    assert ErrorCounts(*counts).match_error_rate == mer
    assert ErrorCounts(*counts).information_lost == (wil if wil is None else pytest.approx(wil))


# Compounds


@settings(max_examples=40)
@given(pairs=PAIRS)
def test_compounds_never_add_word_errors_or_change_the_reference(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    plain, joined = (score_columns(hypotheses, references, "none", compounds=c) for c in (False, True))
    assert joined["normalized_reference"] == plain["normalized_reference"]
    assert joined["ref_words"] == plain["ref_words"]
    assert score_columns(hypotheses, references, "none") == plain
    for row in range(len(pairs)):
        assert row_counts(joined, row, "").errors <= row_counts(plain, row, "").errors
