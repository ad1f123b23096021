"""The Arrow tables of a run, and of its stages. The metadata of each field holds its meaning and its unit.

`SCHEMA_VERSION` changes with any change of a column or an error code, except for a new column that may be null: readers
take it for null in runs that lack it. It is part of a run's fingerprint: a run is never resumed under another schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 2


def field(name: str, kind: pa.DataType, meaning: str, unit: str | None = None, nullable: bool = True) -> pa.Field:
    """A field with its meaning and unit in its metadata, which Parquet files keep."""
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _schema(table: str, *fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"sewd.table": table, "sewd.schema_version": str(SCHEMA_VERSION)})


WORD_COUNT_FIELDS = (
    field("ref_words", pa.int32(), "words in the reference: hits + substitutions + deletions", "words"),
    field("hits", pa.int32(), "reference words that the transcript matches", "words"),
    field("substitutions", pa.int32(), "reference words that the transcript replaces by another word", "words"),
    field("deletions", pa.int32(), "reference words that the transcript omits", "words"),
    field("insertions", pa.int32(), "transcript words that the reference does not have", "words"),
)
CHARACTER_COUNT_FIELDS = (
    field("ref_chars", pa.int32(), "characters in the reference, including spaces", "characters"),
    field("char_hits", pa.int32(), "as hits, for characters", "characters"),
    field("char_substitutions", pa.int32(), "as substitutions, for characters", "characters"),
    field("char_deletions", pa.int32(), "as deletions, for characters", "characters"),
    field("char_insertions", pa.int32(), "as insertions, for characters", "characters"),
)
SCORE_FIELDS = (
    field("normalized_text", pa.string(), "text after the run's normalizer; null without a reference"),
    field("normalized_reference", pa.string(), "reference after the run's normalizer; null without a reference"),
    *WORD_COUNT_FIELDS,
    *CHARACTER_COUNT_FIELDS,
)
"""Columns of `transcripts` that `pipeline.scoring.counts.score_columns` fills; all null without a reference."""

# What identifies an utterance, in each of the tables transcripts, labels and errors.
_IDENTITY = (
    field(
        "utt_id",
        pa.string(),
        "id of the utterance; the same for the same audio in a directory, a tar shard or a manifest",
        nullable=False,
    ),
    field("uri", pa.string(), "file or object that holds the audio", nullable=False),
    field("start_s", pa.float64(), "start of the utterance in its recording", "s"),
    field("duration_s", pa.float64(), "duration of the utterance", "s"),
    field("channel", pa.int32(), "channel, from 0, where channels are split or the source names one; else null"),
)
_LINEAGE = (
    field("speaker", pa.string(), "speaker, as the source names it"),
    field("tags", pa.string(), "all other keys of the source, as one JSON object"),
    field("part_id", pa.string(), "part of the plan that it was read in", nullable=False),
    field("chunk", pa.int32(), "ordinal of its chunk in the part", nullable=False),
)
_RECORDING_REFERENCE = field(
    "recording_reference",
    pa.string(),
    "reference of the whole recording, in the row of the first of its segments; null in the others, and where the "
    "utterance is the whole recording",
)
_WARNING = field(
    "warning", pa.string(), "what is wrong with the headers of the audio, all of which was read; else null"
)

WORD = pa.struct(
    [
        field("word", pa.string(), "the word, as decoded", nullable=False),
        field("start_s", pa.float64(), "start of the word in the recording", "s", nullable=False),
        field("end_s", pa.float64(), "end of the word in the recording", "s", nullable=False),
        field("confidence", pa.float32(), "geometric mean of its tokens' probabilities", "0..1", nullable=False),
    ]
)

HYPOTHESIS = pa.struct(
    [
        field("text", pa.string(), "its text", nullable=False),
        field("acoustic", pa.float32(), "logarithm of its probability by the model, all paths", "nats", nullable=False),
        field("language", pa.float32(), "score by the language model and hot-words, weighted", "nats", nullable=False),
    ]
)

TRANSCRIPTS = _schema(
    "transcripts",
    *_IDENTITY,
    field("text", pa.string(), "transcript", nullable=False),
    field("words", pa.list_(WORD), "words of the transcript, with their times", nullable=False),
    field("confidence", pa.float32(), "geometric mean of the tokens' probabilities; null if the text is empty", "0..1"),
    field("reference", pa.string(), "reference transcript, as the source has it; null if it has none"),
    *SCORE_FIELDS,
    *_LINEAGE,
    _WARNING,
    field("skipped_s", pa.float64(), "silence in it that the model did not compute", "s"),
    _RECORDING_REFERENCE,
    field("nbest", pa.list_(HYPOTHESIS), "hypotheses of the beam search, the best first; null without --nbest"),
)

LABELS = _schema(
    "labels",
    *_IDENTITY,
    field("task", pa.string(), "name of the classifier", nullable=False),
    field("label", pa.string(), "most probable label, or `score` for a regression head", nullable=False),
    field(
        "score", pa.float32(), "probability of the label; for a regression head, the predicted value", nullable=False
    ),
    field(
        "top_k",
        pa.list_(
            pa.struct([pa.field("label", pa.string(), nullable=False), pa.field("score", pa.float32(), nullable=False)])
        ),
        "most probable labels with their probabilities, best first",
        nullable=False,
    ),
    field("reference_label", pa.string(), "reference label, as the source has it; null if it has none"),
    *_LINEAGE,
    _WARNING,
)

_POSTERIOR_FIELDS = (
    field("counts", pa.list_(pa.uint8()), "number of tokens that each frame keeps; 0: the frame is surely blank"),
    field("tokens", pa.list_(pa.uint16()), "kept tokens of each frame, frames end to end, the best of a frame first"),
    field("costs", pa.list_(pa.uint8()), "minus log-probability of each, see `sewd_model.posteriors`"),
)

POSTERIORS = _schema(
    "posteriors",
    *_IDENTITY,
    field("num_frames", pa.int32(), "number of model frames of the utterance", nullable=False),
    *_POSTERIOR_FIELDS,
    field("levels", pa.binary(), "level of the first 10 ms, int8, dBFS; then the change in each 10 ms", "dB"),
    field("skipped_s", pa.float64(), "as in transcripts", "s"),
    field("reference", pa.string(), "as in transcripts"),
    _RECORDING_REFERENCE,
    *_LINEAGE,
    _WARNING,
)
"""One row for each of `transcripts`, in the same order, with all that its row there is made of."""

ERRORS = _schema(
    "errors",
    *_IDENTITY,
    field(
        "byte_start", pa.int64(), "first byte of the audio in the object, if it is only a range of the object", "bytes"
    ),
    field("byte_end", pa.int64(), "end of that range: one past its last byte", "bytes"),
    field("stage", pa.string(), "stage that failed: plan, read, decode or model", nullable=False),
    field("code", pa.string(), "reason, a member of pipeline.errors.ErrorCode", nullable=False),
    field("message", pa.string(), "message of the decoder, or the values that disagree", nullable=False),
    *_LINEAGE,
    field(
        "recording_reference",
        pa.string(),
        "reference of what failed: of the utterance, or of the whole recording if its first segment failed",
    ),
)

TABLES: dict[str, pa.Schema] = {
    "transcripts": TRANSCRIPTS,
    "labels": LABELS,
    "errors": ERRORS,
    "posteriors": POSTERIORS,
}
ADDED_COLUMNS = frozenset({"warning", "skipped_s", "recording_reference", "nbest"})
"""Columns that runs of earlier versions lack; readers take them for null."""


def is_readable(found: pa.Schema, table: str) -> bool:
    """Whether a data file with the columns `found` is one of `table`, of this version or an earlier one."""
    columns = [f for f in TABLES[table] if f.name in found.names or f.name not in ADDED_COLUMNS]
    return bool(found.equals(pa.schema(columns)))


# Between the stages, one Ray row is one chunk. Ray may split and merge blocks between any two rows: a chunk that is one
# row is never split or mixed with another, and a chunk with only errors, or without utterances, is still a row.
_CHUNK_HEAD = (
    field("part_id", pa.string(), "part that the chunk belongs to", nullable=False),
    field("chunk", pa.int32(), "ordinal of the chunk in the part", nullable=False),
    field("first_row", pa.int64(), "rows of the part before this chunk", nullable=False),
    field("last", pa.bool_(), "whether this is the last chunk of the part", nullable=False),
    field("part_rows", pa.int64(), "rows of the whole part; null unless last"),
    field("part_audio_s", pa.float64(), "audio of the whole part; null unless last", "s"),
    field("audio_s", pa.float64(), "audio in the chunk", "s", nullable=False),
    field("source_bytes", pa.int64(), "planned input bytes that the chunk was read from", "bytes", nullable=False),
    field("reader", pa.string(), "host:pid of the process that decoded it", nullable=False),
    field("read_s", pa.float64(), "time to read, decode and resample it", "s", nullable=False),
    field("read_at", pa.float64(), "when reading ended, since 1970", "s", nullable=False),
)
_CARRIED = (
    *_IDENTITY,
    field("byte_start", pa.int64(), "as in errors"),
    field("byte_end", pa.int64(), "as in errors"),
    field("reference", pa.string(), "as in transcripts"),
    field("recording_reference", pa.string(), "as in transcripts and errors"),
    field("reference_label", pa.string(), "as in labels"),
    field("speaker", pa.string(), "as in transcripts"),
    field("tags", pa.string(), "as in transcripts"),
    field("stage", pa.string(), "as in errors"),
    field("code", pa.string(), "as in errors; null if the utterance has no error"),
    field("message", pa.string(), "as in errors"),
    field("warning", pa.string(), "as in transcripts"),
    field("levels", pa.binary(), "level of each 10 ms, int8, dBFS; null in an error row", "dB"),
)
READ_ROW = pa.struct(
    [
        *_CARRIED,
        field(
            "samples",
            pa.large_binary(),
            "mono waveform at the model's sampling rate, little-endian; null in an error row",
        ),
        field(
            "sample_type", pa.string(), "int16 if the source is 16-bit mono at the model's sampling rate; else float32"
        ),
        field(
            "spans",
            pa.list_(pa.int64()),
            "start and end of each span between long pauses, one after the other; null: nothing is skipped",
            "samples",
        ),
    ]
)
RECOGNIZED_ROW = pa.struct(
    [
        *_CARRIED,
        field("num_frames", pa.int32(), "number of model frames of the utterance"),
        field(
            "token_ids",
            pa.list_(pa.int32()),
            "greedy CTC path, collapsed, without blank, bos and eos; null where there are posteriors instead",
        ),
        field("start_frames", pa.list_(pa.int32()), "first frame of each token"),
        field("end_frames", pa.list_(pa.int32()), "end of each token: one past its last frame"),
        field("probabilities", pa.list_(pa.float32()), "probability of each token over its frames", "0..1"),
        field(
            "label_scores",
            pa.list_(pa.list_(pa.float32())),
            "scores of each classifier of the run, one list per classifier",
        ),
        field("skipped_s", pa.float64(), "as in transcripts", "s"),
        *_POSTERIOR_FIELDS,
    ]
)
READ_CHUNK = pa.schema([*_CHUNK_HEAD, field("rows", pa.list_(READ_ROW), "utterances", nullable=False)])
ENGINE = pa.struct(
    [
        field("batching", pa.string(), "`packed`, `padded` or `clip by clip`", nullable=False),
        field("dtype", pa.string(), "data type of the computation", nullable=False),
        field("device", pa.string(), "GPU, or CPU with its instruction set", nullable=False),
        field("budget_s", pa.float64(), "most audio in a batch; null without batches", "s"),
        field("fallback", pa.string(), "why it is not the requested or the fastest engine; null if it is"),
    ]
)
RECOGNIZED_CHUNK = pa.schema(
    [
        *_CHUNK_HEAD,
        field("recognizer", pa.string(), "host:pid of the process that ran the model", nullable=False),
        field("queue_s", pa.float64(), "time from the end of reading to the start of the model", "s", nullable=False),
        field("compute_s", pa.float64(), "time in the model", "s", nullable=False),
        field("engines", pa.list_(ENGINE), "engine of each backbone that computed the chunk", nullable=False),
        field("splits", pa.int64(), "times that a batch was halved because memory ran out", nullable=False),
        field("skipped_s", pa.float64(), "silence that the model did not compute", "s", nullable=False),
        field("rows", pa.list_(RECOGNIZED_ROW), "utterances, with and without an error", nullable=False),
    ]
)


def one_chunk(schema: pa.Schema, head: Mapping[str, Any], rows: pa.StructArray) -> pa.Table:
    """One chunk as a table of one row.

    Args:
        schema: `READ_CHUNK` or `RECOGNIZED_CHUNK`.
        head: the chunk's values by column; columns that it lacks are null.
        rows: the chunk's utterances, for the column `rows`.
    """
    row_list = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)
    columns = [row_list if f.name == "rows" else pa.array([head.get(f.name)], f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)
