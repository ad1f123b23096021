"""Two runs over the same corpus: what changed, and whether it could be chance. Paired by utterance.

`here` is the run that is looked at, `baseline` the one that it is held against; every difference is here - baseline,
so that a negative one is an improvement. Utterances that only one run has, or whose references differ, are counted
and left out; so is one that failed in either, which is why a gate asks for `failed` beside `wer`. Pairs are held in
memory: about 100 bytes each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.evaluation.evaluate import required_columns
from pipeline.evaluation.intervals import PairedBootstrap, SignificanceTest, matched_pairs, mcnemar, paired_bootstrap
from pipeline.evaluation.reading import READING, EvaluationSettings, facts_of, regrouped, unit_name
from pipeline.evaluation.tally import counted, units_of
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run, open_files
from pipeline.scoring.references import References, load_references
from pipeline.scoring.rules import Scoring, score

_SCORED: Final = pa.schema(
    [
        ("utt_id", pa.string()),
        ("reference", pa.int64()),
        *((name, pa.int64()) for name in ("word_errors", "ref_words", "char_errors", "ref_chars", "wrong", "one")),
        ("unit_kind", pa.int8()),
        ("unit", pa.string()),
    ]
)
METRICS: Final = {"wer": ("word_errors", "ref_words"), "cer": ("char_errors", "ref_chars"), "ser": ("wrong", "one")}


@dataclass(frozen=True)
class Comparison:
    """What two runs come to, on the utterances that both of them were scored on.

    Attributes:
        utterances: pairs.
        only_here: scored utterances that only this run has.
        only_baseline: scored utterances that only the baseline has.
        reference_differs: utterances that both have, with different references.
        failed_here: rows of errors of this run, which has no transcript for them.
        failed_baseline: those of the baseline.
        rates: by metric (wer, cer, ser), (here, baseline) over the pairs; both over the length of the references here,
            which can differ from the baseline's where there are alternatives.
        bootstraps: by metric.
        tests: matched pairs over words, McNemar over sentences.
        unit: what the bootstraps draw from.
        better: pairs with fewer word errors here.
        worse: pairs with more.
        best: ids of the pairs with the greatest gain, the greatest first.
        worst: ids of the pairs with the greatest loss, the greatest first.
    """

    utterances: int
    only_here: int
    only_baseline: int
    reference_differs: int
    failed_here: int
    failed_baseline: int
    rates: Mapping[str, tuple[float | None, float | None]]
    bootstraps: Mapping[str, PairedBootstrap]
    tests: tuple[SignificanceTest, ...]
    unit: str
    better: int
    worse: int
    best: tuple[str, ...]
    worst: tuple[str, ...]


def rules_of(here: Run, baseline: Run, scoring: Scoring | None) -> Scoring:
    """The rules that both runs are scored under.

    Raises:
        UsageError: they have none in common, and none are given.
    """
    names = [run.record["config"]["normalizer"] for run in (here, baseline)]
    if scoring is None and names[0] != names[1]:
        raise UsageError(
            f"the runs were scored under different normalizers, {names[0]} and {names[1]}: give one by --normalizer"
        )
    return scoring or Scoring(names[0])


def compare_runs(
    here: Run,
    baseline: Run,
    scoring: Scoring | None = None,
    *,
    unit: str = "auto",
    level: float = 0.95,
    examples: int = 20,
) -> Comparison:
    """Pair two runs by utterance and test the difference.

    Args:
        here: the run that is looked at.
        baseline: the one that it is held against.
        scoring: the rules for both; None: the runs' own, if they agree.
        unit: as in `EvaluationSettings`; of this run.
        level: of the intervals.
        examples: how many utterances to name that got better, and worse.

    Raises:
        UsageError: no rules in common, or no utterance.
    """
    scoring = rules_of(here, baseline, scoring)
    a, b = (_scored(run, scoring, unit) for run in (here, baseline))
    pairs = a.join(b, "utt_id", join_type="inner", left_suffix="_a", right_suffix="_b")
    same = pc.equal(pairs["reference_a"], pairs["reference_b"])
    both = pairs.num_rows
    pairs = pairs.filter(same).sort_by("utt_id")
    if not pairs.num_rows:
        raise UsageError(f"{here.uri} and {baseline.uri} share no scored utterance with the same reference")
    change = pc.subtract(pairs["word_errors_a"], pairs["word_errors_b"])
    pairs = pairs.append_column("change", change)
    bootstraps = {metric: _bootstrap(pairs, metric, level) for metric in METRICS}
    return Comparison(
        utterances=pairs.num_rows,
        only_here=a.num_rows - both,
        only_baseline=b.num_rows - both,
        reference_differs=both - pairs.num_rows,
        failed_here=here.rows("errors"),
        failed_baseline=baseline.rows("errors"),
        rates={metric: _rates(pairs, metric) for metric in METRICS},
        bootstraps=bootstraps,
        tests=_tests(pairs),
        unit=unit_name(pairs["unit_kind_a"]),
        better=pc.sum(pc.less(change, 0), min_count=0).as_py(),
        worse=pc.sum(pc.greater(change, 0), min_count=0).as_py(),
        best=_most_changed(pairs, "ascending", examples),
        worst=_most_changed(pairs, "descending", examples),
    )


def _scored(run: Run, scoring: Scoring, unit: str) -> pa.Table:
    """A row for each scored utterance: its errors and lengths, its unit, a digest of its reference.

    Raises:
        UsageError: an id comes twice: pairs would be no pairs.
    """
    references = [load_references(uri) for uri in scoring.references]
    scored = run.read(lambda files: _scored_files(run, files["transcripts"], scoring, references, unit))
    if not scored.num_rows:
        raise UsageError(f"{run.uri} has no scored utterance")
    if (different := pc.count_distinct(scored["utt_id"]).as_py()) != scored.num_rows:
        raise UsageError(f"{run.uri} has {scored.num_rows - different} utterances whose ids come twice")
    return scored


def _scored_files(
    run: Run,
    files: Sequence[DataFile],
    scoring: Scoring,
    references: Sequence[References],
    unit: str,
) -> pa.Table:
    stored = run.record["config"]["normalizer"]
    settings = EvaluationSettings(unit=unit)
    facts = facts_of(run, files, settings)
    columns = ["utt_id", *required_columns(settings, scoring, stored, facts), *scoring.sources(stored, texts=True)]
    columns = list(dict.fromkeys(columns))
    batches = open_files(run.uri, "transcripts", [file.path for file in files]).to_batches(columns=columns, **READING)
    tables = [_SCORED.empty_table()]
    for rows in regrouped(batches):
        counts = score(rows, scoring, stored, references)
        summands = counted(rows, counts)
        kinds, names = units_of(rows, unit, facts.by_object)
        # References of files are the same for both runs, also where each of them suits another alternative best.
        texts = [] if references else counts["normalized_reference"].to_pylist()
        digests = [None if text is None else hash(text) for text in texts] or [0] * rows.num_rows
        table = pa.table(
            {
                "utt_id": rows["utt_id"],
                "reference": pa.array(digests, pa.int64()),
                "word_errors": summands["word_errors"],
                "ref_words": summands["ref_words"],
                "char_errors": summands["char_errors"],
                "ref_chars": summands["ref_chars"],
                "wrong": summands["sentence_errors"],
                "one": summands["scored"],
                "unit_kind": kinds,
                "unit": names.dictionary_decode(),
            }
        )
        tables.append(table.filter(pc.is_valid(table["word_errors"])).cast(_SCORED))
    return pa.concat_tables(tables)


def _sums(pairs: pa.Table, columns: list[str]) -> dict[str, Any]:
    return {name: pc.sum(pairs[name], min_count=0).as_py() for name in columns}


def _rates(pairs: pa.Table, metric: str) -> tuple[float | None, float | None]:
    errors, length = METRICS[metric]
    sums = _sums(pairs, [f"{errors}_a", f"{errors}_b", f"{length}_a"])
    reference = sums[f"{length}_a"]
    return (sums[f"{errors}_a"] / reference, sums[f"{errors}_b"] / reference) if reference else (None, None)


def _bootstrap(pairs: pa.Table, metric: str, level: float) -> PairedBootstrap:
    """Over the units: clusters as sums, single utterances as distinct triples with their number."""
    errors, length = METRICS[metric]
    columns = [f"{errors}_a", f"{errors}_b", f"{length}_a"]
    alone = pc.is_null(pairs["unit_a"])
    singles = pairs.filter(alone).group_by(columns).aggregate([([], "count_all")])
    clusters = (
        pairs.filter(pc.invert(alone)).group_by(["unit_kind_a", "unit_a"]).aggregate([(c, "sum") for c in columns])
    )
    values = [
        np.concatenate([clusters[f"{column}_sum"].to_numpy(), singles[column].to_numpy()]).astype(float)
        for column in columns
    ]
    multiplicity = np.concatenate([np.ones(clusters.num_rows, np.int64), singles["count_all"].to_numpy()])
    return paired_bootstrap(values[0], values[1], values[2], multiplicity, level=level)


def _tests(pairs: pa.Table) -> tuple[SignificanceTest, ...]:
    columns = ["word_errors_a", "word_errors_b"]
    distinct = pairs.group_by(columns).aggregate([([], "count_all")])
    segments = matched_pairs(*(distinct[name].to_numpy() for name in (*columns, "count_all")))
    right_a, right_b = (pc.equal(pairs[c], 0) for c in columns)
    only_a = pc.sum(pc.and_not(right_a, right_b), min_count=0).as_py()
    only_b = pc.sum(pc.and_not(right_b, right_a), min_count=0).as_py()
    return segments, mcnemar(only_a, only_b)


def _most_changed(pairs: pa.Table, order: str, examples: int) -> tuple[str, ...]:
    changed = pairs.filter((pc.less if order == "ascending" else pc.greater)(pairs["change"], 0))
    top = changed.take(pc.select_k_unstable(changed, examples, [("change", order), ("utt_id", "ascending")]))
    return tuple(top["utt_id"].to_pylist())
