import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pipeline.evaluation.label_counts import LabelCounts, count_labels

# "model only" is never a reference, "unknown" never a prediction.
PAIR = st.tuples(st.sampled_from(["no", "off", "on", "yes", "unknown"]), st.sampled_from(["no", "on", "model only"]))
PAIRS = st.lists(PAIR, min_size=1, max_size=60)
RELAXED = settings(max_examples=50, deadline=None)  # scikit-learn is slow


def sides(pairs):
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@given(pairs=PAIRS)
@RELAXED
def test_label_figures_match_scikit_learn(pairs):
    reference, predicted = sides(pairs)
    counts = count_labels(reference, predicted)
    assert counts.labels == tuple(sorted({*reference, *predicted}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predicted labels that no reference has, and of a single label
        confusion = metrics.confusion_matrix(reference, predicted)
        accuracy = metrics.accuracy_score(reference, predicted)
        balanced = metrics.balanced_accuracy_score(reference, predicted)
        f1 = [metrics.f1_score(reference, predicted, average=by, zero_division=0) for by in ("macro", "micro")]
        oracle = np.array(metrics.precision_recall_fscore_support(reference, predicted, zero_division=0))
    assert np.array_equal(counts.confusion, confusion)
    assert [counts.accuracy, counts.balanced_accuracy] == pytest.approx([accuracy, balanced])
    assert [counts.macro_f1, counts.micro_f1] == pytest.approx(f1)
    assert np.array([[c.precision, c.recall, c.f1, c.support] for c in counts.classes]) == pytest.approx(oracle.T)
    assert [c.predicted for c in counts.classes] == [predicted.count(label) for label in counts.labels]


@given(a=PAIRS, b=PAIRS, c=PAIRS)
@RELAXED
def test_label_counts_add_up_in_any_order_and_grouping(a, b, c):
    first, second, third = (count_labels(*sides(pairs)) for pairs in (a, b, c))
    assert first + second == second + first == count_labels(*sides(a + b))
    assert (first + second) + third == first + (second + third)
    assert first + LabelCounts.zero() == first
    assert sum([first, second, third]) == count_labels(*sides(a + b + c))


@given(pairs=PAIRS, times=st.integers(0, 5))
@RELAXED
def test_pairs_with_numbers_of_rows_count_as_that_many_rows(pairs, times):
    reference, predicted = sides(pairs)
    counts = count_labels(reference, predicted, [times] * len(pairs))
    assert np.array_equal(counts.confusion, times * count_labels(reference, predicted).confusion)


def test_labels_without_rows_do_not_lower_a_mean():
    counts = count_labels(["a", "b"], ["a", "c"], [10, 0])
    assert counts.labels == ("a", "b", "c")
    assert (counts.macro_f1, counts.balanced_accuracy) == (1, 1)


def test_figures_without_rows_are_none():
    nothing = LabelCounts.zero()
    assert nothing == count_labels([], [])
    assert nothing.rows == 0
    assert nothing.classes == ()
    assert {nothing.accuracy, nothing.balanced_accuracy, nothing.macro_f1, nothing.micro_f1} == {None}


def test_billions_of_rows_do_not_overflow():
    counts = count_labels(["a", "b", "a"], ["a", "b", "b"], [2**40, 2**40, 2**41])
    assert counts.rows == 2**42
    assert counts.accuracy == 0.5


def test_inconsistent_label_counts_are_refused():
    with pytest.raises(ValueError, match="lengths"):
        count_labels(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="lengths"):
        count_labels(["a"], ["a"], [1, 2])
    with pytest.raises(ValueError, match="negative"):
        count_labels(["a"], ["a"], [-1])
    with pytest.raises(ValueError, match="shape"):
        LabelCounts(("a",), np.zeros((2, 2), dtype=np.int64))
    for labels in (("b", "a"), ("a", "a")):
        with pytest.raises(ValueError, match="sorted"):
            LabelCounts(labels, np.zeros((2, 2), dtype=np.int64))


@pytest.mark.parametrize("other", [1, None, np.zeros(3)])
def test_label_counts_can_be_added_only_to_label_counts(other):
    zero = LabelCounts.zero()
    with pytest.raises(TypeError):
        zero + other
    with pytest.raises(TypeError):
        1 + zero
    assert zero != 0
