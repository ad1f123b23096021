import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.weightstats import ztest

from pipeline.evaluation.significance import matched_pairs, mcnemar

SEGMENTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=60)
RELAXED = settings(max_examples=50, deadline=None)


# Matched pairs


@given(segments=SEGMENTS)
@RELAXED
def test_matched_pairs_matches_the_paired_z_test(segments):
    a, b = np.array(segments, dtype=float).T
    test = matched_pairs(a, b)
    assert test.n == len(segments)
    if np.ptp(a - b) == 0:
        assert (test.statistic, test.p_value) == ((0, 1) if (a == b).all() else (None, None))
    else:
        assert (test.statistic, test.p_value) == pytest.approx(ztest(a - b), rel=1e-6, abs=1e-12)
        assert test.statistic == pytest.approx(stats.ttest_rel(a, b).statistic, rel=1e-6, abs=1e-12)


@given(segments=SEGMENTS, times=st.integers(1, 5))
@RELAXED
def test_matched_pairs_treats_multiplicity_as_repetition_and_mirrors(segments, times):
    a, b = np.array(segments).T
    test, mirrored = matched_pairs(a, b, np.full(len(a), times)), matched_pairs(b, a, np.full(len(a), times))
    assert test == matched_pairs(np.repeat(a, times), np.repeat(b, times))
    if test.statistic is None:
        assert mirrored == test
    else:
        assert (mirrored.statistic, mirrored.p_value) == pytest.approx((-test.statistic, test.p_value), abs=1e-12)


def test_matched_pairs_of_fewer_than_two_segments_is_not_defined():
    for errors in ([], [1]):
        test = matched_pairs(errors, errors)
        assert (test.statistic, test.p_value, test.n) == (None, None, len(errors))


def test_matched_pairs_refuses_invalid_input():
    with pytest.raises(ValueError, match="lengths"):
        matched_pairs([1], [1, 2])
    with pytest.raises(ValueError, match="negative"):
        matched_pairs([1, 2], [1, -2])


# McNemar


@given(a=st.integers(0, 400), b=st.integers(0, 400))
@RELAXED
def test_mcnemar_matches_statsmodels(a, b):
    test, oracle = mcnemar(a, b), statsmodels_mcnemar([[7, a], [b, 5]], exact=True)
    assert test.statistic == oracle.statistic
    assert test.p_value == pytest.approx(oracle.pvalue, rel=1e-9)
    assert test.n == a + b
    assert test.p_value == mcnemar(b, a).p_value


def test_mcnemar_of_millions_of_utterances_and_of_none():
    assert mcnemar(0, 0).p_value == 1
    assert mcnemar(5_000_000, 5_000_000).p_value == 1
    assert mcnemar(5_000_000, 5_010_000).p_value == pytest.approx(2 * stats.norm.sf(10_000 / np.sqrt(10_010_000)), 0.01)
    with pytest.raises(ValueError, match="negative"):
        mcnemar(3, -1)
