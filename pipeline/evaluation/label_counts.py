"""Counts of a classifier's labels, which can be added: a batch gives one object, a corpus their sum.

Only counts leave the process that reads the rows. Every figure is derived from them, and None where its denominator is
0. Definitions and names are scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassScore:
    """Figures of one class. With a denominator of 0 a figure is 0, as with scikit-learn's zero_division=0.

    Attributes:
        label: of the class.
        precision: share of correct rows among those with this prediction; 0 for a label that was never predicted.
        recall: share of correct rows among those with this reference; 0 for a label that is never a reference.
        f1: harmonic mean of the two.
        support: rows with this reference label.
        predicted: rows with this predicted label.
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
        labels: all labels that occur as reference or prediction, sorted; including labels unknown to the model.
        confusion: counts, reference by predicted label (labels, labels), both in the order of `labels`.

    Raises:
        ValueError: the shapes do not match, labels are not sorted and distinct, or a count is negative.
    """

    labels: tuple[str, ...]
    confusion: Ints

    def __post_init__(self) -> None:
        if self.confusion.shape != (len(self.labels), len(self.labels)):
            raise ValueError(f"{len(self.labels)} labels, but a matrix of shape {self.confusion.shape}")
        if list(self.labels) != sorted(set(self.labels)):
            raise ValueError(f"labels must be sorted and distinct: {self.labels}")
        if self.confusion.min(initial=0) < 0:
            raise ValueError("counts must not be negative")

    @classmethod
    def zero(cls) -> LabelCounts:
        """No rows."""
        return cls((), np.zeros((0, 0), dtype=np.int64))

    def __add__(self, other: object) -> LabelCounts:
        if not isinstance(other, LabelCounts):
            return NotImplemented
        labels = tuple(sorted({*self.labels, *other.labels}))
        positions = {label: position for position, label in enumerate(labels)}
        confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        for part in (self, other):
            indices = [positions[label] for label in part.labels]
            confusion[np.ix_(indices, indices)] += part.confusion
        return LabelCounts(labels, confusion)

    def __radd__(self, other: object) -> LabelCounts:
        return self if other == 0 else NotImplemented  # `sum` starts with 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelCounts):
            return NotImplemented
        return self.labels == other.labels and np.array_equal(self.confusion, other.confusion)

    __hash__ = None  # type: ignore[assignment]  # has an array

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
    def correct(self) -> int:
        """Rows whose prediction is the reference label."""
        return int(np.trace(self.confusion))

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of every label, in the order of `labels`."""
        correct = np.diag(self.confusion)
        figures = zip(
            self.labels,
            _divide(correct, self.predicted),
            _divide(correct, self.support),
            _divide(2 * correct, self.support + self.predicted),
            self.support.tolist(),
            self.predicted.tolist(),
            strict=True,
        )
        return tuple(ClassScore(*class_figures) for class_figures in figures)

    @property
    def accuracy(self) -> float | None:
        """Share of correct rows."""
        return self.correct / self.rows if self.rows else None

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean recall of the classes that occur as a reference; the recall of others is undefined and left out."""
        recalls = [score.recall for score in self.classes if score.support]
        return sum(recalls) / len(recalls) if recalls else None

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 of the classes that occur, as a reference or as a prediction."""
        scores = [score.f1 for score in self.classes if score.support or score.predicted]
        return sum(scores) / len(scores) if scores else None

    @property
    def micro_f1(self) -> float | None:
        """F1 of the classes' summed counts.

        With one label per row it equals the accuracy: each wrong row is one false positive and one false negative.
        """
        return self.accuracy


def count_labels(reference: npt.ArrayLike, predicted: npt.ArrayLike, rows: npt.ArrayLike | None = None) -> LabelCounts:
    """Counts of one batch of rows, or of pairs of labels with their numbers of rows.

    Args:
        reference: reference labels, as strings; no nulls.
        predicted: predicted label for each reference.
        rows: number of rows with that pair; None: one each.

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


def _divide(part: Ints, whole: Ints) -> list[float]:
    """Quotients; 0 where `whole` is 0."""
    quotients: list[float] = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0).tolist()
    return quotients
