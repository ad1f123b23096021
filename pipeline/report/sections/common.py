"""What several sections share: texts of values and intervals, histograms, calibration plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.report.blocks import (
    Block,
    Cell,
    Column,
    Estimate,
    Figure,
    HistogramPlot,
    PlottedBin,
    ReliabilityPlot,
    Table,
)
from pipeline.report.formats import NONE, SPACE, count, percent_range, plural
from pipeline.report.model import CalibrationBin, EngineUse, Histogram, Interval, ReportContent


def level_text(report: ReportContent) -> str:
    """The level of the intervals: `95 %`."""
    return _level(report.scoring.level)


def _level(level: float) -> str:
    return f"{100 * level:g}{SPACE}%"


def interval_text(interval: Interval | None) -> str:
    """`95 %: 4.10–5.20 % over 60 speakers`; empty without an interval."""
    if interval is None:
        return ""
    return (
        f"{_level(interval.level)}: {percent_range(interval.low, interval.high)} "
        f"over {plural(interval.units, interval.unit)}"
    )


def or_none(text: str | None) -> str:
    """The text; `(none)` if there is none."""
    return text or "(none)"


def engines_text(engines: Sequence[EngineUse]) -> str:
    """What computed the transcripts; if there were several engines, how many each computed."""
    if len(engines) == 1:
        return engines[0].engine
    return "; ".join(f"{each.engine}: {plural(each.transcripts, 'transcript')}" for each in engines) or NONE


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def estimate(label: str, value: float, interval: Interval | None) -> Estimate:
    """A value to plot."""
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return Estimate(label, value, low, high)


def histogram(title: str, data: Histogram, edge_text: Callable[[float], str], x_label: str) -> Figure:
    """A histogram of utterances, with the numbers of the bins that have any.

    Args:
        title: of the figure.
        data: edges and counts.
        edge_text: writes an edge.
        x_label: what the edges are values of.
    """
    edges = ["∞" if edge is None else edge_text(edge) for edge in data.edges]
    total = sum(data.counts)
    rows: list[list[Cell]] = [
        [f"{low} – {high}", number_of, number_of / total]
        for low, high, number_of in zip(edges, edges[1:], data.counts, strict=False)
        if number_of
    ]
    columns = [Column(capital(x_label)), Column("Utterances", "count", bar=True), Column("Share", "rate")]
    return Figure(
        title,
        HistogramPlot(f"{title}: histogram of {plural(total, 'utterance')}", edges, data.counts, x_label),
        data=Table(title, columns, rows, folded=True),
    )


def reliability(title: str, bins: Sequence[CalibrationBin], x_label: str, y_label: str, note: str) -> Figure:
    """A calibration plot, with the numbers of the bins that have any."""
    drawn = [
        PlottedBin(each.confidence, each.accuracy, each.count)
        for each in bins
        if each.count and each.confidence is not None and each.accuracy is not None
    ]
    table = Table(
        title,
        [
            Column("From", "rate"),
            Column("To", "rate"),
            Column("Utterances", "count", bar=True),
            Column(capital(x_label), "rate"),
            Column(capital(y_label), "rate"),
        ],
        [[each.low, each.high, each.count, each.confidence, each.accuracy] for each in bins if each.count],
        folded=True,
    )
    return Figure(title, ReliabilityPlot(title, drawn, x_label, y_label) if drawn else None, note, table)


def beside(figure: Figure) -> list[Block]:
    """The figure with its numbers beside it instead of folded below it: for one that has the width of the page."""
    if figure.data is None:
        return [figure]
    return [replace(figure, data=None), replace(figure.data, title="Values", folded=False)]


def shown_of(shown: int, total: int, what: str) -> str:
    """` 30 of 60 shown, WHAT.`; empty if all are shown."""
    return f" {count(shown)} of {count(total)} shown, {what}." if total > shown else ""
