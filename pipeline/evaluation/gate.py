"""Conditions on the figures of a run, for the CI of models: `wer > baseline + 0.2` says when it has failed.

    METRIC OP LIMIT
    OP:     >  >=  <  <=
    LIMIT:  NUMBER,  baseline,  baseline + NUMBER,  baseline - NUMBER,  baseline * NUMBER

All figures are shares in percent (wer, cer, ser, mer, wil, coverage, failed; accuracy.TASK, macro_f1.TASK of a
classifier), and what is added to a baseline is in percentage points: `wer > 8`, `wer > baseline + 0.2`, `failed > 1`,
`accuracy.keyword < 97`. Against a baseline, wer, cer and ser are those of the pairs, and `lost` is the share of the
baseline's scored utterances that the run has not scored. A figure that the run does not have, since nothing was
scored, fails its condition: what cannot be judged must not pass.
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

_DIGITS: Final = 9  # of percent that count: 100 * 0.07 is not 7, and must not be above it
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
    """When a run has failed; `change` is None where the limit is a plain number or the plain baseline."""

    text: str
    metric: str
    op: str
    number: float | None
    change: tuple[str, float] | None


@dataclass(frozen=True)
class Verdict:
    """What a condition came to: `failed` where it is true, or cannot be judged (`value` or `limit` is None)."""

    condition: str
    value: float | None
    limit: float | None
    failed: bool


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        UsageError: it is none.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is no condition: write METRIC > NUMBER or METRIC > baseline + NUMBER, as wer > baseline + 0.2"
        )
    found = match.groupdict()
    number = None if found["number"] is None else float(found["number"])
    change = (found["sign"], float(found["change"])) if found["sign"] else None
    return Condition(text.strip(), found["metric"], found["op"], number, change)


def judge(
    condition: Condition, here: Mapping[str, float | None], baseline: Mapping[str, float | None] | None
) -> Verdict:
    """Hold a condition against the figures of the run and of its baseline, both in the units of conditions.

    Raises:
        UsageError: no figure of that name, or there is no baseline to compare with.
    """
    if condition.metric not in here:
        raise UsageError(
            f"{condition.text!r}: there is no metric {condition.metric!r}; there are {', '.join(sorted(here))}"
        )
    value, limit = here[condition.metric], condition.number
    if limit is None:
        if baseline is None:
            raise UsageError(f"{condition.text!r} needs a baseline")
        limit = baseline.get(condition.metric)
        if limit is not None and condition.change is not None:
            limit = _CHANGES[condition.change[0]](limit, condition.change[1])
    failed = value is None or limit is None or _OPERATORS[condition.op](*(round(x, _DIGITS) for x in (value, limit)))
    return Verdict(condition.text, value, limit, failed)


def figures(evaluation: Evaluation, labels: Sequence[LabelEvaluation]) -> dict[str, float | None]:
    """What conditions can name, in percent."""
    rows = evaluation.figures.utterances + evaluation.failed
    shares: dict[str, float | None] = dict(evaluation.rates)
    shares |= {"coverage": evaluation.coverage, "failed": evaluation.failed / rows if rows else None}
    for task in labels:
        shares |= {f"accuracy.{task.task}": task.counts.accuracy, f"macro_f1.{task.task}": task.counts.macro_f1}
    return {name: None if share is None else 100 * share for name, share in shares.items()}
