"""`sewd compare`: what changed between two runs over the same corpus, and whether it could be chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from rich.table import Table

import pipeline
from jobs.console import Exit, out, single
from jobs.evaluate import new_table, percent
from jobs.scoring import (
    DEFAULT_LEVEL,
    DEFAULT_UNIT,
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
)
from pipeline.evaluation.compare import Comparison, compare_runs, shared_scoring
from pipeline.report.comparison import changed_utterances
from pipeline.report.model import ChangedUtterance
from pipeline.runs.status import RunStatus


def compare(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run that is looked at.")],
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help="The run that it is held against.")],
    refs: Refs = None,
    normalizer: Normalizer = None,
    compounds: Compounds = False,
    unit: Unit = DEFAULT_UNIT,
    level: Level = DEFAULT_LEVEL,
    examples: Annotated[int, typer.Option(min=0, help="Utterances to show that got better, and worse.")] = 5,
    fail_if: FailIf = None,
) -> int:
    """Pair two runs by utterance: differences with intervals, significance, and what got better and worse.

    Exit codes: 0 done, 1 failed, 2 usage, 4 a condition of --fail-if held.
    """
    here, there = pipeline.Run.open(run), pipeline.Run.open(baseline)
    asked = evaluation_settings(here, refs, normalizer, compounds, None, unit, level)
    parsed = parse_conditions(fail_if, has_baseline=True)
    scoring = shared_scoring(here, there, asked.scoring)
    found = compare_runs(here, there, scoring, unit=unit, level=level, examples=examples)
    out.print(f"run:      {here.uri}", markup=False, soft_wrap=True)
    out.print(f"baseline: {there.uri}", markup=False, soft_wrap=True)
    out.print(_differences(found, level))
    out.print(_pairs(found), markup=False)
    for test in found.tests:
        p_value = "-" if test.p_value is None else f"{test.p_value:.3g}"
        out.print(f"{test.name}: p = {p_value} ({test.detail}; n = {test.n:,})", markup=False)
    same = found.utterances - found.better - found.worse
    out.print(f"word errors: {found.better:,} utterances better, {found.worse:,} worse, {same:,} the same")
    for title, utt_ids in (("most improved", found.most_improved), ("most worsened", found.most_worsened)):
        if utt_ids:
            out.print(f"\n{title}:", style="bold")
        for utterance in changed_utterances(here, there, utt_ids, scoring):
            _show(utterance)
    for opened in (here, there):
        if opened.status != RunStatus.DONE:
            out.print(f"{opened.uri} is not done ({opened.status})", style="yellow", markup=False)
    verdicts = []
    if parsed:
        figures = paired_figures(here, there, replace(asked, scoring=scoring), found)
        verdicts = check_conditions(parsed, [here, there], *figures)
    return Exit.GATE if any(verdict.failed for verdict in verdicts) else Exit.DONE


def _differences(found: Comparison, level: float) -> Table:
    columns = ("run", "baseline", "difference", f"{100 * level:g} % interval", "P(improved)")
    table = new_table("run against baseline, on the pairs", "", *columns)
    for metric, (here, there) in found.rates.items():
        bootstrap = found.bootstraps[metric]
        between = bootstrap.interval
        table.add_row(
            metric.upper(),
            percent(here),
            percent(there),
            "-" if bootstrap.difference is None else f"{100 * bootstrap.difference:+.2f}",
            "" if between is None else f"{100 * between.low:+.2f} to {100 * between.high:+.2f}",
            "-" if between is None else percent(bootstrap.probability_of_improvement),
        )
    return table


def _pairs(found: Comparison) -> str:
    return (
        f"pairs: {found.utterances:,} utterances, resampled by {found.unit}; "
        f"left out: {found.only_in_run:,} only in the run, {found.only_in_baseline:,} only in the baseline, "
        f"{found.reference_differs:,} with another reference; "
        f"failed rows: {found.failed_in_run:,} in the run, {found.failed_in_baseline:,} in the baseline"
    )


def _show(utterance: ChangedUtterance) -> None:
    out.print(f"  {utterance.utt_id} ({utterance.difference:+d} word errors)", markup=False, soft_wrap=True)
    texts = {"reference": utterance.reference, "baseline": utterance.baseline.text, "run": utterance.here.text}
    for name, text in texts.items():
        out.print(f"    {name:9} {text}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    single(compare)
