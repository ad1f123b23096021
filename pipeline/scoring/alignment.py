"""Which words were taken for which: alignments to show, confusions to count; from texts of a bounded number of rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import jiwer

EXAMPLES: Final = 3
_ROWS_PER_CALL: Final = 64

Alignment = list[tuple[str, str, str]]
"""(op, reference words, hypothesis words) from left to right; op is equal, substitute, delete or insert."""


def align(reference: str, hypothesis: str) -> Alignment:
    """A minimal alignment of normalised texts: jiwer's, so that its numbers are those of the stored counts.

    A stretch of substitutions is given word for word; equal, deleted and inserted words as stretches.
    """
    return next(align_rows([(reference, hypothesis)]))


def align_rows(pairs: Sequence[tuple[str, str]]) -> Iterator[Alignment]:
    """The alignment of each (reference, hypothesis), in their order; many at once take half the time."""
    for start in range(0, len(pairs), _ROWS_PER_CALL):
        references, hypotheses = map(list, zip(*pairs[start : start + _ROWS_PER_CALL], strict=True))
        output = jiwer.process_words(references, hypotheses)
        yield from map(_steps, output.references, output.hypotheses, output.alignments)


def _steps(words: list[str], found: list[str], chunks: Iterable[jiwer.AlignmentChunk]) -> Alignment:
    steps: Alignment = []
    for chunk in chunks:
        wanted = words[chunk.ref_start_idx : chunk.ref_end_idx]
        heard = found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "substitute":
            steps += [("substitute", a, b) for a, b in zip(wanted, heard, strict=True)]
        else:
            steps.append((chunk.type, " ".join(wanted), " ".join(heard)))
    return steps


@dataclass(frozen=True)
class Confusion:
    """How often `reference` came out as `hypothesis`: an empty one is an insertion or a deletion."""

    reference: str
    hypothesis: str
    count: int
    examples: tuple[str, ...]


def confusions(rows: Sequence[tuple[str, str, str]], top: int) -> dict[str, list[Confusion]]:
    """The most frequent substitutions, deletions and insertions of (utt_id, reference, hypothesis), normalised.

    Returns:
        By kind (`substitute`, `delete`, `insert`) at most `top` each, the most frequent first, then by spelling, with
        the first utterances that show it.
    """
    counts: dict[str, Counter[tuple[str, str]]] = {"substitute": Counter(), "delete": Counter(), "insert": Counter()}
    shown: dict[tuple[str, str], list[str]] = defaultdict(list)
    alignments = align_rows([(reference, hypothesis) for _, reference, hypothesis in rows])
    for (utt_id, _, _), alignment in zip(rows, alignments, strict=True):
        for op, wanted, found in alignment:
            if op == "equal":
                continue
            for pair in _pairs(op, wanted, found):
                counts[op][pair] += 1
                if len(shown[pair]) < EXAMPLES and utt_id not in shown[pair]:
                    shown[pair].append(utt_id)
    return {
        op: [
            Confusion(*pair, count, tuple(shown[pair]))
            for pair, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:top]
        ]
        for op, counter in counts.items()
    }


def _pairs(op: str, wanted: str, found: str) -> list[tuple[str, str]]:
    if op == "substitute":
        return [(wanted, found)]
    return [(word, "") for word in wanted.split()] + [("", word) for word in found.split()]
