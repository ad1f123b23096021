"""Numbers become words, error counts and labels: the rows of a run. Independent of Ray and of storage."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.decoding.acoustics import Acoustics
from pipeline.decoding.decoder import Hypothesis, loaded_decoder
from pipeline.decoding.rows import joined_posteriors, packed_levels, posteriors_of
from pipeline.decoding.settings import DecoderSettings
from pipeline.schemas import LABELS, POSTERIORS, TRANSCRIPTS
from pipeline.scoring.counts import score_columns
from pipeline.stages.noise import without_noise
from pipeline.stages.word_ends import sound_ends, sound_starts
from pipeline.storage.deadline import with_deadline
from sewd_model import GreedyPath, Word, split_at_gaps, words
from sewd_model.ctc import greedy_paths

TOP_K = 10  # most classifiers have fewer labels: then a run holds every score, which an AUROC needs


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How numbers become rows.

    Attributes:
        acoustics: tokens and frames of the CTC head.
        decoder: how posteriors become tokens; paths that the recogniser gave are greedy ones.
        word_gap_s: a word ends where no token follows for this long; 0: only where the model ends it.
        extend_words: take the end of a word from the level of the sound, see `pipeline.stages.word_ends`.
        extend_starts: then its start, too.
        normalizer: normalisation of references and hypotheses before they are compared.
        classifiers: (task, labels by index) of each classification head, in the run's order.
        deadline_s: a process whose beam search takes longer than this for an utterance is ended; None: no deadline.
    """

    acoustics: Acoustics
    decoder: DecoderSettings
    word_gap_s: float
    extend_words: bool
    normalizer: str
    classifiers: tuple[tuple[str, tuple[str, ...]], ...]
    deadline_s: float | None = None
    extend_starts: bool = True


def transcripts(rows: pa.Table, settings: TextSettings) -> pa.Table:
    """Rows without errors as a table of schema `TRANSCRIPTS`.

    Args:
        rows: of `RECOGNIZED_ROW`, with part and chunk; or of `POSTERIORS`, with their levels unpacked.
        settings: how numbers become rows.
    """
    acoustics = settings.acoustics
    hypotheses = None if settings.decoder.is_greedy else _decoded(rows, settings)
    paths = _paths(rows, acoustics) if hypotheses is None else [found[0].path for found in hypotheses]
    texts, word_lists, confidences = [], [], []
    columns = (rows[name].to_pylist() for name in ("start_s", "skipped_s", "levels"))
    for whole, start_s, skipped_s, level in zip(paths, *columns, strict=True):
        path = whole
        levels = None if level is None else np.frombuffer(level, np.int8)
        if skipped_s and levels is not None:  # without long pauses a text is that of the model on the clip alone
            path = without_noise(path, levels, acoustics.frame_s, acoustics.tokenizer.delimiter_id)
        text, found = _text_and_words(path, settings)
        if settings.extend_words and levels is not None:
            if settings.extend_starts:
                starts_s = sound_starts(found, levels)
                found = [replace(word, start_s=start) for word, start in zip(found, starts_s, strict=True)]
            ends_s = sound_ends(found, levels)
        else:
            ends_s = [word.end_s for word in found]
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
        "nbest": _nbest(hypotheses, settings, len(rows)),
        **score_columns(column, references, settings.normalizer),
    }
    return _assemble(rows, columns_made, TRANSCRIPTS)


def _decoded(rows: pa.Table, settings: TextSettings) -> list[list[Hypothesis]]:
    """The hypotheses of each row, from its posteriors, by beam search."""
    if not rows.num_rows:
        return []
    decoder, limit_s = loaded_decoder(settings.decoder, settings.acoustics), settings.deadline_s
    found = map(decoder.decode, posteriors_of(rows))
    return list(found if limit_s is None else with_deadline(limit_s, found))


def _nbest(hypotheses: list[list[Hypothesis]] | None, settings: TextSettings, num_rows: int) -> pa.Array:
    kind = TRANSCRIPTS.field("nbest").type
    if hypotheses is None or settings.decoder.nbest == 1:
        return pa.nulls(num_rows, kind)
    text = settings.acoustics.tokenizer.text
    return pa.array(
        [
            [{"text": text(h.path.token_ids), "acoustic": h.acoustic, "language": h.language} for h in found]
            for found in hypotheses
        ],
        kind,
    )


def _paths(rows: pa.Table, acoustics: Acoustics) -> list[GreedyPath]:
    """The path of each row: the greedy one of its posteriors, or the one that the recogniser gave."""
    if not rows["counts"].null_count:
        posteriors, num_frames = joined_posteriors(rows)
        best, log_probabilities = posteriors.best(acoustics.blank)
        return greedy_paths(best, log_probabilities, num_frames, acoustics.blank, acoustics.tokenizer.drop_ids)
    names = ("token_ids", "start_frames", "end_frames", "probabilities", "num_frames")
    return [
        GreedyPath(
            np.asarray(token_ids, np.int64),
            np.asarray(starts, np.int64),
            np.asarray(ends, np.int64),
            np.asarray(probabilities, np.float32),
            num_frames,
        )
        for token_ids, starts, ends, probabilities, num_frames in zip(
            *(rows[name].to_pylist() for name in names), strict=True
        )
    ]


def posteriors(rows: pa.Table) -> pa.Table:
    """Rows of `RECOGNIZED_ROW` without errors, with posteriors, part and chunk, as a table of schema `POSTERIORS`."""
    return _assemble(rows, {"levels": packed_levels(rows["levels"])}, POSTERIORS)


def _text_and_words(path: GreedyPath, settings: TextSettings) -> tuple[str, list[Word]]:
    """The text of a path and its words, which also end where no token follows for long."""
    tokenizer, frame_s = settings.acoustics.tokenizer, settings.acoustics.frame_s
    pieces = [path]
    if settings.word_gap_s:
        pieces = split_at_gaps(path, max(1, math.ceil(round(settings.word_gap_s / frame_s, 6))))
    texts = (tokenizer.text(piece.token_ids) for piece in pieces)
    text = tokenizer.replace_word_delimiter_char.join(filter(None, texts))
    return text, [word for piece in pieces for word in words(piece, tokenizer, frame_s)]


def _geometric_mean(probabilities: np.ndarray) -> float | None:
    logs = np.log(np.maximum(probabilities, 1e-30), dtype=np.float64)
    return math.exp(math.fsum(logs) / len(logs)) if len(logs) else None


def labels(rows: pa.Table, settings: TextSettings) -> pa.Table:
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
