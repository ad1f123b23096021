"""Parquet files with a column `audio`: bytes, a path, or the struct that the `datasets` library writes.

The struct has `bytes` and `path`, or the samples as `array` with their `sampling_rate`. The other columns have the keys
of a manifest. A part is a range of row groups.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from pipeline.corpus.class_labels import ClassNames, audio_features, class_names, with_class_names
from pipeline.corpus.layout import Layout, Listing, chain_parts
from pipeline.corpus.layouts.table import AUDIO_KEYS, TABLE, check_columns, renamed_row
from pipeline.corpus.metadata import UtteranceMeta, parse_meta
from pipeline.corpus.naming import relative_id, relative_path, resolve, stem, suffix
from pipeline.corpus.parts import Part, cut_to_parts
from pipeline.corpus.tables.parquet_rows import PARQUET_ERRORS, PARQUET_ROWS, VALUE_ERRORS, value_of
from pipeline.corpus.utterances import (
    AudioOpener,
    ObjectOpener,
    Utterance,
    broken_utterance,
    failing_opener,
    open_planned,
    share,
)
from pipeline.errors import AudioError, ErrorCode
from pipeline.storage import objects
from pipeline.storage.reads import Object

# Rows are decoded in batches of at most this many rows, and of about this many bytes: Arrow cannot read more than 2 GiB
# of nested bytes at once, and rows of audio have any size.
BATCH_ROWS = 64
BATCH_BYTES = 32 * 2**20
READ_BYTES = 4 * 2**20  # read from storage at a time; without it Arrow reads whole column chunks

_RATES: Final = ("sampling_rate", "sample_rate", "samplerate", "sr")
_TEXT: Final = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BINARY: Final = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


def plan_tables(listing: Listing, part_bytes: int, limit: int | None) -> Iterator[Part]:
    """Parts of Parquet files; see `Layout.plan`. Those of a file whose audio is in other files are parts of a table.

    A file without a column that can hold audio is passed over, with a note.
    """
    planners = (functools.partial(_plan_table, table, listing, part_bytes) for table in listing.objects)
    return chain_parts(planners, limit)


def _plan_table(table: Object, listing: Listing, part_bytes: int, limit: int | None) -> Iterator[Part]:
    name = stem(relative_path(table.uri, listing.root))
    state = json.dumps(dict(listing.columns), sort_keys=True) if listing.columns else ""
    whole = Part(PARQUET.kind, table.size, table.uri, name, table.version, state=state, content=state, limit=limit)
    try:
        with objects.open_read(table.uri, table.version) as source:
            metadata = pq.ParquetFile(source).metadata
            schema = metadata.schema.to_arrow_schema()
    except PARQUET_ERRORS:  # reading the part makes an error row of it
        yield replace(whole, rows=None if limit is None else 1)
        return
    check_columns(table.uri, schema.names, listing.columns)
    audio = audio_column(schema, listing.columns)
    if audio is None and any(_is_text(schema, listing.columns.get("audio_filepath", key)) for key in AUDIO_KEYS):
        if listing.is_named:
            rows = replace(listing, objects=[table], kind=PARQUET_ROWS.key)
            yield from TABLE.plan(rows, part_bytes, limit)
        else:
            listing.left_out.note(f"passed over {table.uri}: it has paths of audio; name it as INPUT to read it")
        return
    if (reason := _why_no_audio(schema, audio)) is not None:
        listing.left_out.note(f"passed over {table.uri}: it has {reason}")
        return
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
        yield replace(whole, bytes=size, start=start, end=end, rows=rows, limit=limit, part_id="")
        limit = None if limit is None else limit - rows
        start = end


def audio_column(schema: pa.Schema, columns: Mapping[str, str]) -> str | None:
    """The column that holds audio: the one that the user says, `audio`, or the first of such a type.

    None if there is none, or if the user's column has paths of audio files.
    """
    chosen = columns.get("audio_filepath")
    if chosen is not None:
        return None if _is_text(schema, chosen) else chosen
    if "audio" in schema.names:
        return "audio"
    of_datasets = [name for name in audio_features(schema) if name in schema.names]
    return next((name for name in (*of_datasets, *schema.names) if _members(schema.field(name).type)), None)


def _is_text(schema: pa.Schema, name: str) -> bool:
    return name in schema.names and _is_any(schema.field(name).type, _TEXT)


def _is_any(kind: pa.DataType, tests: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(test(_plain(kind)) for test in tests)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _members(kind: pa.DataType) -> frozenset[str]:
    """The members of a struct that can hold audio; empty for any other type."""
    kind = _plain(kind)
    fields = [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    of_names = {
        "bytes": (*_BINARY, pa.types.is_fixed_size_binary, pa.types.is_null),
        "path": (*_TEXT, pa.types.is_null),
    }
    members = frozenset(one.name for one in fields if one.name not in of_names or _is_any(one.type, of_names[one.name]))
    return members if "bytes" in members or "path" in members or {"array", "sampling_rate"} <= members else frozenset()


def _why_no_audio(schema: pa.Schema, audio: str | None) -> str | None:
    """Why a file of this schema holds no audio in the column `audio`, in words; None if it does."""
    if audio is None:
        return f"no column `audio`; its columns are {', '.join(sorted(schema.names))}; say which by --column audio=NAME"
    kind = _plain(schema.field(audio).type)
    if _members(kind) or _is_any(kind, (*_TEXT, *_BINARY)) or (_is_list(kind) and _rate_column(schema.names)):
        return None
    kinds = (
        "a path, bytes, a struct of `bytes` and `path` or of `array` and `sampling_rate`, or an array beside a column "
        "`sampling_rate`"
    )
    return f"a column `{audio}` that is {kind}; it must be {kinds}"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _rate_column(names: Sequence[str]) -> str | None:
    """The column of sampling rates, beside one of arrays."""
    return next((name for name in _RATES if name in names), None)


def read_table(part: Part) -> Iterator[Utterance]:
    """The utterances of a range of row groups; see `Layout.read`."""
    done = 0
    rows = _stored_rows(part)
    while True:
        try:
            row = next(rows, None)
        except AudioError as error:
            yield broken_utterance(part.name, part.uri, error)
            return
        except PARQUET_ERRORS as error:
            problem = AudioError(ErrorCode.BAD_ARCHIVE, f"after {done} rows: {error}")
            yield broken_utterance(part.name, part.uri, problem)
            return
        if row is None:
            return
        yield _read_row(row, part)
        done += 1


class _Row(NamedTuple):
    """A batch of one row, its number in the file, its share of the bytes, and what is known of its columns.

    Attributes:
        audio: the column of audio.
        classes: names of classes by column.
        columns: names that the file has for keys of a manifest, by these keys.
    """

    batch: pa.RecordBatch
    number: int
    size: int
    audio: str
    classes: ClassNames
    columns: Mapping[str, str]


def _stored_rows(part: Part) -> Iterator[_Row]:
    with open_planned(part) as file:
        # With a buffer Arrow reads a column chunk piece by piece; `pre_buffer` would read all of it.
        table = pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False)
        metadata = table.metadata
        first_group = part.start or 0
        end_group = metadata.num_row_groups if part.end is None else part.end
        first_row = sum(metadata.row_group(index).num_rows for index in range(first_group))
        count = sum(metadata.row_group(index).num_rows for index in range(first_group, end_group))
        columns = json.loads(part.state) if part.state else {}
        audio = audio_column(table.schema_arrow, columns) or "audio"
        classes = class_names(table.schema_arrow)
        for done, batch in enumerate(_rows(table, range(first_group, end_group))):
            yield _Row(batch, first_row + done, share(part.bytes, done, count), audio, classes, columns)


def _rows(table: pq.ParquetFile, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """Each row of the row groups as a batch of one row."""
    for group in groups:
        metadata = table.metadata.row_group(group)
        row_bytes = metadata.total_byte_size / max(metadata.num_rows, 1)
        # The size is before encoding: a dictionary, or a run of equal bytes, holds more than the file says.
        batch_rows = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(row_bytes, 1))))
        done = 0
        try:
            for batch in table.iter_batches(batch_rows, row_groups=[group]):
                for index in range(batch.num_rows):
                    done += 1
                    yield batch.slice(index, 1)
        except pa.ArrowNotImplementedError:
            if batch_rows == 1:
                raise
            # Some of the rows are far larger than the others: Arrow can read them one by one.
            yield from itertools.islice(table.iter_batches(1, row_groups=[group]), done, None)


def _read_row(row: _Row, part: Part) -> Utterance:
    """The utterance in a row of the file."""
    batch, number, size = row.batch, row.number, row.size
    location = f"{part.uri}, row {number}"
    default_id = f"{part.name}/{number}"
    base = posixpath.dirname(part.uri)
    values: dict[str, Any] = {}
    try:
        audio = _audio_of(row)
        for name in batch.schema.names:
            if name != row.audio and (value := value_of(batch[name][0], name)) is not None:
                values[name] = value
    except (*VALUE_ERRORS, soundfile.SoundFileError) as error:  # libsndfile writes at most 1024 channels
        return broken_utterance(default_id, part.uri, AudioError(ErrorCode.BAD_ROW, f"{location}: {error}"), size)
    if audio.path and audio.data is None:
        default_id = relative_id(audio.path, base)
    elif audio.path and ("/" in audio.path or part.earlier_rules):
        # Beside bytes, a path is only a name: there need not be a file at it.
        default_id = stem(posixpath.normpath(audio.path))
    elif audio.path:
        # A base name, as `datasets` embeds it, is not unique: the 630 speakers of TIMIT have an SA1.WAV each.
        values.setdefault("path", audio.path)
    try:
        renamed = renamed_row(with_class_names(values, row.classes), row.columns)
        meta = parse_meta(renamed, location, UtteranceMeta)
    except AudioError as error:
        return broken_utterance(default_id, part.uri, error, size)
    uri = part.uri
    opener: AudioOpener
    if audio.data is not None:
        opener = functools.partial(bytes, audio.data)
    elif audio.path:
        uri = resolve(audio.path, base)
        opener = ObjectOpener(uri)
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


def _audio_of(row: _Row) -> _Audio:
    path, data = _path_and_data(row)
    if not isinstance(path, str | None) or not isinstance(data, bytes | None):
        raise ValueError("the audio is neither bytes nor the text of a path")
    return _Audio(path, data)


def _path_and_data(row: _Row) -> tuple[Any, Any]:
    scalar = row.batch[row.audio][0]
    if isinstance(scalar, pa.DictionaryScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        return None, None
    rate_column = _rate_column(row.batch.schema.names)
    rate = None if rate_column is None else row.batch[rate_column][0].as_py()
    if isinstance(scalar, pa.StructScalar):
        path, data = (scalar[name].as_py() if name in scalar else None for name in ("path", "bytes"))
        if data is None and "array" in scalar and scalar["array"].is_valid:
            rate = scalar["sampling_rate"].as_py() if "sampling_rate" in scalar else rate
            data = _wave(scalar["array"].values, rate)
        return path, data
    if isinstance(scalar, pa.ListScalar):
        return None, _wave(scalar.values, rate)
    value = scalar.as_py()
    return (value, None) if isinstance(value, str) else (None, value)


def _wave(samples: pa.Array, rate: int | None) -> bytes:
    """Samples of full scale 1, or of integers, as a WAV file; nested lists are channels.

    Raises:
        ValueError: there is no sampling rate, or the samples are not numbers.
    """
    if not isinstance(rate, int) or not 0 < rate < 2**32:
        raise ValueError(f"audio.array has the sampling rate {rate}")
    if _is_list(samples.type):
        channels = [_numbers(samples[i].values) for i in range(len(samples))]
        if len({len(channel) for channel in channels}) > 1:
            raise ValueError("the channels of audio.array differ in length")
        waveform = np.stack(channels, axis=1) if channels else np.zeros((0, 1), np.float32)
    else:
        waveform = _numbers(samples)[:, None]
    file = io.BytesIO()
    subtype = "PCM_16" if waveform.dtype == np.int16 else "FLOAT"
    soundfile.write(file, waveform, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def _numbers(samples: pa.Array) -> np.ndarray:
    values: np.ndarray = samples.to_numpy(zero_copy_only=False)
    if values.dtype == np.int16:
        return values
    if not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"audio.array holds {samples.type}")
    if np.issubdtype(values.dtype, np.integer):
        bits = _bits(values)
        silence = 2.0 ** (bits - 1) if np.issubdtype(values.dtype, np.unsignedinteger) else 0.0  # as in WAV of 8 bits
        values = (values.astype(np.float64) - silence) / 2.0 ** (bits - 1)
    return values.astype(np.float32)


def _bits(values: np.ndarray) -> int:
    """Bits of the full scale: those of the type, or 16 where all values fit: Python's integers become 64 bits."""
    bits = 8 * values.dtype.itemsize
    if bits <= 16:
        return bits
    if np.issubdtype(values.dtype, np.unsignedinteger):
        raise ValueError(f"audio.array holds {values.dtype}, whose full scale is not known")
    most = int(max(values.max(initial=0), -1 - values.min(initial=0)))
    if most < 2**15:
        return 16
    if most >= 2**31:
        raise ValueError(f"audio.array holds {most}, whose full scale is not known")
    return 32


PARQUET = Layout(
    kind="parquet",
    claims=lambda uri: suffix(uri) == "parquet",
    plan=plan_tables,
    read=read_table,
)
