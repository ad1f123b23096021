"""How good a classifier's labels and scores are, from statistics that add: a batch gives one, a corpus their sum.

Labels (`LabelCounts`), one-vs-rest scores of a class (`ScoreHistogram`) and confidences (`Calibration`) are
each a monoid with a zero, so that rows are counted where they lie and only counts travel. Every figure is a
view, and None where there is nothing to divide by. Definitions and names are scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

SCORE_BINS: Final = 65_536
CALIBRATION_BINS: Final = 15  # as Guo et al.

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassScore:
    """How one class fares. With nothing to divide by a figure is 0, as under scikit-learn's zero_division=0.

    Attributes:
        label: of the class.
        precision: right among the rows that were given the label; 0 for a label that was never given.
        recall: right among the rows whose reference it is; 0 for one that no reference has.
        f1: harmonic mean of the two.
        support: rows whose reference it is.
        predicted: rows that were given it.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """Rows by reference and predicted label.

    Attributes:
        labels: all that occur on either side, sorted: also those that the model does not know.
        confusion: rows reference, columns predicted, both in the order of `labels`.

    Raises:
        ValueError: the shapes do not fit, labels are not sorted and distinct, or a count is negative.
    """

    labels: tuple[str, ...]
    confusion: Ints

    def __post_init__(self) -> None:
        if self.confusion.shape != (len(self.labels), len(self.labels)):
            raise ValueError(f"{len(self.labels)} labels, but a matrix of shape {self.confusion.shape}")
        if list(self.labels) != sorted(set(self.labels)):
            raise ValueError(f"labels must be sorted and distinct: {self.labels}")
        if self.confusion.min(initial=0) < 0:
            raise ValueError("counts cannot be negative")

    @classmethod
    def zero(cls) -> LabelCounts:
        """Nothing counted."""
        return cls((), np.zeros((0, 0), dtype=np.int64))

    def __add__(self, other: object) -> LabelCounts:
        if not isinstance(other, LabelCounts):
            return NotImplemented
        labels = tuple(sorted({*self.labels, *other.labels}))
        position = {label: at for at, label in enumerate(labels)}
        confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        for part in (self, other):
            at = [position[label] for label in part.labels]
            confusion[np.ix_(at, at)] += part.confusion
        return LabelCounts(labels, confusion)

    def __radd__(self, other: object) -> LabelCounts:
        return self if other == 0 else NotImplemented  # `sum` begins with 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelCounts):
            return NotImplemented
        return self.labels == other.labels and np.array_equal(self.confusion, other.confusion)

    __hash__ = None  # type: ignore[assignment]  # holds an array

    @cached_property
    def support(self) -> Ints:
        """Rows by reference label."""
        return np.asarray(self.confusion.sum(axis=1))

    @cached_property
    def predicted(self) -> Ints:
        """Rows by predicted label."""
        return np.asarray(self.confusion.sum(axis=0))

    @property
    def rows(self) -> int:
        """All rows."""
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """Rows that were given their reference's label."""
        return int(np.trace(self.confusion))

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of every label, in the order of `labels`."""
        right = np.diag(self.confusion)
        figures = zip(
            _divide(right, self.predicted),
            _divide(right, self.support),
            _divide(2 * right, self.support + self.predicted),
            self.support.tolist(),
            self.predicted.tolist(),
            strict=True,
        )
        return tuple(ClassScore(label, *of_label) for label, of_label in zip(self.labels, figures, strict=True))

    @property
    def accuracy(self) -> float | None:
        """Share of rows that are right."""
        return self.right / self.rows if self.rows else None

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean recall of the classes that the references have; others have none, and do not count as 0."""
        recalls = [of_class.recall for of_class in self.classes if of_class.support]
        return sum(recalls) / len(recalls) if recalls else None

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 of the classes that occur, be it as a reference or as a prediction."""
        scores = [of_class.f1 for of_class in self.classes if of_class.support or of_class.predicted]
        return sum(scores) / len(scores) if scores else None

    @property
    def micro_f1(self) -> float | None:
        """F1 of the classes' sums. With one label per row it is the accuracy: each row amiss is one of either kind."""
        return self.accuracy


def count_labels(reference: npt.ArrayLike, predicted: npt.ArrayLike, rows: npt.ArrayLike | None = None) -> LabelCounts:
    """Counts of one batch, or of pairs of labels that were counted elsewhere.

    Args:
        reference: labels, as strings; no nulls.
        predicted: one for each.
        rows: how many rows have that pair; None: one each.

    Raises:
        ValueError: arrays of different lengths, or a negative number of rows.
    """
    sides = [np.asarray(side, dtype=np.str_) for side in (reference, predicted)]
    counts = np.ones(len(sides[0]), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
    if any(side.shape != counts.shape for side in sides):
        raise ValueError(f"arrays of different lengths: {[array.shape for array in [*sides, counts]]}")
    labels, codes = np.unique(np.concatenate(sides), return_inverse=True)
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, tuple(codes.reshape(2, -1)), counts)
    return LabelCounts(tuple(labels.tolist()), confusion)


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Scores of one class against the rest, on a grid of `SCORE_BINS` points from 0 to 1, held sparsely.

    Attributes:
        points: numbers of the grid points that occur, ascending; point k is the score k / (SCORE_BINS - 1).
        positives: rows of the class at each.
        negatives: rows of other classes at each.
    """

    points: Ints
    positives: Ints
    negatives: Ints

    @classmethod
    def zero(cls) -> ScoreHistogram:
        """Nothing counted."""
        return cls(*np.zeros((3, 0), dtype=np.int64))

    def __add__(self, other: object) -> ScoreHistogram:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        points, at = np.unique(np.concatenate([self.points, other.points]), return_inverse=True)
        merged = np.zeros((2, len(points)), dtype=np.int64)
        np.add.at(merged[0], at, np.concatenate([self.positives, other.positives]))
        np.add.at(merged[1], at, np.concatenate([self.negatives, other.negatives]))
        return ScoreHistogram(points, *merged)

    def __radd__(self, other: object) -> ScoreHistogram:
        return self if other == 0 else NotImplemented

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        mine, theirs = ((h.points, h.positives, h.negatives) for h in (self, other))
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    @property
    def _pairs(self) -> float:
        """Number of pairs of a positive and a negative row; a float, since 64 bits do not hold its square."""
        return float(self.positives.sum()) * float(self.negatives.sum())

    @property
    def auroc(self) -> float | None:
        """Probability that a row of the class scores above one of the rest, ties counted half (Mann-Whitney).

        Exact for scores on the grid. Else pairs that share a point count as ties: off by no more than
        `auroc_tolerance`. None without rows of either kind.
        """
        below = np.cumsum(self.negatives) - self.negatives / 2
        return float(self.positives.astype(np.float64) @ below) / self._pairs if self._pairs else None

    @property
    def auroc_tolerance(self) -> float | None:
        """How far `auroc` can be from that of the scores before rounding: half the share of tied pairs.

        Small where scores spread (below 1e-5 if they are uniform); not for a model so sure that most of its
        scores round to 0 or to 1.
        """
        ties = self.positives.astype(np.float64) @ self.negatives
        return float(ties) / (2 * self._pairs) if self._pairs else None


def score_histogram(scores: npt.ArrayLike, is_positive: npt.ArrayLike) -> ScoreHistogram:
    """Histogram of one batch's scores of a class.

    Args:
        scores: of the class, 0..1.
        is_positive: whether the class is the row's reference.

    Raises:
        ValueError: arrays of different lengths, or a score that is not a number from 0 to 1.
    """
    values, positive = _probabilities(scores), np.asarray(is_positive, dtype=np.bool_)
    _check_lengths(values, positive)
    points, at = np.unique(np.rint(values * (SCORE_BINS - 1)).astype(np.int64), return_inverse=True)
    of_class, of_all = (np.bincount(rows, minlength=len(points)) for rows in (at[positive], at))
    return ScoreHistogram(points, of_class, of_all - of_class)


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose confidence is above `low` and at most `high`; the first bin has 0 too. Means: None without rows."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sums over rows by confidence, in `CALIBRATION_BINS` bins of equal width.

    Attributes:
        rows: in each bin.
        confidence: sum over them. Sums of floats: two groupings of the same rows may differ in the last digits.
        right: rows among them whose label is right.
    """

    rows: Ints
    confidence: Floats
    right: Ints

    @classmethod
    def zero(cls) -> Calibration:
        """Nothing counted."""
        rows, right = np.zeros((2, CALIBRATION_BINS), dtype=np.int64)
        return cls(rows, np.zeros(CALIBRATION_BINS), right)

    def __add__(self, other: object) -> Calibration:
        if not isinstance(other, Calibration):
            return NotImplemented
        return Calibration(self.rows + other.rows, self.confidence + other.confidence, self.right + other.right)

    def __radd__(self, other: object) -> Calibration:
        return self if other == 0 else NotImplemented

    @property
    def bins(self) -> tuple[CalibrationBin, ...]:
        """What a reliability diagram draws."""
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1).tolist()
        sums = zip(self.rows.tolist(), self.confidence.tolist(), self.right.tolist(), strict=True)
        return tuple(
            CalibrationBin(low, high, rows, confidence / rows if rows else None, right / rows if rows else None)
            for low, high, (rows, confidence, right) in zip(edges[:-1], edges[1:], sums, strict=True)
        )

    @property
    def expected_error(self) -> float | None:
        """Expected calibration error: mean over rows of |accuracy - mean confidence| of their bin.

        Source: Guo et al. 2017, On calibration of modern neural networks, eq. 3.
        """
        total = int(self.rows.sum())
        return float(np.abs(self.right - self.confidence).sum()) / total if total else None


def calibrate(confidence: npt.ArrayLike, is_right: npt.ArrayLike) -> Calibration:
    """Sums of one batch.

    Args:
        confidence: of the label that was given, 0..1.
        is_right: whether it is the reference's.

    Raises:
        ValueError: arrays of different lengths, or a confidence that is not a number from 0 to 1.
    """
    values, right = _probabilities(confidence), np.asarray(is_right, dtype=np.bool_)
    _check_lengths(values, right)
    at = np.maximum(np.ceil(values * CALIBRATION_BINS).astype(np.int64) - 1, 0)
    rows, rights = (np.bincount(of, minlength=CALIBRATION_BINS) for of in (at, at[right]))
    confidences = np.bincount(at, values, minlength=CALIBRATION_BINS).astype(np.float64)
    return Calibration(rows, confidences, rights)


def _probabilities(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.all((array >= 0) & (array <= 1)):  # a NaN is neither
        raise ValueError("scores must be numbers from 0 to 1")
    return array


def _check_lengths(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"arrays of different lengths: {first.shape} and {second.shape}")


def _divide(part: Ints, whole: Ints) -> list[float]:
    """Quotients; 0 where `whole` is 0."""
    quotients: list[float] = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0).tolist()
    return quotients
