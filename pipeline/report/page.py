"""The page of a report: its head, and its sections in their order.

Words, columns and formats are chosen here and in `pipeline.report.sections`. `pipeline.report.render` writes the page
as HTML and as Markdown, so that both have the same content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from pipeline.evaluation.intervals import FEWEST_UNITS
from pipeline.report.blocks import Page, Part, Score, Section
from pipeline.report.formats import SPACE, count, duration, moment, percent, plural, plural_of, points
from pipeline.report.model import Counts, Headline, MetricDifference, ReportContent, RunSummary
from pipeline.report.sections import comparison, corpus, errors, labels, run
from pipeline.report.sections.common import interval_text
from pipeline.runs.status import RunStatus


class _SectionBuilder(NamedTuple):
    id: str
    nav: str
    title: str
    build: Callable[[ReportContent], Iterable[Part]]


_SECTIONS: Final = (
    _SectionBuilder("gate", "Gate", "Gate", comparison.gate),
    _SectionBuilder("comparison", "Comparison", "Comparison with the baseline", comparison.comparison),
    _SectionBuilder("speed", "Speed", "Speed and cost", run.speed),
    _SectionBuilder("recordings", "Recordings", "Recordings scored as wholes", errors.recordings),
    _SectionBuilder("distribution", "Distribution", "Distribution of errors", errors.distribution),
    _SectionBuilder("groups", "Groups", "Error rates by group", errors.groups),
    _SectionBuilder("confidence", "Confidence", "Confidence and accuracy", errors.confidence),
    _SectionBuilder("confusions", "Confusions", "Most frequent confusions", errors.confusions),
    _SectionBuilder("worst", "Worst", "Worst utterances", errors.worst),
    _SectionBuilder("classification", "Labels", "Classification", labels.classification),
    _SectionBuilder("failures", "Failures", "Failed utterances", corpus.failures),
    _SectionBuilder("corpus", "Corpus", "Corpus", corpus.corpus),
    _SectionBuilder("lineage", "Lineage", "Model, inputs and settings", run.lineage),
)
_METRICS: Final = {
    "wer": "Word error rate",
    "tcwer": "Time-constrained word error rate",
    "cer": "Character error rate",
    "ser": "Sentence error rate",
    "mer": "Match error rate",
    "wil": "Word information lost",
}
_SHORT: Final = {"tcwer": "tcWER"}
_METRICS_WITHOUT_INTERVAL: Final = frozenset({"mer", "wil"})
_COUNTED: Final = {"wer": "word", "cer": "character", "ser": "sentence"}
_UNFINISHED: Final = {
    RunStatus.RUNNING: "is still running",
    RunStatus.STOPPED: "was stopped before it finished",
    RunStatus.FAILED: "failed before it finished",
}


def page(report: ReportContent) -> Page:
    """The page. The corpus comes first if nothing was scored."""
    nothing_scored = not report.headline and not report.classification
    in_order = sorted(_SECTIONS, key=lambda section: nothing_scored and section.id != "corpus")
    sections = [
        Section(section.id, section.nav, section.title, parts)
        for section in in_order
        if (parts := list(section.build(report)))
    ]
    about = [("Run", report.run.uri), ("Model", report.lineage.model)]
    if report.comparison is not None:
        about.append(("Baseline", report.comparison.baseline.uri))
    about.append(("Written", f"{moment(report.generated)} by sewd-pipeline {report.version}"))
    return Page(
        title=report.title or report.run.uri,
        about=about,
        banner=_banner(report.run),
        scores=_corpus_scores(report) if nothing_scored else [*_rate_scores(report), *_label_scores(report)],
        coverage=_coverage(report),
        shares=[
            ("scored", report.coverage.scored),
            ("without reference", report.coverage.no_reference),
            ("failed", report.coverage.failed),
        ],
        sections=sections,
        audio=None if report.worst is None or report.worst.listening is None else report.worst.listening.mode,
    )


def _banner(summary: RunSummary) -> str:
    if summary.status == RunStatus.DONE:
        return ""
    why = _UNFINISHED.get(summary.status, f"has the status {summary.status}")
    return f"This run {why}. The figures are of the part that it has committed, which may differ from the rest."


def _coverage(report: ReportContent) -> str:
    coverage = report.coverage
    share = "" if coverage.share is None else f" ({percent(coverage.share, 1)})"
    return (
        f"Coverage: {count(coverage.scored)} of {plural(coverage.rows, 'utterance')} scored{share}; "
        f"{count(coverage.no_reference)} without reference, {count(coverage.failed)} failed."
    )


def _rate_scores(report: ReportContent) -> Iterator[Score]:
    differences = {} if report.comparison is None else {each.metric: each for each in report.comparison.metrics}
    for each in report.headline:
        yield Score(
            _METRICS.get(each.metric, each.metric.upper()),
            _SHORT.get(each.metric, each.metric.upper()),
            percent(each.rate),
            interval_text(each.interval) or _no_interval(each, report.scoring.unit),
            _errors_in(each.counts, _COUNTED.get(each.metric, "word")),
            _change(differences.get(each.metric)),
        )


def _no_interval(headline: Headline, unit: str) -> str:
    if headline.metric in _METRICS_WITHOUT_INTERVAL:
        return "no interval computed"
    return f"no interval: fewer than {FEWEST_UNITS} {plural_of(unit)}, or one with more than half of the reference"


def _errors_in(counts: Counts | None, unit: str) -> str:
    return "" if counts is None else f"{plural(counts.errors, 'error')} in {plural(counts.reference, unit)}"


def _change(difference: MetricDifference | None) -> str:
    if difference is None or difference.difference is None:
        return ""
    if difference.difference == 0:
        return "same as the baseline"
    return f"{points(difference.difference)} against the baseline"


def _label_scores(report: ReportContent) -> Iterator[Score]:
    for task in report.classification:
        yield Score(
            f"Accuracy: {task.task}",
            "ACC",
            percent(task.accuracy),
            interval_text(task.interval) or "no interval",
            f"{count(task.scored)} scored, {count(task.no_reference)} without reference",
        )


def _corpus_scores(report: ReportContent) -> Sequence[Score]:
    described = report.corpus
    return [
        Score("Audio", "", duration(3600 * described.hours, SPACE), "no error rates in this report"),
        Score("Utterances", "", count(described.utterances)),
        Score("Words recognised", "", count(described.words)),
        Score("Share of speech", "", percent(described.speech_share)),
    ]
