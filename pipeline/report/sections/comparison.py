"""The gate, and the comparison with a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.evaluation.intervals import FEWEST_UNITS
from pipeline.report.blocks import Block, Column, Facts, Figure, IntervalPlot, Note, Part, Table
from pipeline.report.formats import SPACE, count, plural, plural_of, significant
from pipeline.report.model import ChangedUtterance, ComparisonSection, MetricDifference, ReportContent
from pipeline.report.sections.common import estimate, level_text


def gate(report: ReportContent) -> Iterator[Part]:
    """The conditions of `--fail-if`: the gate is passed if none of them holds."""
    notes = [
        Note(
            f"{'Failed' if each.failed else 'Passed'}: the run fails if {each.condition}; "
            f"its value is {significant(each.value)}, the limit is {significant(each.limit)}.",
            "bad" if each.failed else "good",
        )
        for each in report.gate
    ]
    if notes:
        yield Part("", notes)


def comparison(report: ReportContent) -> Iterator[Part]:
    """The differences, their tests, and the utterances that changed most."""
    compared = report.comparison
    if compared is None:
        return
    yield Part("", _facts(report, compared))
    table = _difference_table(compared.metrics, level_text(report))
    if _no_difference(compared):
        note = "No difference: both runs have the same error rates, and as many word errors in every utterance."
        yield Part("Differences", [Note(note), table])
        return
    yield Part("Differences", [*_difference_figure(compared.metrics, report), table])
    if compared.tests:
        yield Part("", [_test_table(compared)])
    changed = [
        _changed_table(title, utterances, total)
        for title, utterances, total in (
            ("Fewer errors than the baseline", compared.better, compared.changes.better),
            ("More errors than the baseline", compared.worse, compared.changes.worse),
        )
        if utterances
    ]
    if changed:
        yield Part("Changed utterances", changed)


def _no_difference(compared: ComparisonSection) -> bool:
    same_rates = all(each.difference == 0 for each in compared.metrics)
    return same_rates and not compared.changes.better and not compared.changes.worse


def _facts(report: ReportContent, compared: ComparisonSection) -> list[Block]:
    baseline, paired, changes = compared.baseline, compared.paired, compared.changes
    return [
        Facts(
            [
                ("Utterances compared", count(paired.utterances)),
                ("With fewer errors", count(changes.better)),
                ("With more errors", count(changes.worse)),
                ("With as many errors", count(changes.same)),
            ],
            prominent=True,
        ),
        Facts(
            [
                ("This run", report.run.uri),
                ("Baseline", baseline.uri),
                ("Model of this run", report.lineage.model),
                ("Model of the baseline", baseline.model),
                ("Scored in this run only", count(paired.only_here)),
                ("Scored in the baseline only", count(paired.only_baseline)),
                ("Not compared, references differ", count(paired.reference_differs)),
                (
                    "Coverage of the baseline",
                    f"{count(baseline.coverage.scored)} of {plural(baseline.coverage.rows, 'utterance')} scored",
                ),
            ]
        ),
    ]


def _difference_table(metrics: Sequence[MetricDifference], level: str) -> Table:
    return Table(
        "This run − baseline, over the compared utterances",
        [
            Column("Metric"),
            Column("This run", "rate"),
            Column("Baseline", "rate"),
            Column("Difference", "points"),
            Column(f"{level} interval from", "points"),
            Column("to", "points"),
            Column("Probability of improvement", "p"),
        ],
        [
            [
                each.metric.upper(),
                each.here,
                each.baseline,
                each.difference,
                each.interval and each.interval.low,
                each.interval and each.interval.high,
                each.interval and each.probability_of_improvement,  # without an interval it says nothing
            ]
            for each in metrics
        ],
        wide=True,
    )


def _difference_figure(metrics: Sequence[MetricDifference], report: ReportContent) -> Iterator[Figure]:
    estimates = [
        estimate(each.metric.upper(), each.difference, each.interval) for each in metrics if each.difference is not None
    ]
    interval = next((each.interval for each in metrics if each.interval), None)
    if interval is not None:
        over = f"{plural(interval.units, interval.unit)} ({interval.method})"
        note = f"Whiskers: {level_text(report)} intervals over {over}."
    else:
        units = plural_of(report.scoring.unit)
        note = f"No intervals: they need {FEWEST_UNITS} {units}, none of them with more than half of the reference."
    if estimates:
        title = "Differences by metric"
        note += " Left of the dashed line this run is better."
        yield Figure(title, IntervalPlot(title, estimates, line=0, points=True), note)


def _test_table(compared: ComparisonSection) -> Table:
    columns = [
        Column("Test"),
        Column("Statistic", "number"),
        Column("p-value", "p"),
        Column("n", "count"),
        Column("Method"),
    ]
    rows = [[each.name, each.statistic, each.p_value, each.n, each.detail] for each in compared.tests]
    return Table("Tests of the difference", columns, rows)


def _changed_table(title: str, utterances: Sequence[ChangedUtterance], total: int) -> Table:
    columns = [
        Column("Change in errors", "change"),
        Column("Utterance", "name"),
        Column("This run", "alignment"),
        Column("Baseline", "alignment"),
        Column(f"Duration,{SPACE}s", "seconds"),
    ]
    rows = [
        [each.difference, each.utt_id, each.here.alignment, each.baseline.alignment, each.duration_s]
        for each in utterances
    ]
    return Table(title, columns, rows, of=total, wide=True)
