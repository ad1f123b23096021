"""Errors in the transcripts: their distribution, by group, by confidence, by word, and the worst utterances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.evaluation.intervals import FEWEST_UNITS
from pipeline.evaluation.tallies import MAX_INTERVALS
from pipeline.report.blocks import Block, Cell, Column, CurvePlot, Figure, IntervalPlot, Note, Part, Spoken, Table
from pipeline.report.formats import SPACE, count, duration, number, percent, plural, plural_of
from pipeline.report.model import (
    CalibrationBin,
    GroupingTable,
    GroupRates,
    Listening,
    Reliability,
    ReportContent,
    WorstUtterance,
)
from pipeline.report.sections.common import (
    beside,
    capital,
    estimate,
    histogram,
    level_text,
    or_none,
    reliability,
    shown_of,
)

_PLOTTED: Final = 30  # groups of a plot that are still legible


def distribution(report: ReportContent) -> Iterator[Part]:
    """Utterances by their own word error rate."""
    data = report.distribution
    if data is None or not sum(data.counts):
        return
    figure = histogram("Utterances by WER", data, lambda edge: f"{100 * edge:g} %", "WER of the utterance")
    yield Part("", beside(figure))


def recordings(report: ReportContent) -> Iterator[Part]:
    """Recordings with a reference for the whole of them, those with the most errors first."""
    found = report.recordings
    if found is None:
        return
    of_words = f"{count(found.scored_words)} of {plural(found.reference_words, 'word')} of their references"
    notes = [Note(f"{plural(found.scored, 'recording')} scored as a whole: {of_words} ({percent(found.coverage, 1)}).")]
    if found.unscored.count:
        names = ", ".join(found.unscored.examples)
        why = "nothing was transcribed, or the reference does not say which channel it is of"
        notes.append(Note(f"{plural(found.unscored.count, 'recording')} not scored ({why}): {names}.", "bad"))
    is_timed = any(each.timed for each in found.rows)
    if is_timed:
        notes.append(
            Note(f"tcWER: a word matches only within {found.collar_s:g}{SPACE}s of its time in the reference.")
        )
    columns = [
        Column("Recording", "name"),
        Column("Speaker"),
        Column("WER", "rate"),
        *([Column("tcWER", "rate")] if is_timed else []),
        Column("Words", "count"),
        Column("Sub", "count"),
        Column("Del", "count"),
        Column("Ins", "count"),
    ]
    rows: list[list[Cell]] = [
        [
            each.name,
            or_none(each.speaker),
            each.words.rate,
            *([None if each.timed is None else each.timed.rate] if is_timed else []),
            each.words.reference,
            each.words.substitutions,
            each.words.deletions,
            each.words.insertions,
        ]
        for each in found.rows
    ]
    table = Table("Recordings with the most word errors", columns, rows, of=found.scored, wide=True)
    yield Part("", [*notes, table] if rows else [*notes])


def groups(report: ReportContent) -> Iterator[Part]:
    """Error rates by group, a part for each grouping."""
    overall = next((each.rate for each in report.headline if each.metric == "wer"), None)
    for grouping in report.groups:
        level = level_text(report)
        blocks: list[Block] = [*_group_figure(grouping, overall, level), _group_table(grouping, level)]
        if grouping.unscored:
            blocks.append(Note(f"{plural(grouping.unscored, 'group')} without a reference left out."))
        yield Part(f"WER by {grouping.by}", blocks)


def _group_table(grouping: GroupingTable, level: str) -> Table:
    columns = [
        Column(capital(grouping.by)),
        Column("WER", "rate"),
        Column(f"{level} interval", "range"),
        Column("Words", "count"),
        Column("Sub", "count"),
        Column("Del", "count"),
        Column("Ins", "count"),
        Column("CER", "rate"),
        Column("SER", "rate"),
        Column("Utterances", "count"),
        Column("Audio", "duration"),
    ]
    rows = [
        [
            or_none(each.key),
            each.words.rate,
            each.interval,
            each.words.reference,
            each.words.substitutions,
            each.words.deletions,
            each.words.insertions,
            each.chars.rate,
            each.sentences.rate,
            each.utterances,
            each.audio_s,
        ]
        for each in grouping.groups
    ]
    return Table(f"Error rates by {grouping.by}", columns, rows, of=grouping.total, wide=True)


def _group_figure(grouping: GroupingTable, overall: float | None, level: str) -> Iterator[Figure]:
    """The groups with most reference words: in their own order if it has a meaning, else the worst first."""
    rates = [(each, each.words.rate) for each in grouping.groups if each.words.rate is not None]
    if not rates:
        return
    largest = sorted(rates, key=lambda pair: -pair[0].words.reference)[:_PLOTTED]
    shown = [pair for pair in rates if pair in largest] if grouping.ordered else sorted(largest, key=lambda p: -p[1])
    title = f"WER by {grouping.by}, with intervals"
    cut = shown_of(len(shown), grouping.total, "those with the most reference words")
    line = "" if overall is None else f" Dashed line: the whole corpus, {percent(overall)}."
    estimates = [estimate(or_none(each.key), rate, each.interval) for each, rate in shown]
    note = _whiskers(grouping, [each for each, _ in shown], level)
    yield Figure(title, IntervalPlot(f"{title}.{cut}", estimates, line=overall), note + line + cut)


def _whiskers(grouping: GroupingTable, shown: list[GroupRates], level: str) -> str:
    units = plural_of(grouping.unit)
    if any(each.interval for each in shown):
        return f"Whiskers: {level} intervals over {units}."
    if grouping.total > MAX_INTERVALS:
        return f"No intervals: they are computed for up to {MAX_INTERVALS} groups."
    return f"No intervals: a group needs {FEWEST_UNITS} {units}, none of them with more than half of its reference."


def confidence(report: ReportContent) -> Iterator[Part]:
    """Accuracy by confidence."""
    bins = [] if report.confidence is None else report.confidence.bins
    if any(each.utterances and each.confidence is not None for each in bins):
        figure = reliability(
            "Accuracy by confidence",
            [CalibrationBin(each.low, each.high, each.utterances, each.confidence, each.accuracy) for each in bins],
            "mean confidence",
            "1 − WER",
            "On the dashed line confidence equals accuracy; below it the model is overconfident. "
            "The axes show the range of the values only.",
        )
        yield Part("", beside(figure))
    if report.confidence is not None and report.confidence.risk_curve:
        yield Part("", beside(_risk_curve(report.confidence)))


def _risk_curve(found: Reliability) -> Figure:
    title = "Errors of the most certain utterances"
    columns = [Column("Share of the utterances", "rate"), Column("WER", "rate")]
    return Figure(
        title,
        CurvePlot(title, found.risk_curve, "share of the utterances, the most certain first", "WER"),
        f"Area under the curve: {percent(found.risk_area)}. Calibration error (ECE) of confidences, for utterances "
        f"without a word error: {percent(found.ece)}.",
        Table(title, columns, [list(point) for point in found.risk_curve[1::2]], folded=True),
    )


def confusions(report: ReportContent) -> Iterator[Part]:
    """The most frequent substitutions, deletions and insertions."""
    found = report.confusions
    if found is None:
        return
    reference, hypothesis = Column("Reference", "speech"), Column("Recognised", "speech")
    number_of, example = Column("Count", "count", bar=True), Column("Example", "name")
    tables = [
        Table(
            "Substitutions",
            [reference, hypothesis, number_of, example],
            [
                [each.reference, each.hypothesis, each.count, ", ".join(each.examples[:1])]
                for each in found.substitutions
            ],
        ),
        Table(
            "Deletions",
            [reference, number_of, example],
            [[each.reference, each.count, ", ".join(each.examples[:1])] for each in found.deletions],
        ),
        Table(
            "Insertions",
            [hypothesis, number_of, example],
            [[each.hypothesis, each.count, ", ".join(each.examples[:1])] for each in found.insertions],
        ),
    ]
    tables = [table for table in tables if table.rows]
    if tables:
        note = (
            f"Counted in {count(found.sampled)} of {plural(found.of, 'utterance')} with errors; "
            "the most frequent are shown."
        )
        yield Part("", [Note(note), *tables])


def worst(report: ReportContent) -> Iterator[Part]:
    """The utterances with the most errors, aligned, with their audio."""
    if report.worst is None or not report.worst.rows:
        return
    columns = [
        Column("Utterance", "name"),
        Column("Reference and recognised text, aligned", "spoken"),
        Column("WER", "rate"),
        Column("Errors", "count"),
        Column("Words", "count"),
        Column("Confidence", "number"),
        Column("Duration", "duration"),
        Column("Speaker", "name"),
    ]
    rows: list[list[Cell]] = [
        [
            each.utt_id,
            _spoken(each),
            each.counts.rate,
            each.counts.errors,
            each.counts.reference,
            each.confidence,
            each.duration_s,
            each.speaker,
        ]
        for each in report.worst.rows
    ]
    if not any(each.speaker for each in report.worst.rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    table = Table("Utterances with the most errors", columns, rows, of=report.worst.of, wide=True)
    listening = report.worst.listening
    yield Part("", [table] if listening is None else [Note(_listening(listening)), table])


def _spoken(utterance: WorstUtterance) -> Spoken:
    """The utterance with its object, from where if not from its beginning, and how much is played if not all."""
    words = [utterance.uri]
    if utterance.start_s:
        words.append(f"from {number(utterance.start_s)}{SPACE}s")
    clip = utterance.clip
    heard_s = None if clip is None else clip.seconds
    if heard_s is not None and utterance.duration_s is not None and heard_s < utterance.duration_s - 0.1:
        words.append(f"first {duration(heard_s, SPACE)}")
    return Spoken(utterance.alignment, ", ".join(words), clip)


def _listening(listening: Listening) -> str:
    """How many of the utterances can be played, and why others cannot."""
    text = f"{count(listening.playable)} of the first {plural(listening.wanted, 'utterance')} can be played."
    if listening.wanted == listening.playable:
        return text
    reasons = ", ".join(f"{count(number_of)} {reason}" for reason, number_of in listening.left_out.items())
    return f"{text} Not played: {reasons}."
