"""Rows of CSV and TSV files as dictionaries by column."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

SURPLUS: Final = None
"""The key of the fields that a row has beyond its header, as in `csv`."""


def csv_rows(text: str) -> Iterator[dict[Any, Any]]:
    """Rows of a table whose fields are quoted where they hold commas, quotes or line feeds.

    Raises:
        ValueError: a quote is not closed.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        for number, row in enumerate(reader, 1):  # noqa: B007 - used in the message
            yield row
    except csv.Error as error:
        raise ValueError(f"row {number + 1}: {error}") from error


def tsv_rows(text: str) -> Iterable[dict[Any, Any]]:
    """Rows of a table in which tabs and line feeds divide fields.

    Tables of Common Voice quote nothing: a quotation mark is part of a text. Those of pandas and spreadsheets quote
    some fields. A field that is quoted as a whole is the same text in both. Quotes hold a line feed or tab only if the
    lines do not fit the header without them, and do with them.
    """
    # A table may end its lines as Windows does; other separators of Unicode are part of a text.
    header, *lines = (line.removesuffix("\r") for line in text.split("\n"))
    tabs = header.count("\t")
    if any(line and line.count("\t") != tabs for line in lines):
        with contextlib.suppress(csv.Error):
            quoted = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
            filled = [row for row in quoted if row]
            if filled and all(len(row) == len(filled[0]) for row in filled):
                return [dict(zip(filled[0], row, strict=True)) for row in filled[1:]]
    names = [_unquoted(name) for name in header.split("\t")]
    return (_fields(names, line.split("\t")) for line in lines if line)


def _fields(names: Sequence[str], row: Sequence[str]) -> dict[Any, Any]:
    """A row by column, as `csv.DictReader` makes it: missing fields are None, and surplus ones have the key None."""
    values: dict[Any, Any] = dict.fromkeys(names)
    values.update(zip(names, map(_unquoted, row), strict=False))
    if len(row) > len(names):
        values[SURPLUS] = list(row[len(names) :])
    return values


def _unquoted(field: str) -> str:
    """A field without the quotes around it, if each quotation mark between them is doubled."""
    inner = field[1:-1]
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else field
