"""What a run comes to: error rates from sums of counts, what they cover, and how sure they are.

Every figure is a view of sums; nothing here averages rates. Rows are read by columns and tallied a batch at a time
(`pipeline.evaluation.tally`), in this process or by Ray tasks over the files of the run, and the tallies are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.intervals import Interval, rate_interval
from pipeline.evaluation.reading import (
    ANY_RUN,
    BATCH_ROWS,
    READING,
    EvaluationSettings,
    RunFacts,
    facts_of,
    regrouped,
    unit_name,
)
from pipeline.evaluation.results import Evaluation, Figures, Group, Grouping, ReferenceProblems
from pipeline.evaluation.tally import (
    DURATION_EDGES,
    KEY,
    RATE_EDGES,
    SUMS,
    UNITS,
    counted,
    key_of,
    merge,
    own_rate_bins,
    tally,
    unit_keys,
    unit_sources,
    units_of,
)
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run, open_files
from pipeline.scoring.references import EXAMPLES, References, load_references
from pipeline.scoring.rules import Scoring, score

"""Of Arrow's scanner, whose own measure would read a good part of a large run ahead."""
TASK_ROWS: Final = 1_000_000
MAX_INTERVALS: Final = 200
"""Groups of a grouping beyond which none of them gets an interval: a bootstrap each would take hours."""
"""What is taken for granted where nothing is known."""


_NO_WORST: Final = pa.table({"utt_id": pa.array([], pa.string()), "errors": pa.array([], pa.int32())})
_WORST_FIRST: Final = [("errors", "descending"), ("utt_id", "ascending")]


@dataclass(frozen=True)
class Tallies:
    """What batches add up to.

    Attributes:
        tallies: by name (see `tally_batches`), each in pieces that are merged now and then.
        worst: candidates for the worst utterances.
        met: for each file of references, which of its rows were met.
        missing: utterances that no file names.
        missing_ids: the first of them.
    """

    tallies: Mapping[str, tuple[pa.Table, ...]] = field(default_factory=dict)
    worst: pa.Table = field(default_factory=lambda: _NO_WORST)
    met: tuple[npt.NDArray[np.bool_], ...] = ()
    missing: int = 0
    missing_ids: tuple[str, ...] = ()

    def __add__(self, other: Tallies) -> Tallies:
        names = {**self.tallies, **other.tallies}
        both = zip(self.met, other.met, strict=True)
        return Tallies(
            {name: _joined(self.tallies.get(name, ()) + other.tallies.get(name, ())) for name in names},
            pa.concat_tables([self.worst, other.worst]),
            tuple(a | b for a, b in both) if self.met and other.met else self.met or other.met,
            self.missing + other.missing,
            (self.missing_ids + other.missing_ids)[:EXAMPLES],
        )

    def merged(self, name: str) -> pa.Table | None:
        """One tally in one piece; None where no batch came."""
        return merge(self.tallies[name]) if name in self.tallies else None


def _joined(pieces: tuple[pa.Table, ...]) -> tuple[pa.Table, ...]:
    """The same sums in one table, once as many rows came as it would have: each row is then merged a few times only."""
    rows = [len(piece) for piece in pieces]
    return pieces if sum(rows) < 2 * max(BATCH_ROWS, *rows) else (merge(pieces),)


def required_columns(
    settings: EvaluationSettings, scoring: Scoring, stored_normalizer: str | None, facts: RunFacts = ANY_RUN
) -> list[str]:
    """The columns of `transcripts` that `tally_batches` reads: a reader needs to fetch no others."""
    columns = [
        "duration_s",
        "confidence",
        *scoring.sources(stored_normalizer),
        *unit_sources(settings.unit, facts.by_object),
    ]
    columns += ["utt_id"] if settings.worst else []
    return list(dict.fromkeys(columns + [key_of(by)[0] for by in settings.by]))


def tally_batches(
    batches: Iterable[pa.RecordBatch],
    settings: EvaluationSettings,
    scoring: Scoring,
    stored_normalizer: str | None,
    references: Sequence[References] = (),
    facts: RunFacts = ANY_RUN,
) -> Tallies:
    """Tallies of rows of `transcripts`; order and size of the batches do not matter, and bound the memory.

    Args:
        batches: with `required_columns(...)`; more columns are ignored.
        settings: groupings and unit.
        scoring: the rules.
        stored_normalizer: the one that the stored counts are of; None: do not use them.
        references: the files of `scoring.references`, loaded.
        facts: of the whole run, see `facts_of`.

    Raises:
        ValueError: stored counts contradict each other.
    """
    total = Tallies(met=tuple(np.zeros(len(file.texts), bool) for file in references))
    for rows in regrouped(batches):
        summands = counted(rows, score(rows, scoring, stored_normalizer, references))
        met, missing = _met(rows, references)
        total += Tallies(
            {name: (table,) for name, table in _tallied(rows, summands, settings, facts).items()},
            _worst(rows, summands, settings.worst) if settings.worst else _NO_WORST,
            met,
            len(missing),
            tuple(missing[:EXAMPLES]),
        )
    return total


def _tallied(rows: pa.Table, summands: pa.Table, settings: EvaluationSettings, facts: RunFacts) -> dict[str, pa.Table]:
    """The tallies of one batch.

    By name: `corpus` and `by BY` (figures), `words`, `chars` and `units BY` (what intervals need, by unit), `rates`.
    """
    kinds, names = units_of(rows, settings.unit, facts.by_object)
    word_units = unit_keys(kinds, names, summands["word_errors"], summands["ref_words"])
    char_units = unit_keys(kinds, names, summands["char_errors"], summands["ref_chars"])
    words, chars = (*_UNIT_SUMS, "sentence_errors"), ("scored", "char_errors", "ref_chars")
    if names.null_count:
        by_unit = {"words": tally(summands, word_units, words), "chars": tally(summands, char_units, chars)}
    else:  # no utterance is its own unit, so both are tallied by the same keys, at once
        both = tally(summands, word_units, tuple(dict.fromkeys(words + chars)))
        keys = [name for name in both.column_names if name.startswith(KEY)]
        by_unit = {"words": both.select([*keys, *words]), "chars": both.select([*keys, *chars])}
    tallies = {
        **by_unit,
        "corpus": tally(summands, {}),
        "rates": tally(summands, {"rate": own_rate_bins(summands)}, ("scored",)),
    }
    for by in settings.by:
        key = key_of(by, facts.confidence_edges)[1](rows)
        tallies[f"by {by}"] = groups = tally(summands, {"group": key})
        if len(groups) <= MAX_INTERVALS:
            # Inside the group of one speaker the speaker is no unit.
            units = word_units if by != "speaker" else _own_units(summands)
            tallies[f"units {by}"] = tally(summands, {"group": key, **units}, _UNIT_SUMS)
    return tallies


_UNIT_SUMS: Final = ("scored", "word_errors", "ref_words")


def _own_units(summands: pa.Table) -> dict[str, pa.Array]:
    """Every utterance its own unit."""
    kinds = pa.repeat(pa.scalar(UNITS.index("utterance"), pa.int8()), len(summands))
    return unit_keys(kinds, pa.nulls(len(summands), pa.string()), summands["word_errors"], summands["ref_words"])


def _worst(rows: pa.Table, summands: pa.Table, number: int) -> pa.Table:
    """The utterances of these rows that may be among the worst of all."""
    table = pa.table({"utt_id": rows["utt_id"], "errors": summands["word_errors"]})
    table = table.filter(pc.greater(table["errors"], 0))
    return table.take(pc.select_k_unstable(table, number, _WORST_FIRST))


def _met(rows: pa.Table, references: Sequence[References]) -> tuple[tuple[npt.NDArray[np.bool_], ...], list[str]]:
    """Which rows of each file these utterances are, and the utterances that no file names."""
    if not references:
        return (), []
    met = []
    named = np.zeros(rows.num_rows, bool)
    for file in references:
        taken = file.rows_of(rows["utt_id"])
        seen = np.zeros(len(file.texts), bool)
        seen[taken[taken >= 0]] = True
        met.append(seen)
        named |= taken >= 0
    return tuple(met), rows["utt_id"].filter(pa.array(~named)).to_pylist()


def evaluation_of(
    tallies: Tallies,
    failed: int,
    settings: EvaluationSettings,
    scoring: Scoring,
    problems: ReferenceProblems | None = None,
    facts: RunFacts = ANY_RUN,
) -> Evaluation:
    """The figures that tallies come to.

    Args:
        tallies: sums over the transcripts.
        failed: rows of `errors/`.
        settings: groupings, unit, level.
        scoring: the rules that the tallies were made under.
        problems: of the references.
        facts: that the tallies were made with.
    """
    words, chars = tallies.merged("words"), tallies.merged("chars")
    corpus = tallies.merged("corpus")
    return Evaluation(
        figures=Figures.of(dict.fromkeys(SUMS, 0) if corpus is None else corpus.to_pylist()[0]),
        failed=failed,
        scoring=scoring,
        unit=_unit(words),
        intervals={
            "wer": _interval(words, "word_errors", "ref_words", settings.level),
            "cer": _interval(chars, "char_errors", "ref_chars", settings.level),
            "ser": _interval(words, "sentence_errors", "scored", settings.level),
        },
        groupings=tuple(_grouping(by, tallies, settings.level, facts.confidence_edges) for by in settings.by),
        worst=tuple(tallies.worst.sort_by(_WORST_FIRST)["utt_id"].to_pylist()[: settings.worst]),
        spread=_spread(tallies.merged("rates")),
        problems=problems,
    )


def _unit(units: pa.Table | None) -> str:
    """The kinds of unit among the scored utterances."""
    if units is None:
        return "utterance"
    return unit_name(units.filter(pc.greater(units["scored"], 0))["key_unit_kind"])


def _interval(units: pa.Table | None, errors: str, reference: str, level: float) -> Interval | None:
    """Interval of the rate errors / reference, from a tally by unit."""
    if units is None:
        return None
    units = units.filter(pc.greater(units["scored"], 0))
    if not units.num_rows:
        return None
    alone = pc.equal(units["key_unit_kind"], UNITS.index("utterance")).to_numpy()
    multiplicity = np.where(alone, units["scored"].to_numpy(), 1)
    wrong, length = (units[name].to_numpy() / multiplicity for name in (errors, reference))
    return rate_interval(wrong, length, multiplicity, level=level, share=reference == "scored")


def _grouping(by: str, tallies: Tallies, level: float, edges: Sequence[float]) -> Grouping:
    sums, units = tallies.merged(f"by {by}"), tallies.merged(f"units {by}")
    if sums is None:
        return Grouping(by, "utterance", ())
    intervals: dict[Any, Interval | None] = {}
    if units is not None and sums.num_rows <= MAX_INTERVALS:
        for key, of_group in _by_group(units):
            intervals[key] = _interval(of_group, "word_errors", "ref_words", level)
    rows = sums.sort_by("key_group").to_pylist()
    names = _key_names(by, [row["key_group"] for row in rows], edges)
    groups = (Group(names[row["key_group"]], Figures.of(row), intervals.get(row["key_group"])) for row in rows)
    return Grouping(by, _unit(units), tuple(groups))


def _by_group(units: pa.Table) -> Iterator[tuple[Any, pa.Table]]:
    """The rows of each group."""
    ordered = units.sort_by("key_group")
    start = 0
    for run in pc.run_end_encode(ordered["key_group"].combine_chunks()).run_ends.to_pylist():
        yield ordered["key_group"][start].as_py(), ordered.slice(start, run - start)
        start = run


def _spread(rates: pa.Table | None) -> tuple[int, ...]:
    counts = [0] * len(RATE_EDGES)
    for row in [] if rates is None else rates.to_pylist():
        if row["key_rate"] is not None:
            counts[row["key_rate"]] = row["scored"]
    return tuple(counts)


def _key_names(by: str, keys: Sequence[Any], edges: Sequence[float]) -> dict[Any, str | None]:
    known = [key for key in keys if key is not None]
    if by == "duration":
        ends = [*(f"{end:g}" for end in DURATION_EDGES[1:]), ""]
        names = {
            key: f"{DURATION_EDGES[key]:g}-{ends[key]} s" if ends[key] else f"{DURATION_EDGES[key]:g} s and more"
            for key in known
        }
    elif by == "confidence":
        digits = next(d for d in range(3, 18) if len({round(e, d) for e in edges}) == len(set(edges)))
        names = {key: f"{edges[key]:.{digits}f}-{edges[key + 1]:.{digits}f}" for key in known}
    else:
        names = {key: key for key in known}
    return {**names, None: None}


def evaluate_run(run: Run, settings: EvaluationSettings | None = None, address: str | None = None) -> Evaluation:
    """Figures over what is committed, also of a run that is not done.

    Args:
        run: the run.
        settings: rules and groupings; None: the run's own rules, no groupings.
        address: of a Ray cluster (`local`, `auto`, HOST:PORT) that does the work, by tasks over the files of the run;
            None: this process.

    Raises:
        UsageError: no such normalizer, grouping or file of references.
    """
    settings = settings or EvaluationSettings()
    stored = run.record["config"]["normalizer"]
    scoring = settings.scoring or Scoring(stored)
    references = [load_references(uri) for uri in scoring.references]
    if not any(any(text is not None for text in file.texts) for file in references):  # of labels alone
        references, scoring = [], replace(scoring, references=())
    return run.read(lambda files: _evaluate_files(run, files, settings, scoring, references, address))


def _evaluate_files(
    run: Run,
    files: Mapping[str, Sequence[DataFile]],
    settings: EvaluationSettings,
    scoring: Scoring,
    references: Sequence[References],
    address: str | None,
) -> Evaluation:
    stored = run.record["config"]["normalizer"]
    transcripts = files["transcripts"]
    facts = facts_of(run, transcripts, settings)
    columns = required_columns(settings, scoring, stored, facts)
    work = partial(_tally_files, run.uri, columns, settings, scoring, stored, facts)
    paths = [file.path for file in transcripts]
    tallies = work(paths, references) if address is None else _on_cluster(work, transcripts, references, address)
    failed = sum(file.rows for file in files["errors"])
    return evaluation_of(tallies, failed, settings, scoring, _problems(run, tallies, references), facts)


def _tally_files(
    run: str,
    columns: list[str],
    settings: EvaluationSettings,
    scoring: Scoring,
    stored_normalizer: str | None,
    facts: RunFacts,
    files: Sequence[str],
    references: Sequence[References],
) -> Tallies:
    batches = open_files(run, "transcripts", files).to_batches(columns=columns, **READING)
    return tally_batches(batches, settings, scoring, stored_normalizer, references, facts)


def _on_cluster(
    work: partial[Tallies], files: Sequence[DataFile], references: Sequence[References], address: str
) -> Tallies:
    """The work as Ray tasks over some files each; only tallies come back, and are added in the order of the files."""
    import ray  # noqa: PLC0415  # takes seconds, which figures from one process need not wait for

    from pipeline.cluster.ray_start import connect  # noqa: PLC0415

    with connect(address):
        task = ray.remote(work.func)
        shared = ray.put(references)
        cuts = [[file.path for file in cut] for cut in _cuts(files)]
        return sum(
            (ray.get(future) for future in [task.remote(*work.args, cut, shared) for cut in cuts]), start=Tallies()
        )


def _cuts(files: Sequence[DataFile]) -> Iterator[list[DataFile]]:
    """Files for one task each: about `TASK_ROWS` rows, or one large file."""
    cut: list[DataFile] = []
    rows = 0
    for file in files:
        if cut and rows + file.rows > TASK_ROWS:
            yield cut
            cut, rows = [], 0
        cut.append(file)
        rows += file.rows
    if cut:
        yield cut


def _problems(run: Run, tallies: Tallies, references: Sequence[References]) -> ReferenceProblems | None:
    if not references:
        return None
    failed = run.dataset("errors").to_table(columns=["utt_id"])
    met, _ = _met(failed, references)
    unknown: dict[str, None] = {}
    none = tuple(np.zeros(len(file.texts), bool) for file in references)
    for file, seen, broken in zip(references, tallies.met or none, met, strict=True):
        rest = np.flatnonzero(~(seen | broken))
        if rest.size:
            names = {row: utt_id for utt_id, row in file.index.items()}
            unknown |= dict.fromkeys(names[row] for row in rest.tolist())
    duplicate = tuple(dict.fromkeys(utt_id for file in references for utt_id in file.duplicates))
    return ReferenceProblems(
        (tallies.missing, tallies.missing_ids),
        (len(unknown), tuple(unknown)[:EXAMPLES]),
        (len(duplicate), duplicate[:EXAMPLES]),
    )
