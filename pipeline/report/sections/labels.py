"""The figures of the classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.report.blocks import Block, Column, Facts, Matrix, Note, Part, Table
from pipeline.report.formats import count, percent
from pipeline.report.model import ClassificationTask, ConfusionMatrix, ReportContent
from pipeline.report.sections.common import interval_text, or_none, reliability

_MATRIX: Final = 40  # labels of a confusion matrix that are still legible


def classification(report: ReportContent) -> Iterator[Part]:
    """A part for each classifier."""
    for task in report.classification:
        yield Part(f"Task: {task.task}", list(_task(task)))


def _task(task: ClassificationTask) -> Iterator[Block]:
    yield Facts(
        [
            ("Accuracy", percent(task.accuracy)),
            ("Balanced accuracy", percent(task.balanced_accuracy)),
            ("Macro F1", percent(task.macro_f1)),
            ("Micro F1", percent(task.micro_f1)),
            ("Calibration error (ECE)", percent(task.calibration.ece)),
        ],
        prominent=True,
    )
    interval = f"Accuracy interval at {interval_text(task.interval)}." if task.interval else "No accuracy interval."
    yield Note(
        f"{interval} "
        f"{count(task.scored)} utterances scored, {count(task.no_reference)} without a reference label. "
        f"{count(task.unknown_label)} of the scored ones have a reference label that the classifier does not know; "
        "they count as errors."
        + (
            f" {count(task.other_label)} have a reference label of another classifier and are not scored."
            if task.other_label
            else ""
        )
    )
    if task.confusion.labels:
        yield _matrix(task.task, task.confusion)
    if any(each.count for each in task.calibration.plotted):
        yield reliability(
            f"Calibration of {task.task}",
            task.calibration.plotted,
            "mean score",
            "accuracy",
            f"Expected calibration error: {percent(task.calibration.ece)}. Dashed line: perfect calibration. "
            "The axes show the range of the values only.",
        )
    columns = [
        Column("Label"),
        Column("References", "count", bar=True),
        Column("Predicted", "count"),
        Column("Precision", "rate"),
        Column("Recall", "rate"),
        Column("F1", "rate"),
        Column("AUROC", "number"),
    ]
    rows = [
        [each.label, each.support, each.predicted, each.precision, each.recall, each.f1, each.auroc]
        for each in task.classes
    ]
    yield Table(f"Labels of {task.task}", columns, rows, wide=True)


def _matrix(task: str, confusion: ConfusionMatrix) -> Matrix:
    """The confusion matrix of the labels with most references, and of as many predicted ones."""
    labels, predicted, counts = confusion.labels, confusion.predicted, confusion.matrix
    rows = sorted(sorted(range(len(labels)), key=lambda i: -sum(counts[i]))[:_MATRIX])
    columns = sorted(sorted(range(len(predicted)), key=lambda j: -sum(row[j] for row in counts))[:_MATRIX])
    return Matrix(
        f"Confusion matrix of {task}",
        [or_none(labels[i]) for i in rows],
        [or_none(predicted[j]) for j in columns],
        [[counts[i][j] for j in columns] for i in rows],
        of=max(len(labels), len(predicted)),
    )
