"""The options of every verb that scores: one meaning, one spelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

import pipeline
from jobs.console import err
from pipeline.gate import Condition, Verdict, figures, judge, parse_condition
from pipeline.labels import evaluate_labels

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


def settings_of(
    run: pipeline.Run,
    refs: Sequence[str] | None,
    normalizer: str | None,
    compounds: bool,
    by: str | None = None,
    unit: str = "auto",
    level: float = 0.95,
) -> pipeline.EvaluationSettings:
    """What the options ask for; the run's own rules where none is given."""
    scoring = None
    if refs or normalizer or compounds:
        name = normalizer or run.record["config"]["normalizer"]
        scoring = pipeline.Scoring(name, tuple(refs or ()), compounds)
    names = tuple(name.strip() for name in (by or "").split(",") if name.strip())
    return pipeline.EvaluationSettings(scoring, names, unit, level)


def judged(
    conditions: Sequence[str] | None,
    run: pipeline.Run,
    baseline: pipeline.Run | None,
    settings: pipeline.EvaluationSettings,
) -> list[Verdict]:
    """Hold every condition against the figures; the ones that fail the run are said on standard error."""
    parsed: list[Condition] = [parse_condition(text) for text in conditions or ()]
    if not parsed:
        return []
    here, there = (
        None if r is None else figures(pipeline.evaluate_run(r, settings), evaluate_labels(r, settings))
        for r in (run, baseline)
    )
    verdicts = [judge(condition, here or {}, there) for condition in parsed]
    for verdict in verdicts:
        if verdict.failed:
            err.print(f"sewd: failed: {verdict.condition}: {_said(verdict)}", markup=False)
    return verdicts


def _said(verdict: Verdict) -> str:
    if verdict.value is None or verdict.limit is None:
        return "there is nothing to judge it by"
    return f"it is {verdict.value:.2f}, and the limit {verdict.limit:.2f}"
