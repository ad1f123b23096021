import functools
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.evaluation.intervals import (
    BOOTSTRAP_UNITS,
    FEWEST_UNITS,
    paired_bootstrap,
    rate_interval,
)

UNITS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 50)), min_size=1, max_size=40)
RELAXED = settings(max_examples=50, deadline=None)
FEW = {"resamples": 200}


def speakers(rng, n, spread=(1.5, 8.0)):
    """Errors and words of n speakers: beta rates, 50 to 2,000 words, overdispersed errors."""
    words = np.clip(np.exp(rng.normal(np.log(350), 0.9, n)), 50, 2000).astype(int)
    rates = rng.beta(*spread, n)
    return rng.binomial(words, rng.beta(30 * rates + 1e-9, 30 * (1 - rates))), words


def lognormal_speakers(rng, n, deviation=0.8, correlation=0.5):
    """The same with log-normal rates; speakers of more words have lower rates."""
    size, rest = rng.normal(size=(2, n))
    words = np.clip(np.exp(np.log(350) + 0.9 * size), 50, 2000).astype(int)
    rates = 0.08 * np.exp(deviation * (np.sqrt(1 - correlation**2) * rest - correlation * size))
    return rng.poisson(rng.gamma(np.minimum(rates, 1.5) * words / 2, 2)), words


def utterances(rng, n):
    """Short units, most of them without an error."""
    words = 1 + rng.poisson(9, n)
    return rng.poisson(rng.gamma(np.minimum(rng.gamma(0.5, 0.3, n), 1.2) * words / 0.3 + 1e-9, 0.3)), words


def studentized(errors, words, seed, resamples):
    interval = rate_interval(errors, words, seed=seed, resamples=resamples)
    return (interval.low, interval.high) if interval else (np.nan, np.nan)


def percentile(errors, words, seed, resamples):
    """The plain percentile bootstrap, for comparison."""
    n = len(errors)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    return np.quantile((weights @ errors) / (weights @ words), [0.025, 0.975])


@functools.cache
def true_rate(draw):
    errors, words = draw(np.random.default_rng(0), 1_000_000)
    return errors.sum() / words.sum()


def coverage(interval_of, draw, n, runs, resamples):
    """Shares of runs in which the true rate is within, below and above the interval; and the median relative width.

    Runs without an interval, because one of 10 speakers has more than half of the words, are left out.
    """
    rng, truth = np.random.default_rng(1), true_rate(draw)
    ends = np.array([interval_of(*draw(rng, n), seed, resamples) for seed in range(runs)])
    low, high = ends[np.isfinite(ends[:, 0])].T
    assert len(low) >= 0.99 * runs
    below, above = np.mean(truth < low), np.mean(truth > high)
    return 1 - below - above, below, above, np.median(high - low) / truth


# Coverage


def test_at_60_speakers_the_coverage_is_nominal():
    within, _, _, width = coverage(studentized, speakers, 60, runs=2000, resamples=200)
    assert 0.93 <= within <= 0.97
    assert width < 0.8


def test_at_16_speakers_the_coverage_is_nominal_unlike_that_of_the_percentile_bootstrap():
    assert coverage(studentized, speakers, 16, runs=1000, resamples=200)[0] >= 0.93
    assert coverage(percentile, speakers, 16, runs=1000, resamples=200)[0] < 0.91


@pytest.mark.slow
@pytest.mark.parametrize("draw", [speakers, lognormal_speakers, utterances])
def test_coverage_by_number_of_units(draw):
    for n in (10, 16, 30, 40, 60, 100, 200):
        for interval_of in (percentile, studentized):
            figures = coverage(interval_of, draw, n, runs=2000, resamples=1000)
            logging.getLogger(__name__).info(
                "%s, %d units, %s: covers %.1f %% (truth below: %.1f, above: %.1f), width %.2f of the rate",
                *(draw.__name__, n, interval_of.__name__, *(100 * share for share in figures[:3]), figures[3]),
            )
        assert (0.93 if n >= 60 else 0.92) <= figures[0] <= 0.97


# The interval


def test_many_units_of_equal_size_give_the_t_interval_of_the_log_mean():
    errors, words = np.random.default_rng(0).poisson(5, 400), np.full(400, 50)
    interval = rate_interval(errors, words)
    mean = errors.mean()
    reach = stats.t.ppf(0.975, 399) * stats.sem(errors) / mean
    assert interval.low == pytest.approx(mean / 50 * np.exp(-reach), rel=0.005)
    assert interval.high == pytest.approx(mean / 50 * np.exp(reach), rel=0.005)
    assert (interval.level, interval.units) == (0.95, 400)


def test_many_units_give_the_interval_of_scipys_bootstrap():
    errors, words = speakers(np.random.default_rng(1), 1000)
    interval = rate_interval(errors, words)

    def rate(e, x, axis):
        return e.sum(axis) / x.sum(axis)

    expected = stats.bootstrap((errors, words), rate, paired=True, n_resamples=2000, rng=0, method="percentile")
    width = interval.high - interval.low
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.1 * width)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.1 * width)


def test_the_interval_is_continuous_where_sums_replace_the_bootstrap():
    errors, words = speakers(np.random.default_rng(2), BOOTSTRAP_UNITS + 1)
    below, above = rate_interval(errors[:-1], words[:-1]), rate_interval(errors, words)
    assert below.method == "symmetric studentized bootstrap, log scale"
    assert above.method == "t, log scale"
    assert below.high - below.low == pytest.approx(above.high - above.low, rel=0.06)


def test_ten_million_units_are_computed_from_sums():
    rng = np.random.default_rng(3)
    words, counts = rng.integers(1, 40, 5000), rng.integers(1, 4000, 5000)
    errors = rng.binomial(words, 0.1)
    interval, rate = rate_interval(errors, words, counts), (errors @ counts) / (words @ counts)
    error = np.sqrt(counts @ (errors - rate * words) ** 2.0) / (words @ counts)
    assert interval.units == counts.sum() > 9_000_000
    assert interval.high == pytest.approx(rate + 1.96 * error, rel=1e-3)


@given(units=UNITS, times=st.integers(1, 4), seed=st.integers(0, 99))
@RELAXED
def test_multiplicity_equals_repetition_and_order_does_not_matter(units, times, seed):
    errors, _, words = np.array(units).T
    expanded = np.random.default_rng(seed).permutation(np.repeat(np.stack([errors, words]), times, axis=1), axis=1)
    interval = rate_interval(errors, words, np.full(len(units), times), **FEW)
    assert interval == rate_interval(*expanded, **FEW)
    if interval:
        assert 0 <= interval.low <= errors.sum() / words.sum() <= interval.high < np.inf
        assert interval.units == times * len(units)


@given(units=UNITS, factor=st.sampled_from([2, 8, 1024]))
@RELAXED
def test_the_interval_scales_with_the_unit_of_the_reference(units, factor):
    errors, _, words = np.array(units).T
    interval, scaled = rate_interval(errors, words, **FEW), rate_interval(errors, words * factor, **FEW)
    if interval is None:
        assert scaled is None
    elif "bootstrap" in interval.method:
        assert (scaled.low * factor, scaled.high * factor) == pytest.approx((interval.low, interval.high), rel=1e-6)


def test_the_interval_depends_only_on_units_and_seed():
    units = speakers(np.random.default_rng(4), 20)
    assert rate_interval(*units, seed=1) == rate_interval(*units, seed=1) != rate_interval(*units, seed=2)


def test_a_higher_level_gives_a_wider_interval():
    units = speakers(np.random.default_rng(5), 30)
    widths = [(i.high - i.low, i.level) for i in (rate_interval(*units, level=level) for level in (0.8, 0.95, 0.99))]
    assert widths == sorted(widths)
    assert [level for _, level in widths] == [0.8, 0.95, 0.99]


@pytest.mark.parametrize("n", range(FEWEST_UNITS + 2))
def test_fewer_than_ten_units_have_no_interval(n):
    assert (rate_interval(np.arange(n), np.full(n, 20)) is None) == (n < FEWEST_UNITS)


def test_units_without_reference_are_used_but_do_not_count_toward_the_ten():
    errors, words = np.array([1, 2] * 5 + [3]), np.array([20] * 10 + [0])
    with_insertions, without = rate_interval(errors, words), rate_interval(errors[:10], words[:10])
    assert with_insertions.units == 11
    assert with_insertions.low < 18 / 200 < with_insertions.high
    assert with_insertions.high > without.high
    assert rate_interval(errors[1:], words[1:]) is None
    assert rate_interval(np.ones(20), np.zeros(20)) is None


def test_there_is_no_interval_where_one_unit_has_more_than_half_of_the_words():
    errors = np.arange(11)
    assert rate_interval(errors, [100, *[10] * 10]) is not None
    assert rate_interval(errors, [101, *[10] * 10]) is None


@pytest.mark.parametrize("units", [10, 60, 5000])
@pytest.mark.parametrize("share", [True, False])
def test_units_of_equal_rates_get_the_clopper_pearson_bound_of_unseen_units(units, share):
    bound = 1 - 0.025 ** (1 / units)  # Clopper-Pearson upper bound for 0 of n
    words = np.arange(units) % 7 + 3
    expected = {0: (0, bound), 1: (1 - bound, 1)} | ({} if share else {3: (3 * (1 - bound), 3)})
    for rate, ends in expected.items():
        interval = rate_interval(rate * words, words, share=share)
        assert (interval.low, interval.high) == pytest.approx(ends)
        assert "Clopper-Pearson" in interval.method


def test_one_differing_unit_is_enough_for_the_bootstrap_interval():
    for differing in (0, 2):
        interval = rate_interval([differing, *[1] * 19], [10] * 20)
        assert interval.low < (19 + differing) / 200 < interval.high
        assert "bootstrap" in interval.method
    interval = rate_interval([1, *[0] * 59], [10] * 60)
    assert 0 < interval.low < 1 / 600 < interval.high < 10 / 600


@given(wrong=st.lists(st.integers(0, 4), min_size=12, max_size=30))
@RELAXED
def test_a_share_stays_within_0_and_1_and_mirrors_its_complement(wrong):
    errors, sentences, many = np.array(wrong), np.full(len(wrong), 4), np.full(len(wrong), 1000)
    few = rate_interval(errors, sentences, share=True, **FEW)
    assert 0 <= few.low <= errors.mean() / 4 <= few.high <= 1
    of_wrong, of_right = (rate_interval(e, sentences, many, share=True) for e in (errors, sentences - errors))
    assert (of_wrong.low, of_wrong.high) == pytest.approx((1 - of_right.high, 1 - of_right.low), abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (([1, 2], [1]), {}, "lengths"),
        (([1, 2], [1, 2], [1]), {}, "lengths"),
        (([-1, 2], [1, 2]), {}, "negative"),
        (([1, 2], [1, -2]), {}, "negative"),
        (([1, 2], [1, 2], [1, -1]), {}, "negative"),
        (([1, 2], [1, 2]), {"level": 95}, "level"),
        (([1, 2], [1, 1]), {"share": True}, "share"),
    ],
)
def test_invalid_input_is_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        rate_interval(*arguments, **settings)


# Paired bootstrap


@given(units=UNITS)
@RELAXED
def test_swapping_the_runs_mirrors_the_comparison(units):
    a, b, words = np.array(units).T
    outcome, swapped = paired_bootstrap(a, b, words, **FEW), paired_bootstrap(b, a, words, **FEW)
    if words.sum() == 0:
        assert outcome.difference is None
    else:
        assert outcome.difference == pytest.approx((a.sum() - b.sum()) / words.sum())
        assert outcome.difference == -swapped.difference
    if outcome.interval is None:
        assert rate_interval(a, words, **FEW) is None
        assert outcome.probability_of_improvement is None
    else:
        assert outcome.interval.low <= outcome.difference <= outcome.interval.high
        both = outcome.probability_of_improvement + swapped.probability_of_improvement
        if outcome.difference:
            assert (outcome.interval.low, outcome.interval.high) == (-swapped.interval.high, -swapped.interval.low)
            assert both == pytest.approx(1)
        else:  # equal rates: the rows of the swapped table sort differently, so the resamples differ
            assert both == pytest.approx(1, abs=0.2)


@given(units=UNITS, times=st.integers(1, 4), seed=st.integers(0, 99))
@RELAXED
def test_a_comparison_treats_multiplicity_as_repetition(units, times, seed):
    triples = np.array(units).T
    expanded = np.random.default_rng(seed).permutation(np.repeat(triples, times, axis=1), axis=1)
    assert paired_bootstrap(*triples, np.full(len(units), times), **FEW) == paired_bootstrap(*expanded, **FEW)


def test_the_probability_of_improvement_is_that_of_bisani_and_ney():
    rng = np.random.default_rng(6)
    b, words = speakers(rng, 30)
    a = np.maximum(b + rng.integers(-11, 8, 30), 0)
    draws = rng.integers(0, 30, (20_000, 30))
    changes = (a - b)[draws].sum(axis=1)
    expected = np.mean(changes < 0) + np.mean(changes == 0) / 2
    assert 0.5 < expected < 0.99
    assert paired_bootstrap(a, b, words).probability_of_improvement == pytest.approx(expected, abs=0.03)


def test_many_units_use_the_normal_distribution():
    rng = np.random.default_rng(7)
    b, words = speakers(rng, BOOTSTRAP_UNITS + 1)
    a = np.maximum(b + rng.integers(-5, 5, len(b)), 0)
    large, small = paired_bootstrap(a, b, words), paired_bootstrap(a[:-1], b[:-1], words[:-1])
    assert large.interval.method == "t, linear scale"
    assert large.interval.low == pytest.approx(small.interval.low, rel=0.1)
    assert large.probability_of_improvement == pytest.approx(small.probability_of_improvement, abs=0.02)


def test_the_interval_of_a_difference_has_nominal_coverage():
    rng, covered, runs = np.random.default_rng(8), 0, 1000
    for run in range(runs):
        b, words = speakers(rng, 60)
        a = rng.binomial(b, 0.9)  # removes a tenth of the errors; the mean rate of b is 1.5 / 9.5
        interval = paired_bootstrap(a, b, words, seed=run, resamples=200).interval
        covered += interval.low <= -0.1 * 1.5 / 9.5 <= interval.high
    assert 0.925 <= covered / runs <= 0.975


@pytest.mark.parametrize("units", [10, 5000])
def test_identical_runs_have_no_interval_and_a_probability_of_one_half(units):
    errors, words = np.arange(units) % 5, np.full(units, 9)
    same = paired_bootstrap(errors, errors, words)
    assert (same.difference, same.interval, same.probability_of_improvement) == (0, None, 0.5)
    worse = paired_bootstrap(errors + 9, errors, words)
    unseen = 1 - 0.025 ** (1 / units)
    assert (worse.interval.low, worse.interval.high) == pytest.approx((1 - unseen, 1 + unseen))
    assert paired_bootstrap(errors, errors + 9, words).probability_of_improvement == 1
    assert paired_bootstrap(errors + 9, errors, words).probability_of_improvement == 0


def test_a_comparison_of_few_units_has_only_a_difference():
    few = paired_bootstrap([1, 2], [2, 3], [10, 10])
    assert (few.difference, few.interval, few.probability_of_improvement, few.units) == (-0.1, None, None, 2)


def test_a_comparison_refuses_invalid_input():
    with pytest.raises(ValueError, match="lengths"):
        paired_bootstrap([1], [1, 2], [1, 2])
    with pytest.raises(ValueError, match="negative"):
        paired_bootstrap([1], [1], [-1])
    with pytest.raises(ValueError, match="level"):
        paired_bootstrap([1], [1], [1], level=0)
