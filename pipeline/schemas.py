"""The Arrow tables of a run. What each column means and its unit stand in the field's metadata.

`SCHEMA_VERSION` changes with any change of a column or a code, and is part of a run's fingerprint: a run is never
continued under another schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 2


def field(name: str, kind: pa.DataType, meaning: str, unit: str | None = None, nullable: bool = True) -> pa.Field:
    """A field that carries its meaning and unit."""
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _schema(table: str, *fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"sewd.table": table, "sewd.schema_version": str(SCHEMA_VERSION)})


WORD_COUNT_FIELDS = (
    field("ref_words", pa.int32(), "length of the reference: hits + substitutions + deletions", "words"),
    field("hits", pa.int32(), "words of the reference that the transcript has", "words"),
    field("substitutions", pa.int32(), "words of the reference that another word stands for", "words"),
    field("deletions", pa.int32(), "words of the reference that the transcript lacks", "words"),
    field("insertions", pa.int32(), "words that the transcript has and the reference lacks", "words"),
)
CHARACTER_COUNT_FIELDS = (
    field("ref_chars", pa.int32(), "length of the reference, with its spaces", "characters"),
    field("char_hits", pa.int32(), "as hits, by character", "characters"),
    field("char_substitutions", pa.int32(), "as substitutions, by character", "characters"),
    field("char_deletions", pa.int32(), "as deletions, by character", "characters"),
    field("char_insertions", pa.int32(), "as insertions, by character", "characters"),
)
SCORE_FIELDS = (
    field("normalized_text", pa.string(), "text under the run's normalizer; null without a reference"),
    field("normalized_reference", pa.string(), "reference under the run's normalizer; null without one"),
    *WORD_COUNT_FIELDS,
    *CHARACTER_COUNT_FIELDS,
)
"""Columns of `transcripts` that `pipeline.scoring.counts.score_columns` fills; all null where there is no reference."""

# What an utterance brings along from its source, wherever it ends up: transcripts, labels or errors.
_IDENTITY = (
    field("utt_id", pa.string(), "the same for the same audio in a directory, a shard or a manifest", nullable=False),
    field("uri", pa.string(), "the object that holds the audio", nullable=False),
    field("start_s", pa.float64(), "where the utterance begins in its recording", "s"),
    field("duration_s", pa.float64(), "length of the utterance", "s"),
    field("channel", pa.int32(), "0-based channel where channels are split, else null"),
)
_LINEAGE = (
    field("speaker", pa.string(), "speaker as the source names it"),
    field("tags", pa.string(), "the source's other keys, as one JSON object"),
    field("part_id", pa.string(), "the part of the plan that read it", nullable=False),
    field("chunk", pa.int32(), "the chunk of the part", nullable=False),
)

WORD = pa.struct(
    [
        field("word", pa.string(), "as decoded", nullable=False),
        field("start_s", pa.float64(), "in the recording", "s", nullable=False),
        field("end_s", pa.float64(), "in the recording", "s", nullable=False),
        field("confidence", pa.float32(), "geometric mean of its tokens' probabilities", "0..1", nullable=False),
    ]
)

TRANSCRIPTS = _schema(
    "transcripts",
    *_IDENTITY,
    field("text", pa.string(), "greedy transcript", nullable=False),
    field("words", pa.list_(WORD), "the transcript's words in time", nullable=False),
    field(
        "confidence", pa.float32(), "geometric mean of the tokens' probabilities; null where the text is empty", "0..1"
    ),
    field("reference", pa.string(), "what was said, as the source gives it; null where it gives none"),
    *SCORE_FIELDS,
    *_LINEAGE,
)

LABELS = _schema(
    "labels",
    *_IDENTITY,
    field("task", pa.string(), "name of the classifier", nullable=False),
    field("label", pa.string(), "the likeliest label, or `score` for a regression head", nullable=False),
    field("score", pa.float32(), "its probability; the value itself for a regression head", nullable=False),
    field(
        "top_k",
        pa.list_(
            pa.struct([pa.field("label", pa.string(), nullable=False), pa.field("score", pa.float32(), nullable=False)])
        ),
        "the likeliest labels, best first",
        nullable=False,
    ),
    field("reference_label", pa.string(), "label as the source gives it; null where it gives none"),
    *_LINEAGE,
)

ERRORS = _schema(
    "errors",
    *_IDENTITY,
    field("byte_start", pa.int64(), "the audio's first byte in the object, where it is a range of one", "bytes"),
    field("byte_end", pa.int64(), "one past its last byte", "bytes"),
    field("stage", pa.string(), "where it was found: plan, read, decode or model", nullable=False),
    field("code", pa.string(), "a member of pipeline.errors.ErrorCode", nullable=False),
    field("message", pa.string(), "the decoder's words, or the numbers that disagree", nullable=False),
    *_LINEAGE,
)

TABLES: dict[str, pa.Schema] = {"transcripts": TRANSCRIPTS, "labels": LABELS, "errors": ERRORS}

# Between the stages, one Ray row is one chunk. Ray cuts and joins blocks between rows as it likes, so a chunk that is
# one row can be neither split nor mixed, and one that holds nothing but errors, or nothing at all, is still a row.
_CHUNK_HEAD = (
    field("part_id", pa.string(), "the part it was read from", nullable=False),
    field("chunk", pa.int32(), "ordinal in the part", nullable=False),
    field("first_row", pa.int64(), "rows of the part before it", nullable=False),
    field("last", pa.bool_(), "the part ends with this chunk", nullable=False),
    field("part_rows", pa.int64(), "rows of the whole part, on its last chunk"),
    field("part_audio_s", pa.float64(), "audio of the whole part, on its last chunk", "s"),
    field("audio_s", pa.float64(), "audio in this chunk", "s", nullable=False),
    field("source_bytes", pa.int64(), "planned bytes that this chunk got through", "bytes", nullable=False),
    field("reader", pa.string(), "host:pid that decoded it", nullable=False),
    field("read_s", pa.float64(), "time to read, decode and resample it", "s", nullable=False),
    field("read_at", pa.float64(), "when that was done, since 1970", "s", nullable=False),
)
_CARRIED = (
    *_IDENTITY,
    field("byte_start", pa.int64(), "as in errors"),
    field("byte_end", pa.int64(), "as in errors"),
    field("reference", pa.string(), "as in transcripts"),
    field("reference_label", pa.string(), "as in labels"),
    field("speaker", pa.string(), "as in transcripts"),
    field("tags", pa.string(), "as in transcripts"),
    field("stage", pa.string(), "as in errors"),
    field("code", pa.string(), "as in errors; null where the utterance is sound"),
    field("message", pa.string(), "as in errors"),
)
READ_ROW = pa.struct(
    [
        *_CARRIED,
        field("samples", pa.large_binary(), "waveform at the model's rate, little endian; null in an error row"),
        field("sample_type", pa.string(), "int16 where the source is 16-bit, mono, at the model's rate; else float32"),
    ]
)
RECOGNIZED_ROW = pa.struct(
    [
        *_CARRIED,
        field("num_frames", pa.int32(), "frames of the utterance"),
        field("token_ids", pa.list_(pa.int32()), "collapsed greedy path, without blank, bos and eos"),
        field("start_frames", pa.list_(pa.int32()), "first frame of each token's run"),
        field("end_frames", pa.list_(pa.int32()), "one past its last frame"),
        field("probabilities", pa.list_(pa.float32()), "each token's probability over its run", "0..1"),
        field("label_scores", pa.list_(pa.list_(pa.float32())), "a list of scores for each classifier of the run"),
    ]
)
READ_CHUNK = pa.schema([*_CHUNK_HEAD, field("rows", pa.list_(READ_ROW), "utterances", nullable=False)])
ENGINE = pa.struct(
    [
        field("way", pa.string(), "packed, or clip by clip", nullable=False),
        field("dtype", pa.string(), "in what it computes", nullable=False),
        field("device", pa.string(), "on what", nullable=False),
        field("budget_s", pa.float64(), "audio in a batch; null where each clip is by itself", "s"),
        field("fallback", pa.string(), "why it is not what was asked for, or not the fast one"),
    ]
)
RECOGNIZED_CHUNK = pa.schema(
    [
        *_CHUNK_HEAD,
        field("recognizer", pa.string(), "host:pid that ran the model", nullable=False),
        field("queue_s", pa.float64(), "time that it waited for the model", "s", nullable=False),
        field("compute_s", pa.float64(), "time in the model", "s", nullable=False),
        field("engines", pa.list_(ENGINE), "what computed it: of each backbone", nullable=False),
        field("splits", pa.int64(), "batches that were halved for want of memory", nullable=False),
        field("rows", pa.list_(RECOGNIZED_ROW), "utterances, sound and broken", nullable=False),
    ]
)


def one_chunk(schema: pa.Schema, head: Mapping[str, Any], rows: pa.StructArray) -> pa.Table:
    """A table of one row: a chunk's own columns, null where `head` has none, and the `rows` of its utterances."""
    row_list = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)
    columns = [row_list if f.name == "rows" else pa.array([head.get(f.name)], f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)
