"""Statistics of a classifier's scores, which can be added: one-vs-rest ranking of a class, and calibration.

A batch gives one object, a corpus their sum, so only counts leave the process that reads the rows. Every figure is
derived from them, and None where its denominator is 0. Definitions and names are scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sewd_model.grouping import grouped

SCORE_BINS: Final = 65_536
CALIBRATION_BINS: Final = 15  # as Guo et al.
PLOTTED_BINS: Final = 10  # of a plot: of about equally many rows, since most scores of a good classifier are near 1
_FINE: Final = 1024  # sums are kept in so many parts of each bin

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Scores of one class against the rest, on a grid of `SCORE_BINS` points from 0 to 1; a sparse histogram.

    Attributes:
        points: indices of the grid points that occur, ascending; point k is the score k / (SCORE_BINS - 1).
        positives: rows of the class at each point.
        negatives: rows of other classes at each point.
    """

    points: Ints
    positives: Ints
    negatives: Ints

    @classmethod
    def zero(cls) -> ScoreHistogram:
        """No rows."""
        return cls(*np.zeros((3, 0), dtype=np.int64))

    def __add__(self, other: object) -> ScoreHistogram:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        points, indices = np.unique(np.concatenate([self.points, other.points]), return_inverse=True)
        merged = np.zeros((2, len(points)), dtype=np.int64)
        np.add.at(merged[0], indices, np.concatenate([self.positives, other.positives]))
        np.add.at(merged[1], indices, np.concatenate([self.negatives, other.negatives]))
        return ScoreHistogram(points, *merged)

    def __radd__(self, other: object) -> ScoreHistogram:
        return self if other == 0 else NotImplemented  # `sum` starts with 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        self_arrays, other_arrays = ((h.points, h.positives, h.negatives) for h in (self, other))
        return all(np.array_equal(a, b) for a, b in zip(self_arrays, other_arrays, strict=True))

    __hash__ = None  # type: ignore[assignment]  # has arrays

    @property
    def _pairs(self) -> float:
        """Number of pairs of a positive and a negative row; a float, since the product can exceed 64 bits."""
        return float(self.positives.sum()) * float(self.negatives.sum())

    @property
    def auroc(self) -> float | None:
        """Probability that a row of the class scores above one of the rest, ties counted half (Mann-Whitney).

        Exact for scores on the grid. Otherwise pairs at the same point count as ties: wrong by at most
        `auroc_tolerance`. None unless there are positive and negative rows.
        """
        below = np.cumsum(self.negatives) - self.negatives / 2
        return float(self.positives.astype(np.float64) @ below) / self._pairs if self._pairs else None

    @property
    def auroc_tolerance(self) -> float | None:
        """Largest difference of `auroc` from that of the scores before rounding: half the share of tied pairs.

        Small where scores are spread out (below 1e-5 if they are uniform), but not for an overconfident model most of
        whose scores round to 0 or to 1.
        """
        ties = self.positives.astype(np.float64) @ self.negatives
        return float(ties) / (2 * self._pairs) if self._pairs else None


def score_histogram(scores: npt.ArrayLike, is_positive: npt.ArrayLike) -> ScoreHistogram:
    """Histogram of one batch's scores of a class.

    Args:
        scores: score of the class in each row, 0..1.
        is_positive: whether the class is the row's reference label.

    Raises:
        ValueError: arrays of different lengths, or a score that is not a number from 0 to 1.
    """
    values, positive = _probabilities(scores), np.asarray(is_positive, dtype=np.bool_)
    _check_lengths(values, positive)
    points, indices = np.unique(np.rint(values * (SCORE_BINS - 1)).astype(np.int64), return_inverse=True)
    positives, rows = (np.bincount(selected, minlength=len(points)) for selected in (indices[positive], indices))
    return ScoreHistogram(points, positives, rows - positives)


@dataclass(frozen=True)
class CalibrationBin:
    """Rows with a confidence above `low` and at most `high`; the first bin includes 0.

    Attributes:
        low: lower end, excluded.
        high: upper end, included.
        rows: number of rows.
        confidence: mean confidence; None without rows.
        accuracy: share of rows with the correct label; None without rows.
    """

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sums over rows by confidence, in `_FINE` parts of equal width of each of `CALIBRATION_BINS` bins.

    Attributes:
        rows: number of rows in each part.
        confidence: sum of the confidences in each part. Two groupings of the same rows may differ in the last digits.
        correct: number of rows with the correct label in each part.
    """

    rows: Ints
    confidence: Floats
    correct: Ints

    @classmethod
    def zero(cls) -> Calibration:
        """No rows."""
        rows, correct = np.zeros((2, CALIBRATION_BINS * _FINE), dtype=np.int64)
        return cls(rows, np.zeros(CALIBRATION_BINS * _FINE), correct)

    def __add__(self, other: object) -> Calibration:
        if not isinstance(other, Calibration):
            return NotImplemented
        return Calibration(self.rows + other.rows, self.confidence + other.confidence, self.correct + other.correct)

    def __radd__(self, other: object) -> Calibration:
        return self if other == 0 else NotImplemented  # `sum` starts with 0

    @property
    def bins(self) -> tuple[CalibrationBin, ...]:
        """The `CALIBRATION_BINS` bins of equal width, which the calibration error is defined over."""
        return tuple(self._bin(start, start + _FINE) for start in range(0, len(self.rows), _FINE))

    @property
    def plotted_bins(self) -> tuple[CalibrationBin, ...]:
        """At most `PLOTTED_BINS` bins of about equally many rows, without empty ones."""
        parts = np.flatnonzero(self.rows).tolist()
        least = -(-int(self.rows.sum()) // PLOTTED_BINS)
        groups = grouped(parts, lambda part: int(self.rows[part]), at_least=least)
        return tuple(self._bin(group[0], group[-1] + 1) for group in groups)

    def _bin(self, start: int, stop: int) -> CalibrationBin:
        """The parts from `start` to before `stop` as one bin."""
        sums = (each[start:stop].sum().item() for each in (self.rows, self.confidence, self.correct))
        rows, confidence, correct = sums
        mean, accuracy = (confidence / rows, correct / rows) if rows else (None, None)
        return CalibrationBin(start / len(self.rows), stop / len(self.rows), rows, mean, accuracy)

    @property
    def expected_calibration_error(self) -> float | None:
        """Mean over rows of |accuracy - mean confidence| of their bin.

        Source: Guo et al. 2017, On calibration of modern neural networks, eq. 3.
        """
        total = int(self.rows.sum())
        gaps = (self.correct - self.confidence).reshape(CALIBRATION_BINS, _FINE).sum(axis=1)
        return float(np.abs(gaps).sum()) / total if total else None


def calibration_sums(confidence: npt.ArrayLike, is_correct: npt.ArrayLike) -> Calibration:
    """Calibration sums of one batch.

    Args:
        confidence: score of the predicted label in each row, 0..1.
        is_correct: whether the predicted label is the reference label.

    Raises:
        ValueError: arrays of different lengths, or a confidence that is not a number from 0 to 1.
    """
    values, correct = _probabilities(confidence), np.asarray(is_correct, dtype=np.bool_)
    _check_lengths(values, correct)
    indices = confidence_parts(values)
    number = CALIBRATION_BINS * _FINE
    rows, correct_rows = (np.bincount(rows, minlength=number) for rows in (indices, indices[correct]))
    confidences = np.bincount(indices, values, minlength=number).astype(np.float64)
    return Calibration(rows, confidences, correct_rows)


def confidence_parts(values: Floats) -> Ints:
    """The part of `Calibration` that each of the values from 0 to 1 is in."""
    # Times a power of two is exact: a value that is at the edge of a bin is at the edge of its last part.
    parts: Ints = np.maximum(np.ceil(values * CALIBRATION_BINS * _FINE).astype(np.int64) - 1, 0)
    return parts


def _probabilities(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.all((array >= 0) & (array <= 1)):  # false for NaN too
        raise ValueError("scores must be numbers from 0 to 1")
    return array


def _check_lengths(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"arrays of different lengths: {first.shape} and {second.shape}")
