"""What a report is made of, before it is HTML or Markdown: sections of tables, figures, facts and notes.

Nothing here is escaped: all text is data until it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

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
    "seconds",
    "range",
    "p",
]
NUMERIC: Final = frozenset({"count", "change", "rate", "points", "number", "seconds", "range", "p"})


@dataclass(frozen=True)
class Column:
    """A table's column.

    Attributes:
        title: its header.
        kind: how its values are written. `rate` and `range` are fractions, `points` differences of them, `seconds`
            are seconds, `name` is an id or a URI, `code` a short one that never breaks, `speech` a transcript,
            `alignment` a list of [op, reference, hypothesis].
        bar: draw the value's share of the column's largest behind it.
    """

    title: str
    kind: Kind = "text"
    bar: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of values, formatted where they are written.

    Attributes:
        title: its caption.
        columns: one for each value of a row.
        rows: what is shown.
        of: how many rows there are in all, where those shown are a cut or a sample.
        wide: too wide to stand beside another block.
        folded: the data of a figure, or a detail: at first closed.
    """

    block: ClassVar = "table"
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    of: int | None = None
    wide: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Matrix:
    """Counts by reference label (row) and predicted label (column); `of` labels in all."""

    block: ClassVar = "matrix"
    title: str
    labels: Sequence[str]
    predicted: Sequence[str]
    counts: Sequence[Sequence[int]]
    of: int


@dataclass(frozen=True)
class Figure:
    """A plot, and its numbers if no table beside it has them."""

    block: ClassVar = "figure"
    title: str
    svg: str
    note: str = ""
    data: Table | None = None


@dataclass(frozen=True)
class Facts:
    """Names with their values, both text. `prominent`: few, and worth large type."""

    block: ClassVar = "facts"
    items: Sequence[tuple[str, str]]
    prominent: bool = False


@dataclass(frozen=True)
class Note:
    """A paragraph. `tone` is of what it reports."""

    block: ClassVar = "note"
    text: str
    tone: Literal["plain", "good", "bad"] = "plain"


Block = Table | Matrix | Figure | Facts | Note


@dataclass(frozen=True)
class Part:
    """Blocks that belong together, under a title of their own if there is one."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """A stretch of the page that the navigation leads to."""

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
    """All that the report says.

    Attributes:
        title: of the run.
        about: where it comes from.
        banner: why to be wary of it; empty if the run is done.
        scores: the first one is the largest; never empty.
        coverage: how much of the corpus the scores speak for.
        shares: coverage as (name, utterances), for a bar.
        sections: in order.
    """

    title: str
    about: Sequence[tuple[str, str]]
    banner: str
    scores: Sequence[Score]
    coverage: str
    shares: Sequence[tuple[str, int]]
    sections: Sequence[Section]
