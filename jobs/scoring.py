"""Options that `evaluate`, `compare` and `report` share, and the conditions of `--fail-if`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final

import typer

import pipeline
from jobs.console import err, warn
from pipeline.errors import UsageError
from pipeline.evaluation.calibration import calibration_warnings, read_calibration
from pipeline.evaluation.compare import Comparison
from pipeline.evaluation.gate import Condition, Verdict, check_condition, gate_figures, parse_condition
from pipeline.evaluation.labels import evaluate_labels
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.runs.status import RunStatus
from pipeline.scoring.time_constrained import DEFAULT_COLLAR_S
from pipeline.settings import default_of

DEFAULT_UNIT: Final[str] = default_of(EvaluationSettings, "unit")
DEFAULT_LEVEL: Final[float] = default_of(EvaluationSettings, "level")

Refs = Annotated[
    list[str] | None,
    typer.Option(
        "--refs",
        metavar="FILE",
        help="Score against the references in this file, by id of the utterance or recording: .jsonl, .csv, .tsv, "
        ".parquet, .stm, or lines of `ID text`. Repeat for alternatives: each utterance is scored against the one "
        "with the fewest errors.",
    ),
]
Normalizer = Annotated[
    str | None,
    typer.Option(
        help="Normalizer of both texts: basic, none, english (Whisper's), or rules:FILE. Default: the run's own."
    ),
]
Compounds = Annotated[
    bool, typer.Option("--compounds", help="Do not count as errors words that are only split or joined differently.")
]
Collar = Annotated[
    float,
    typer.Option(
        help="Seconds by which a word may miss its time in the time-constrained error rate of references with times."
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Turn confidences into probabilities by what `sewd calibrate` wrote."),
]
By = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Group by speaker, duration, confidence, any column, or a key of the manifest."),
]
Unit = Annotated[str, typer.Option(help="Sampling unit of the intervals: auto, speaker, recording or utterance.")]
Level = Annotated[float, typer.Option(help="Nominal coverage of the intervals.")]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        help="Exit with code 4 if it holds: 'wer > 8', 'wer > baseline + 0.2', in percent and percentage points. "
        "Can be repeated.",
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
    collar: float = DEFAULT_COLLAR_S,
    calibration: str | None = None,
) -> pipeline.EvaluationSettings:
    """The settings from the options. Without options about scoring, the run's own rules apply."""
    scoring = None
    if refs or normalizer or compounds or collar != DEFAULT_COLLAR_S:
        name = normalizer or run.record.normalizer
        scoring = pipeline.Scoring(name, tuple(refs or ()), compounds, collar)
    names = tuple(name.strip() for name in (by or "").split(",") if name.strip())
    confidence = None if calibration is None else read_calibration(calibration).get("utterance")
    if calibration is not None and confidence is None:
        raise UsageError(f"calibration: {calibration} has none of utterances: it was learned on too few")
    if calibration is not None:
        warn(calibration_warnings(calibration, run))
    return pipeline.EvaluationSettings(scoring, names, unit, level, calibration=confidence)


def parse_conditions(texts: Sequence[str] | None, *, has_baseline: bool) -> list[Condition]:
    """Parse the conditions of --fail-if, so that invalid ones are refused before any work.

    Raises:
        UsageError: a text is not a condition, or needs a baseline and there is none.
    """
    conditions = [parse_condition(text) for text in texts or ()]
    for condition in conditions:
        if condition.number is None and not has_baseline:
            raise UsageError(f"{condition.text!r} needs a baseline")
    return conditions


def check_conditions(
    conditions: Sequence[Condition],
    runs: Sequence[pipeline.Run],
    figures: Mapping[str, float | None],
    baseline: Mapping[str, float | None] | None = None,
) -> list[Verdict]:
    """Check every condition, and report the failed ones on standard error.

    If a run is not done, all conditions fail: its committed rows need not be representative of the rest.
    """
    unfinished = [run for run in runs if run.status != RunStatus.DONE]
    verdicts = []
    for condition in conditions:
        verdict = check_condition(condition, figures, baseline)
        if unfinished:
            verdict = replace(verdict, failed=True)
        if verdict.failed:
            reason = f"{unfinished[0].uri} is not done" if unfinished else _reason(verdict)
            err.print(f"sewd: failed: {verdict.condition}: {reason}", markup=False)
        verdicts.append(verdict)
    return verdicts


def _reason(verdict: Verdict) -> str:
    if verdict.value is None or verdict.limit is None:
        return "it cannot be checked: the run or its baseline has no such figure"
    return f"the value is {verdict.value:.2f}, the limit {verdict.limit:.2f}"


def run_figures(run: pipeline.Run, settings: pipeline.EvaluationSettings) -> dict[str, float | None]:
    """The figures of one run that conditions can use."""
    settings = replace(settings, by=())
    return gate_figures(pipeline.evaluate_run(run, settings), evaluate_labels(run, settings))


def paired_figures(
    run: pipeline.Run, baseline: pipeline.Run, settings: pipeline.EvaluationSettings, comparison: Comparison
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """The figures of a run and of its baseline that conditions can use.

    Error rates are those of the pairs; `lost` is the share of the baseline's scored utterances that the run lacks.
    """
    run_rates = {metric: _percent(rates.run) for metric, rates in comparison.rates.items()}
    baseline_rates = {metric: _percent(rates.baseline) for metric, rates in comparison.rates.items()}
    baseline_scored = comparison.utterances + comparison.only_in_baseline + comparison.reference_differs
    lost = 100 * comparison.only_in_baseline / baseline_scored
    return (
        run_figures(run, settings) | run_rates | {"lost": lost},
        run_figures(baseline, settings) | baseline_rates | {"lost": 0.0},
    )


def _percent(rate: float | None) -> float | None:
    return None if rate is None else 100 * rate
