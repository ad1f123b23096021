"""From tallies to an evaluation: rates, confidence intervals and groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.confidence import confidence_figures
from pipeline.evaluation.context import DEFAULT_CONTEXT, RunContext
from pipeline.evaluation.group_keys import RATE_EDGES, KeyValue, group_names
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.results import Evaluation, Figures, Group, Grouping, ReferenceProblems
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.sums import SUM_COLUMNS
from pipeline.evaluation.tallies import MAX_INTERVALS, SumKind, Tallies
from pipeline.evaluation.units import describe_units, unit_interval
from pipeline.scoring.rules import Scoring


def evaluation_from_tallies(
    tallies: Tallies,
    failed: int,
    settings: EvaluationSettings,
    scoring: Scoring,
    problems: ReferenceProblems | None = None,
    context: RunContext = DEFAULT_CONTEXT,
) -> Evaluation:
    """The evaluation that tallies result in.

    Args:
        tallies: sums over the transcripts.
        failed: number of rows of `errors/`.
        settings: groupings, unit, level, number of worst utterances.
        scoring: the rules under which the tallies were made.
        problems: mismatches of reference files and run.
        context: the one that the tallies were made with.
    """
    words, chars = tallies.merged(SumKind.WORD_UNITS), tallies.merged(SumKind.CHAR_UNITS)
    corpus = tallies.merged(SumKind.CORPUS)
    return Evaluation(
        figures=Figures.from_sums(dict.fromkeys(SUM_COLUMNS, 0) if corpus is None else corpus.to_pylist()[0]),
        failed=failed,
        scoring=scoring,
        unit=_unit(words),
        intervals={
            "wer": _interval(words, "word_errors", "ref_words", settings.level),
            "cer": _interval(chars, "char_errors", "ref_chars", settings.level),
            "ser": _interval(words, "sentence_errors", "scored", settings.level),
        },
        groupings=tuple(_grouping(by, tallies, settings.level, context.confidence_edges) for by in settings.by),
        worst_utterances=tallies.worst_utterances(settings.num_worst),
        rate_histogram=_rate_histogram(tallies.merged(SumKind.RATE_BINS)),
        problems=problems,
        confidence=confidence_figures(tallies.merged(SumKind.CONFIDENCE)),
    )


def _unit(units: pa.Table | None) -> str:
    """The kinds of unit among the scored utterances."""
    if units is None:
        return "utterance"
    return describe_units(units.filter(pc.greater(units["scored"], 0))["key_unit_kind"])


def _interval(units: pa.Table | None, errors: str, reference: str, level: float) -> Interval | None:
    return None if units is None else unit_interval(units, errors, reference, "scored", level)


def _grouping(by: str, tallies: Tallies, level: float, confidence_edges: Sequence[float]) -> Grouping:
    sums, units = tallies.merged(SumKind.GROUPS, by), tallies.merged(SumKind.GROUP_UNITS, by)
    if sums is None:
        return Grouping(by, "utterance", ())
    intervals: dict[KeyValue, Interval | None] = {}
    if units is not None and sums.num_rows <= MAX_INTERVALS:
        for key, group_units in _split_by_group(units):
            intervals[key] = _interval(group_units, "word_errors", "ref_words", level)
    rows = sums.sort_by("key_group").to_pylist()
    names = group_names(by, [row["key_group"] for row in rows], confidence_edges)
    groups = (
        Group(name, Figures.from_sums(row), intervals.get(row["key_group"]))
        for name, row in zip(names, rows, strict=True)
    )
    return Grouping(by, _unit(units), tuple(groups))


def _split_by_group(units: pa.Table) -> Iterator[tuple[KeyValue, pa.Table]]:
    """The rows of each group."""
    ordered = units.sort_by("key_group")
    start = 0
    for end in pc.run_end_encode(ordered["key_group"].combine_chunks()).run_ends.to_pylist():
        yield ordered["key_group"][start].as_py(), ordered.slice(start, end - start)
        start = end


def _rate_histogram(rates: pa.Table | None) -> tuple[int, ...]:
    counts = [0] * len(RATE_EDGES)
    for row in [] if rates is None else rates.to_pylist():
        if row["key_rate"] is not None:
            counts[row["key_rate"]] = row["scored"]
    return tuple(counts)
