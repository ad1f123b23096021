"""How rows of `transcripts` get their error counts: as stored, or scored again under other rules or references."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schemas import SCORE_FIELDS
from pipeline.scoring.counts import score_columns
from pipeline.scoring.normalize import check_normalizer
from pipeline.scoring.references import References

SCORED_NAMES: Final = tuple(f.name for f in SCORE_FIELDS)
COUNT_COLUMNS: Final = tuple(f.name for f in SCORE_FIELDS if pa.types.is_integer(f.type))


@dataclass(frozen=True)
class Scoring:
    """The rules that texts are compared under.

    Attributes:
        normalizer: a name in `pipeline.scoring.normalize.NORMALIZERS`, applied to both texts.
        references: URIs of files (`pipeline.scoring.references`) that stand for the stored references; several are
            alternatives, of which an utterance is scored against the one with the fewest errors.
        compounds: words that are only parted or joined otherwise are no errors (`pipeline.scoring.compounds`).

    Raises:
        UsageError: no such normalizer.
    """

    normalizer: str
    references: tuple[str, ...] = ()
    compounds: bool = False

    def __post_init__(self) -> None:
        check_normalizer(self.normalizer)

    def is_stored(self, stored_normalizer: str | None) -> bool:
        """Whether counts stored under `stored_normalizer` are counts under these rules."""
        return self.normalizer == stored_normalizer and not self.references and not self.compounds

    def sources(self, stored_normalizer: str | None, *, texts: bool = False) -> tuple[str, ...]:
        """The columns of `transcripts` that scoring reads; with `texts`, for the normalised texts too."""
        if self.is_stored(stored_normalizer):
            return SCORED_NAMES if texts else COUNT_COLUMNS
        return ("utt_id", "text") if self.references else ("text", "reference")

    @property
    def name(self) -> str:
        """What files of figures under these rules are called."""
        digest = hashlib.sha256("\n".join(self.references).encode()).hexdigest()[:8]
        return "-".join([self.normalizer, *["compounds"] * self.compounds, *[f"refs-{digest}"] * bool(self.references)])


def score(
    rows: pa.Table, scoring: Scoring, stored_normalizer: str | None, references: Sequence[References]
) -> dict[str, pa.Array]:
    """The columns of `SCORE_FIELDS` for each row (texts only where the counts are not the stored ones, or are read).

    Args:
        rows: with the columns of `scoring.sources`.
        scoring: the rules.
        stored_normalizer: the one that the stored counts are of; None: do not use them.
        references: the files of `scoring.references`, loaded.

    Raises:
        ValueError: stored counts contradict each other: they were damaged.
    """
    if scoring.is_stored(stored_normalizer):
        return _stored(rows)
    texts = _plain(rows["text"])
    if not references:
        return score_columns(texts, _plain(rows["reference"]), scoring.normalizer, compounds=scoring.compounds)
    alternatives = [
        score_columns(
            texts,
            file.taken(file.texts, file.rows_of(rows["utt_id"])),
            scoring.normalizer,
            compounds=scoring.compounds,
        )
        for file in references
    ]
    return _fewest_errors(alternatives)


def _stored(rows: pa.Table) -> dict[str, pa.Array]:
    """The rows' own counts, if they agree: a rate over half-filled columns would look sound."""
    columns = {name: _plain(rows[name]) for name in SCORED_NAMES if name in rows.column_names}
    filled = {name: pc.is_valid(columns[name]) for name in COUNT_COLUMNS}
    if not all(rows_filled.equals(filled["hits"]) for rows_filled in filled.values()):
        numbers = {name: pc.sum(rows_filled, min_count=0).as_py() for name, rows_filled in filled.items()}
        raise ValueError(f"the stored counts are not filled in the same rows; values by column: {numbers}")
    for prefix, length in (("", "ref_words"), ("char_", "ref_chars")):
        parts = [columns[prefix + name] for name in ("hits", "substitutions", "deletions")]
        total = pc.add(pc.add(parts[0], parts[1]), parts[2])
        if not pc.all(pc.equal(total, columns[length]), min_count=0).as_py():
            raise ValueError(
                f"the stored counts contradict each other: {length} is not hits + substitutions + deletions"
            )
    return columns


def _fewest_errors(alternatives: list[dict[str, pa.Array]]) -> dict[str, pa.Array]:
    """Row for row the alternative with the fewest word errors, then character errors; the first of equals."""
    words, chars = (np.stack([_cost(columns, prefix) for columns in alternatives]) for prefix in ("", "char_"))
    chosen = pa.array(np.lexsort((chars, words), axis=0)[0], pa.int64())
    return {name: pc.choose(chosen, *(columns[name] for columns in alternatives)) for name in SCORED_NAMES}


def _cost(columns: dict[str, pa.Array], prefix: str) -> npt.NDArray[np.float64]:
    """Errors of each row; infinite where the alternative has no reference."""
    names = [prefix + name for name in ("substitutions", "deletions", "insertions")]
    errors = np.stack([columns[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in names])
    cost: npt.NDArray[np.float64] = np.nan_to_num(errors.sum(axis=0), nan=np.inf)
    return cost


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
