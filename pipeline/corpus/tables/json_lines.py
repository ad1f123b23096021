"""JSON lines compressed by gzip, and audiofolder's `metadata.jsonl`: rows of a manifest, or with other keys."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_core import from_json

from pipeline.corpus.tables.kind import Row, TableKind, read_text
from pipeline.errors import AudioError, ErrorCode

SUFFIXES = (".jsonl", ".ndjson", ".json")


def objects_of(uri: str) -> Iterator[Row]:
    """The objects in a file of JSON lines, in order; an error for a line that is none."""
    return objects_in(read_text(uri))


def objects_in(lines: str | bytes) -> Iterator[Row]:
    """The objects in JSON lines, in order; an error for a line that is none.

    As in the rows of a manifest, which pydantic reads, half a pair of surrogates is no JSON, and nesting has a limit.
    """
    text = lines if isinstance(lines, str) else lines.decode("utf-8-sig", errors="replace")
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except ValueError as error:
            yield AudioError(ErrorCode.BAD_ROW, f"it is not JSON: {error}")
            continue
        yield row if isinstance(row, dict) else AudioError(ErrorCode.BAD_ROW, "it is not a JSON object")


JSON_LINES = TableKind(
    key="manifest",
    name="JSON lines",
    recognises=lambda name, head: name.endswith(SUFFIXES),
    rows=objects_of,
)
