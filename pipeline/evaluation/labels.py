"""How right the labels of a run are: each classifier's counts, calibration and ranking, from sums over its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.intervals import Interval, rate_interval
from pipeline.evaluation.label_counts import (
    Calibration,
    LabelCounts,
    ScoreHistogram,
    calibrate,
    count_labels,
    score_histogram,
)
from pipeline.evaluation.reading import ANY_RUN, READING, EvaluationSettings, RunFacts, facts_of, regrouped, unit_name
from pipeline.evaluation.tally import UNITS, merge, tally, unit_keys, unit_sources, units_of
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run, open_files
from pipeline.scoring.references import References, load_references

MAX_LABELS: Final = 1000
OTHER_LABELS: Final = "(other labels)"
REGRESSION_LABEL: Final = "score"
"""What the one value of a regression head is called (`pipeline.schemas.LABELS`): it is no label, and not evaluated."""


@dataclass(frozen=True)
class LabelEvaluation:
    """What a classifier comes to.

    Attributes:
        task: its name.
        counts: rows with a reference label, by that and the label given.
        no_reference: rows without one.
        known: labels that the classifier gave, or gave a score.
        calibration: of its confidence in the label it gave.
        scores: by label, against the rest; only labels whose score every row has, which needs classifiers of no more
            labels than the run keeps scores of.
        interval: of the accuracy; None where the units are too few.
        unit: what the interval draws from.
    """

    task: str
    counts: LabelCounts
    no_reference: int
    known: frozenset[str]
    calibration: Calibration
    scores: Mapping[str, ScoreHistogram]
    interval: Interval | None
    unit: str

    @property
    def unknown_label(self) -> int:
        """Rows whose reference label the classifier does not have: they count as wrong."""
        support = zip(self.counts.labels, self.counts.support.tolist(), strict=True)
        return sum(rows for label, rows in support if label not in self.known)


@dataclass
class _Sums:
    """What the batches of one task add up to."""

    counts: LabelCounts = field(default_factory=LabelCounts.zero)
    no_reference: int = 0
    given: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    calibration: Calibration = field(default_factory=Calibration.zero)
    scores: dict[str, ScoreHistogram] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)
    units: list[pa.Table] = field(default_factory=list)


def evaluate_labels(run: Run, settings: EvaluationSettings | None = None) -> tuple[LabelEvaluation, ...]:
    """Figures of every classifier of a run, by name; over what is committed.

    Args:
        run: the run.
        settings: of which the unit, the level and files of references count here; the `label` of a file stands for the
            stored reference label, the first file that names an utterance before the others.
    """
    settings = settings or EvaluationSettings()
    files = [load_references(uri) for uri in settings.scoring.references] if settings.scoring else []

    def evaluated(named: dict[str, list[DataFile]]) -> tuple[LabelEvaluation, ...]:
        facts = facts_of(run, named["labels"], replace(settings, by=()))
        columns = ["task", "label", "score", "top_k", "reference_label", *unit_sources(settings.unit, facts.by_object)]
        columns = list(dict.fromkeys(columns + (["utt_id"] if files else [])))
        dataset = open_files(run.uri, "labels", [file.path for file in named["labels"]])
        return evaluate_label_rows(dataset.to_batches(columns=columns, **READING), settings, files, facts)

    return run.read(evaluated)


def evaluate_label_rows(
    batches: Iterable[pa.RecordBatch],
    settings: EvaluationSettings,
    files: Sequence[References] = (),
    facts: RunFacts = ANY_RUN,
) -> tuple[LabelEvaluation, ...]:
    """The same over rows of `labels`."""
    tasks: dict[str, _Sums] = {}
    for rows in regrouped(batches):
        references = _reference_labels(rows, files)
        table = rows.set_column(rows.column_names.index("reference_label"), "reference_label", references)
        for task in pc.unique(table["task"]).to_pylist():
            of_task = table.filter(pc.equal(table["task"], task)).combine_chunks()
            _add(tasks.setdefault(task, _Sums()), of_task, settings, facts)
    classifiers = [task for task in sorted(tasks) if tasks[task].given != {REGRESSION_LABEL}]
    return tuple(_evaluation(task, tasks[task], settings) for task in classifiers)


def _reference_labels(rows: pa.Table, files: Sequence[References]) -> pa.Array:
    """Those of the files that have labels; without such a file, the stored ones."""
    given = [file.taken(file.labels, file.rows_of(rows["utt_id"])) for file in files if any(file.labels)]
    return pc.coalesce(*given) if given else rows["reference_label"].combine_chunks()


def _add(sums: _Sums, rows: pa.Table, settings: EvaluationSettings, facts: RunFacts) -> None:
    sums.given |= set(pc.unique(rows["label"]).to_pylist())
    known = pc.is_valid(rows["reference_label"])
    sums.no_reference += rows.num_rows - pc.sum(known, min_count=0).as_py()
    scored = _with_few_labels(rows.filter(known).combine_chunks())
    pairs = scored.group_by(["reference_label", "label"]).aggregate([([], "count_all")])
    sums.counts += count_labels(*(pairs[name].to_pylist() for name in pairs.column_names))
    right = pc.equal(scored["reference_label"], scored["label"])
    sums.calibration += calibrate(_shares(scored["score"]), right.to_numpy())
    _add_scores(sums, scored)
    wrong = pc.invert(right).cast(pa.int64())
    ones = pa.repeat(pa.scalar(1, pa.int64()), len(scored))
    keys = unit_keys(*units_of(scored, settings.unit, facts.by_object), wrong, ones)
    sums.units.append(tally(pa.table({"errors": wrong, "rows": ones}), keys, ("errors", "rows")))


def _with_few_labels(scored: pa.Table) -> pa.Table:
    """Reference labels beyond any classifier's number are texts, not labels: those that it did not give become one."""
    references = scored["reference_label"].combine_chunks()
    if pc.count_distinct(references).as_py() <= MAX_LABELS:
        return scored
    given = pc.is_in(references, pc.unique(scored["label"]))
    at = scored.column_names.index("reference_label")
    return scored.set_column(at, "reference_label", pc.if_else(given, references, OTHER_LABELS))


def _shares(scores: pa.ChunkedArray) -> Any:
    return np.clip(scores.to_numpy(), 0, 1)  # a softmax in float32 may end a little above 1


def _add_scores(sums: _Sums, scored: pa.Table) -> None:
    """One-vs-rest scores of each label, from lists that hold every label of the classifier or only the likeliest."""
    if not scored.num_rows:  # of no label can it be said that these rows lack it
        return
    lists = scored["top_k"].combine_chunks()
    row = pc.list_parent_indices(lists).to_numpy()
    flat = pc.list_flatten(lists)
    labels = pc.struct_field(flat, "label").dictionary_encode()
    codes, scores = labels.indices.to_numpy(), _shares(pa.chunked_array([pc.struct_field(flat, "score")]))
    references = scored["reference_label"]
    seen = set(labels.dictionary.to_pylist())
    # A label that an earlier batch had and this one lacks altogether is as incomplete as one that some rows lack.
    sums.incomplete |= (sums.known ^ seen) if sums.counts.rows > scored.num_rows else set()
    sums.known |= seen | set(scored["label"].to_pylist())
    for code, label in enumerate(labels.dictionary.to_pylist()):
        at = codes == code
        if at.sum() < scored.num_rows:
            sums.incomplete.add(label)
        if label not in sums.incomplete:
            positive = pc.equal(references, label).to_numpy()[row[at]]
            sums.scores[label] = sums.scores.get(label, ScoreHistogram.zero()) + score_histogram(scores[at], positive)


def _evaluation(task: str, sums: _Sums, settings: EvaluationSettings) -> LabelEvaluation:
    units = merge(sums.units)
    rows, errors = units["rows"].to_numpy(), units["errors"].to_numpy()
    alone = pc.equal(units["key_unit_kind"], UNITS.index("utterance")).to_numpy()
    multiplicity = np.where(alone, rows, 1)
    wrong = rate_interval(errors / multiplicity, rows / multiplicity, multiplicity, level=settings.level, share=True)
    return LabelEvaluation(
        task=task,
        counts=sums.counts,
        no_reference=sums.no_reference,
        known=frozenset(sums.known),
        calibration=sums.calibration,
        scores={label: scores for label, scores in sums.scores.items() if label not in sums.incomplete},
        interval=wrong and Interval(1 - wrong.high, 1 - wrong.low, wrong.level, wrong.units, wrong.method),
        unit=unit_name(units["key_unit_kind"]),
    )
