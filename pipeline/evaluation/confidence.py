"""How far confidences of utterances can be relied on: calibration error, and errors among the most certain ones.

All is derived from sums by confidence, so a corpus is the sum of its batches. An utterance is correct if it has no word
error. The risk at a coverage is the word error rate of that share of the utterances, the most certain first; the area
under that curve is small where a model knows what it does not know (Geifman and El-Yaniv 2017). Utterances without a
confidence, whose transcript is empty, are the least certain, and are not in the calibration error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.calibration import ConfidenceMap
from pipeline.evaluation.label_scores import Calibration, confidence_parts
from pipeline.evaluation.sums import as_array

CURVE_POINTS: Final = 20
SUMS: Final = ("scored", "sentence_errors", "word_errors", "ref_words", "confidence")
"""What is summed for each part of the confidences."""


@dataclass(frozen=True)
class ConfidenceFigures:
    """Figures of the confidences of scored utterances.

    Attributes:
        utterances: number of scored utterances.
        ece: expected calibration error, of utterances without a word error, over 15 bins of equal width.
        risk_area: area under the curve of risk over coverage.
        curve: (coverage, risk) at `CURVE_POINTS` coverages, the last of which is 1.
    """

    utterances: int
    ece: float | None
    risk_area: float | None
    curve: tuple[tuple[float, float], ...]


def confidence_summands(summands: pa.Table, confidence: ConfidenceMap | None) -> tuple[pa.Table, pa.Array]:
    """The scored rows of `pipeline.evaluation.sums.row_summands`, and the part of each one's confidence.

    Args:
        summands: the rows.
        confidence: what is applied to confidences first; None: nothing.
    """
    rows = summands.filter(pc.equal(summands["scored"], 1))
    values = as_array(rows["confidence"])
    if confidence is not None:
        values = confidence.of(values)
        rows = rows.set_column(rows.column_names.index("confidence"), "confidence", values)
    known = values.to_numpy(zero_copy_only=False)
    missing = np.isnan(known)
    parts = confidence_parts(np.where(missing, 0.0, known))
    return rows, pa.array(parts, pa.int64(), mask=missing)


def confidence_figures(sums: pa.Table | None) -> ConfidenceFigures | None:
    """The figures of sums by part (`key_part`); None if nothing was scored."""
    if sums is None or not sums.num_rows:
        return None
    ordered = sums.sort_by([("key_part", "descending")])  # nulls are last
    scored, wrong, errors, words = (ordered[name].to_numpy().astype(np.float64) for name in SUMS[:4])
    coverage = np.cumsum(scored) / scored.sum()
    errors, words = np.cumsum(errors), np.cumsum(words)
    risk = np.where(words > 0, errors / np.maximum(words, 1), errors > 0)
    xs, ys = np.concatenate([[0.0], coverage]), np.concatenate([risk[:1], risk])
    points = np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS
    known = np.array(ordered["key_part"].is_valid())
    reliability = Calibration.zero()
    parts = np.array(ordered["key_part"].drop_null(), np.int64)
    reliability.rows[parts] = scored[known]
    reliability.confidence[parts] = ordered["confidence"].to_numpy()[known]
    reliability.correct[parts] = (scored - wrong)[known]
    return ConfidenceFigures(
        utterances=int(scored.sum()),
        ece=reliability.expected_calibration_error,
        risk_area=float(np.sum(np.diff(xs) * (ys[1:] + ys[:-1]) / 2)),
        curve=tuple(zip(points.tolist(), np.interp(points, xs, ys).tolist(), strict=True)),
    )
