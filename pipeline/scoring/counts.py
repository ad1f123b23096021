"""Error counts of transcripts. Counts are stored; rates are computed from sums of counts.

Counts come from jiwer's minimal alignment (`jiwer.process_words`, `jiwer.process_characters`) of one utterance
at a time: hits H, substitutions S, deletions D, insertions I, with H + S + D the length of the reference and
H + S + I that of the hypothesis.

    reference  hypothesis     H  S  D  I   error rate
    empty      empty          0  0  0  0   none (None, null)
    empty      n words        0  0  0  n   none (None, null)
    n words    empty          0  0  n  0   1
    n words    the same       n  0  0  0   0

An utterance without reference words has no rate, but its insertions count: they stay in the numerator of a
sum, so that a model that transcribes silence as speech is penalised. (jiwer returns the number of insertions as
the rate of an empty reference; over a corpus with at least one reference word it agrees with this module.)

S + D + I is a property of the two texts. Its split into S, D and I is not: several alignments can be equally
short, and jiwer picks one. So after swapping reference and hypothesis, the sum is the same and D - I has the
opposite sign, but S may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jiwer
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schemas import CHARACTER_COUNT_FIELDS, WORD_COUNT_FIELDS
from pipeline.scoring.compounds import join_like
from pipeline.scoring.normalize import normalize, resolve


@dataclass(frozen=True)
class ErrorCounts:
    """Counts of any number of alignments, either of words or of characters.

    A monoid: it has `zero()` and `+`, so `sum(counts)` works and every grouping has the same total. Modelled on
    meeteval's ErrorRate.

    Raises:
        ValueError: a count is negative.
    """

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    def __post_init__(self) -> None:
        if min(self.hits, self.substitutions, self.deletions, self.insertions) < 0:
            raise ValueError(f"counts cannot be negative: {self}")

    @classmethod
    def zero(cls) -> ErrorCounts:
        """Nothing counted."""
        return cls(0, 0, 0, 0)

    def __add__(self, other: object) -> ErrorCounts:
        if not isinstance(other, ErrorCounts):
            return NotImplemented
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    def __radd__(self, other: object) -> ErrorCounts:
        return self if other == 0 else NotImplemented  # `sum` starts with 0

    @property
    def reference(self) -> int:
        """Length of the reference: H + S + D."""
        return self.hits + self.substitutions + self.deletions

    @property
    def hypothesis(self) -> int:
        """Length of the hypothesis: H + S + I."""
        return self.hits + self.substitutions + self.insertions

    @property
    def errors(self) -> int:
        """The edit distance: S + D + I."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def error_rate(self) -> float | None:
        """(S + D + I) / (H + S + D); may exceed 1; None if the reference is empty."""
        return self.errors / self.reference if self.reference else None

    @property
    def match_error_rate(self) -> float | None:
        """MER, (S + D + I) / (H + S + D + I), at most 1; None if both texts are empty. Morris et al. 2004."""
        return self.errors / (self.hits + self.errors) if self.hits + self.errors else None

    @property
    def information_lost(self) -> float | None:
        """WIL, 1 - (H / reference) (H / hypothesis); None if the reference is empty. Morris et al. 2004."""
        if not self.reference:
            return None
        return 1 - self.hits / self.reference * (self.hits / self.hypothesis if self.hypothesis else 0)


_ROWS_PER_CALL: Final = 32  # to jiwer: enough to amortise its overhead, and few enough to bound its alignment objects


def _align(references: Sequence[str], hypotheses: Sequence[str], process: Callable[..., Any]) -> npt.NDArray[np.int32]:
    """H, S, D, I of each pair: int32 (rows, 4). `process` is `jiwer.process_words` or `jiwer.process_characters`."""
    counts = np.zeros((len(references), 4), dtype=np.int32)
    for start in range(0, len(references), _ROWS_PER_CALL):
        rows = slice(start, start + _ROWS_PER_CALL)
        aligned = process(list(references[rows]), list(hypotheses[rows]))
        for row, chunks in enumerate(aligned.alignments, start):
            lengths = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
            for chunk in chunks:
                lengths[chunk.type] += max(
                    chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
                )
            counts[row] = tuple(lengths.values())
    return counts


def word_counts(reference: str, hypothesis: str) -> ErrorCounts:
    """Counts of the words of two normalised texts, split at spaces, from `jiwer.process_words`."""
    return ErrorCounts(*_align([reference], [hypothesis], jiwer.process_words)[0].tolist())


def char_counts(reference: str, hypothesis: str) -> ErrorCounts:
    """Counts of the characters (code points) of two normalised texts, from `jiwer.process_characters`.

    A space between two words is a character.
    """
    return ErrorCounts(*_align([reference], [hypothesis], jiwer.process_characters)[0].tolist())


def _count_columns(
    fields: tuple[pa.Field, ...],
    references: Sequence[str | None],
    hypotheses: Sequence[str],
    length: Callable[[str], int],
    process: Callable[..., Any],
) -> dict[str, pa.Array]:
    """One column for each of `fields`: the length of the reference, H, S, D, I. `length` measures a text."""
    counts = np.zeros((len(references), 4), dtype=np.int32)
    differing: list[tuple[int, str, str]] = []
    for row, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        if reference == hypothesis:  # only hits: several times as fast as an alignment
            counts[row, 0] = length(hypothesis)
        elif reference is not None:
            differing.append((row, reference, hypothesis))
    if differing:
        rows, row_references, row_hypotheses = zip(*differing, strict=True)
        counts[list(rows)] = _align(row_references, row_hypotheses, process)
    missing = np.array([reference is None for reference in references], dtype=bool)
    columns = (counts[:, :3].sum(axis=1, dtype=np.int32), *counts.T)
    return {
        field.name: pa.array(column, pa.int32(), mask=missing) for field, column in zip(fields, columns, strict=True)
    }


def count_rows(references: Sequence[str | None], hypotheses: Sequence[str]) -> dict[str, pa.Array]:
    """The ten int32 columns of counts, `ref_words` to `char_insertions`, in the order of `SCORE_FIELDS`.

    Args:
        references: normalised. A row whose reference is None is null in every column.
        hypotheses: normalised, one for each reference.

    Raises:
        ValueError: there are more or fewer hypotheses than references.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    words = _count_columns(
        WORD_COUNT_FIELDS, references, hypotheses, lambda text: len(text.split()), jiwer.process_words
    )
    chars = _count_columns(CHARACTER_COUNT_FIELDS, references, hypotheses, len, jiwer.process_characters)
    return words | chars


def score_columns(
    texts: pa.Array | pa.ChunkedArray | Sequence[str],
    references: pa.Array | pa.ChunkedArray | Sequence[str | None],
    normalizer: str,
    *,
    compounds: bool = False,
) -> dict[str, pa.Array]:
    """Normalise and count rows of transcripts.

    Args:
        texts: transcripts; may be empty, not null.
        references: reference texts. A row whose reference is null is null in every column; an empty string is a
            reference of no words.
        normalizer: applied to both, see `pipeline.scoring.normalize`.
        compounds: split and join the hypotheses like the references first (`pipeline.scoring.compounds`).

    Returns:
        The columns of `SCORE_FIELDS`, in that order, row for row.

    Raises:
        UsageError: there is no such normalizer.
        ValueError: there are more or fewer texts than references, or a row has a reference but its text is null.
    """
    normalizer = resolve(normalizer)
    if len(texts) != len(references):
        raise ValueError(f"{len(texts)} texts, but {len(references)} references")
    hypotheses: list[str] = []
    normalized_references: list[str | None] = []
    for row, (text, reference) in enumerate(zip(_strings(texts), _strings(references), strict=True)):
        if reference is not None and text is None:
            raise ValueError(
                f"row {row} has a reference, but its text is null: a transcript's text may be empty, not null"
            )
        if reference is None or text is None:
            hypotheses.append("")
            normalized_references.append(None)
            continue
        normalized_reference, hypothesis = normalize(reference, normalizer), normalize(text, normalizer)
        hypotheses.append(join_like(normalized_reference, hypothesis) if compounds else hypothesis)
        normalized_references.append(normalized_reference)
    missing = np.array([reference is None for reference in normalized_references], dtype=bool)
    return {
        "normalized_text": pa.array(hypotheses, pa.string(), mask=missing),
        "normalized_reference": pa.array(normalized_references, pa.string()),
    } | count_rows(normalized_references, hypotheses)


def _strings(values: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> list[str | None]:
    return values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else list(values)
