"""`sewd report`: the results of a run as one self-contained HTML file, or as Markdown or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Final

import typer

import pipeline
from jobs.console import Exit, out, single, warn
from jobs.scoring import (
    DEFAULT_LEVEL,
    DEFAULT_UNIT,
    By,
    Calibration,
    Collar,
    Compounds,
    FailIf,
    Level,
    Normalizer,
    Refs,
    Unit,
    check_conditions,
    evaluation_settings,
    paired_figures,
    parse_conditions,
    run_figures,
)
from pipeline.errors import UsageError
from pipeline.evaluation.compare import compare_runs, shared_scoring
from pipeline.report import render
from pipeline.report.content import ReportSettings, build_report
from pipeline.report.model import AudioMode, ReportContent
from pipeline.report.summary import Cost
from pipeline.scoring.time_constrained import DEFAULT_COLLAR_S
from pipeline.settings import default_of
from pipeline.storage import objects, uris

DEFAULT_AUDIO: Final[AudioMode] = default_of(ReportSettings, "audio")
RENDERINGS: Mapping[str, Callable[[ReportContent], str]] = {
    ".html": render.html,
    ".md": render.markdown,
    ".json": render.json_text,
}


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN2", help="Compare with this run over the same corpus.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .html, .md or .json file. Default: RUN/report.html."),
    ] = None,
    corpus: Annotated[
        bool, typer.Option("--corpus", help="Only describe the corpus: for audio without references.")
    ] = False,
    refs: Refs = None,
    normalizer: Normalizer = None,
    compounds: Compounds = False,
    collar: Collar = DEFAULT_COLLAR_S,
    by: By = None,
    unit: Unit = DEFAULT_UNIT,
    level: Level = DEFAULT_LEVEL,
    calibration: Calibration = None,
    cost_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of the run's machines per hour, to report the cost of the run.")
    ] = None,
    currency: Annotated[str, typer.Option(help="Currency of --cost-per-hour.")] = default_of(Cost, "currency"),
    audio: Annotated[
        AudioMode,
        typer.Option(
            help="Audio of the worst utterances in the page: `embed` short clips, `link` to the objects, or `none`, "
            "for a corpus whose audio must not leave its place."
        ),
    ] = DEFAULT_AUDIO,
    fail_if: FailIf = None,
) -> int:
    """Write a report of a run: one self-contained file that makes no network requests.

    Exit codes: 0 done, 1 failed, 2 usage, 4 a condition of --fail-if holds.
    """
    opened = pipeline.Run.open(run)
    gate = parse_conditions(fail_if, has_baseline=baseline is not None)
    other = None if baseline is None else pipeline.Run.open(baseline)
    target = output or uris.join(opened.uri, "report.html")
    suffix = "." + target.rpartition(".")[2].lower()
    if suffix not in RENDERINGS:
        raise UsageError(f"cannot write a report to {target}: its name must end in {', '.join(RENDERINGS)}")
    settings = evaluation_settings(opened, refs, normalizer, compounds, by, unit, level, collar, calibration)
    if other is not None:
        settings = replace(settings, scoring=shared_scoring(opened, other, settings.scoring))
    verdicts = []
    if gate and other is None:
        verdicts = check_conditions(gate, [opened], run_figures(opened, settings))
    elif gate and other is not None:
        compared = compare_runs(opened, other, settings.scoring, unit=unit, level=level)
        verdicts = check_conditions(gate, [opened, other], *paired_figures(opened, other, settings, compared))
    played = audio if suffix == ".html" else "none"  # Markdown and JSON name the objects
    cost = None if cost_per_hour is None else Cost(cost_per_hour, currency)
    content = build_report(opened, other, ReportSettings(settings, corpus, cost, played), verdicts)
    objects.put(uris.absolute(target), RENDERINGS[suffix](content).encode())
    out.print(f"report: {target}", markup=False, soft_wrap=True)
    warn(content.run.warnings)
    return Exit.GATE if any(verdict.failed for verdict in verdicts) else Exit.DONE


if __name__ == "__main__":
    single(report)
