import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pipeline.evaluation.label_scores import (
    CALIBRATION_BINS,
    PLOTTED_BINS,
    SCORE_BINS,
    Calibration,
    ScoreHistogram,
    calibration_sums,
    score_histogram,
)

RELAXED = settings(max_examples=50, deadline=None)  # scikit-learn is slow
SCORED = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)


def columns(scored):
    return np.array([pair[0] for pair in scored]), np.array([pair[1] for pair in scored], dtype=bool)


# Score histograms


@given(points=st.lists(st.tuples(st.integers(0, SCORE_BINS - 1) | st.integers(0, 5), st.booleans()), min_size=1))
@RELAXED
def test_auroc_of_scores_on_the_grid_matches_scikit_learn(points):
    scores, positive = columns([(point / (SCORE_BINS - 1), is_positive) for point, is_positive in points])
    auroc = score_histogram(scores, positive).auroc
    if positive.all() or not positive.any():
        assert auroc is None
    else:
        assert auroc == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)


@pytest.mark.parametrize("skill", [0.0, 1.0, 4.0])
def test_auroc_of_scores_off_the_grid_is_close_to_scikit_learn(skill):
    rng = np.random.default_rng(0)
    positive = rng.random(50_000) < 0.3
    scores = 1 / (1 + np.exp(rng.normal(size=50_000) - skill * (positive - 0.5)))
    histogram = score_histogram(scores, positive)
    assert histogram.auroc == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-4)
    assert histogram.auroc_tolerance < 1e-4


@given(scored=SCORED)
@RELAXED
def test_auroc_is_within_its_tolerance(scored):
    scores, positive = columns(scored)
    squeezed = 1 - scores / SCORE_BINS  # as from an overconfident model: all scores round to a few points
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


# Calibration


@given(scored=SCORED)
@RELAXED
def test_calibration_error_matches_the_definition_of_guo_et_al_row_by_row(scored):
    confidence, right = columns(scored)
    calibration = calibration_sums(confidence, right)
    error = 0.0
    for index, calibration_bin in enumerate(calibration.bins):
        low, high = index / CALIBRATION_BINS, (index + 1) / CALIBRATION_BINS
        in_bin = (np.ceil(confidence * CALIBRATION_BINS) == index + 1) | ((index == 0) & (confidence == 0))
        assert (calibration_bin.low, calibration_bin.high, calibration_bin.rows) == pytest.approx(
            (low, high, in_bin.sum())
        )
        if in_bin.any():
            assert calibration_bin.confidence == pytest.approx(confidence[in_bin].mean())
            assert calibration_bin.accuracy == pytest.approx(right[in_bin].mean())
            error += in_bin.mean() * abs(right[in_bin].mean() - confidence[in_bin].mean())
        else:
            assert (calibration_bin.confidence, calibration_bin.accuracy) == (None, None)
    assert calibration.expected_calibration_error == (pytest.approx(error) if scored else None)


def test_calibration_bins_match_scikit_learns_calibration_curve():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    confidence = rng.random(5000)
    right = rng.random(5000) < confidence**2
    accuracy, mean = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)
    bins = calibration_sums(confidence, right).bins
    assert [b.accuracy for b in bins] == pytest.approx(accuracy)
    assert [b.confidence for b in bins] == pytest.approx(mean)


def test_plotted_bins_hold_equally_many_rows_however_close_the_scores_are():
    rng = np.random.default_rng(3)
    confidence = 1 - rng.uniform(0, 0.02, 1000)  # all in one of the bins of the calibration error
    right = rng.random(1000) < 0.9
    calibration = calibration_sums(confidence, right)
    assert sum(each.rows > 0 for each in calibration.bins) == 1
    plotted = calibration.plotted_bins
    assert len(plotted) == PLOTTED_BINS
    assert sum(each.rows for each in plotted) == 1000
    assert max(each.rows for each in plotted) < 130
    for each in plotted:
        inside = (confidence > each.low) & (confidence <= each.high)
        assert (each.rows, each.accuracy) == (inside.sum(), pytest.approx(right[inside].mean()))
        assert each.confidence == pytest.approx(confidence[inside].mean())
    assert calibration_sums([], []).plotted_bins == ()
    assert [each.rows for each in calibration_sums([1.0] * 5, [True] * 5).plotted_bins] == [5]


def test_the_calibration_error_is_zero_where_accuracy_equals_confidence():
    assert calibration_sums([0.75] * 4, [True, True, True, False]).expected_calibration_error == 0
    assert calibration_sums([1.0] * 4, [True, True, False, False]).expected_calibration_error == 0.5
    assert calibration_sums([0.0, 1.0], [False, True]).expected_calibration_error == 0


@given(a=SCORED, b=SCORED)
@RELAXED
def test_calibrations_add_up(a, b):
    whole, parts = (
        calibration_sums(*columns(a + b)),
        sum([calibration_sums(*columns(a)), calibration_sums(*columns(b))]),
    )
    assert np.array_equal(whole.rows, parts.rows)
    assert np.array_equal(whole.correct, parts.correct)
    assert whole.confidence == pytest.approx(parts.confidence)
    assert (parts + Calibration.zero()).expected_calibration_error == parts.expected_calibration_error


@pytest.mark.parametrize("statistic", [calibration_sums, score_histogram])
def test_values_that_are_not_probabilities_are_refused(statistic):
    for score in (float("nan"), -0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            statistic([0.5, score], [True, False])
    with pytest.raises(ValueError, match="lengths"):
        statistic([0.5], [True, False])


@pytest.mark.parametrize("zero", [ScoreHistogram.zero(), Calibration.zero()])
def test_statistics_can_be_added_only_to_their_own_type(zero):
    for other in (1, None, np.zeros(3)):
        with pytest.raises(TypeError):
            zero + other
    with pytest.raises(TypeError):
        1 + zero
    assert zero != 0
