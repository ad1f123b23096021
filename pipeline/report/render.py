"""The report as text: one HTML file that asks for nothing outside itself, or Markdown. Both say what `page` says."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import formats
from pipeline.report.blocks import NUMERIC, Block, Column, Facts, Figure, Kind, Matrix, Note, Page, Table
from pipeline.report.page import Report, page

Alignment = Sequence[Sequence[str]]

_FILTERED: Final = 12  # rows from which on a table has a box to filter it
_WRITTEN: Final[Mapping[Kind, Callable[[Any, int], str]]] = {
    "count": lambda value, _: formats.count(value),
    "change": lambda value, _: formats.change(value),
    "rate": formats.percent,
    "points": lambda value, _: formats.points(value),
    "number": lambda value, _: formats.number(value),
    "seconds": lambda value, _: formats.number(value, 1),
    "range": formats.percent_range,
    "p": lambda value, _: formats.probability(value),
    "alignment": lambda value, _: alignment_text(value),
}


def html(report: Report) -> str:
    """The report as one HTML file: it works from a disk, and makes no request.

    All text of the report is untrusted and escaped. Should any get through, the page's policy still runs no script but
    its own, which it names by its hash.

    Raises:
        KeyError: the dict lacks a key of the report's format.
    """
    template = _environment().get_template("report.html.jinja")
    text = template.render(page=page(report), FILTERED=_FILTERED, NUMERIC=NUMERIC, NONE=formats.NONE)
    return text.encode("utf-8", "replace").decode("utf-8")  # file names may hold what is no character


def markdown(report: Report) -> str:
    """The report as Markdown, with tables as GitHub reads them; the same content, but for the plots.

    Raises:
        KeyError: the dict lacks a key of the report's format.
    """
    text = "\n\n".join(_markdown(page(report))) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def written(table: Table) -> list[list[str]]:
    """The table's rows as text; percentages of a column have the same number of decimals."""
    digits = [_digits(column, [row[i] for row in table.rows]) for i, column in enumerate(table.columns)]
    return [
        [_cell(column.kind, value, places) for column, value, places in zip(table.columns, row, digits, strict=True)]
        for row in table.rows
    ]


def shown(table: Table | Matrix) -> str:
    """`20 of 1,234 shown`; empty where all are."""
    number_of = len(table.rows) if isinstance(table, Table) else max(len(table.labels), len(table.predicted))
    return (
        ""
        if table.of is None or table.of <= number_of
        else f"{formats.count(number_of)} of {formats.count(table.of)} shown"
    )


def alignment_text(alignment: Alignment) -> str:
    """An alignment in one line: `the [cat › hat] [−sat] [+down]`."""
    forms = {"equal": "{0}", "substitute": "[{0} › {1}]", "delete": "[−{0}]", "insert": "[+{1}]"}
    return " ".join(forms[op].format(reference, hypothesis) for op, reference, hypothesis in alignment)


def _cell(kind: Kind, value: Any, digits: int) -> str:
    if value is None:
        return formats.NONE
    return _WRITTEN[kind](value, digits) if kind in _WRITTEN else str(value)


def _digits(column: Column, values: Sequence[Any]) -> int:
    if column.kind == "range":
        values = [value["low"] for value in values if value is not None]
    return formats.percent_digits(values) if column.kind in {"rate", "range"} else 0


# --- HTML


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["longer"] = lambda text, limit: len(text) > limit
    environment.filters.update(
        written=written, shown=shown, shares=_shares, sha256=_sha256, count=formats.count, svg=_svg, heat=_heat
    )
    return environment


def _sha256(script: str) -> str:
    """As a Content-Security-Policy names a script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _svg(plot: str) -> Markup:
    """A plot of `pipeline.report.plots`, which escapes what is in it."""
    return Markup(plot)


def _shares(table: Table) -> list[list[str]]:
    """For each cell, the style that draws its bar; empty in columns without bars."""
    largest = [
        max((row[i] or 0 for row in table.rows), default=0) if column.bar else 0
        for i, column in enumerate(table.columns)
    ]
    return [
        [f"--w:{100 * (value or 0) / most:.3g}%" if most else "" for value, most in zip(row, largest, strict=True)]
        for row in table.rows
    ]


def _heat(matrix: Matrix) -> list[list[tuple[int, float]]]:
    """Each count with its share of its row: of the references with that label."""
    return [[(value, value / (sum(row) or 1)) for value in row] for row in matrix.counts]


# --- Markdown


def _markdown(content: Page) -> Iterator[str]:
    yield f"# {_plain(content.title)}"
    if content.banner:
        yield f"**{_plain(content.banner)}**"
    yield from _facts(content.about)
    yield _rows(
        ["Figure", "Value", "Interval", "Counts", "Change"],
        [[score.name, score.value, score.interval, score.detail, score.change] for score in content.scores],
        numeric={1},
    )
    yield f"**{_plain(content.coverage)}**"
    for section in content.sections:
        yield f"## {_plain(section.title)}"
        for part in section.parts:
            if part.title:
                yield f"### {_plain(part.title)}"
            for block in part.blocks:
                yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Note(text):
            yield _plain(text)
        case Facts(items):
            yield from _facts(items)
        case Figure(_, _, note, data):
            if note:
                yield _plain(note)
            if data is not None:
                yield from _block(data)
        case Table(title, columns):
            yield _caption(title, shown(block))
            numeric = {i for i, column in enumerate(columns) if column.kind in NUMERIC}
            yield _rows([column.title for column in columns], written(block), numeric)
        case Matrix(title, labels, predicted, counts):
            yield _caption(title, shown(block))
            rows = [[label, *map(formats.count, row)] for label, row in zip(labels, counts, strict=True)]
            yield _rows(["Reference ↓, predicted →", *predicted], rows, set(range(1, len(predicted) + 1)))


def _caption(title: str, cut: str) -> str:
    return f"**{_plain(title)}**" + (f" ({cut})" if cut else "")


def _facts(items: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in items)


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int]) -> str:
    rule = ["---:" if i in numeric else "---" for i in range(len(header))]
    lines = [[_plain(title) for title in header], rule, *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text on one line, in which Markdown and HTML mean nothing."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~>#])", r"\\\1", text)
