"""Learning a calibration (`pipeline.evaluation.calibration`) from the rows of a run that have a reference.

By isotonic regression of correctness on confidence (Zadrozny and Elkan 2002), which keeps the order, with straight
lines between its steps. What is learned on one half of the utterances is measured on the other.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.evaluation.calibration import KINDS, VERSION, ConfidenceMap
from pipeline.evaluation.label_scores import Calibration, calibration_sums
from pipeline.evaluation.reading import rebatch, scan_batches
from pipeline.evaluation.references import run_references
from pipeline.runs.run import Run
from pipeline.scoring.alignment import hypothesis_hits
from pipeline.scoring.normalize import DEFAULT_NORMALIZER, is_by_word, normalize
from pipeline.scoring.references import References
from pipeline.scoring.rules import Scoring, score

FEWEST: Final = 100
"""The fewest words or utterances that a calibration is learned on."""


@dataclass(frozen=True)
class Learned:
    """A calibration of words or of utterances.

    Attributes:
        map: what it does.
        rows: words or utterances that it was learned on.
        accuracy: share of them that are correct.
        ece: expected calibration error of the confidences.
        ece_calibrated: that of the probabilities, each half of the rows under what was learned on the other.
    """

    map: ConfidenceMap
    rows: int
    accuracy: float
    ece: float
    ece_calibrated: float


def calibrate(run: Run, references: tuple[str, ...] = ()) -> dict[str, Learned]:
    """Learn from the utterances of a run that have a reference, by kind: `word` and `utterance`.

    A kind with fewer than `FEWEST` rows is left out. Words are compared one by one: under a normalizer that changes
    several words together, such as Whisper's, they are compared under `basic`.

    Args:
        run: the run.
        references: files of references by utterance; empty: the stored ones.

    Raises:
        UsageError: a file of references cannot be read, or there are too few rows of any kind.
    """
    scoring = Scoring(run.record.normalizer, references)
    loaded = run_references(run, references)
    columns = list(dict.fromkeys([*scoring.source_columns(None), "utt_id", "words", "confidence"]))
    halves = run.read(
        lambda files: _halves(
            scan_batches(run.uri, "transcripts", [file.path for file in files["transcripts"]], columns), scoring, loaded
        )
    )
    found = {kind: _learned(*both) for kind, both in halves.items() if min(half.rows.sum() for half in both) > 0}
    found = {kind: each for kind, each in found.items() if each.rows >= FEWEST}
    if not found:
        raise UsageError(
            f"nothing to learn from: fewer than {FEWEST} words and utterances have a reference; give some with --refs"
        )
    return found


def _halves(
    batches: Iterable[pa.RecordBatch], scoring: Scoring, references: Sequence[References]
) -> dict[str, list[Calibration]]:
    """Sums of the utterances of each half, by kind; an utterance is of the half that its id says."""
    halves = {kind: [Calibration.zero(), Calibration.zero()] for kind in KINDS}
    for rows in rebatch(batches):
        counts = pa.table(score(rows, scoring, None, references))
        scored = np.array(counts["hits"].is_valid())
        half = np.array([zlib.crc32(utt_id.encode()) % 2 for utt_id in rows["utt_id"].to_pylist()])
        confident = np.array(rows["confidence"].is_valid())
        errors = (counts[name].fill_null(0).to_numpy() for name in ("substitutions", "deletions", "insertions"))
        correct = sum(errors, start=np.zeros(rows.num_rows)) == 0
        confidence = rows["confidence"].to_numpy()
        for index in (0, 1):
            own = scored & confident & (half == index)
            halves["utterance"][index] += calibration_sums(confidence[own], correct[own])
            picked = rows.filter(pa.array(own))
            references_of = counts["normalized_reference"].filter(pa.array(own)).to_pylist()
            halves["word"][index] += _word_sums(picked["words"].to_pylist(), references_of, scoring.normalizer)
    return halves


def _word_sums(words: list[list[dict[str, Any]]], references: list[str], normalizer: str) -> Calibration:
    rules = normalizer if is_by_word(normalizer) else DEFAULT_NORMALIZER
    texts = [[normalize(each["word"], rules).split() for each in row] for row in words]
    joined = [" ".join(piece for word in row for piece in word) for row in texts]
    pairs = [(normalize(reference, rules), text) for reference, text in zip(references, joined, strict=True)]
    confidences: list[float] = []
    correct: list[bool] = []
    for row, pieces, hits in zip(words, texts, hypothesis_hits(pairs), strict=True):
        first = 0
        for each, own in zip(row, pieces, strict=True):
            if own:  # a word of punctuation alone is none
                confidences.append(each["confidence"])
                correct.append(all(hits[first : first + len(own)]))
            first += len(own)
    return calibration_sums(np.clip(confidences, 0, 1), correct)


def _learned(first: Calibration, second: Calibration) -> Learned:
    both = first + second
    rows = int(both.rows.sum())
    crossed = _mapped(first, isotonic(second)) + _mapped(second, isotonic(first))
    ece, ece_calibrated = both.expected_calibration_error, crossed.expected_calibration_error
    assert ece is not None
    assert ece_calibrated is not None
    return Learned(isotonic(both), rows, int(both.correct.sum()) / rows, ece, ece_calibrated)


def isotonic(sums: Calibration) -> ConfidenceMap:
    """The isotonic regression of correctness on confidence, as a point for each of its steps."""
    from scipy.optimize import isotonic_regression  # noqa: PLC0415 - takes half a second

    parts = np.flatnonzero(sums.rows)
    rows = sums.rows[parts].astype(np.float64)
    fitted = isotonic_regression(sums.correct[parts] / rows, weights=rows)
    starts = fitted.blocks[:-1]
    weights = np.add.reduceat(rows, starts)
    confidences = np.add.reduceat(sums.confidence[parts], starts) / weights
    return ConfidenceMap(tuple(np.clip(confidences, 0, 1).tolist()), tuple(np.clip(fitted.x[starts], 0, 1).tolist()))


def _mapped(sums: Calibration, confidence: ConfidenceMap) -> Calibration:
    """The sums as they are after a calibration."""
    parts = np.flatnonzero(sums.rows)
    means = np.clip(sums.confidence[parts] / sums.rows[parts], 0, 1)
    mapped = np.interp(means, confidence.confidences, confidence.probabilities)
    repeated = np.repeat(mapped, sums.rows[parts])
    correct = np.concatenate(
        [np.arange(rows) < right for rows, right in zip(sums.rows[parts], sums.correct[parts], strict=True)]
    )
    return calibration_sums(repeated, correct)


def encode(learned: Mapping[str, Learned], run: Run) -> bytes:
    """A calibration as JSON, with what it was learned on."""
    values = {
        "sewd_calibration": VERSION,
        "run": run.uri,
        "model": run.record.model_digest,
        "decoding": run.record.decoding,
        "normalizer": run.record.normalizer,
        **{
            kind: {
                "rows": each.rows,
                "accuracy": each.accuracy,
                "ece": each.ece,
                "ece_calibrated": each.ece_calibrated,
                "confidence": each.map.confidences,
                "probability": each.map.probabilities,
            }
            for kind, each in learned.items()
        },
    }
    return json.dumps(values, indent=1).encode()
