import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pipeline.evaluation.label_counts import (
    CALIBRATION_BINS,
    SCORE_BINS,
    Calibration,
    LabelCounts,
    ScoreHistogram,
    calibrate,
    count_labels,
    score_histogram,
)

# "model only" is never a reference, "unknown" never a prediction.
PAIR = st.tuples(st.sampled_from(["no", "off", "on", "yes", "unknown"]), st.sampled_from(["no", "on", "model only"]))
PAIRS = st.lists(PAIR, min_size=1, max_size=60)
RELAXED = settings(max_examples=50, deadline=None)  # scikit-learn takes its time
SCORED = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)


def sides(pairs):
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def columns(scored):
    return np.array([pair[0] for pair in scored]), np.array([pair[1] for pair in scored], dtype=bool)


# Labels


@given(pairs=PAIRS)
@RELAXED
def test_figures_of_labels_are_those_of_scikit_learn(pairs):
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
def test_counts_of_labels_add_up_in_any_order_and_grouping(a, b, c):
    first, second, third = (count_labels(*sides(pairs)) for pairs in (a, b, c))
    assert first + second == second + first == count_labels(*sides(a + b))
    assert (first + second) + third == first + (second + third)
    assert first + LabelCounts.zero() == first
    assert sum([first, second, third]) == count_labels(*sides(a + b + c))


@given(pairs=PAIRS, times=st.integers(0, 5))
@RELAXED
def test_rows_counted_elsewhere_are_rows(pairs, times):
    reference, predicted = sides(pairs)
    counts = count_labels(reference, predicted, [times] * len(pairs))
    assert np.array_equal(counts.confusion, times * count_labels(reference, predicted).confusion)


def test_labels_that_occur_in_no_row_do_not_pull_a_mean_down():
    counts = count_labels(["a", "b"], ["a", "c"], [10, 0])
    assert counts.labels == ("a", "b", "c")
    assert (counts.macro_f1, counts.balanced_accuracy) == (1, 1)


def test_of_nothing_there_is_no_figure():
    nothing = LabelCounts.zero()
    assert nothing == count_labels([], [])
    assert nothing.rows == 0
    assert nothing.classes == ()
    assert {nothing.accuracy, nothing.balanced_accuracy, nothing.macro_f1, nothing.micro_f1} == {None}


def test_billions_of_rows_do_not_overflow():
    counts = count_labels(["a", "b", "a"], ["a", "b", "b"], [2**40, 2**40, 2**41])
    assert counts.rows == 2**42
    assert counts.accuracy == 0.5


def test_labels_that_do_not_fit_are_refused():
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


# Scores


@given(points=st.lists(st.tuples(st.integers(0, SCORE_BINS - 1) | st.integers(0, 5), st.booleans()), min_size=1))
@RELAXED
def test_auroc_of_scores_on_the_grid_is_scikit_learns(points):
    scores, positive = columns([(point / (SCORE_BINS - 1), is_positive) for point, is_positive in points])
    ours = score_histogram(scores, positive).auroc
    if positive.all() or not positive.any():
        assert ours is None
    else:
        assert ours == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)


@pytest.mark.parametrize("skill", [0.0, 1.0, 4.0])
def test_auroc_of_other_scores_is_near(skill):
    rng = np.random.default_rng(0)
    positive = rng.random(50_000) < 0.3
    scores = 1 / (1 + np.exp(rng.normal(size=50_000) - skill * (positive - 0.5)))
    histogram = score_histogram(scores, positive)
    assert histogram.auroc == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-4)
    assert histogram.auroc_tolerance < 1e-4


@given(scored=SCORED)
@RELAXED
def test_auroc_is_off_by_no_more_than_its_tolerance(scored):
    scores, positive = columns(scored)
    squeezed = 1 - scores / SCORE_BINS  # as of a model that is sure: all round to few points
    histogram = score_histogram(squeezed, positive)
    if histogram.auroc is None:
        assert histogram.auroc_tolerance is None
    else:
        assert abs(histogram.auroc - metrics.roc_auc_score(positive, squeezed)) <= histogram.auroc_tolerance + 1e-12


@given(a=SCORED, b=SCORED, c=SCORED)
@RELAXED
def test_histograms_add_up_in_any_order_and_grouping(a, b, c):
    first, second, third = (score_histogram(*columns(scored)) for scored in (a, b, c))
    assert first + second == second + first == score_histogram(*columns(a + b))
    assert (first + second) + third == first + (second + third)
    assert sum([first, ScoreHistogram.zero()]) == first


def test_auroc_of_ten_billion_rows_does_not_overflow():
    rows = np.array([5 * 10**9, 5 * 10**9])
    histogram = ScoreHistogram(np.array([1, 2]), rows, rows[::-1])
    assert histogram.auroc == 0.5
    assert histogram.auroc_tolerance == 0.25


# Confidences


@given(scored=SCORED)
@RELAXED
def test_calibration_is_guos_by_the_row(scored):
    confidence, right = columns(scored)
    calibration = calibrate(confidence, right)
    error = 0.0
    for at, ours in enumerate(calibration.bins):
        low, high = at / CALIBRATION_BINS, (at + 1) / CALIBRATION_BINS
        inside = (np.ceil(confidence * CALIBRATION_BINS) == at + 1) | ((at == 0) & (confidence == 0))
        assert (ours.low, ours.high, ours.rows) == pytest.approx((low, high, inside.sum()))
        if inside.any():
            assert ours.confidence == pytest.approx(confidence[inside].mean())
            assert ours.accuracy == pytest.approx(right[inside].mean())
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        else:
            assert (ours.confidence, ours.accuracy) == (None, None)
    assert calibration.expected_error == (pytest.approx(error) if scored else None)


def test_bins_agree_with_scikit_learns_calibration_curve():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    confidence = rng.random(5000)
    right = rng.random(5000) < confidence**2
    accuracy, mean = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)
    bins = calibrate(confidence, right).bins
    assert [b.accuracy for b in bins] == pytest.approx(accuracy)
    assert [b.confidence for b in bins] == pytest.approx(mean)


def test_a_model_is_calibrated_if_it_is_as_right_as_it_is_sure():
    assert calibrate([0.75] * 4, [True, True, True, False]).expected_error == 0
    assert calibrate([1.0] * 4, [True, True, False, False]).expected_error == 0.5
    assert calibrate([0.0, 1.0], [False, True]).expected_error == 0


@given(a=SCORED, b=SCORED)
@RELAXED
def test_calibrations_add_up(a, b):
    both, apart = calibrate(*columns(a + b)), sum([calibrate(*columns(a)), calibrate(*columns(b))])
    assert np.array_equal(both.rows, apart.rows)
    assert np.array_equal(both.right, apart.right)
    assert both.confidence == pytest.approx(apart.confidence)
    assert (apart + Calibration.zero()).expected_error == apart.expected_error


@pytest.mark.parametrize("statistic", [calibrate, score_histogram])
def test_what_is_no_score_is_refused(statistic):
    for score in (float("nan"), -0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            statistic([0.5, score], [True, False])
    with pytest.raises(ValueError, match="lengths"):
        statistic([0.5], [True, False])


@pytest.mark.parametrize("zero", [LabelCounts.zero(), ScoreHistogram.zero(), Calibration.zero()])
def test_statistics_add_to_their_like_alone(zero):
    for other in (1, None, np.zeros(3)):
        with pytest.raises(TypeError):
            zero + other
    with pytest.raises(TypeError):
        1 + zero
    assert zero != 0
