"""Conditions on the figures of a run, for continuous integration of models: `wer > baseline + 0.2` fails the run.

    METRIC OP LIMIT
    OP:     >  >=  <  <=
    LIMIT:  NUMBER,  baseline,  baseline + NUMBER,  baseline - NUMBER,  baseline * NUMBER

All figures are percentages (wer, cer, ser, mer, wil, tcwer, coverage, reference_coverage, failed; accuracy.TASK,
macro_f1.TASK of a classifier), and a number added to a baseline is in percentage points: `wer > 8`,
`wer > baseline + 0.2`, `failed > 1`, `accuracy.keyword < 97`. Against a baseline, wer, cer and ser are those of the
pairs, and `lost` is the share of the baseline's scored utterances that the run has not scored. A figure that the run
does not have, because nothing was scored, fails its condition: what cannot be checked must not pass.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import UsageError
from pipeline.evaluation.labels import LabelEvaluation
from pipeline.evaluation.results import Evaluation

_DIGITS: Final = 9  # decimals of a percentage that are compared: 100 * 0.07 is slightly above 7, and must not exceed it
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_CONDITION: Final = re.compile(
    rf"\s*(?P<metric>[A-Za-z_][\w.\-]*)\s*(?P<op>>=|<=|>|<)\s*"
    rf"(?:(?P<number>-?{_NUMBER})|(?P<baseline>baseline)(?:\s*(?P<sign>[+*-])\s*(?P<change>{_NUMBER}))?)\s*%?\s*"
)
_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_CHANGES: Final[Mapping[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


@dataclass(frozen=True)
class Condition:
    """A condition under which a run fails.

    Attributes:
        text: as it was written.
        metric: name of the figure.
        op: `>`, `>=`, `<` or `<=`.
        number: the limit; None where it comes from the baseline.
        change: sign and number that turn the baseline's figure into the limit; None where there is no change.
    """

    text: str
    metric: str
    op: str
    number: float | None
    change: tuple[str, float] | None


@dataclass(frozen=True)
class Verdict:
    """Outcome of a condition.

    Attributes:
        condition: its text.
        value: the run's figure in percent; None where the run does not have it.
        limit: what it was compared with; None where the baseline does not have the figure.
        failed: the condition holds, or cannot be checked because `value` or `limit` is None.
    """

    condition: str
    value: float | None
    limit: float | None
    failed: bool


def parse_condition(text: str) -> Condition:
    """Parse a condition.

    Raises:
        UsageError: `text` is not a condition.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a condition: write METRIC > NUMBER or METRIC > baseline + NUMBER, "
            "such as wer > baseline + 0.2"
        )
    parts = match.groupdict()
    number = None if parts["number"] is None else float(parts["number"])
    change = (parts["sign"], float(parts["change"])) if parts["sign"] else None
    return Condition(text.strip(), parts["metric"], parts["op"], number, change)


def check_condition(
    condition: Condition, figures: Mapping[str, float | None], baseline: Mapping[str, float | None] | None
) -> Verdict:
    """Check a condition against the figures of a run and of its baseline, both from `gate_figures`.

    Raises:
        UsageError: there is no figure of that name, or no baseline to compare with.
    """
    if condition.metric not in figures:
        raise UsageError(
            f"{condition.text!r}: unknown metric {condition.metric!r}; choose one of {', '.join(sorted(figures))}"
        )
    value, limit = figures[condition.metric], condition.number
    if limit is None:
        if baseline is None:
            raise UsageError(f"{condition.text!r} needs a baseline")
        limit = baseline.get(condition.metric)
        if limit is not None and condition.change is not None:
            sign, number = condition.change
            limit = _CHANGES[sign](limit, number)
    failed = value is None or limit is None or _OPERATORS[condition.op](*(round(x, _DIGITS) for x in (value, limit)))
    return Verdict(condition.text, value, limit, failed)


def gate_figures(evaluation: Evaluation, labels: Sequence[LabelEvaluation]) -> dict[str, float | None]:
    """The figures that conditions can use, in percent, by name."""
    rows = evaluation.figures.utterances + evaluation.failed
    shares: dict[str, float | None] = dict(evaluation.rates)
    shares |= {"coverage": evaluation.coverage, "failed": evaluation.failed / rows if rows else None}
    recordings = evaluation.recordings
    shares |= {"tcwer": evaluation.tcwer, "reference_coverage": recordings.coverage if recordings else None}
    for task in labels:
        shares |= {f"accuracy.{task.task}": task.counts.accuracy, f"macro_f1.{task.task}": task.counts.macro_f1}
    return {name: None if share is None else 100 * share for name, share in shares.items()}
