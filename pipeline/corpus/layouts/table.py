"""Tables of utterances that other programs write: Kaldi, lhotse, CSV and TSV, audiofolder, JSON lines in gzip.

A table is read whole while the run is planned, and its rows are stored in the plan, with the keys of a manifest: a part
holds its rows, so that readers need neither the table nor the files beside it.
"""

from __future__ import annotations

import functools
import itertools
import json
import posixpath
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pydantic import AliasChoices, Field

from pipeline.corpus.layout import Layout, Listing, chain_parts
from pipeline.corpus.metadata import ManifestRow, Name, estimated_bytes, manifest_utt_id, parse_meta, unique_key
from pipeline.corpus.naming import resolve
from pipeline.corpus.parts import Part, cut_to_parts, key_digest, manifest_content, table_row_location
from pipeline.corpus.tables.csv_files import CSV
from pipeline.corpus.tables.json_lines import JSON_LINES, objects_in
from pipeline.corpus.tables.kaldi import KALDI
from pipeline.corpus.tables.kind import CHANNEL, Row, TableKind, audio_base, head_of, table_name
from pipeline.corpus.tables.lhotse import LHOTSE
from pipeline.corpus.tables.parquet_rows import PARQUET_ROWS
from pipeline.corpus.utterances import Utterance, broken_utterance, row_utterance, share
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.storage.reads import Object

KINDS: Final = (KALDI, LHOTSE, CSV, PARQUET_ROWS, JSON_LINES)  # the first that recognises a table has it
IN_DIRECTORIES: Final = frozenset({"wav.scp", "metadata.csv", "metadata.tsv", "metadata.jsonl"})
_SUFFIXES: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz", ".json.gz")
AUDIO_KEYS: Final = (
    *("audio_filepath", "path", "file_name", "filename", "file", "audio_path", "audio_file", "wav_filename", "wav"),
    *("wav_path", "audio"),
)


class TableRow(ManifestRow):
    """A row of a table: its audio under any of the names that are in use, and the channel, if the format says it."""

    audio_filepath: Name = Field(validation_alias=AliasChoices(*AUDIO_KEYS))
    audio_channel: int | None = Field(None, validation_alias=CHANNEL)


class _PlannedRow(NamedTuple):
    """A row: as a JSON line, digest of what must be unique, and the estimated size of its audio in bytes."""

    line: bytes
    key: int
    size: int


def plan_tables(listing: Listing, part_bytes: int, limit: int | None) -> Iterator[Part]:
    """Parts of tables; see `Layout.plan`."""
    planners = (functools.partial(_plan_table, table, part_bytes, listing) for table in listing.objects)
    return chain_parts(planners, limit)


def _plan_table(table: Object, part_bytes: int, listing: Listing, limit: int | None) -> Iterator[Part]:
    planned = itertools.islice(_planned_rows(table, listing), limit)
    start = 0
    for group in cut_to_parts(planned, lambda row: row.size, part_bytes):
        yield Part(
            kind=TABLE.kind,
            bytes=sum(row.size for row in group),
            uri=table.uri,
            version=table.version,
            start=start,
            end=start + len(group),
            rows=len(group),
            lines=zlib.compress(b"\n".join(row.line for row in group)),
            content=manifest_content(row.line for row in group),
            keys=array("Q", [row.key for row in group]),
            sizes=array("Q", [row.size for row in group]),
        )
        start += len(group)


def audio_of(table: Object, columns: Mapping[str, str], kind: str = "") -> frozenset[str]:
    """The URIs of the audio that a table names; see `rows_of`."""
    found = set()
    for row in rows_of(table, columns, kind):
        if not isinstance(row, AudioError):
            try:
                found.add(parse_meta(row, "", TableRow).audio_filepath)
            except AudioError:  # an error row, which names no audio
                continue
    return frozenset(found)


def rows_of(table: Object, columns: Mapping[str, str], key: str = "") -> Iterator[Row]:
    """The rows of a table, the paths in them as URIs.

    Args:
        table: the table.
        columns: names that it has for keys of a manifest, by these keys.
        key: that of its kind; empty: it shows its kind.

    Raises:
        UsageError: its kind is not read, it has no column of audio, or it lacks a column that `columns` names.
        StorageError: it could not be reached.
    """
    kind = next((kind for kind in KINDS if kind.key == key), None) or kind_of(table)
    rows = kind.rows(table.uri)
    first_rows = list(itertools.islice(rows, 1000))
    if values := [row for row in first_rows if isinstance(row, dict)]:
        check_columns(table.uri, dict.fromkeys(name for row in values for name in row), columns)
    rows = (
        row if isinstance(row, AudioError) else renamed_row(row, columns) for row in itertools.chain(first_rows, rows)
    )
    first_rows = list(itertools.islice(rows, 1000))
    _check_audio(table.uri, first_rows)
    base = audio_base(table.uri, _paths(first_rows), kind)
    for row in itertools.chain(first_rows, rows):
        yield _with_uri(row, base)


def kind_of(table: Object) -> TableKind:
    """The kind of a table.

    Raises:
        UsageError: it is none that is read.
    """
    head = head_of(table.uri, table.size)
    for kind in KINDS:
        if kind.recognises(table_name(table.uri), head):
            return kind
    raise UsageError(f"{table.uri} is no table of a kind that is read: {', '.join(kind.name for kind in KINDS)}")


def is_table(manifest: Object) -> bool:
    """Whether JSON lines are lhotse's, or have their audio under another key than a manifest."""
    if kind_of(manifest) is LHOTSE:
        return True
    first = next(iter(objects_in(head_of(manifest.uri, manifest.size))), None)
    return isinstance(first, dict) and "audio_filepath" not in first and _audio_key(first) is not None


def renamed_row(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the keys of a manifest for its own names; what it has under these keys is replaced."""
    if not columns:
        return row
    values = {key: value for key, value in row.items() if key not in columns.values()}
    return {**values, **{key: row[name] for key, name in columns.items() if name in row}}


def check_columns(uri: str, names: Iterable[str], columns: Mapping[str, str]) -> None:
    """Refuse names of columns that a table does not have.

    Raises:
        UsageError: none of its columns `names` is one of them.
    """
    names = list(map(str, names))
    for name in columns.values():
        if name not in names:
            raise UsageError(f"{uri} has no column {name}; its columns are {', '.join(names)}")


def _audio_key(row: Mapping[str, Any]) -> str | None:
    return next((name for name in AUDIO_KEYS if row.get(name) not in (None, "")), None)


def _paths(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if not isinstance(row, AudioError) and (key := _audio_key(row)) is not None:
            yield str(row[key])


def _with_uri(row: Row, base: str) -> Row:
    """The row with the URI of its audio at `audio_filepath`; a row without audio as it is."""
    if isinstance(row, AudioError) or (key := _audio_key(row)) is None or isinstance(row[key], dict | list):
        return row
    values = {name: value for name, value in row.items() if name != key}
    return {**values, "audio_filepath": resolve(str(row[key]), base)}


def _check_audio(uri: str, rows: list[Row]) -> None:
    if not rows:
        raise UsageError(f"{uri} has no rows")
    values = [row for row in rows if isinstance(row, dict)]
    if values and all(_audio_key(row) is None for row in values):
        raise UsageError(
            f"{uri} has no column of audio files; its columns are {', '.join(map(str, values[0]))}, and one of these "
            f"is needed: {', '.join(AUDIO_KEYS)}; or say which by --column audio=NAME"
        )


def _planned_rows(table: Object, listing: Listing) -> Iterator[_PlannedRow]:
    base = posixpath.dirname(table.uri)
    left_out = listing.left_out
    for number, values in enumerate(rows_of(table, listing.columns, listing.kind)):
        location = table_row_location(table.uri, number)
        try:
            if isinstance(values, AudioError):
                raise AudioError(values.code, f"{location}: {values.message}")
            row = parse_meta(values, location, TableRow)
        except AudioError as error:
            problem = json.dumps({"problem": [error.code.value, error.message]}, ensure_ascii=False)
            yield _PlannedRow(problem.encode(), key_digest(f"\0{location}"), 0)
            continue
        left_out.texts += row.text is not None
        left_out.labels_only += row.text is None and row.label is not None
        line = json.dumps({"row": values}, ensure_ascii=False, default=str).encode()
        yield _PlannedRow(line, key_digest(unique_key(manifest_utt_id(row, base), row)), estimated_bytes(row))


def read_table(part: Part) -> Iterator[Utterance]:
    """The utterances of a part of a table; see `Layout.read`. The table itself is not read again."""
    base = posixpath.dirname(part.uri)
    lines = zlib.decompress(part.lines).split(b"\n") if part.rows else []
    for index, line in enumerate(lines):
        number = (part.start or 0) + index
        size = share(part.bytes, index, len(lines))
        stored = json.loads(line)
        if "problem" in stored:
            code, message = stored["problem"]
            problem = AudioError(ErrorCode(code), message)
            yield broken_utterance(f"{part.uri}[{number}]", part.uri, problem, size)
            continue
        location = table_row_location(part.uri, number)
        row = parse_meta(stored["row"], location, TableRow)
        yield replace(row_utterance(row, base, size, location), channel=row.audio_channel)


TABLE = Layout(
    kind="table",
    claims=lambda uri: table_name(uri) in IN_DIRECTORIES or uri.lower().endswith(_SUFFIXES),
    plan=plan_tables,
    read=read_table,
    in_directories=lambda uri: table_name(uri) in IN_DIRECTORIES,
    plans_keys=True,
)
