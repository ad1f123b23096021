"""The write stage, a Ray CPU task: numbers become words, error counts and labels, and each chunk is committed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.commit import Commit, encode_commit, write_chunk
from pipeline.runs.lease import require_lease
from pipeline.schemas import ERRORS, LABELS, TRANSCRIPTS, field
from pipeline.scoring.counts import score_columns
from pipeline.stages.noise import without_noise
from pipeline.stages.word_ends import sound_ends
from sewd_model import CTCTokenizer, GreedyPath, Word, split_at_gaps, words
from sewd_model.engine_status import EngineStatus

TOP_K = 10  # most classifiers have fewer labels: then a run holds every score, which an AUROC needs
MAX_FAILED_REPORTED = 20
_FAILED = pa.struct([(name, pa.string()) for name in ("utt_id", "uri", "stage", "code", "message")])

# All that the driver sees of a chunk: ids and counters.
CHUNK_STATS = pa.schema(
    [
        field("commit", pa.binary(), "the commit object"),
        field("failed", pa.list_(_FAILED), "the first rows without a transcript"),
    ]
)


@dataclass(frozen=True)
class WriteSettings:
    """How numbers become rows.

    Attributes:
        run: the RUN directory or prefix.
        attempt: id of this start of the driver.
        tokenizer: tokenizer of the CTC head.
        frame_s: seconds per frame.
        word_gap_s: a word ends where no token follows for this long; 0: only where the model ends it.
        extend_words: take the end of a word from the level of the sound, see `pipeline.stages.word_ends`.
        normalizer: normalisation of references and hypotheses before they are compared.
        classifiers: (task, labels by index) of each classification head, in the run's order.
        folder: where commits are kept, relative to the run; see `Commit.folder`.
    """

    run: str
    attempt: str
    tokenizer: CTCTokenizer
    frame_s: float
    word_gap_s: float
    extend_words: bool
    normalizer: str
    classifiers: tuple[tuple[str, tuple[str, ...]], ...]
    folder: str = ""


def write_chunks(chunks: pa.Table, settings: WriteSettings) -> pa.Table:
    """Write and commit each chunk of a `RECOGNIZED_CHUNK` table; returns one row of `CHUNK_STATS` for each.

    Raises:
        StorageError: the run could not be written.
        LeaseLostError: another driver has taken over the run.
    """
    return pa.Table.from_pylist(
        [_write(chunks.slice(index, 1), settings) for index in range(chunks.num_rows)], schema=CHUNK_STATS
    )


def _write(chunk: pa.Table, settings: WriteSettings) -> dict[str, Any]:
    started = time.perf_counter()
    head = chunk.drop_columns("rows").to_pylist()[0]
    rows = pa.Table.from_struct_array(chunk["rows"].combine_chunks().flatten())
    lineage = {
        "part_id": pa.array([head["part_id"]] * len(rows), pa.string()),
        "chunk": pa.array([head["chunk"]] * len(rows), pa.int32()),
    }
    for name, column in lineage.items():
        rows = rows.append_column(name, column)
    is_error = pc.is_valid(rows["code"])
    errors = rows.filter(is_error)
    kept = pc.coalesce(errors["recording_reference"], errors["reference"])
    errors = errors.set_column(errors.column_names.index("recording_reference"), "recording_reference", kept)
    recognized = rows.filter(pc.invert(is_error))
    tables = {"labels": labels(recognized, settings)}
    if not settings.folder:
        tables |= {
            "transcripts": transcripts(recognized, settings),
            "errors": errors.select(ERRORS.names).cast(ERRORS),
        }
    commit = Commit(
        part_id=head["part_id"],
        chunk=head["chunk"],
        first_row=head["first_row"],
        last=head["last"],
        part_rows=head["part_rows"],
        part_audio_s=head["part_audio_s"],
        utterances=len(recognized),
        errors=len(errors),
        error_codes={e["values"]: e["counts"] for e in pc.value_counts(errors["code"]).to_pylist()},
        audio_s=head["audio_s"],
        source_bytes=head["source_bytes"],
        attempt=settings.attempt,
        workers={"reader": head["reader"], "recognizer": head["recognizer"]},
        seconds={
            "read": head["read_s"],
            "queue": head["queue_s"],
            "compute": head["compute_s"],
            "rows": time.perf_counter() - started,
        },
        engines=tuple(EngineStatus(**engine) for engine in head["engines"]),
        splits=head["splits"],
        skipped_s=head["skipped_s"],
        warned=len(recognized) - recognized["warning"].null_count,
        classifiers=tuple(task for task, _ in settings.classifiers),
        folder=settings.folder,
    )
    require_lease(settings.run, settings.attempt)
    commit = write_chunk(settings.run, commit, tables)
    return {
        "commit": encode_commit(commit),
        "failed": errors.slice(0, MAX_FAILED_REPORTED).select(_FAILED.names).to_pylist(),
    }


def transcripts(rows: pa.Table, settings: WriteSettings) -> pa.Table:
    """Rows of `RECOGNIZED_ROW` without errors, with part and chunk, as a table of schema `TRANSCRIPTS`."""
    texts, word_lists, confidences = [], [], []
    names = (
        *("token_ids", "start_frames", "end_frames", "probabilities", "num_frames"),
        *("start_s", "skipped_s", "levels"),
    )
    columns = (rows[name].to_pylist() for name in names)
    for token_ids, starts, ends, probabilities, num_frames, start_s, skipped_s, level in zip(*columns, strict=True):
        path = GreedyPath(
            np.asarray(token_ids, np.int64),
            np.asarray(starts, np.int64),
            np.asarray(ends, np.int64),
            np.asarray(probabilities, np.float32),
            num_frames,
        )
        levels = None if level is None else np.frombuffer(level, np.int8)
        if skipped_s and levels is not None:  # without long pauses a text is that of the model on the clip alone
            path = without_noise(path, levels, settings.frame_s, settings.tokenizer.delimiter_id)
        text, found = _text_and_words(path, settings)
        ends_s = [word.end_s for word in found]
        if settings.extend_words and levels is not None:
            ends_s = sound_ends(found, levels)
        texts.append(text)
        word_lists.append(
            [
                {
                    "word": word.word,
                    "start_s": start_s + word.start_s,
                    "end_s": start_s + end_s,
                    "confidence": word.confidence,
                }
                for word, end_s in zip(found, ends_s, strict=True)
            ]
        )
        confidences.append(_geometric_mean(path.probabilities))
    column = pa.array(texts, pa.string())
    references = rows["reference"].combine_chunks()
    columns_made = {
        "text": column,
        "words": pa.array(word_lists, TRANSCRIPTS.field("words").type),
        "confidence": pa.array(confidences, pa.float32()),
        **score_columns(column, references, settings.normalizer),
    }
    return _assemble(rows, columns_made, TRANSCRIPTS)


def _text_and_words(path: GreedyPath, settings: WriteSettings) -> tuple[str, list[Word]]:
    """The text of a path and its words, which also end where no token follows for long."""
    tokenizer = settings.tokenizer
    pieces = [path]
    if settings.word_gap_s:
        pieces = split_at_gaps(path, max(1, math.ceil(round(settings.word_gap_s / settings.frame_s, 6))))
    texts = (tokenizer.text(piece.token_ids) for piece in pieces)
    text = tokenizer.replace_word_delimiter_char.join(filter(None, texts))
    return text, [word for piece in pieces for word in words(piece, tokenizer, settings.frame_s)]


def _geometric_mean(probabilities: np.ndarray) -> float | None:
    logs = np.log(np.maximum(probabilities, 1e-30), dtype=np.float64)
    return math.exp(math.fsum(logs) / len(logs)) if len(logs) else None


def labels(rows: pa.Table, settings: WriteSettings) -> pa.Table:
    """One row of schema `LABELS` for each utterance and classifier, by utterance."""
    indices, label_rows = [], []
    for index, by_classifier in enumerate(rows["label_scores"].to_pylist()):
        for (task, names), scores in zip(settings.classifiers, by_classifier, strict=True):
            order = sorted(range(len(scores)), key=lambda i: -scores[i])[:TOP_K]
            top = [{"label": "score" if len(scores) == 1 else names[i], "score": scores[i]} for i in order]
            indices.append(index)
            label_rows.append({"task": task, **top[0], "top_k": top})
    repeated = rows.take(pa.array(indices, pa.int64()))
    columns = {
        name: pa.array([row[name] for row in label_rows], LABELS.field(name).type)
        for name in ("task", "label", "score", "top_k")
    }
    return _assemble(repeated, columns, LABELS)


def _assemble(rows: pa.Table, new: dict[str, pa.Array], schema: pa.Schema) -> pa.Table:
    """A table of the new columns, and of those of `rows` for the rest of the schema."""
    columns = [new[f.name] if f.name in new else rows[f.name] for f in schema]
    return pa.Table.from_arrays(columns, names=schema.names).cast(schema)
