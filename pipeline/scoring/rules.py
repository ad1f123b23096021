"""Error counts of rows of `transcripts`: the stored ones, or counted again under other rules or references."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.schemas import SCORE_FIELDS
from pipeline.scoring.counts import score_columns
from pipeline.scoring.normalize import label, resolve
from pipeline.scoring.references import References
from pipeline.scoring.time_constrained import DEFAULT_COLLAR_S

SCORE_COLUMNS: Final = tuple(f.name for f in SCORE_FIELDS)
"""The normalised texts and all counts."""

COUNT_COLUMNS: Final = tuple(f.name for f in SCORE_FIELDS if pa.types.is_integer(f.type))
"""The counts alone."""


@dataclass(frozen=True)
class Scoring:
    """The rules by which hypotheses and references are compared.

    Attributes:
        normalizer: applied to both texts; given as users write it, and kept as it is stored, see
            `pipeline.scoring.normalize`.
        references: URIs of files (`pipeline.scoring.references`) that replace the stored references. Several files are
            alternatives: an utterance is scored against the one with the fewest errors.
        compounds: words that are only split or joined differently are not errors (`pipeline.scoring.compounds`).
        collar_s: how far from its time in a reference with times a word may be recognised, in seconds
            (`pipeline.scoring.time_constrained`).

    Raises:
        UsageError: the normalizer cannot be used, or the collar is negative.
        StorageError: the file of its rules could not be reached.
    """

    normalizer: str
    references: tuple[str, ...] = ()
    compounds: bool = False
    collar_s: float = DEFAULT_COLLAR_S

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalizer", resolve(self.normalizer))
        if not 0 <= self.collar_s < math.inf:
            raise UsageError(f"the collar must be 0 s or more, not {self.collar_s}")

    def matches_stored(self, stored_normalizer: str | None) -> bool:
        """Whether these rules are those of counts that were stored under `stored_normalizer`."""
        return self.normalizer == stored_normalizer and not self.references and not self.compounds

    def source_columns(self, stored_normalizer: str | None, *, texts: bool = False) -> tuple[str, ...]:
        """The columns of `transcripts` that `score` reads; with `texts`, also those for the normalised texts."""
        if self.matches_stored(stored_normalizer):
            return SCORE_COLUMNS if texts else COUNT_COLUMNS
        return ("utt_id", "text") if self.references else ("text", "reference")

    @property
    def name(self) -> str:
        """The file name, without extension, of figures under these rules."""
        digest = hashlib.sha256("\n".join(self.references).encode()).hexdigest()[:8]
        parts = [label(self.normalizer), *["compounds"] * self.compounds, *[f"refs-{digest}"] * bool(self.references)]
        return "-".join([*parts, *[f"collar-{self.collar_s:g}"] * (self.collar_s != DEFAULT_COLLAR_S)])


def score(
    rows: pa.Table, scoring: Scoring, stored_normalizer: str | None, references: Sequence[References]
) -> dict[str, pa.Array]:
    """Score rows of `transcripts`.

    Args:
        rows: with the columns of `scoring.source_columns`.
        scoring: the rules.
        stored_normalizer: the normalizer of the stored counts; None: do not use them.
        references: the files of `scoring.references`, loaded.

    Returns:
        The columns of `SCORE_FIELDS`, row for row. Stored counts come without the normalised texts, unless `rows` has
        them.

    Raises:
        ValueError: stored counts contradict each other: they are damaged.
    """
    if scoring.matches_stored(stored_normalizer):
        return _stored_counts(rows)
    texts = _contiguous(rows["text"])
    if not references:
        return score_columns(texts, _contiguous(rows["reference"]), scoring.normalizer, compounds=scoring.compounds)
    alternatives = [
        score_columns(
            texts,
            file.texts_of(rows["utt_id"]),
            scoring.normalizer,
            compounds=scoring.compounds,
        )
        for file in references
    ]
    return _fewest_errors(alternatives)


def _stored_counts(rows: pa.Table) -> dict[str, pa.Array]:
    """The stored counts, after a check of their consistency: a rate over half-filled columns would look plausible."""
    columns = {name: _contiguous(rows[name]) for name in SCORE_COLUMNS if name in rows.column_names}
    filled = {name: pc.is_valid(columns[name]) for name in COUNT_COLUMNS}
    if not all(rows_filled.equals(filled["hits"]) for rows_filled in filled.values()):
        numbers = {name: pc.sum(rows_filled, min_count=0).as_py() for name, rows_filled in filled.items()}
        raise ValueError(f"the stored counts are not filled in the same rows; values in each column: {numbers}")
    for prefix, length in (("", "ref_words"), ("char_", "ref_chars")):
        parts = [columns[prefix + name] for name in ("hits", "substitutions", "deletions")]
        total = pc.add(pc.add(parts[0], parts[1]), parts[2])
        if not pc.all(pc.equal(total, columns[length]), min_count=0).as_py():
            raise ValueError(
                f"the stored counts contradict each other: {length} is not hits + substitutions + deletions"
            )
    return columns


def _fewest_errors(alternatives: list[dict[str, pa.Array]]) -> dict[str, pa.Array]:
    """For each row the alternative with the fewest word errors, then character errors; the first of equal ones."""
    words, chars = (np.stack([_errors(columns, prefix) for columns in alternatives]) for prefix in ("", "char_"))
    chosen = pa.array(np.lexsort((chars, words), axis=0)[0], pa.int64())
    return {name: pc.choose(chosen, *(columns[name] for columns in alternatives)) for name in SCORE_COLUMNS}


def _errors(columns: dict[str, pa.Array], prefix: str) -> npt.NDArray[np.float64]:
    """Errors of each row: float64 (rows,), infinite where the alternative has no reference."""
    names = [prefix + name for name in ("substitutions", "deletions", "insertions")]
    counts = np.stack([columns[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in names])
    errors: npt.NDArray[np.float64] = np.nan_to_num(counts.sum(axis=0), nan=np.inf)
    return errors


def _contiguous(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
