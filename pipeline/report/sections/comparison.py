"""The gate, and the comparison with a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.evaluation.intervals import FEWEST_UNITS
from pipeline.report.blocks import Block, Column, Facts, Figure, IntervalPlot, Note, Part, Table
from pipeline.report.formats import count, plural, plural_of, significant
from pipeline.report.model import ChangedUtterance, ComparisonSection, MetricDifference, ReportContent
from pipeline.report.sections.common import engines_text, estimate, level_text


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
    yield Part("", [*_facts(report, compared), *_fallbacks(report, compared)])
    if _no_difference(compared):
        note = "No difference: both runs have the same error rates, and as many word errors in every utterance."
        yield Part("Differences", [Note(note), _rates_table(compared.metrics)])
        return
    table = _difference_table(compared.metrics, level_text(report))
    yield Part("Differences", [*_difference_figure(compared.metrics, report), table])
    if compared.tests:
        yield Part("", [_test_table(compared)])
    changed = [
        _changed_table(title, utterances, total)
        for title, utterances, total in (
            ("Fewer errors in a, this run", compared.better, compared.changes.better),
            ("More errors in a, this run", compared.worse, compared.changes.worse),
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
                ("Fewer errors in a", count(changes.better)),
                ("More errors in a", count(changes.worse)),
                ("As many errors in both", count(changes.same)),
            ],
            prominent=True,
        ),
        Facts(
            [
                ("a: this run", report.run.uri),
                ("b: baseline", baseline.uri),
                ("Model of a", report.lineage.model),
                ("Model of b", baseline.model),
                ("Computed by, a", engines_text(report.run.engines)),
                ("Computed by, b", engines_text(baseline.run.engines)),
                ("Decoding of a", report.run.decoding),
                ("Decoding of b", baseline.run.decoding),
                ("Scored in a only", count(paired.only_here)),
                ("Scored in b only", count(paired.only_baseline)),
                ("Not compared, references differ", count(paired.reference_differs)),
                (
                    "Coverage of b",
                    f"{count(baseline.coverage.scored)} of {plural(baseline.coverage.rows, 'utterance')} scored",
                ),
            ]
        ),
    ]


def _fallbacks(report: ReportContent, compared: ComparisonSection) -> list[Note]:
    """Why the two runs may not have been computed alike."""
    sides = ("a, this run", report.run.warnings), ("b, the baseline", compared.baseline.run.warnings)
    return [Note(f"{side}: {warning}.", "bad") for side, warnings in sides for warning in warnings]


def _rates_table(metrics: Sequence[MetricDifference]) -> Table:
    columns = [Column("Metric"), Column("a and b", "rate")]
    return Table(
        "Error rates, over the compared utterances", columns, [[each.metric.upper(), each.here] for each in metrics]
    )


def _difference_table(metrics: Sequence[MetricDifference], level: str) -> Table:
    return Table(
        "a − b, over the compared utterances",
        [
            Column("Metric"),
            Column("a: this run", "rate"),
            Column("b: baseline", "rate"),
            Column("a − b", "points"),
            Column(f"{level} interval from", "points"),
            Column("to", "points"),
            Column("Probability that a is better", "p"),
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
        note += " Left of the dashed line a, this run, is better."
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
        Column("Change", "change"),
        Column("Utterance", "name"),
        Column("a: this run", "alignment"),
        Column("b: baseline", "alignment"),
        Column("Duration", "duration"),
    ]
    rows = [
        [each.difference, each.utt_id, each.here.alignment, each.baseline.alignment, each.duration_s]
        for each in utterances
    ]
    return Table(title, columns, rows, of=total, wide=True)
