"""`sewd evaluate`: error rates of a run, with coverage and confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

import pipeline
from jobs.console import Exit, out, single
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
    parse_conditions,
)
from pipeline.evaluation.confidence import ConfidenceFigures
from pipeline.evaluation.gate import gate_figures
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.labels import LabelEvaluation, evaluate_labels
from pipeline.evaluation.results import Grouping, IdSummary, RecordingFigures
from pipeline.report.formats import duration, plural
from pipeline.runs.status import RunStatus
from pipeline.scoring.counts import ErrorCounts
from pipeline.scoring.references import MAX_EXAMPLES
from pipeline.scoring.time_constrained import DEFAULT_COLLAR_S

ROWS_SHOWN = 30


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")],
    refs: Refs = None,
    normalizer: Normalizer = None,
    compounds: Compounds = False,
    collar: Collar = DEFAULT_COLLAR_S,
    by: By = None,
    unit: Unit = DEFAULT_UNIT,
    level: Level = DEFAULT_LEVEL,
    calibration: Calibration = None,
    fail_if: FailIf = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to score on (local, auto, HOST:PORT), for large runs. Default: this process."),
    ] = None,
) -> int:
    """Print error rates of a run with counts and confidence intervals, and write them to RUN/metrics.

    Exit codes: 0 done, 1 failed, 2 usage, 4 a condition of --fail-if holds.
    """
    opened = pipeline.Run.open(run)
    conditions = parse_conditions(fail_if, has_baseline=False)
    settings = evaluation_settings(opened, refs, normalizer, compounds, by, unit, level, collar, calibration)
    evaluation = pipeline.evaluate_run(opened, settings, address)
    labels = evaluate_labels(opened, settings)
    if evaluation.scored or evaluation.problems is not None:
        out.print(_corpus_table(evaluation))
    else:
        out.print(_why_nothing_is_scored(opened, settings, labels), style="yellow", markup=False)
    print_coverage(evaluation)
    for grouping in evaluation.groupings:
        if any(group.figures.scored for group in grouping.groups):
            out.print(_grouping_table(grouping))
    for task in labels:
        if task.counts.rows:
            out.print(_label_table(task))
        else:
            out.print(f"{task.task}: no accuracy: {_label_coverage(task)}", markup=False, style="yellow")
    if opened.status != RunStatus.DONE:
        rows = "as they were before its update" if opened.is_updating() else "so far"
        out.print(f"the run is not done ({opened.status}): these figures cover its rows {rows}", style="yellow")
    out.print(f"metrics: {pipeline.write_metrics(opened, evaluation)}", markup=False, soft_wrap=True)
    verdicts = check_conditions(conditions, [opened], gate_figures(evaluation, labels))
    return Exit.GATE if any(verdict.failed for verdict in verdicts) else Exit.DONE


def _why_nothing_is_scored(
    run: pipeline.Run, settings: pipeline.EvaluationSettings, labels: Sequence[LabelEvaluation]
) -> str:
    refs = settings.scoring.references if settings.scoring else ()
    has_labels = bool(refs) or run.record.left_out.labels_only
    where = " and ".join(refs) if refs else "the inputs"
    if has_labels and not labels:
        return (
            f"nothing is scored: {where} have labels and no texts, and the run has no classifier to compare labels "
            "with; transcribe with --classifier MODEL"
        )
    if has_labels:
        return f"no word error rates: {where} have labels only"
    return "nothing is scored: the run has no references; give them with --refs FILE"


def _corpus_table(evaluation: pipeline.Evaluation) -> Table:
    rules = evaluation.scoring.name.replace("-", ", ")
    columns = ("rate", "interval", "errors", "sub", "del", "ins", "reference")
    table = new_table(f"errors, normalizer {rules}", "", *columns)
    for metric, counts in evaluation.figures.counts.items():
        interval = format_interval(evaluation.intervals[metric])
        table.add_row(
            metric.upper(),
            percent(counts.error_rate),
            interval,
            *_error_counts(counts, metric),
            f"{counts.reference:,}",
        )
    recordings = evaluation.recordings
    if recordings is not None and recordings.timed is not None:
        timed = recordings.timed
        rate, interval = percent(timed.error_rate), format_interval(recordings.interval)
        table.add_row("tcWER", rate, interval, *_error_counts(timed, "tcwer"), f"{timed.reference:,}")
    for metric in ("mer", "wil"):
        table.add_row(metric.upper(), percent(evaluation.rates[metric]))
    return table


def _error_counts(counts: ErrorCounts, metric: str) -> list[str]:
    kinds = (counts.substitutions, counts.deletions, counts.insertions)
    return [f"{counts.errors:,}", *([f"{n:,}" for n in kinds] if metric != "ser" else ["", "", ""])]


def print_coverage(evaluation: pipeline.Evaluation) -> None:
    """Print what the rates cover, how their intervals were made, and problems of reference files."""
    out.print(
        f"coverage {percent(evaluation.coverage)}: {evaluation.scored:,} scored, "
        f"{evaluation.no_reference:,} without a reference, {evaluation.failed:,} failed"
    )
    if evaluation.recordings is not None:
        _print_recordings(evaluation.recordings)
    if evaluation.confidence is not None:
        out.print(_confidence(evaluation.confidence))
    interval = evaluation.intervals["wer"]
    if interval is not None:
        out.print(
            f"interval: {100 * interval.level:g} % over {interval.units:,} units ({evaluation.unit}), {interval.method}"
        )
    elif evaluation.scored:
        out.print(f"no interval: fewer than 10 units ({evaluation.unit}), or one unit has most of the words")
    if evaluation.problems is not None:
        _print_problem("utterances of the run have none and are not scored", evaluation.problems.missing)
        _print_problem("utterances are not in the run", evaluation.problems.unknown)
        _print_problem("utterances occur more than once, with the same reference", evaluation.problems.duplicate)


def _confidence(figures: ConfidenceFigures) -> str:
    half = next(risk for coverage, risk in figures.curve if coverage >= 0.5)
    return (
        f"confidence: calibration error (ECE) {percent(figures.ece)}; WER of the more certain half {percent(half)}, "
        f"area under risk and coverage {percent(figures.risk_area)}"
    )


def _print_recordings(figures: RecordingFigures) -> None:
    line = (
        f"recordings: {figures.scored:,} scored as wholes, {percent(figures.coverage)} of the "
        f"{figures.reference_words:,} words of such references"
    )
    if figures.timed is not None:
        line += f"; tcWER: within {figures.collar_s:g} s of the time of the reference"
    out.print(line)
    if figures.unscored.total:
        names = ", ".join(figures.unscored.examples) + (", ..." if figures.unscored.total > MAX_EXAMPLES else "")
        why = "nothing was transcribed, or the reference does not say which channel it is of"
        out.print(f"recordings: {figures.unscored.total:,} not scored ({why}): {names}", markup=False, style="yellow")


def _print_problem(problem: str, utterances: IdSummary) -> None:
    if utterances.total:
        names = ", ".join(utterances.examples) + (", ..." if utterances.total > len(utterances.examples) else "")
        out.print(f"references: {utterances.total:,} {problem}: {names}", markup=False, style="yellow")


def _grouping_table(grouping: Grouping) -> Table:
    groups = (
        grouping.groups
        if grouping.ordered
        else sorted(grouping.groups, key=lambda g: (-g.figures.words.errors, g.key or ""))
    )
    unscored = sum(not group.figures.scored for group in groups)
    groups = [group for group in groups if group.figures.scored]
    cut = f": the {ROWS_SHOWN} with the most errors of {len(groups):,}" if len(groups) > ROWS_SHOWN else ""
    columns = ("WER", "interval", "errors", "words", "scored", "audio")
    table = new_table(f"WER by {grouping.by}{cut}", grouping.by, *columns)
    if unscored:
        table.caption, table.caption_justify = f"{plural(unscored, 'group')} without a reference left out", "left"
    for group in groups[:ROWS_SHOWN]:
        words = group.figures.words
        table.add_row(
            "(none)" if group.key is None else escape(group.key),
            percent(words.error_rate),
            format_interval(group.interval),
            f"{words.errors:,}",
            f"{words.reference:,}",
            f"{group.figures.scored:,}",
            duration(group.figures.audio_s),
        )
    return table


def _label_table(labels: LabelEvaluation) -> Table:
    counts = labels.counts
    figures = f"accuracy {percent(counts.accuracy)} ({format_interval(labels.interval) or 'no interval'})"
    figures += f", balanced {percent(counts.balanced_accuracy)}, macro F1 {percent(counts.macro_f1)}"
    columns = ("precision", "recall", "F1", "AUROC", "rows", "predicted")
    table = new_table(f"{labels.task}: {figures}", "label", *columns)
    table.caption, table.caption_justify = _label_coverage(labels), "left"
    for score in counts.classes[:ROWS_SHOWN]:
        auroc = labels.scores[score.label].auroc if score.label in labels.scores else None
        shares = (percent(value) for value in (score.precision, score.recall, score.f1))
        table.add_row(
            escape(score.label),
            *shares,
            "-" if auroc is None else f"{auroc:.4f}",
            f"{score.support:,}",
            f"{score.predicted:,}",
        )
    return table


def _label_coverage(labels: LabelEvaluation) -> str:
    coverage = f"{labels.counts.rows:,} scored, {labels.no_reference:,} without a reference label"
    if labels.unknown_label:
        coverage += f", {labels.unknown_label:,} whose reference label the classifier does not have"
    if labels.other_label:
        coverage += f"; {labels.other_label:,} with a reference label of another classifier, not scored"
    return coverage


def new_table(title: str, first: str, *others: str) -> Table:
    """A table whose cells are wrapped and not truncated where the terminal is too narrow."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(escape(first), overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def percent(rate: float | None) -> str:
    """A share as text; `-` for None."""
    return "-" if rate is None else f"{rate:.2%}"


def format_interval(interval: Interval | None) -> str:
    """`8.10-9.30`, in percent; empty for None."""
    return "" if interval is None else f"{100 * interval.low:.2f}-{100 * interval.high:.2f}"


if __name__ == "__main__":
    single(evaluate)
