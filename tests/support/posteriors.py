"""Posteriors of a model that hears every letter, made from texts: letters of two frames, with a blank between them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.decoding.acoustics import Acoustics
from pipeline.runs.run import Run
from pipeline.schemas import POSTERIORS
from sewd_model import CTCTokenizer
from sewd_model.posteriors import Posteriors, keep
from tests.support.runs import transcripts, write_run

TOKENIZER = CTCTokenizer(
    vocab={t: i for i, t in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|", "'", *string.ascii_uppercase))}
)
ACOUSTICS = Acoustics(TOKENIZER, blank=0, num_tokens=32, hop_length=320, sampling_rate=16000)
FRAME_S = 0.02


def frames_of(text: str, pause: int = 5) -> tuple[list[int], list[tuple[str, int, int]]]:
    """The token of each frame, and each word with its first frame and the end of its last token."""
    frames, words = [0] * pause, []
    for word in text.upper().split():
        start = len(frames)
        for token in TOKENIZER.encode(word):
            frames += [token, token, 0]
        words.append((word, start, len(frames) - 1))
        frames += [TOKENIZER.ids["|"], *[0] * pause]
    return frames, words


def posteriors_of(frames: Sequence[int], sure: float = 12.0) -> Posteriors:
    """What is kept of a model that gives the token of each frame the logit `sure`, and 0 to the others."""
    return keep(np.eye(ACOUSTICS.num_tokens)[list(frames)] * sure, ACOUSTICS.blank)


def spoken_run(path: Path, rows: Sequence[dict[str, Any]], errors: pa.Table | None = None) -> Run:
    """A run of utterances that say `spoken`, with posteriors; other keys are columns."""
    made = []
    for index, row in enumerate(rows):
        frames, _ = frames_of(row["spoken"])
        kept = posteriors_of(frames)
        values = {"utt_id": f"u{index}", "uri": f"/audio/u{index}.wav", "start_s": 0.0, "part_id": "0", "chunk": 0}
        values |= {"duration_s": len(frames) * FRAME_S, "num_frames": len(frames)}
        values |= {"counts": kept.counts, "tokens": kept.tokens, "costs": kept.costs}
        values |= {key: value for key, value in row.items() if key != "spoken"}
        made.append(values)
    table = pa.Table.from_pylist(made, schema=POSTERIORS)
    names = ("utt_id", "uri", "start_s", "duration_s", "reference", "speaker", "channel", "recording_reference")
    texts = transcripts(
        [{"text": row["spoken"].upper(), **{n: made[i].get(n) for n in names}} for i, row in enumerate(rows)]
    )
    return write_run(path, texts, errors=errors, posteriors=table, acoustics=ACOUSTICS)
