"""Writes a report as one self-contained HTML file, as Markdown or as JSON.

HTML and Markdown have the same content, `pipeline.report.page`, except that only HTML has plots.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import formats
from pipeline.report.blocks import (
    NUMERIC,
    Block,
    Cell,
    Column,
    Facts,
    Figure,
    Kind,
    Matrix,
    Note,
    Page,
    Plot,
    Table,
)
from pipeline.report.model import Alignment, Interval, ReportContent, to_json
from pipeline.report.page import page

_FILTERED: Final = 12  # tables of at least this many rows get a box to filter them
_FORMATTERS: Final[Mapping[Kind, Callable[[Any, int], str]]] = {
    "count": lambda value, _: formats.count(value),
    "change": lambda value, _: formats.change(value),
    "rate": formats.percent,
    "points": lambda value, _: formats.points(value),
    "number": lambda value, _: formats.number(value),
    "duration": lambda value, _: formats.duration(value, formats.SPACE),
    "range": lambda interval, digits: formats.percent_range(interval.low, interval.high, digits),
    "p": lambda value, _: formats.probability(value),
    "alignment": lambda value, _: alignment_text(value),
    "spoken": lambda value, _: f"{alignment_text(value.alignment)} ({value.place})",
}
_CONTROLS: Final = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
_LONG: Final = frozenset({"alignment", "spoken"})
_BESIDE: Final = 4  # columns that a phone has room for, of them one of names or words
_MEDIA: Final[Mapping[str | None, str]] = {"embed": "data:", "link": "https: http: file:"}
"""Sources that the players of a page may load from, for its Content-Security-Policy."""


def html(report: ReportContent) -> str:
    """The report as one HTML file, which works from a local disk and makes no network requests.

    All text of the report is untrusted and escaped. As a second defence, the page's Content-Security-Policy lets no
    script run but the page's own, which it names by its hash.
    """
    template = _environment().get_template("report.html.jinja")
    content = page(report)
    media = _MEDIA.get(content.audio, "'none'")
    text = template.render(page=content, MEDIA=media, FILTERED=_FILTERED, NUMERIC=NUMERIC, NONE=formats.NONE)
    return _encodable(text.lstrip())


def markdown(report: ReportContent) -> str:
    """The report as Markdown, with tables in GitHub's syntax; the content of the HTML page without its plots."""
    return _encodable("\n\n".join(_markdown(page(report))) + "\n")


def json_text(report: ReportContent) -> str:
    """The report as JSON; `pipeline.report.model` documents its keys."""
    return json.dumps(to_json(report), ensure_ascii=False, allow_nan=False, indent=1)


def _encodable(text: str) -> str:
    """The text without what is no text: control characters, which command terminals, and lone surrogates of file names.

    UTF-8 cannot encode these; each becomes a question mark, and a control character a replacement character.
    """
    return text.encode("utf-8", "replace").decode("utf-8").translate(_CONTROLS)


def written(table: Table) -> list[list[str]]:
    """The rows of a table as text. The percentages of a column have the same number of decimals."""
    digits = [_digits(column, [row[i] for row in table.rows]) for i, column in enumerate(table.columns)]
    return [
        [_cell(column.kind, value, places) for column, value, places in zip(table.columns, row, digits, strict=True)]
        for row in table.rows
    ]


def shown(table: Table | Matrix) -> str:
    """`20 of 1,234 shown`; empty if all are shown."""
    number_of = len(table.rows) if isinstance(table, Table) else max(len(table.labels), len(table.predicted))
    if table.of is None or table.of <= number_of:
        return ""
    return f"{formats.count(number_of)} of {formats.count(table.of)} shown"


def alignment_text(alignment: Alignment) -> str:
    """An alignment on one line: `the [cat › hat] [−sat] [+down]`."""
    forms = {"equal": "{0}", "substitute": "[{0} › {1}]", "delete": "[−{0}]", "insert": "[+{1}]"}
    return " ".join(forms[op].format(reference, hypothesis) for op, reference, hypothesis in alignment)


def _cell(kind: Kind, value: Cell, digits: int) -> str:
    if value is None:
        return formats.NONE
    return _FORMATTERS[kind](value, digits) if kind in _FORMATTERS else str(value)


def _digits(column: Column, values: Sequence[Cell]) -> int:
    """Decimals of the percentages of a column; without meaning in other columns."""
    if column.kind not in {"rate", "range"}:
        return 0
    rates = (value.low if isinstance(value, Interval) else value for value in values)
    return formats.percent_digits(rate for rate in rates if isinstance(rate, (int, float)))


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
        stacked=_stacked,
        written=written,
        shown=shown,
        shares=_shares,
        sha256=_sha256,
        count=formats.count,
        svg=_svg,
        heat=_heat,
    )
    return environment


def _sha256(script: str) -> str:
    """The hash of a script in the form that a Content-Security-Policy allows it by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _svg(plot: Plot | None) -> Markup:
    """A plot as SVG, whose text is escaped there."""
    if plot is None:
        return Markup()
    from pipeline.report import plots  # noqa: PLC0415  # loads matplotlib, which only plots need

    return Markup(plots.draw(plot))


def _stacked(table: Table) -> bool:
    """Whether a phone shows each row as a block of its own: the columns beside each other would be cut off."""
    kinds = [column.kind for column in table.columns]
    names = sum(kind not in NUMERIC for kind in kinds)
    return len(kinds) > _BESIDE or (names > 1 and len(kinds) == _BESIDE) or not _LONG.isdisjoint(kinds)


def _shares(table: Table) -> list[list[str]]:
    """For each cell, the style that draws its bar; empty in columns without bars."""
    numbers = [
        [
            value if column.bar and isinstance(value, (int, float)) else 0
            for column, value in zip(table.columns, row, strict=True)
        ]
        for row in table.rows
    ]
    largest = [max(column) for column in zip(*numbers, strict=True)]
    return [
        [f"--w:{100 * value / most:.3g}%" if most else "" for value, most in zip(row, largest, strict=True)]
        for row in numbers
    ]


def _heat(matrix: Matrix) -> list[list[tuple[int, float]]]:
    """Each count with its share of its row, which is of the references with that label."""
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
    """The text on one line, with all syntax of Markdown and HTML escaped."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~>#])", r"\\\1", text)
