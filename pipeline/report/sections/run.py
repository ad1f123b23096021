"""The run: its speed and cost, and what its transcripts were made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.blocks import Column, Facts, Note, Part, Table
from pipeline.report.formats import NONE, SPACE, count, duration, moment, number, percent, significant
from pipeline.report.model import ReportContent
from pipeline.report.sections.common import capital, engines_text


def speed(report: ReportContent) -> Iterator[Part]:
    """Speed, times and cost."""
    run, cost = report.run, report.run.cost
    prominent = [
        ("Speed, times real time", NONE if run.rtfx is None else f"{number(run.rtfx, 1)}×"),
        ("Audio", duration(run.audio_s, SPACE)),
        ("Silence skipped", duration(run.skipped_s, SPACE)),
        ("Wall time", duration(run.wall_s, SPACE)),
        ("Compute time", duration(run.compute_s, SPACE)),
    ]
    details = [
        ("Audio per second of compute", duration(run.compute_rtfx, SPACE)),
        ("Utterances", f"{count(run.utterances)} transcribed, {count(run.errors)} failed"),
        ("Chunks committed", count(run.chunks)),
        ("Started", moment(run.started)),
        ("Finished", moment(run.finished)),
        ("Attempts", count(run.attempts)),
    ]
    if run.predicted_s is not None and run.wall_s is not None:
        share = percent(run.wall_s / run.predicted_s, 0)
        details.append(("Predicted by sewd plan", f"{duration(run.predicted_s, SPACE)}; the run took {share} of it"))
    if run.attempts > 1:
        details.append(("Resumed", ", ".join(moment(start) for start in run.starts[1:])))
    if cost is not None:
        prominent.append(("Cost", f"{number(cost.total)}{SPACE}{cost.currency}"))
        details.append(("Price", f"{cost.per_hour:g} {cost.currency} per hour of wall time"))
        details.append(("Cost per hour of audio", f"{significant(cost.per_audio_hour)} {cost.currency}"))
    yield Part("", [Facts(prominent, prominent=True), Facts(details)])


def lineage(report: ReportContent) -> Iterator[Part]:
    """Model, inputs, scoring rules, settings and versions, and warnings about how the transcripts were computed."""
    made_from, scoring = report.lineage, report.scoring
    facts = Facts(
        [
            ("Model", made_from.model),
            ("Classifiers", ", ".join(made_from.classifiers) or NONE),
            ("Inputs", ", ".join(made_from.inputs) or NONE),
            ("Normaliser", _text(scoring.normalizer)),
            ("References", _text(scoring.references)),
            ("Joined or split compounds count as correct", _text(scoring.compounds)),
            ("Intervals computed over", _text(scoring.unit)),
            ("Level of the intervals", percent(scoring.level, 0)),
            ("Computed by", engines_text(report.run.engines)),
            ("Decoding", report.run.decoding),
        ]
    )
    warnings = [Note(f"{capital(warning)}.", "bad") for warning in report.run.warnings]
    yield Part("", [facts, *warnings])
    tables = [
        Table(title, [Column("Name", "name"), Column("Value", "name")], rows, folded=True)
        for title, rows in (
            ("Fingerprint of the inputs", _flat(made_from.fingerprint)),
            ("Configuration", _flat(made_from.config)),
            ("Versions", _flat(made_from.versions)),
        )
        if rows
    ]
    if tables:
        yield Part("", tables)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of nested mappings, with the names joined by dots."""
    items = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            items += _flat(value, f"{prefix}{name}.")
        else:
            items.append((prefix + name, _text(value)))
    return items


def _text(value: Any) -> str:
    """A setting as text."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value)) or NONE
    return str(value)
