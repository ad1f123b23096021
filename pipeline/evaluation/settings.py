"""Options of an evaluation: scoring rules, groupings, and what confidence intervals are computed over."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.evaluation.calibration import ConfidenceMap
from pipeline.evaluation.units import UNITS
from pipeline.scoring.rules import Scoring


@dataclass(frozen=True)
class EvaluationSettings:
    """Options of an evaluation.

    Attributes:
        scoring: the rules under which texts are compared; None: the rules of the run, whose counts are stored.
        by: groupings, see `pipeline.evaluation.group_keys.grouping_key`.
        unit: sampling unit of the intervals: `auto`, `speaker`, `recording` or `utterance`.
        level: nominal coverage of the intervals.
        num_worst: how many of the utterances with the most word errors to list.
        calibration: what is applied to confidences before their figures are computed; None: nothing.

    Raises:
        UsageError: unknown unit, a level outside 0.5..1, or a negative `num_worst`.
    """

    scoring: Scoring | None = None
    by: tuple[str, ...] = ()
    unit: str = "auto"
    level: float = 0.95
    num_worst: int = 0
    calibration: ConfidenceMap | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("auto", *UNITS):
            raise UsageError(f"unknown unit {self.unit!r}: choose one of auto, {', '.join(UNITS)}")
        if not 0.5 <= self.level < 1:
            raise UsageError(f"the level of an interval must be at least 0.5 and below 1, not {self.level}")
        if self.num_worst < 0:
            raise UsageError(f"the number of worst utterances must not be negative: {self.num_worst}")
