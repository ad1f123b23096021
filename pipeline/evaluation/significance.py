"""Significance tests of two runs on the same utterances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special  # not scipy.stats, whose import takes a second

from pipeline.evaluation.intervals import distinct_rows


@dataclass(frozen=True)
class SignificanceTest:
    """Outcome of a two-sided test of the hypothesis that two runs are equally good.

    Attributes:
        name: of the test.
        statistic: the quantity that `detail` describes; None where it is not defined.
        p_value: probability under the hypothesis of a statistic at least as extreme; None where it is not defined.
        n: number of observations that the test uses.
        detail: description of the statistic, for a reader of reports.
    """

    name: str
    statistic: float | None
    p_value: float | None
    n: int
    detail: str


def matched_pairs(
    errors_a: npt.ArrayLike, errors_b: npt.ArrayLike, multiplicity: npt.ArrayLike | None = None
) -> SignificanceTest:
    """Matched-pairs sentence-segment word error test; a segment is an utterance.

    z = mean(d) / (sd(d) / sqrt(n)) of the differences d in errors, by segment, two-sided against the normal
    distribution; negative where run a has fewer errors. The test assumes independent segments. For utterances of few
    speakers its p-value is too small; prefer `paired_bootstrap` over speakers there.

    Source: Gillick & Cox 1989, Some statistical issues in the comparison of speech recognition algorithms; as
    sclite's MAPSSWE, which finds segments within utterances.

    Args:
        errors_a: errors of run a in each segment.
        errors_b: errors of run b in each segment.
        multiplicity: number of segments with that pair; None: one each.

    Returns:
        Statistic 0 and p-value 1 where no segment differs; both None where there are fewer than 2 segments, or
        all differ by the same number.

    Raises:
        ValueError: arrays of different lengths, or a negative number.
    """
    pairs, counts = distinct_rows(multiplicity, errors_a, errors_b)
    if pairs.min(initial=0) < 0:
        raise ValueError("errors must not be negative")
    difference, n = pairs[:, 0] - pairs[:, 1], int(counts.sum())
    name, detail = "matched pairs sentence-segment word error", "z of the differences in errors by utterance"
    if n > 1 and not difference.any():
        return SignificanceTest(name, 0.0, 1.0, n, detail)
    mean = counts @ difference / n if n else 0.0
    variance = counts @ (difference - mean) ** 2 / (n - 1) if n > 1 else 0.0
    if variance == 0:
        return SignificanceTest(name, None, None, n, "not defined: the differences do not vary")
    z = float(mean / np.sqrt(variance / n))
    return SignificanceTest(name, z, float(2 * special.ndtr(-abs(z))), n, detail)


def mcnemar(only_a_correct: int, only_b_correct: int) -> SignificanceTest:
    """McNemar's test, exact: of the utterances that only one run has correct, does each run have half?

    Two-sided binomial with probability 1/2; p-value 1 where there is no such utterance. The statistic is the
    smaller number.

    Source: McNemar 1947, with the exact binomial distribution.

    Args:
        only_a_correct: utterances without a word error in run a, but not in run b.
        only_b_correct: utterances without a word error in run b, but not in run a.

    Raises:
        ValueError: a number is negative.
    """
    smaller, n = min(only_a_correct, only_b_correct), only_a_correct + only_b_correct
    if smaller < 0:
        raise ValueError(f"numbers of utterances must not be negative: {only_a_correct}, {only_b_correct}")
    p_value = min(2 * float(special.bdtr(smaller, n, 0.5)), 1.0)  # the distribution is symmetric
    detail = f"exact binomial: only a is right in {only_a_correct} utterances, only b in {only_b_correct}"
    return SignificanceTest("McNemar", float(smaller), p_value, n, detail)
