"""One alignment of a long text, whose counts are divided among the segments of its transcript.

A recording is transcribed in segments and has one reference. The two texts are aligned as wholes, as jiwer does it, and
each segment gets the part of the alignment at its words: its counts, and the words of the reference that belong to it.
The counts of the segments add up to those of the whole texts. A deletion between two segments belongs to the earlier.

The alignment is rapidfuzz's, which divides long texts (Hirschberg 1975): memory grows with the length of the texts, and
time with its square, 64 cells of the table at a time. 100,000 words of ten hours take a second or two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jiwer
import numpy as np
import numpy.typing as npt

from pipeline.scoring.counts import ErrorCounts

Ints = npt.NDArray[np.int64]


class SegmentScores(NamedTuple):
    """How the segments of a transcript compare with the reference of the whole.

    Attributes:
        references: the words of the reference that belong to each segment; joined by spaces, they are the reference.
        words: counts of each segment.
        chars: counts of each segment; a space is one of the segment before it.
    """

    references: list[str]
    words: list[ErrorCounts]
    chars: list[ErrorCounts]


def segment_scores(reference: str, segments: Sequence[str], *, chars: bool = True) -> SegmentScores:
    """Align the joined segments with the reference.

    Args:
        reference: normalised.
        segments: texts of the segments, normalised, in order; at least one.
        chars: whether to count characters, which takes far longer than words; else `chars` is empty.
    """
    ref = reference.split()
    hypothesis = " ".join(filter(None, segments))
    starts = list(accumulate((len(segment.split()) for segment in segments), initial=0))
    borders, words = _divided(_chunks(jiwer.process_words, reference, hypothesis), len(ref), starts)
    references = [" ".join(ref[start:end]) for start, end in pairwise(borders)]
    if not chars:
        return SegmentScores(references, words, [])
    filled = [len(segment) + 1 if segment else 0 for segment in segments]
    ends = [min(end, len(hypothesis)) for end in accumulate(filled, initial=0)]
    _, char_counts = _divided(_chunks(jiwer.process_characters, reference, hypothesis), len(reference), ends)
    return SegmentScores(references, words, char_counts)


def _chunks(process: Callable[..., Any], reference: str, hypothesis: str) -> list[jiwer.AlignmentChunk]:
    chunks: list[jiwer.AlignmentChunk] = process(reference, hypothesis).alignments[0]
    return chunks


def _divided(
    chunks: Sequence[jiwer.AlignmentChunk], ref_length: int, starts: Sequence[int]
) -> tuple[list[int], list[ErrorCounts]]:
    """Divide an alignment at positions of the hypothesis.

    Args:
        chunks: the alignment.
        ref_length: number of tokens of the reference.
        starts: where each segment begins in the hypothesis, and the end of the last.

    Returns:
        Where each segment begins in the reference, and the end of the last; and the counts of each segment.
    """
    size = starts[-1]
    hyp_kinds = np.zeros((size + 1, 3), np.int64)  # a hit, a substitution or an insertion, at one past the token
    deleted = np.zeros(ref_length + 1, np.int64)
    aligned = np.zeros(size + 1, np.int64)  # at one past a token of the hypothesis: one past its token of the reference
    for chunk in chunks:
        hyp = slice(chunk.hyp_start_idx + 1, chunk.hyp_end_idx + 1)
        if chunk.type == "delete":
            deleted[chunk.ref_start_idx + 1 : chunk.ref_end_idx + 1] = 1
        elif chunk.type == "insert":
            hyp_kinds[hyp, 2] = 1
            aligned[hyp] = chunk.ref_start_idx
        else:
            hyp_kinds[hyp, 0 if chunk.type == "equal" else 1] = 1
            aligned[hyp] = np.arange(chunk.ref_start_idx + 1, chunk.ref_end_idx + 1)
        if chunk.type == "delete":  # it belongs to the segment before
            aligned[chunk.hyp_start_idx] = chunk.ref_end_idx
    borders = aligned[list(starts)]
    borders[0], borders[-1] = 0, ref_length
    kinds = np.diff(np.cumsum(hyp_kinds, axis=0)[list(starts)], axis=0)
    deletions = np.diff(np.cumsum(deleted)[borders])
    counts = [
        ErrorCounts(hits, substitutions, lost, insertions)
        for (hits, substitutions, insertions), lost in zip(kinds.tolist(), deletions.tolist(), strict=True)
    ]
    return borders.tolist(), counts
