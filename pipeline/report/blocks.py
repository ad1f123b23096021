"""The building blocks of a report before it is HTML or Markdown: sections of tables, figures, facts and notes.

Nothing here is escaped: all text is data until `pipeline.report.render` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from pipeline.report.model import Alignment, AudioMode, Clip, Interval

Kind = Literal[
    "text",
    "name",
    "code",
    "speech",
    "alignment",
    "count",
    "change",
    "rate",
    "points",
    "number",
    "duration",
    "range",
    "p",
    "spoken",
]
NUMERIC: Final = frozenset({"count", "change", "rate", "points", "number", "duration", "range", "p"})


@dataclass(frozen=True)
class Spoken:
    """An utterance: its alignment, where its audio is stored, in words, and what can be played; None: nothing."""

    alignment: Alignment
    place: str
    clip: Clip | None


Cell = str | float | Interval | Alignment | Spoken | None
"""A value of a table; its column's kind says which of these it is. None: not available."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its header.
        kind: how its values are written. `rate` is a fraction, `range` an interval of fractions, `points` a difference
            of two, `duration` are seconds, `name` is an id or a URI, `code` a short id that never breaks, `speech` a
            transcript, `alignment` a list of (op, reference, hypothesis), `spoken` a `Spoken`.
        bar: draw a bar behind the value, as long as its share of the largest value of the column.
    """

    title: str
    kind: Kind = "text"
    bar: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of values, which are formatted when they are written.

    Attributes:
        title: its caption.
        columns: one for each value of a row.
        rows: the rows to show.
        of: number of rows in all, if the shown ones are a part or a sample.
        wide: too wide to stand beside another block.
        folded: closed at first: the data of a figure, or a detail.
    """

    block: ClassVar = "table"
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    of: int | None = None
    wide: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Matrix:
    """Counts by reference label (row) and predicted label (column); `of` is the number of labels in all."""

    block: ClassVar = "matrix"
    title: str
    labels: Sequence[str]
    predicted: Sequence[str]
    counts: Sequence[Sequence[int]]
    of: int


@dataclass(frozen=True)
class HistogramPlot:
    """Bars between `edges`, texts, of which there is one more than counts. `title` is read by screen readers."""

    title: str
    edges: Sequence[str]
    counts: Sequence[int]
    x_label: str


@dataclass(frozen=True)
class Estimate:
    """A labelled value with its interval; `low` and `high` are None without one."""

    label: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class IntervalPlot:
    """A dot and a whisker for each estimate, from the top.

    Attributes:
        title: read by screen readers.
        estimates: at least one.
        line: position of a dashed vertical line, such as the rate of the whole corpus; None: no line.
        points: the values are differences, labelled in percentage points.
    """

    title: str
    estimates: Sequence[Estimate]
    line: float | None
    points: bool = False


@dataclass(frozen=True)
class PlottedBin:
    """Predictions of similar confidence: their mean confidence, their accuracy and their number."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class ReliabilityPlot:
    """Accuracy over confidence. `bins` has at least one; `title` is read by screen readers."""

    title: str
    bins: Sequence[PlottedBin]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class CurvePlot:
    """A curve of shares over shares. `points` has at least one; `title` is read by screen readers."""

    title: str
    points: Sequence[tuple[float, float]]
    x_label: str
    y_label: str


Plot = HistogramPlot | IntervalPlot | ReliabilityPlot | CurvePlot


@dataclass(frozen=True)
class Figure:
    """A plot with its numbers, if no table beside it has them; without a plot, the numbers alone."""

    block: ClassVar = "figure"
    title: str
    plot: Plot | None
    note: str = ""
    data: Table | None = None


@dataclass(frozen=True)
class Facts:
    """Names with their values, both text. `prominent`: few and important, in large type."""

    block: ClassVar = "facts"
    items: Sequence[tuple[str, str]]
    prominent: bool = False


@dataclass(frozen=True)
class Note:
    """A paragraph. `tone` marks good and bad news."""

    block: ClassVar = "note"
    text: str
    tone: Literal["plain", "good", "bad"] = "plain"


Block = Table | Matrix | Figure | Facts | Note


@dataclass(frozen=True)
class Part:
    """Blocks that belong together, under a title of their own unless that is empty."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """A section of the page, and its link in the navigation (`nav`)."""

    id: str
    nav: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Score:
    """A headline figure, formatted."""

    name: str
    short: str
    value: str
    interval: str = ""
    detail: str = ""
    change: str = ""


@dataclass(frozen=True)
class Page:
    """The whole page.

    Attributes:
        title: name of the run.
        about: where the figures come from, as (name, value).
        banner: why to read the figures with care; empty if the run is done.
        scores: at least one, of which the first is shown largest.
        coverage: how much of the corpus the scores cover.
        shares: coverage as (name, utterances), for a bar.
        sections: in their order.
        audio: what the page plays, as in `Listening`; None: nothing.
    """

    title: str
    about: Sequence[tuple[str, str]]
    banner: str
    scores: Sequence[Score]
    coverage: str
    shares: Sequence[tuple[str, int]]
    sections: Sequence[Section]
    audio: AudioMode | None = None
