"""The corpus, the utterances that failed, and references that do not match the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.report.blocks import Block, Cell, Column, Facts, Figure, Note, Part, Table
from pipeline.report.formats import SPACE, count, duration, number, percent, plural
from pipeline.report.model import Corpus, ErrorsByCode, ReferenceProblems, ReportContent
from pipeline.report.sections.common import capital, histogram, or_none


def failures(report: ReportContent) -> Iterator[Part]:
    """Failed utterances by error code, and mismatches between references and run."""
    if report.errors:
        yield Part("", _error_tables(report.errors))
    problems = report.reference_problems
    if problems is not None and (problems.missing.count or problems.unknown.count or problems.duplicate.count):
        yield Part("References that do not match the run", [_problem_table(problems)])


def _error_tables(errors: Sequence[ErrorsByCode]) -> list[Table]:
    return [
        Table(
            "Utterances without a transcript, by error code",
            [Column("Code", "code"), Column("Utterances", "count", bar=True), Column("Share", "rate")],
            [[each.code, each.count, each.share] for each in errors],
        ),
        Table(
            "Error messages",
            [Column("Code", "code"), Column("Message (# is a number)"), Column("Utterances", "count")],
            [[each.code, message.message, message.count] for each in errors for message in each.messages],
        ),
        Table(
            "Examples",
            [Column("Code", "code"), Column("Utterance", "name"), Column("Audio", "name"), Column("Message")],
            [[each.code, example.utt_id, example.uri, example.message] for each in errors for example in each.examples],
            of=sum(each.count for each in errors),
            wide=True,
        ),
    ]


def _problem_table(problems: ReferenceProblems) -> Table:
    kinds = (
        ("Transcript without a reference in the files", problems.missing),
        ("Reference to an utterance that the run does not have", problems.unknown),
        ("Utterance that a file names more than once", problems.duplicate),
    )
    return Table(
        "Mismatches",
        [Column("Problem"), Column("Utterances", "count"), Column("Examples", "name")],
        [[problem, kind.count, ", ".join(kind.examples)] for problem, kind in kinds],
    )


def corpus(report: ReportContent) -> Iterator[Part]:
    """Sizes, histograms, labels, tags and some transcripts."""
    described = report.corpus
    yield Part("", _facts(described))
    histograms = list(_histograms(described))
    if histograms:
        yield Part("", histograms)
    tables = [*_label_tables(described), *_tag_tables(described)]
    if tables:
        yield Part("Labels and tags", tables)
    if described.samples:
        yield Part("", [_sample_table(described)])


def _facts(described: Corpus) -> list[Block]:
    facts = Facts(
        [
            ("Audio", duration(3600 * described.hours, SPACE)),
            ("Utterances", count(described.utterances)),
            ("Share of speech", percent(described.speech_share, 1)),
            ("Words recognised", count(described.words)),
            ("Words per second", number(described.words_per_second)),
            ("Empty transcripts", count(described.empty_texts)),
        ],
        prominent=True,
    )
    if described.sampled == described.of:
        return [facts]
    sampled = (
        f"Words, shares, empty transcripts, histograms and tags are of a random sample: "
        f"{count(described.sampled)} of {plural(described.of, 'utterance')}."
    )
    return [facts, Note(sampled)]


def _histograms(described: Corpus) -> Iterator[Figure]:
    if sum(described.durations.counts):
        yield histogram("Utterances by duration", described.durations, lambda edge: f"{edge:g}", "seconds")
    if sum(described.confidences.counts):
        yield histogram("Utterances by confidence", described.confidences, lambda edge: f"{edge:.2g}", "confidence")


def _label_tables(described: Corpus) -> Iterator[Table]:
    for task in described.labels:
        columns = [
            Column("Label"),
            Column("Utterances", "count", bar=True),
            Column("Share", "rate"),
            Column("Mean score", "number"),
        ]
        rows: list[list[Cell]] = [
            [or_none(each.label), each.count, each.share, each.mean_score] for each in task.labels
        ]
        title = f"Predicted labels of {task.task}"
        if task.others:
            title += f": {plural(task.rows, 'utterance')} with a reference label of it"
            columns.append(Column("Without one", "count"))
            rows = [[*row, each.others] for row, each in zip(rows, task.labels, strict=True)]
        if rows:
            yield Table(title, columns, rows)


def _tag_tables(described: Corpus) -> Iterator[Table]:
    for tag in described.by_tag:
        columns = [
            Column(capital(tag.tag)),
            Column("Utterances", "count", bar=True),
            Column("Audio", "duration"),
            Column("Failed", "count"),
        ]
        if tag.values:
            yield Table(
                f"By {tag.tag}",
                columns,
                [[or_none(each.value), each.utterances, 3600 * each.hours, each.failed] for each in tag.values],
            )


def _sample_table(described: Corpus) -> Table:
    columns = [
        Column("Utterance", "name"),
        Column("Recognised", "speech"),
        Column("Confidence", "number"),
        Column("Duration", "duration"),
    ]
    rows = [[each.utt_id, each.text, each.confidence, each.duration_s] for each in described.samples]
    return Table("Sample of the transcripts", columns, rows, of=described.utterances, wide=True)
