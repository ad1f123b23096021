"""`sewd report`: what a run comes to, as one self-contained HTML file; or as Markdown or JSON, by the file's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

import pipeline
from jobs.console import Exit, out, single, warn
from jobs.scoring import (
    By,
    Compounds,
    FailIf,
    Level,
    Normalizer,
    Refs,
    Unit,
    parse_conditions,
    check_conditions,
    paired_figures,
    run_figures,
    evaluation_settings,
)
from pipeline.errors import UsageError
from pipeline.evaluation.compare import compare_runs, shared_scoring
from pipeline.report import render
from pipeline.report.content import Cost, ReportSettings
from pipeline.report.content import report as report_of
from pipeline.storage import objects, uris


def _json(told: Mapping[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False, allow_nan=False, indent=1)


RENDERINGS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    ".html": render.html,
    ".md": render.markdown,
    ".json": _json,
}


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN2", help="Compare with this run over the same corpus.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .html, .md or .json file; RUN/report.html without it."),
    ] = None,
    corpus: Annotated[
        bool, typer.Option("--corpus", help="Describe the corpus alone: for audio without references.")
    ] = False,
    refs: Refs = None,
    normalizer: Normalizer = None,
    compounds: Compounds = False,
    by: By = None,
    unit: Unit = "auto",
    level: Level = 0.95,
    cost_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of the run's machines an hour: the report says what it cost.")
    ] = None,
    currency: Annotated[str, typer.Option(help="Of the price.")] = "USD",
    fail_if: FailIf = None,
) -> int:
    """Write a report of a run: one file, that needs nothing else and asks for nothing.

    Exit codes: 0 done, 1 failed, 2 usage, 4 a condition of --fail-if held.
    """
    opened = pipeline.Run.open(run)
    parsed = parse_conditions(fail_if, has_baseline=baseline is not None)
    other = None if baseline is None else pipeline.Run.open(baseline)
    target = output or uris.join(opened.uri, "report.html")
    suffix = "." + target.rpartition(".")[2].lower()
    if suffix not in RENDERINGS:
        raise UsageError(f"{target}: a report is one of {', '.join(RENDERINGS)}")
    settings = evaluation_settings(opened, refs, normalizer, compounds, by, unit, level)
    if other is not None:
        settings = replace(settings, scoring=shared_scoring(opened, other, settings.scoring))
    verdicts = []
    if parsed and other is None:
        verdicts = check_conditions(parsed, [opened], run_figures(opened, settings))
    elif parsed and other is not None:
        found = compare_runs(opened, other, settings.scoring, unit=unit, level=level)
        verdicts = check_conditions(parsed, [opened, other], *paired_figures(opened, other, settings, found))
    cost = None if cost_per_hour is None else Cost(cost_per_hour, currency)
    told = report_of(opened, other, ReportSettings(settings, corpus, cost), verdicts)
    objects.put(uris.absolute(target), RENDERINGS[suffix](told).encode())
    out.print(f"report: {target}", markup=False, soft_wrap=True)
    warn(told["run"]["warnings"])
    return Exit.GATE if any(verdict.failed for verdict in verdicts) else Exit.DONE


if __name__ == "__main__":
    single(report)
