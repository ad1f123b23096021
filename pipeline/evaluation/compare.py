"""Comparison of two runs over the same corpus, paired by utterance: what changed, and whether it could be chance.

Every difference is run - baseline, so a negative one is an improvement. Utterances that only one run has, or whose
references differ, are counted and left out. So is an utterance that failed in either run, which is why a gate should
check `failed` besides `wer`. A recording that is scored as a whole is one pair: two runs may cut it differently. Pairs
are held in memory: about 100 bytes each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.evaluation.context import run_context
from pipeline.evaluation.intervals import PairedBootstrap, paired_bootstrap
from pipeline.evaluation.reading import rebatch, scan_batches
from pipeline.evaluation.recordings import ScoredRecordings, without_recordings
from pipeline.evaluation.references import RunReferences, text_references
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.significance import SignificanceTest, matched_pairs, mcnemar
from pipeline.evaluation.sums import row_summands
from pipeline.evaluation.tallies import required_columns
from pipeline.evaluation.units import UNITS, describe_units, row_units
from pipeline.runs.commit import DataFile
from pipeline.runs.recordings import IDENTITY
from pipeline.runs.run import Run
from pipeline.scoring.normalize import label
from pipeline.scoring.rules import Scoring, score

_COUNTS: Final = ("word_errors", "ref_words", "char_errors", "ref_chars", "sentence_errors", "sentences")
_SCORED: Final = pa.schema(
    [
        ("utt_id", pa.string()),
        ("reference_hash", pa.int64()),
        *((name, pa.int64()) for name in _COUNTS),
        ("unit_kind", pa.int8()),
        ("unit", pa.string()),
    ]
)
_RUN, _BASELINE = "_run", "_baseline"  # suffixes of the columns of the two runs in the table of pairs
_METRICS: Final = {
    "wer": ("word_errors", "ref_words"),
    "cer": ("char_errors", "ref_chars"),
    "ser": ("sentence_errors", "sentences"),
}


class RatePair(NamedTuple):
    """A rate of both runs; None where the reference length is 0."""

    run: float | None
    baseline: float | None


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison, over the utterances that both runs were scored on.

    Attributes:
        utterances: number of pairs.
        only_in_run: utterances that are scored in the run, and not in the baseline.
        only_in_baseline: utterances that are scored in the baseline, and not in the run.
        reference_differs: utterances that both have, with different references.
        failed_in_run: rows of errors of the run, which has no transcript for them.
        failed_in_baseline: rows of errors of the baseline.
        rates: by metric (wer, cer, ser), over the pairs. Both rates use the reference lengths of the run, which can
            differ from the baseline's where there are alternative references.
        bootstraps: by metric.
        tests: matched pairs over words, McNemar over sentences.
        unit: sampling unit of the bootstraps.
        better: pairs with fewer word errors in the run.
        worse: pairs with more word errors in the run.
        most_improved: ids of the pairs whose word errors fell most, largest change first.
        most_worsened: ids of the pairs whose word errors rose most, largest change first.
    """

    utterances: int
    only_in_run: int
    only_in_baseline: int
    reference_differs: int
    failed_in_run: int
    failed_in_baseline: int
    rates: Mapping[str, RatePair]
    bootstraps: Mapping[str, PairedBootstrap]
    tests: tuple[SignificanceTest, ...]
    unit: str
    better: int
    worse: int
    most_improved: tuple[str, ...]
    most_worsened: tuple[str, ...]


def shared_scoring(run: Run, baseline: Run, scoring: Scoring | None) -> Scoring:
    """The rules under which both runs are scored: the given ones, else the runs' own.

    Raises:
        UsageError: no rules are given and those of the runs differ.
    """
    normalizers = [each.record.normalizer for each in (run, baseline)]
    if scoring is None and normalizers[0] != normalizers[1]:
        names = " and ".join(map(label, normalizers))
        raise UsageError(f"the runs were scored under different normalizers, {names}: choose one by --normalizer")
    return scoring or Scoring(normalizers[0])


def compare_runs(
    run: Run,
    baseline: Run,
    scoring: Scoring | None = None,
    *,
    unit: str = "auto",
    level: float = 0.95,
    examples: int = 20,
) -> Comparison:
    """Pair two runs by utterance and test the difference.

    Args:
        run: the run.
        baseline: the run that it is compared with.
        scoring: the rules for both; None: the runs' own, if they agree.
        unit: as in `EvaluationSettings`; units are those of `run`.
        level: nominal coverage of the intervals.
        examples: how many utterances to list that improved, and that worsened.

    Raises:
        UsageError: the runs have no rules or no utterance in common, or ids are not unique.
    """
    scoring = shared_scoring(run, baseline, scoring)
    run_rows, baseline_rows = (_scored(each, scoring, unit) for each in (run, baseline))
    joined = run_rows.join(baseline_rows, "utt_id", join_type="inner", left_suffix=_RUN, right_suffix=_BASELINE)
    same_reference = pc.equal(joined["reference_hash" + _RUN], joined["reference_hash" + _BASELINE])
    pairs = joined.filter(same_reference).sort_by("utt_id")
    if not pairs.num_rows:
        raise UsageError(f"{run.uri} and {baseline.uri} share no scored utterance with the same reference")
    change = pc.subtract(pairs["word_errors" + _RUN], pairs["word_errors" + _BASELINE])
    pairs = pairs.append_column("change", change)
    return Comparison(
        utterances=pairs.num_rows,
        only_in_run=run_rows.num_rows - joined.num_rows,
        only_in_baseline=baseline_rows.num_rows - joined.num_rows,
        reference_differs=joined.num_rows - pairs.num_rows,
        failed_in_run=run.rows("errors"),
        failed_in_baseline=baseline.rows("errors"),
        rates={metric: _rates(pairs, metric) for metric in _METRICS},
        bootstraps={metric: _bootstrap(pairs, metric, level) for metric in _METRICS},
        tests=_tests(pairs),
        unit=describe_units(pairs["unit_kind" + _RUN]),
        better=pc.sum(pc.less(change, 0), min_count=0).as_py(),
        worse=pc.sum(pc.greater(change, 0), min_count=0).as_py(),
        most_improved=_most_changed(pairs, "ascending", examples),
        most_worsened=_most_changed(pairs, "descending", examples),
    )


def _scored(run: Run, scoring: Scoring, unit: str) -> pa.Table:
    """One row for each scored utterance, as `_SCORED`: errors and lengths, sampling unit, hash of the reference.

    Raises:
        UsageError: there is no scored utterance, or an id occurs twice and the runs cannot be paired by it.
    """
    references = text_references(run, scoring)
    scored = run.read(lambda files: _score_files(run, files["transcripts"], references, unit))
    if not scored.num_rows:
        raise UsageError(
            f"{run.uri} has no scored utterance: runs are compared by their references; give them with --refs FILE, or "
            "as texts beside the audio"
        )
    if (distinct := pc.count_distinct(scored["utt_id"]).as_py()) != scored.num_rows:
        raise UsageError(
            f"utterance ids of {run.uri} must be unique to pair runs: {scored.num_rows - distinct} of them are repeated"
        )
    return scored


def _score_files(run: Run, files: Sequence[DataFile], references: RunReferences, unit: str) -> pa.Table:
    scoring, recordings = references.scoring, references.recordings
    stored_normalizer = run.record.normalizer
    settings = EvaluationSettings(unit=unit)
    context = run_context(run, files, settings)
    needed = required_columns(settings, scoring, stored_normalizer, context)
    columns = list(dict.fromkeys(["utt_id", *needed, *scoring.source_columns(stored_normalizer, texts=True)]))
    columns = list(dict.fromkeys([*columns, *(IDENTITY if recordings else ())]))
    batches = scan_batches(run.uri, "transcripts", [file.path for file in files], columns)
    tables = [_SCORED.empty_table(), *([_recordings_table(recordings, references, unit)] if recordings else [])]
    for rows in rebatch(without_recordings(batches, recordings and recordings.keys)):
        counts = score(rows, scoring, stored_normalizer, references.files)
        summands = row_summands(rows, counts)
        units = row_units(rows, unit, context.objects_are_recordings)
        # Reference files are the same for both runs, even where each run is closest to a different alternative.
        texts = [] if references.files else counts["normalized_reference"].to_pylist()
        hashes = [None if text is None else hash(text) for text in texts] or [0] * rows.num_rows
        table = pa.table(
            {
                "utt_id": rows["utt_id"],
                "reference_hash": pa.array(hashes, pa.int64()),
                **{name: summands[name] for name in _COUNTS if name != "sentences"},
                "sentences": summands["scored"],
                "unit_kind": units.kinds,
                "unit": units.names.dictionary_decode(),
            }
        ).select(_SCORED.names)
        tables.append(table.filter(pc.is_valid(table["word_errors"])).cast(_SCORED))
    return pa.concat_tables(tables)


def _recordings_table(recordings: ScoredRecordings, references: RunReferences, unit: str) -> pa.Table:
    """The recordings that are scored as wholes, each as one row of `_SCORED`: two runs may cut them differently."""
    rows = []
    for each in recordings.scores:
        is_speaker = bool(each.speaker) and unit in ("auto", "speaker")
        own = unit in ("auto", "recording")
        rows.append(
            {
                "utt_id": each.name,
                "reference_hash": 0 if references.files else each.reference,
                "word_errors": each.words.errors,
                "ref_words": each.words.reference,
                "char_errors": each.chars.errors,
                "ref_chars": each.chars.reference,
                "sentence_errors": int(each.words.errors > 0),
                "sentences": 1,
                "unit_kind": UNITS.index("speaker" if is_speaker else "recording" if own else "utterance"),
                "unit": each.speaker if is_speaker else each.recording if own else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=_SCORED)


def _columns(metric: str) -> tuple[str, str, str]:
    """The columns of a metric in the table of pairs: errors of the run, errors of the baseline, reference length."""
    errors, length = _METRICS[metric]
    return errors + _RUN, errors + _BASELINE, length + _RUN


def _rates(pairs: pa.Table, metric: str) -> RatePair:
    run_errors, baseline_errors, reference = (pc.sum(pairs[name], min_count=0).as_py() for name in _columns(metric))
    return RatePair(run_errors / reference, baseline_errors / reference) if reference else RatePair(None, None)


def _bootstrap(pairs: pa.Table, metric: str, level: float) -> PairedBootstrap:
    """Bootstrap over the units: sums of each speaker or recording, and distinct triples of single utterances."""
    columns = list(_columns(metric))
    kind, name = "unit_kind" + _RUN, "unit" + _RUN
    is_single = pc.is_null(pairs[name])
    singles = pairs.filter(is_single).group_by(columns).aggregate([([], "count_all")])
    sums = [(column, "sum") for column in columns]
    clusters = pairs.filter(pc.invert(is_single)).group_by([kind, name]).aggregate(sums)
    run_errors, baseline_errors, reference = (
        np.concatenate([clusters[f"{column}_sum"].to_numpy(), singles[column].to_numpy()]).astype(float)
        for column in columns
    )
    multiplicity = np.concatenate([np.ones(clusters.num_rows, np.int64), singles["count_all"].to_numpy()])
    return paired_bootstrap(run_errors, baseline_errors, reference, multiplicity, level=level)


def _tests(pairs: pa.Table) -> tuple[SignificanceTest, ...]:
    columns = ["word_errors" + _RUN, "word_errors" + _BASELINE]
    distinct = pairs.group_by(columns).aggregate([([], "count_all")])
    segments = matched_pairs(*(distinct[name].to_numpy() for name in (*columns, "count_all")))
    run_correct, baseline_correct = (pc.equal(pairs[column], 0) for column in columns)
    only_run = pc.sum(pc.and_not(run_correct, baseline_correct), min_count=0).as_py()
    only_baseline = pc.sum(pc.and_not(baseline_correct, run_correct), min_count=0).as_py()
    return segments, mcnemar(only_run, only_baseline)


def _most_changed(pairs: pa.Table, order: str, examples: int) -> tuple[str, ...]:
    changed = pairs.filter((pc.less if order == "ascending" else pc.greater)(pairs["change"], 0))
    top = changed.take(pc.select_k_unstable(changed, examples, [("change", order), ("utt_id", "ascending")]))
    return tuple(top["utt_id"].to_pylist())
