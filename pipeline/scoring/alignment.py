"""Alignments of words, to show, and confusions, to count. For a bounded number of rows: both are Python objects."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import jiwer

MAX_EXAMPLES: Final = 3
"""Utterances that are named for a confusion."""

_ROWS_PER_CALL: Final = 64

Alignment = list[tuple[str, str, str]]
"""(op, reference words, hypothesis words) from left to right; op is equal, substitute, delete or insert."""


def align(reference: str, hypothesis: str) -> Alignment:
    """Align two normalised texts with the fewest errors.

    The alignment is jiwer's, as for the stored counts, so its numbers agree with them. Each substitution is one step;
    neighbouring equal, deleted or inserted words are one step together.
    """
    return next(align_rows([(reference, hypothesis)]))


def align_rows(pairs: Sequence[tuple[str, str]]) -> Iterator[Alignment]:
    """Align each (reference, hypothesis), in order. Half the time of as many calls of `align`."""
    for start in range(0, len(pairs), _ROWS_PER_CALL):
        references, hypotheses = map(list, zip(*pairs[start : start + _ROWS_PER_CALL], strict=True))
        output = jiwer.process_words(references, hypotheses)
        yield from map(_steps, output.references, output.hypotheses, output.alignments)


def _steps(reference: list[str], hypothesis: list[str], chunks: Iterable[jiwer.AlignmentChunk]) -> Alignment:
    steps: Alignment = []
    for chunk in chunks:
        reference_words = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        hypothesis_words = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "substitute":
            steps += [("substitute", *pair) for pair in zip(reference_words, hypothesis_words, strict=True)]
        else:
            steps.append((chunk.type, " ".join(reference_words), " ".join(hypothesis_words)))
    return steps


def hypothesis_hits(pairs: Sequence[tuple[str, str]]) -> Iterator[list[bool]]:
    """For each (reference, hypothesis), whether each word of the hypothesis is one of the reference, in order."""
    for start in range(0, len(pairs), _ROWS_PER_CALL):
        references, hypotheses = map(list, zip(*pairs[start : start + _ROWS_PER_CALL], strict=True))
        output = jiwer.process_words(references, hypotheses)
        for hypothesis, chunks in zip(output.hypotheses, output.alignments, strict=True):
            hits = [False] * len(hypothesis)
            for chunk in chunks:
                if chunk.type == "equal":
                    hits[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
            yield hits


@dataclass(frozen=True)
class Confusion:
    """How often a word was recognised as another.

    Attributes:
        reference: the word; empty for an insertion.
        hypothesis: the word in its place; empty for a deletion.
        count: how often.
        examples: ids of the first utterances with this confusion, each once.
    """

    reference: str
    hypothesis: str
    count: int
    examples: tuple[str, ...]


def confusions(rows: Sequence[tuple[str, str, str]], top: int) -> dict[str, list[Confusion]]:
    """The most frequent substitutions, deletions and insertions.

    Args:
        rows: (utt_id, reference, hypothesis), the texts normalised.
        top: how many of each kind.

    Returns:
        By kind (`substitute`, `delete`, `insert`): the most frequent first, then in alphabetical order.
    """
    counts: dict[str, Counter[tuple[str, str]]] = {"substitute": Counter(), "delete": Counter(), "insert": Counter()}
    examples: dict[tuple[str, str], list[str]] = defaultdict(list)
    alignments = align_rows([(reference, hypothesis) for _, reference, hypothesis in rows])
    for (utt_id, _, _), alignment in zip(rows, alignments, strict=True):
        for op, reference_words, hypothesis_words in alignment:
            if op == "equal":
                continue
            for pair in _confused_pairs(op, reference_words, hypothesis_words):
                counts[op][pair] += 1
                if len(examples[pair]) < MAX_EXAMPLES and utt_id not in examples[pair]:
                    examples[pair].append(utt_id)
    return {
        op: [
            Confusion(*pair, count, tuple(examples[pair]))
            for pair, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:top]
        ]
        for op, counter in counts.items()
    }


def _confused_pairs(op: str, reference_words: str, hypothesis_words: str) -> list[tuple[str, str]]:
    if op == "substitute":
        return [(reference_words, hypothesis_words)]
    return [(word, "") for word in reference_words.split()] + [("", word) for word in hypothesis_words.split()]
