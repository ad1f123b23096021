"""Parquet files with a column `audio`: bytes, a path, or the struct of both that the `datasets` library writes.

The other columns have the keys of a manifest. A part is a range of row groups.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.layout import Layout, Listing, chain_parts
from pipeline.corpus.metadata import UtteranceMeta, parse_meta
from pipeline.corpus.naming import relative_id, relative_path, resolve, stem, suffix
from pipeline.corpus.parts import Part, cut_to_parts
from pipeline.corpus.utterances import (
    AudioOpener,
    Utterance,
    broken_utterance,
    check_version,
    failing_opener,
    open_object,
    share,
)
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.storage import objects
from pipeline.storage.objects import Object

BATCH_ROWS = 64  # decoded at a time: rows hold audio

# Arrow's errors for a broken file. Storage that fails raises StorageError, which is none of these.
_PARQUET_ERRORS = (pa.ArrowException, OSError)


def plan_tables(listing: Listing, part_bytes: int, limit: int | None) -> Iterator[Part]:
    """Parts of Parquet files; see `Layout.plan`.

    Raises:
        UsageError: a file has no column `audio` that can hold audio.
    """
    planners = (functools.partial(_plan_table, table, listing.root, part_bytes) for table in listing.objects)
    return chain_parts(planners, limit)


def _plan_table(table: Object, root: str, part_bytes: int, limit: int | None) -> Iterator[Part]:
    name = stem(relative_path(table.uri, root))
    try:
        with objects.open_read(table.uri) as source:
            metadata = pq.ParquetFile(source).metadata
            schema = metadata.schema.to_arrow_schema()
    except _PARQUET_ERRORS:  # reading the part makes an error row of it
        rows = None if limit is None else 1
        yield Part(PARQUET.kind, table.size, table.uri, name, table.version, rows=rows, limit=limit)
        return
    _check_audio_column(schema, table.uri)
    row_groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    start = 0
    for group in cut_to_parts(row_groups, lambda row_group: row_group.total_byte_size, part_bytes):
        if limit is not None and limit <= 0:
            return
        end = start + len(group)
        size = sum(row_group.total_byte_size for row_group in group)
        rows = sum(row_group.num_rows for row_group in group)
        if limit is not None:
            rows = min(rows, limit)
        yield Part(PARQUET.kind, size, table.uri, name, table.version, start, end, rows=rows, limit=limit)
        limit = None if limit is None else limit - rows
        start = end


def _check_audio_column(schema: pa.Schema, uri: str) -> None:
    if "audio" not in schema.names:
        raise UsageError(f"{uri} has no column `audio`; its columns are {', '.join(sorted(schema.names))}")
    kind = schema.field("audio").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    members = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not (members & {"bytes", "path"} or any(test(kind) for test in plain)):
        raise UsageError(
            f"{uri}: column `audio` is {kind}; it must be a path, bytes, or a struct of `bytes` and `path`"
        )


def read_table(part: Part) -> Iterator[Utterance]:
    """The utterances of a range of row groups; see `Layout.read`."""
    check_version(part)
    first_group = part.start or 0
    done = 0
    try:
        with objects.open_read(part.uri) as file:
            table = pq.ParquetFile(file)
            metadata = table.metadata
            end_group = metadata.num_row_groups if part.end is None else part.end
            first_row = sum(metadata.row_group(index).num_rows for index in range(first_group))
            count = sum(metadata.row_group(index).num_rows for index in range(first_group, end_group))
            groups = list(range(first_group, end_group))
            for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=groups):
                for index in range(batch.num_rows):
                    size = share(part.bytes, done, count)
                    yield _read_row(batch.slice(index, 1), part, first_row + done, size)
                    done += 1
    except _PARQUET_ERRORS as error:
        problem = AudioError(ErrorCode.BAD_ARCHIVE, f"after {done} rows: {error}")
        yield broken_utterance(part.name, part.uri, problem)


def _read_row(batch: pa.RecordBatch, part: Part, row: int, size: int) -> Utterance:
    """The utterance in a batch of one row, which is row `row` of the file."""
    location = f"{part.uri}, row {row}"
    row_id = f"{part.name}/{row}"
    try:
        values = batch.to_pylist()[0]
    except UnicodeDecodeError as error:  # Arrow validates UTF-8 only when a string becomes a Python string
        return broken_utterance(row_id, part.uri, AudioError(ErrorCode.BAD_ROW, f"{location}: {error}"), size)
    audio = _audio_of(values.pop("audio"))
    base = posixpath.dirname(part.uri)
    default_id = row_id
    if audio.path:
        # Beside bytes, a path is only a name: there need not be a file at it.
        default_id = relative_id(audio.path, base) if audio.data is None else stem(posixpath.normpath(audio.path))
    try:
        meta = parse_meta({k: v for k, v in values.items() if v is not None}, location, UtteranceMeta)
    except AudioError as error:
        return broken_utterance(default_id, part.uri, error, size)
    uri = part.uri
    opener: AudioOpener
    if audio.data is not None:
        opener = functools.partial(bytes, audio.data)
    elif audio.path:
        uri = resolve(audio.path, base)
        opener = functools.partial(open_object, uri)
    else:
        opener = failing_opener(AudioError(ErrorCode.MISSING, f"{location}: neither bytes nor path"))
    return Utterance(
        utt_id=meta.utt_id or default_id,
        uri=uri,
        open=opener,
        size=size,
        meta=meta,
        fixed_id=meta.utt_id is not None,
        source_location=location,
    )


class _Audio(NamedTuple):
    """A value of the column `audio`: a path, the bytes, both or neither."""

    path: str | None
    data: bytes | None


def _audio_of(value: str | bytes | dict[str, Any] | None) -> _Audio:
    if isinstance(value, dict):
        return _Audio(value.get("path"), value.get("bytes"))
    return _Audio(value, None) if isinstance(value, str) else _Audio(None, value)


PARQUET = Layout(
    kind="parquet",
    claims=lambda uri: suffix(uri) == "parquet",
    plan=plan_tables,
    read=read_table,
)
