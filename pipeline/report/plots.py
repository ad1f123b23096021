"""Draws plots as SVG text: static, printable, and in the colours of the page around them.

matplotlib draws with placeholder colours, which become the page's CSS variables: one SVG serves light and dark. Text
stays text, in the page's font. Every SVG has a title for screen readers; its numbers belong in a table beside it.

Importing this module loads matplotlib, which takes a second: `pipeline.report.render` imports it only to draw a plot.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline.report.blocks import CurvePlot, Estimate, HistogramPlot, IntervalPlot, Plot, ReliabilityPlot

WIDTH: Final = 420  # of each plot, in CSS pixels on a desktop; legible on a phone too
_INK, _ACCENT, _RULE, _MUTED = "#010203", "#010204", "#010205", "#010206"
_CSS: Final = {_INK: "var(--ink)", _ACCENT: "var(--accent)", _RULE: "var(--rule)", _MUTED: "var(--muted)"}
_STYLE: Final[dict[Any, object]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # labels are data: a dollar is a dollar
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": _MUTED,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
}
_LABEL: Final = 18  # characters of a label that fit beside a plot
_LOWEST_ACCURACY: Final = -0.5  # a bin far below would leave no room for the others


def draw(plot: Plot) -> str:
    """The plot as an `<svg>` element, with all its text escaped."""
    match plot:
        case HistogramPlot():
            return _histogram(plot)
        case IntervalPlot():
            return _intervals(plot)
        case ReliabilityPlot():
            return _reliability(plot)
        case CurvePlot():
            return _curve(plot)


def _histogram(plot: HistogramPlot) -> str:
    """Bars of equal width, whatever the distances of the edges."""
    counts, edges = plot.counts, plot.edges
    left = 24 + 7 * len(f"{max(counts):,}")
    with _plot(plot.title, 210, left=left, bottom=44) as (axes, svg):
        axes.bar([i + 0.5 for i in range(len(counts))], counts, width=0.88, color=_ACCENT)
        step = max(1, -(-len(edges) // 8))
        axes.set_xticks(range(0, len(edges), step), edges[::step])
        axes.set_xlim(-0.1, len(counts) + 0.1)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(plot.x_label)
    return svg.getvalue()


def _intervals(plot: IntervalPlot) -> str:
    estimates = plot.estimates
    with _plot(plot.title, 46 + 19 * len(estimates), left=_margin(estimates), bottom=34, right=14) as (axes, svg):
        whiskers = [(y, each.low, each.high) for y, each in enumerate(estimates) if each.low is not None]
        if whiskers:
            axes.hlines(*zip(*whiskers, strict=True), color=_ACCENT, linewidth=2, alpha=0.5)
        axes.plot([each.value for each in estimates], range(len(estimates)), "o", color=_ACCENT, clip_on=False)
        if plot.line is not None:
            axes.axvline(plot.line, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_yticks(range(len(estimates)), [_label(each.label) for each in estimates])
        axes.tick_params("y", labelcolor=_INK, pad=8)
        axes.set_ylim(len(estimates) - 0.4, -0.6)
        axes.margins(x=0.04)
        if not plot.points:
            axes.set_xlim(max(0, axes.get_xlim()[0]), max(0.01, axes.get_xlim()[1]))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" pp" if plot.points else " %"))
        axes.grid(visible=False, axis="y")
    return svg.getvalue()


def _reliability(plot: ReliabilityPlot) -> str:
    """Accuracy over confidence: the area of a dot grows with its count, the diagonal is perfect calibration.

    Each axis shows the range of its values only: most models are confident, and their dots would be in one corner.
    """
    bins = plot.bins
    with _plot(plot.title, 330, left=52, bottom=44, top=26) as (axes, svg):
        largest = max(each.count for each in bins)
        drawn = [max(each.accuracy, _LOWEST_ACCURACY) for each in bins]
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot([each.confidence for each in bins], drawn, color=_ACCENT, linewidth=1.5, alpha=0.5)
        for each, y in zip(bins, drawn, strict=True):
            marker, size = "o" if y == each.accuracy else "v", 12 + 88 * each.count / largest
            axes.scatter(each.confidence, y, s=size, marker=marker, color=_ACCENT, linewidths=0, clip_on=False)
        axes.set_xlim(*_zoomed([each.confidence for each in bins], 0.01))
        axes.set_ylim(*_zoomed(drawn, 0.05))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlabel(plot.x_label)
        axes.text(axes.get_xlim()[0], 1.03, plot.y_label, ha="left", transform=axes.get_xaxis_transform())
    return svg.getvalue()


def _curve(plot: CurvePlot) -> str:
    xs, ys = zip(*plot.points, strict=True)
    with _plot(plot.title, 250, left=52, bottom=44, top=26) as (axes, svg):
        axes.plot(xs, ys, color=_ACCENT, linewidth=2)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, max(0.01, 1.05 * max(ys)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlabel(plot.x_label)
        axes.text(0, 1.03, plot.y_label, ha="left", transform=axes.get_xaxis_transform())
    return svg.getvalue()


def _zoomed(shares: Sequence[float], least: float) -> tuple[float, float]:
    """The ends of an axis that shows these shares, and a range of at least `least`, with a margin."""
    low, high = min(shares), max(shares)
    low = min(low, high - least)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


@contextmanager
def _plot(
    title: str, height: int, *, left: int, bottom: int, top: int = 12, right: int = 12
) -> Iterator[tuple[Axes, io.StringIO]]:
    """Axes to draw on, and a buffer that holds the SVG after the block.

    Margins are in units of `WIDTH` and not found by measuring text, whose size depends on the fonts of the machine.
    """
    svg = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        # Labels may be in any script: the browser has the fonts for them, matplotlib need not.
        warnings.filterwarnings("ignore", message=r"Glyph \d+", category=UserWarning)
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        inner = (WIDTH - left - right) / WIDTH, (height - top - bottom) / height
        axes = figure.add_axes((left / WIDTH, bottom / height, *inner))
        yield axes, svg
        raw = io.StringIO()
        figure.savefig(raw, format="svg")
    opening = f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    svg.write(opening + _for_page(raw.getvalue()))


def _for_page(svg: str) -> str:
    """The content of `<svg ...>` without what could affect the rest of the page: styles, fonts, ids of groups."""
    body = re.sub(r".*?<svg[^>]*>", "", svg, count=1, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: [^;\"]*?([\d.]+)px[^;\"]*", r"font-size: \1px", body)  # versions of matplotlib
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)  # write the font in either way
    body = re.sub(r"\s*\n\s*", "\n", body).replace("xlink:href", "href")
    for color, variable in _CSS.items():
        body = body.replace(color, variable)
    return body


def _margin(estimates: Sequence[Estimate]) -> int:
    return 29 + 7 * min(_LABEL, max(len(each.label) for each in estimates))


def _label(text: str) -> str:
    """One short line of printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LABEL else line[: _LABEL - 1] + "…"
