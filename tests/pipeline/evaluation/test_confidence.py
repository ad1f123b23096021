"""Calibration of confidences, calibration error and risk against scikit-learn and by brute force."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from pipeline.errors import UsageError
from pipeline.evaluation.calibrate import calibrate, encode, isotonic
from pipeline.evaluation.calibration import ConfidenceMap, calibrated, calibration_warnings, read_calibration
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.label_scores import calibration_sums
from pipeline.evaluation.settings import EvaluationSettings
from tests.support.runs import transcripts, write_run


def rows_of(number, seed=0):
    """Utterances whose words are right with the square of their confidence; some are empty."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        confidences = rng.uniform(0.3, 1, rng.integers(0, 6))
        said = [f"w{k}" for k in range(len(confidences))]
        heard = [word if rng.random() < c * c else f"{word}x" for word, c in zip(said, confidences, strict=True)]
        words = [
            {"word": word, "start_s": float(k), "end_s": k + 0.5, "confidence": float(c)}
            for k, (word, c) in enumerate(zip(heard, confidences, strict=True))
        ]
        confidence = float(np.exp(np.log(confidences).mean())) if words else None
        rows.append({"text": " ".join(heard), "reference": " ".join(said), "words": words, "confidence": confidence})
    return rows


def test_the_area_under_risk_and_coverage_is_that_of_a_sort(tmp_path):
    rows = rows_of(700)
    evaluation = evaluate_run(write_run(tmp_path / "run", transcripts(rows), chunk_rows=90))
    ordered = sorted(rows, key=lambda row: -(row["confidence"] or -1))
    words = np.cumsum([len(row["reference"].split()) for row in ordered])
    errors = np.cumsum([sum(w.endswith("x") for w in row["text"].split()) for row in ordered])
    risk = errors / np.maximum(words, 1)
    found = evaluation.confidence
    assert found.utterances == 700
    coverage = np.arange(1, 701) / 700
    area = np.trapezoid(risk, coverage) + risk[0] / 700
    assert found.risk_area == pytest.approx(area, abs=1e-3)  # confidences are summed in 15,360 parts
    assert found.curve[-1] == (1.0, pytest.approx(evaluation.wer))
    assert found.curve[9][1] == pytest.approx(risk[349], abs=0.01)
    known = [row for row in rows if row["confidence"] is not None]
    correct = [row["text"] == row["reference"] for row in known]
    whole = calibration_sums([np.float32(row["confidence"]) for row in known], correct)
    assert found.ece == pytest.approx(whole.expected_calibration_error)


def test_a_calibration_makes_probabilities_of_confidences(tmp_path):
    run = write_run(tmp_path / "run", transcripts(rows_of(3000)), chunk_rows=500)
    learned = calibrate(run)
    assert {kind: each.rows for kind, each in learned.items()}["word"] == sum(
        len(row["words"]) for row in rows_of(3000)
    )
    for each in learned.values():
        assert each.ece > 0.15
        assert each.ece_calibrated < 0.04
    at = pa.array([0.4, 0.6, 0.8, None])
    assert learned["word"].map.of(at).to_pylist() == [*(pytest.approx(c * c, abs=0.06) for c in (0.4, 0.6, 0.8)), None]
    (tmp_path / "c.json").write_bytes(encode(learned, run))
    stored = read_calibration(tmp_path / "c.json")
    assert stored == {kind: each.map for kind, each in learned.items()}
    assert calibration_warnings(tmp_path / "c.json", run) == []
    record = json.loads((tmp_path / "c.json").read_bytes()) | {"model": "0a", "decoding": "beam search of width 8"}
    (tmp_path / "other.json").write_text(json.dumps(record))
    assert [warning.partition("learned ")[2] for warning in calibration_warnings(tmp_path / "other.json", run)] == [
        "with another model",
        "under other decoding (beam search of width 8, and the run: greedy)",
    ]

    other = write_run(tmp_path / "other", transcripts(rows_of(2000, seed=1)))
    before = evaluate_run(other).confidence
    after = evaluate_run(other, EvaluationSettings(calibration=stored["utterance"])).confidence
    assert after.ece < 0.06 < 0.15 < before.ece
    assert after.risk_area == pytest.approx(before.risk_area, abs=0.02)  # the order is the same

    table = other.to_arrow()
    changed = calibrated(table.slice(3, 50), stored)
    assert changed.schema.equals(table.schema)
    assert changed["words"][5].as_py()[0]["confidence"] == pytest.approx(
        stored["word"].of(pa.array([table["words"][8].as_py()[0]["confidence"]]))[0].as_py()
    )
    assert [len(each) for each in changed["words"].to_pylist()] == [
        len(each) for each in table["words"].to_pylist()[3:53]
    ]
    assert changed.drop_columns(["words", "confidence"]).equals(
        table.slice(3, 50).combine_chunks().drop_columns(["words", "confidence"])
    )


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=60))
def test_the_regression_is_scikit_learn_s(pairs):
    confidence = np.array([c / 30 for c, _ in pairs])
    correct = np.array([ok for _, ok in pairs])
    found = isotonic(calibration_sums(confidence, correct))
    oracle = IsotonicRegression(out_of_bounds="clip").fit(confidence, correct)
    values = np.unique(confidence)
    steps = np.unique(np.round(oracle.predict(values), 9))
    assert np.round(found.probabilities, 9).tolist() == steps.tolist()


def test_what_cannot_be_learned_or_read_is_a_line(tmp_path):
    few = write_run(tmp_path / "few", transcripts(rows_of(10)))
    with pytest.raises(UsageError, match="fewer than 100"):
        calibrate(few)
    with pytest.raises(UsageError, match="no file"):
        read_calibration(tmp_path / "none.json")
    for text in ("", "{}", "[]", json.dumps({"sewd_calibration": 2}), '{"sewd_calibration": 1, "word": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UsageError, match="calibration: "):
            read_calibration(tmp_path / "bad.json")
    for points in (((), ()), ((0.5,), (0.5, 0.6)), ((0.6, 0.5), (0.1, 0.2)), ((0.1, 0.2), (0.2, 1.1))):
        with pytest.raises(ValueError, match="calibration"):
            ConfidenceMap(*points)
