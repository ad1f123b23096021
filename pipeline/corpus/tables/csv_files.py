"""CSV and TSV files with a header: Common Voice, audiofolder's `metadata.csv`, what spreadsheets and pandas write."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.corpus.tables.fields import SURPLUS, csv_rows, tsv_rows
from pipeline.corpus.tables.kind import Row, TableKind, read_text, table_name
from pipeline.errors import AudioError, ErrorCode, UsageError


def _rows(uri: str) -> Iterator[Row]:
    text = read_text(uri)
    is_tabs = _is_tsv(uri, text)
    found = tsv_rows(text) if is_tabs else csv_rows(text)
    del text
    try:
        for row in found:
            if SURPLUS in row:  # an unquoted text with a comma would be cut
                yield AudioError(ErrorCode.BAD_ROW, "it has more fields than the header")
            else:
                # An empty cell is a text of no words where it is the text, and nothing elsewhere.
                yield {name: value for name, value in row.items() if value or (value == "" and name in _TEXTS)}
    except ValueError as error:
        raise UsageError(f"cannot read the table {uri}: {error}") from error


_TEXTS = frozenset({"text", "transcription", "transcript", "sentence"})


def _is_tsv(uri: str, text: str) -> bool:
    """Whether tabs divide the fields: by the name, else by the header."""
    name = table_name(uri)
    return name.endswith(".tsv") or (not name.endswith(".csv") and "\t" in text.partition("\n")[0])


CSV = TableKind(
    key="csv",
    name="CSV or TSV file",
    recognises=lambda name, head: name.endswith((".csv", ".tsv")),
    rows=_rows,
)
