"""`sewd compare`: differences of two runs over the same corpus, and their significance."""

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
)
from pipeline.evaluation.compare import Comparison, compare_runs, shared_scoring
from pipeline.report.comparison import changed_utterances
from pipeline.report.model import ChangedUtterance
from pipeline.runs.status import RunStatus
from pipeline.scoring.time_constrained import DEFAULT_COLLAR_S


def compare(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run: a.")],
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help="The run to compare it with: b.")],
    refs: Refs = None,
    normalizer: Normalizer = None,
    compounds: Compounds = False,
    collar: Collar = DEFAULT_COLLAR_S,
    unit: Unit = DEFAULT_UNIT,
    level: Level = DEFAULT_LEVEL,
    examples: Annotated[
        int, typer.Option(min=0, help="How many improved and how many worsened utterances to show.")
    ] = 5,
    fail_if: FailIf = None,
) -> int:
    """Pair two runs by utterance: differences with intervals, significance, and the utterances that changed most.

    Exit codes: 0 done, 1 failed, 2 usage, 4 a condition of --fail-if holds.
    """
    opened, opened_baseline = pipeline.Run.open(run), pipeline.Run.open(baseline)
    settings = evaluation_settings(opened, refs, normalizer, compounds, None, unit, level, collar)
    conditions = parse_conditions(fail_if, has_baseline=True)
    scoring = shared_scoring(opened, opened_baseline, settings.scoring)
    settings = replace(settings, scoring=scoring)
    comparison = compare_runs(opened, opened_baseline, scoring, unit=unit, level=level, examples=examples)
    for name, each in (("a, the run", opened), ("b, the baseline", opened_baseline)):
        _print_run(name, each)
    if opened.uri == opened_baseline.uri:
        out.print("a and b are the same run", style="yellow")
    out.print(_pairing(comparison), markup=False)
    if _equal(comparison):
        _print_equal(comparison)
    else:
        _print_differences(comparison, level)
    for title, utt_ids in (
        ("fewer errors in a", comparison.most_improved),
        ("more errors in a", comparison.most_worsened),
    ):
        if utt_ids:
            out.print(f"\n{title}:", style="bold")
        for utterance in changed_utterances(opened, opened_baseline, utt_ids, scoring):
            _print_utterance(utterance)
    runs = [opened, opened_baseline]
    for each in runs:
        if each.status != RunStatus.DONE:
            out.print(f"{each.uri} is not done ({each.status})", style="yellow", markup=False)
    verdicts = []
    if conditions:
        figures, baseline_figures = paired_figures(opened, opened_baseline, settings, comparison)
        verdicts = check_conditions(conditions, runs, figures, baseline_figures)
    return Exit.GATE if any(verdict.failed for verdict in verdicts) else Exit.DONE


def _print_run(name: str, run: pipeline.Run) -> None:
    """Which run it is, what computed it, and by which fallbacks."""
    totals = run.totals()
    engines = "; ".join(totals.engines)
    computed = f"model {run.record.config['model']}" + (f", {engines}" if engines else "") + f"; {run.record.decoding}"
    out.print(f"{name + ':':16} {run.uri} ({computed})", markup=False, soft_wrap=True)
    for warning in totals.warnings:
        out.print(f"{'':16} {warning}", style="yellow", markup=False, soft_wrap=True)


def _equal(comparison: Comparison) -> bool:
    same_rates = all(rates.run == rates.baseline for rates in comparison.rates.values())
    return same_rates and not comparison.better and not comparison.worse


def _print_equal(comparison: Comparison) -> None:
    rates = ", ".join(f"{metric.upper()} {percent(rates.run)}" for metric, rates in comparison.rates.items())
    out.print(f"no difference: a and b have as many word errors in each utterance, and the same rates: {rates}")


def _print_differences(comparison: Comparison, level: float) -> None:
    out.print(_difference_table(comparison, level))
    for test in comparison.tests:
        p_value = "-" if test.p_value is None else f"{test.p_value:.3g}"
        out.print(f"{test.name}: p = {p_value} ({test.detail}; n = {test.n:,})", markup=False)
    better, worse = comparison.better, comparison.worse
    same = comparison.utterances - better - worse
    out.print(f"word errors: {better:,} utterances with fewer in a, {worse:,} with more, {same:,} with as many")


def _difference_table(comparison: Comparison, level: float) -> Table:
    columns = ("a", "b", "a - b", f"{100 * level:g} % interval", "P(a is better)")
    table = new_table("error rates of a and b, over the pairs", "", *columns)
    for metric, rates in comparison.rates.items():
        bootstrap = comparison.bootstraps[metric]
        interval = bootstrap.interval
        table.add_row(
            metric.upper(),
            percent(rates.run),
            percent(rates.baseline),
            "-" if bootstrap.difference is None else f"{100 * bootstrap.difference:+.2f}",
            "" if interval is None else f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}",
            "-" if interval is None else percent(bootstrap.probability_of_improvement),
        )
    return table


def _pairing(comparison: Comparison) -> str:
    text = f"pairs: {comparison.utterances:,} utterances, resampled by {comparison.unit}"
    left_out = [
        f"{number:,} {why}"
        for number, why in (
            (comparison.only_in_run, "scored only in a"),
            (comparison.only_in_baseline, "scored only in b"),
            (comparison.reference_differs, "with different references"),
        )
        if number
    ]
    failed = f"failed rows: {comparison.failed_in_run:,} in a, {comparison.failed_in_baseline:,} in b"
    return "; ".join([text, *([f"left out: {', '.join(left_out)}"] if left_out else []), failed])


def _print_utterance(utterance: ChangedUtterance) -> None:
    out.print(f"  {utterance.utt_id} ({utterance.difference:+d} word errors)", markup=False, soft_wrap=True)
    texts = {"reference": utterance.reference, "a": utterance.here.text, "b": utterance.baseline.text}
    for name, text in texts.items():
        out.print(f"    {name:9} {text}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    single(compare)
