"""The options of every verb that scores: one meaning, one spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final

import typer

import pipeline
from jobs.console import err
from pipeline.errors import UsageError
from pipeline.evaluation.compare import Comparison
from pipeline.evaluation.gate import Condition, Verdict, check_condition, gate_figures, parse_condition
from pipeline.evaluation.labels import evaluate_labels
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.runs.status import RunStatus
from pipeline.settings import default_of

DEFAULT_UNIT: Final[str] = default_of(EvaluationSettings, "unit")
DEFAULT_LEVEL: Final[float] = default_of(EvaluationSettings, "level")

Refs = Annotated[
    list[str] | None,
    typer.Option(
        "--refs",
        metavar="FILE",
        help="Score against these references, by utt_id: .jsonl, .csv, .tsv, .parquet, or lines of `ID text`. "
        "Repeat it for alternatives: each utterance counts against the one with the fewest errors.",
    ),
]
Normalizer = Annotated[str | None, typer.Option(help="Score under this one (basic, none); without it, the run's own.")]
Compounds = Annotated[
    bool, typer.Option("--compounds", help="Words that are only parted or joined otherwise are no errors.")
]
By = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Group by speaker, duration, confidence, tags.NAME or any column."),
]
Unit = Annotated[str, typer.Option(help="Intervals draw from: auto, speaker, recording or utterance.")]
Level = Annotated[float, typer.Option(help="Level of the intervals.")]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        help="Exit with 4 where it holds: 'wer > 8', 'wer > baseline + 0.2'; percent and percentage points. Repeat it.",
    ),
]


def evaluation_settings(
    run: pipeline.Run,
    refs: Sequence[str] | None,
    normalizer: str | None,
    compounds: bool,
    by: str | None = None,
    unit: str = DEFAULT_UNIT,
    level: float = DEFAULT_LEVEL,
) -> pipeline.EvaluationSettings:
    """What the options ask for; the run's own rules where none is given."""
    scoring = None
    if refs or normalizer or compounds:
        name = normalizer or run.record.normalizer
        scoring = pipeline.Scoring(name, tuple(refs or ()), compounds)
    names = tuple(name.strip() for name in (by or "").split(",") if name.strip())
    return pipeline.EvaluationSettings(scoring, names, unit, level)


def parse_conditions(texts: Sequence[str] | None, *, has_baseline: bool) -> list[Condition]:
    """The conditions of --fail-if, refused before any work where they make no sense.

    Raises:
        UsageError: one is no condition, or needs a baseline.
    """
    parsed = [parse_condition(text) for text in texts or ()]
    for condition in parsed:
        if condition.number is None and not has_baseline:
            raise UsageError(f"{condition.text!r} needs a baseline")
    return parsed


def check_conditions(
    parsed: Sequence[Condition],
    runs: Sequence[pipeline.Run],
    here: Mapping[str, float | None],
    baseline: Mapping[str, float | None] | None = None,
) -> list[Verdict]:
    """Hold every condition against the figures; what fails is said on standard error.

    A run that is not done fails them all: what it has committed need not be like the rest.
    """
    verdicts = []
    for condition in parsed:
        verdict = check_condition(condition, here, baseline)
        unfinished = [run for run in runs if run.status != RunStatus.DONE]
        if unfinished:
            verdict = replace(verdict, failed=True)
        if verdict.failed:
            why = f"{unfinished[0].uri} is not done" if unfinished else _said(verdict)
            err.print(f"sewd: failed: {verdict.condition}: {why}", markup=False)
        verdicts.append(verdict)
    return verdicts


def _said(verdict: Verdict) -> str:
    if verdict.value is None or verdict.limit is None:
        return "there is nothing to judge it by"
    return f"it is {verdict.value:.2f}, and the limit {verdict.limit:.2f}"


def run_figures(run: pipeline.Run, settings: pipeline.EvaluationSettings) -> dict[str, float | None]:
    """What conditions can name of one run."""
    settings = replace(settings, by=())
    return gate_figures(pipeline.evaluate_run(run, settings), evaluate_labels(run, settings))


def paired_figures(
    run: pipeline.Run, baseline: pipeline.Run, settings: pipeline.EvaluationSettings, found: Comparison
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """What conditions can name of two runs: rates over their pairs, and of the baseline the share that the run lost."""
    pairs = [
        {metric: None if (rate := rates[side]) is None else 100 * rate for metric, rates in found.rates.items()}
        for side in (0, 1)
    ]
    of_baseline = found.utterances + found.only_in_baseline + found.reference_differs
    lost = {"lost": 100 * found.only_in_baseline / of_baseline}
    here, there = run_figures(run, settings), run_figures(baseline, settings)
    return here | pairs[0] | lost, there | pairs[1] | {"lost": 0.0}
