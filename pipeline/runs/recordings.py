"""A run by recordings: what was transcribed in segments, joined in the order of time.

Segments are rows whose ids differ only in the `#c<channel>` and `#<start_ms>-<end_ms>` that the pipeline appends, and
rows that a manifest or table names as parts of one audio file by their offsets. Chunks, parts and compacted files may
hold the rows of a recording in any order, so the rows are first distributed over temporary files on local disk, all
those of a recording in one of them. The memory is that of one such file: about `BUCKET_BYTES`, or one recording.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.layouts.tar import TAR_SUFFIXES
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run, open_files
from pipeline.schemas import ERRORS, TRANSCRIPTS, WORD, field
from pipeline.storage import objects

if TYPE_CHECKING:
    import pyarrow.dataset as pads

RECORDINGS_FILE: Final = "recordings.parquet"
BUCKET_BYTES: Final = 32 << 20  # of compressed Parquet files
MAX_BUCKETS: Final = 256
_BATCH_WORDS: Final = 1 << 18  # of joined recordings that are yielded together
_SCAN: Final = {"batch_size": 1 << 14, "use_threads": False}  # threads read far ahead of a slower consumer
_SHARD: Final = re.compile("|".join(re.escape(suffix) + "$" for suffix in (*TAR_SUFFIXES, ".parquet")), re.IGNORECASE)

IDENTITY: Final = ("utt_id", "uri", "start_s", "duration_s", "channel")
"""The columns of `transcripts` and `errors` that say which recording a row belongs to."""

_SEGMENT: Final = pa.struct(
    [
        field("utt_id", pa.string(), "id of the segment's row in transcripts", nullable=False),
        field("start_s", pa.float64(), "start in the recording", "s", nullable=False),
        field("duration_s", pa.float64(), "duration", "s", nullable=False),
    ]
)
_ERROR: Final = pa.struct(
    [ERRORS.field(name) for name in ("utt_id", "start_s", "duration_s", "stage", "code", "message")]
)
RECORDINGS: Final = pa.schema(
    [
        field("recording", pa.string(), "id of the recording: that of its segments, without their suffixes"),
        field("uri", pa.string(), "file or object that holds the audio", nullable=False),
        field("channel", pa.int32(), "channel, from 0, where channels have rows of their own; else null"),
        field("start_s", pa.float64(), "start of the first segment; null if all failed", "s"),
        field("end_s", pa.float64(), "end of the last segment; null if all failed", "s"),
        field("audio_s", pa.float64(), "audio of the segments", "s", nullable=False),
        field("skipped_s", pa.float64(), "silence in them that the model did not compute", "s", nullable=False),
        field("text", pa.string(), "texts of the segments, joined by spaces", nullable=False),
        field("words", pa.list_(WORD), "words of the segments, with their times in the recording", nullable=False),
        field("speaker", pa.string(), "speaker, if the source names the same for all segments"),
        field("reference", pa.string(), "reference of the whole recording; null if it has none"),
        field("segments", pa.list_(_SEGMENT), "the segments, by time", nullable=False),
        field("warnings", pa.list_(pa.string()), "different warnings of the segments", nullable=False),
        field("errors", pa.list_(_ERROR), "what failed in it, of all its channels or of this one", nullable=False),
    ],
    metadata={"sewd.table": "recordings"},
)


class RecordingRows(NamedTuple):
    """The rows of one recording.

    Attributes:
        recording: its id; for parts that a manifest names by ids of their own, the URI of the audio.
        key: see `recording_keys`.
        transcripts: rows of `transcripts`, by channel and time.
        errors: rows of `errors`, by time.
    """

    recording: str
    key: str
    transcripts: pa.Table
    errors: pa.Table


def recording_ids(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """The id of each row without the suffixes that the pipeline appended; `rows` has the columns of `IDENTITY`."""
    columns = (rows[name].to_pylist() for name in ("utt_id", "start_s", "duration_s", "channel"))
    return [_recording_id(*values) for values in zip(*columns, strict=True)]


def _recording_id(utt_id: str, start_s: float | None, duration_s: float | None, channel: int | None) -> str:
    """Only a suffix that the row's own times and channel give is one of the pipeline."""
    if "#" in utt_id:
        if start_s is not None and duration_s is not None:
            utt_id = utt_id.removesuffix(f"#{round(start_s * 1000)}-{round((start_s + duration_s) * 1000)}")
        if channel is not None:
            utt_id = utt_id.removesuffix(f"#c{channel}")
    return utt_id


def recording_keys(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """A key that all rows of a recording share; `rows` has the columns of `IDENTITY`.

    It is the object that holds the audio, and in a shard of many recordings also the id of the recording.
    """
    return [
        f"{uri}\0{recording}" if is_shard(uri) else uri
        for uri, recording in zip(rows["uri"].to_pylist(), recording_ids(rows), strict=True)
    ]


def is_shard(uri: str) -> bool:
    """Whether an object holds many recordings."""
    return _SHARD.search(uri) is not None


def recording_rows(
    run: Run, columns: Sequence[str] = TRANSCRIPTS.names, keep: pa.Array | None = None
) -> Iterator[RecordingRows]:
    """The committed rows of a run, recording by recording, in no particular but always the same order.

    Args:
        run: the run.
        columns: the columns of `transcripts` to read, besides `IDENTITY`.
        keep: keys of the recordings to read; None: all.

    Raises:
        StorageError: storage errors last longer than the retries.
        DamagedRunError: a file that the run names is lost or was changed.
    """
    names = {"transcripts": list(dict.fromkeys([*IDENTITY, *columns])), "errors": ERRORS.names}
    for tables in distributed_rows(run, names, keep):
        yield from recordings_in(tables["transcripts"], tables["errors"])


def distributed_rows(
    run: Run,
    columns: Mapping[str, Sequence[str]],
    keep: pa.Array | None = None,
    keys: Callable[[pa.RecordBatch], list[str]] | None = None,
) -> Iterator[dict[str, pa.Table]]:
    """The committed rows of some tables in pieces that fit into memory; all rows of a recording are in one piece.

    Args:
        run: the run.
        columns: the columns to read, by table; those of `IDENTITY` must be among them.
        keep: keys of the rows to read; None: all.
        keys: what is kept together; None: recordings, see `recording_keys`.

    Yields:
        By table, the rows with a further column `key`, in no particular but always the same order.

    Raises:
        StorageError: storage errors last longer than the retries.
        DamagedRunError: a file that the run names is lost or was changed.
    """
    keys_of = keys or recording_keys

    def distribute(files: dict[str, list[DataFile]], folder: str) -> int:
        size = sum(file.size for table in columns for file in files[table])
        buckets = min(MAX_BUCKETS, 1 + size // BUCKET_BYTES)
        for table, names in columns.items():
            dataset = open_files(run.uri, table, [file.path for file in files[table]])
            _distribute(dataset, table, list(names), keep, keys_of, Path(folder), buckets)
        return buckets

    with tempfile.TemporaryDirectory(prefix="sewd-recordings-") as folder:
        buckets = run.read(lambda files: distribute(files, folder))
        for bucket in range(buckets):
            yield {table: pq.read_table(_bucket(Path(folder), table, bucket)) for table in columns}


def _bucket(folder: Path, table: str, number: int) -> Path:
    return folder / f"{table}-{number}.parquet"


def _distribute(
    dataset: pads.Dataset,
    table: str,
    columns: list[str],
    keep: pa.Array | None,
    keys_of: Callable[[pa.RecordBatch], list[str]],
    folder: Path,
    buckets: int,
) -> None:
    """Write the rows of a table, with their keys, to one file for each bucket."""
    schema = pa.schema([*(dataset.schema.field(name) for name in columns), ("key", pa.string())])
    with ExitStack() as stack:
        writers = [
            stack.enter_context(pq.ParquetWriter(_bucket(folder, table, number), schema, compression="zstd"))
            for number in range(buckets)
        ]
        for batch in dataset.to_batches(columns=columns, **_SCAN):
            rows = pa.Table.from_batches([batch]).append_column("key", pa.array(keys_of(batch), pa.string()))
            if keep is not None:
                rows = rows.filter(pc.is_in(rows["key"], keep))
            numbers = np.array([zlib.crc32(key.encode()) % buckets for key in rows["key"].to_pylist()], np.int64)
            for number in np.unique(numbers).tolist():
                writers[number].write_table(rows.filter(pa.array(numbers == number)))


def recordings_in(transcripts: pa.Table, errors: pa.Table) -> Iterator[RecordingRows]:
    """The recordings in a piece of `distributed_rows`."""
    order = [("key", "ascending"), ("channel", "ascending"), ("start_s", "ascending"), ("utt_id", "ascending")]
    tables = [table.sort_by(order).combine_chunks() for table in (transcripts, errors)]
    ranges = [_ranges(table["key"]) for table in tables]
    for key in sorted(ranges[0].keys() | ranges[1].keys()):
        found = [
            table.slice(*each.get(key, (0, 0))).drop_columns("key") for table, each in zip(tables, ranges, strict=True)
        ]
        yield from _split(key, *found)


def _ranges(keys: pa.ChunkedArray) -> dict[str, tuple[int, int]]:
    """Start and number of the rows of each key; rows of a key are neighbours."""
    values = keys.to_pylist()
    found: dict[str, tuple[int, int]] = {}
    start = 0
    for key, group in itertools.groupby(values):
        number = sum(1 for _ in group)
        found[key] = (start, number)
        start += number
    return found


def _split(key: str, transcripts: pa.Table, errors: pa.Table) -> Iterator[RecordingRows]:
    """The recordings with the same key: one, unless the same audio is in the input several times under several ids."""
    ids = [recording_ids(table) for table in (transcripts, errors)]
    starts: dict[str, float] = {}
    for table, names in zip((transcripts, errors), ids, strict=True):
        for name, start_s in zip(names, table["start_s"].to_pylist(), strict=True):
            starts[name] = min(starts.get(name, float("inf")), start_s or 0.0)
    if len(starts) == 1:
        yield RecordingRows(next(iter(starts)), key, transcripts, errors)
    elif any(starts.values()):  # parts by offset, with ids of their own
        uri = (transcripts if len(transcripts) else errors)["uri"][0].as_py()
        yield RecordingRows(uri, key, transcripts, errors)
    else:
        yield from by_id(RecordingRows("", key, transcripts, errors))


def by_id(rows: RecordingRows) -> Iterator[RecordingRows]:
    """The rows of each id, without suffixes, as a recording of its own."""
    tables = rows.transcripts, rows.errors
    ids = [recording_ids(table) for table in tables]
    for name in sorted({*ids[0], *ids[1]}):
        masks = (pa.array([found == name for found in each], pa.bool_()) for each in ids)
        own = [table.filter(mask) for table, mask in zip(tables, masks, strict=True)]
        yield RecordingRows(name, rows.key, *own)


def channels_of(rows: RecordingRows) -> list[tuple[int | None, pa.Table, pa.Table]]:
    """Transcripts and errors of each channel that has any; an error without a channel is one of all channels."""
    transcripts, errors = rows.transcripts, rows.errors
    own = transcripts["channel"].unique().to_pylist()
    named = {*own, *errors["channel"].unique().to_pylist()} - {None}
    channels = [*([None] if None in own or not named else []), *sorted(named)]
    found = []
    for channel in channels:
        is_own = _is_channel(errors, channel)
        if channel is not None:
            is_own = pc.or_(is_own, pc.is_null(errors["channel"]))
        found.append((channel, transcripts.filter(_is_channel(transcripts, channel)), errors.filter(is_own)))
    return found


def _is_channel(rows: pa.Table, channel: int | None) -> pa.ChunkedArray:
    if channel is None:
        return pc.is_null(rows["channel"])
    return pc.fill_null(pc.equal(rows["channel"], channel), fill_value=False)


def recordings(run: Run) -> Iterator[pa.Table]:
    """The recordings of a run, one row for each of their channels: tables of schema `RECORDINGS`.

    Every committed row is in exactly one row of the view, but for errors of a whole recording, which are in the rows of
    all its channels. Memory is bounded, whatever the run; a table holds few recordings.

    Raises:
        StorageError: storage errors last longer than the retries.
        DamagedRunError: a file that the run names is lost or was changed.
    """
    columns = ("text", "words", "speaker", "reference", "recording_reference", "warning", "skipped_s")
    joined: list[dict[str, Any]] = []
    words: list[pa.Array] = []
    for rows in recording_rows(run, columns):
        for channel, transcripts, errors in channels_of(rows):
            joined.append(_joined(rows.recording, channel, transcripts, errors))
            words.append(pc.list_flatten(transcripts["words"].combine_chunks()).cast(WORD))
            if sum(map(len, words)) + len(words) >= _BATCH_WORDS:
                yield _table(joined, words)
                joined, words = [], []
    if joined:
        yield _table(joined, words)


def _joined(recording: str, channel: int | None, transcripts: pa.Table, errors: pa.Table) -> dict[str, Any]:
    """A row of `RECORDINGS`, but for its words."""
    rows = transcripts.drop_columns("words").to_pylist()
    speakers = {row["speaker"] for row in rows}
    references = [row["recording_reference"] for row in (*rows, *errors.to_pylist())]
    own = rows[0]["reference"] if len(rows) == 1 else None
    return {
        "recording": recording,
        "uri": (rows or errors.to_pylist())[0]["uri"],
        "channel": channel,
        "start_s": min((row["start_s"] for row in rows), default=None),
        "end_s": max((row["start_s"] + row["duration_s"] for row in rows), default=None),
        "audio_s": sum(row["duration_s"] for row in rows),
        "skipped_s": sum(row["skipped_s"] or 0.0 for row in rows),
        "text": " ".join(row["text"] for row in rows if row["text"]),
        "speaker": speakers.pop() if len(speakers) == 1 else None,
        "reference": next((reference for reference in references if reference is not None), own),
        "segments": [{name: row[name] for name in ("utt_id", "start_s", "duration_s")} for row in rows],
        "warnings": list(dict.fromkeys(row["warning"] for row in rows if row["warning"])),
        "errors": errors.select([column.name for column in _ERROR]).to_pylist(),
    }


def _table(rows: list[dict[str, Any]], words: list[pa.Array]) -> pa.Table:
    ends = np.cumsum([0, *map(len, words)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), pa.concat_arrays(words))
    columns = [
        lists if column.name == "words" else pa.array([row[column.name] for row in rows], column.type)
        for column in RECORDINGS
    ]
    return pa.Table.from_arrays(
        [column.cast(f.type) for column, f in zip(columns, RECORDINGS, strict=True)], schema=RECORDINGS
    )


def write_recordings(run: Run, uri: str) -> int:
    """Write the recordings of a run as one Parquet file, which replaces an earlier one when it is complete.

    Returns:
        The number of rows.

    Raises:
        StorageError: the run could not be read, or the file could not be written.
    """
    with tempfile.TemporaryDirectory(prefix="sewd-recordings-") as folder:
        path = Path(folder, "recordings.parquet")
        rows = 0
        with pq.ParquetWriter(path, RECORDINGS, compression="zstd") as writer:
            for table in recordings(run):
                writer.write_table(table)
                rows += table.num_rows
        objects.put_file(uri, path)
    return rows
