import dataclasses

import numpy as np
import pytest
from sklearn import metrics

from pipeline.errors import UsageError
from pipeline.evaluation import reading
from pipeline.evaluation.intervals import rate_interval
from pipeline.evaluation.labels import evaluate_label_rows, evaluate_labels
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.scoring.references import References
from pipeline.scoring.rules import Scoring
from tests.support import runs

NAMES = ["down", "left", "right", "up"]
SETTINGS = EvaluationSettings()


def random_rows(number, seed=0, *, labels=NAMES, references=None, grid=255, **fixed):
    """Rows of noisy scores on a grid that float32 and the histogram represent exactly."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        reference = str(rng.choice(references or labels))
        scores = {label: int(rng.integers(0, grid + 1)) / grid for label in labels}
        if reference in scores and rng.random() < 0.7:
            scores[reference] = max(scores.values())
        rows.append({"scores": scores, "reference_label": reference} | fixed)
    return rows


def evaluated(rows, settings=SETTINGS, files=()):
    return evaluate_label_rows(runs.labels(rows).to_batches(), settings, files)


def one(rows, settings=SETTINGS, files=()):
    (evaluation,) = evaluated(rows, settings, files)
    return evaluation


def columns(rows):
    table = runs.labels(rows)
    return [table[name].to_pylist() for name in ("reference_label", "label")]


def file_of(named):
    return References("file", {k: row for row, k in enumerate(named)}, (None,) * len(named), tuple(named.values()), ())


def plain(evaluation):
    """The evaluation as values that can be compared with ==; sums of floats are rounded, as their order may differ."""
    confidence = np.round(evaluation.calibration.confidence, 4).tolist()
    calibration = (evaluation.calibration.rows.tolist(), evaluation.calibration.correct.tolist(), confidence)
    return dataclasses.asdict(dataclasses.replace(evaluation, calibration=None, counts=None, scores={})) | {
        "calibration": calibration,
        "counts": (evaluation.counts.labels, evaluation.counts.confusion.tolist()),
        "scores": {
            label: (h.points.tolist(), h.positives.tolist(), h.negatives.tolist())
            for label, h in evaluation.scores.items()
        },
    }


# Against scikit-learn


@pytest.mark.parametrize("seed", range(4))
def test_figures_match_scikit_learn(seed):
    rows = random_rows(400, seed)
    evaluation = one(rows)
    references, predicted = columns(rows)
    assert evaluation.counts.labels == tuple(NAMES)
    assert (
        evaluation.counts.confusion.tolist() == metrics.confusion_matrix(references, predicted, labels=NAMES).tolist()
    )
    assert evaluation.counts.accuracy == pytest.approx(metrics.accuracy_score(references, predicted))
    assert evaluation.counts.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(references, predicted))
    for average in ("macro", "micro"):
        f1 = getattr(evaluation.counts, f"{average}_f1")
        assert f1 == pytest.approx(metrics.f1_score(references, predicted, average=average))
    assert set(evaluation.scores) == set(NAMES) == evaluation.known_labels
    for label in NAMES:
        expected = metrics.roc_auc_score([r == label for r in references], [row["scores"][label] for row in rows])
        assert evaluation.scores[label].auroc == pytest.approx(expected, abs=1e-12)
    assert (evaluation.no_reference, evaluation.unknown_label, evaluation.task) == (0, 0, "keyword")


def test_auroc_of_arbitrary_scores_is_within_its_tolerance():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (500, 3))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = [
        {
            "scores": dict(zip("abc", map(float, row), strict=True)),
            "reference_label": str(rng.choice(list("abc"), p=row)),
        }
        for row in shares
    ]
    evaluation = one(rows)
    references, _ = columns(rows)
    for index, label in enumerate("abc"):
        expected = metrics.roc_auc_score([r == label for r in references], shares[:, index])
        assert (
            abs(evaluation.scores[label].auroc - expected) <= evaluation.scores[label].auroc_tolerance + 1e-6
        )  # float32


def test_calibration_uses_the_score_of_the_predicted_label():
    rows = random_rows(300, 5)
    evaluation = one(rows)
    references, predicted = columns(rows)
    score = np.array([max(row["scores"].values()) for row in rows])
    right = np.array(references) == np.array(predicted)
    bins = np.maximum(np.ceil(score * 15).astype(int) - 1, 0)
    gaps = [abs(right[bins == b].sum() - score[bins == b].sum()) for b in range(15)]
    assert evaluation.calibration.expected_calibration_error == pytest.approx(sum(gaps) / 300, abs=1e-6)


# Missing scores


def truncated(rows, keep=2):
    return [row | {"scores": dict(sorted(row["scores"].items(), key=lambda item: -item[1])[:keep])} for row in rows]


def test_truncated_lists_of_scores_have_no_auroc():
    evaluation = one(truncated(random_rows(200)))
    assert evaluation.scores == {}
    assert evaluation.known_labels == set(NAMES)
    assert evaluation.counts.rows == evaluation.calibration.rows.sum() == 200


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("batch", [1, 7, 100, 1000])
def test_a_label_without_a_score_in_one_row_has_no_auroc_in_any_split_into_batches(monkeypatch, batch, first):
    monkeypatch.setattr(reading, "BATCH_ROWS", batch)
    rows = random_rows(60)
    lacking = {"scores": {"down": 0.9, "left": 0.1, "right": 0.0}, "reference_label": "down"}
    evaluation = one([lacking, *rows] if first else [*rows, lacking])
    assert set(evaluation.scores) == {"down", "left", "right"}


# Batches


@pytest.mark.parametrize("batch", [1, 3, 50, 64, 10_000])
def test_any_split_into_batches_gives_the_same_result(monkeypatch, batch):
    rows = random_rows(150, references=[*NAMES, "unheard"])
    for index in range(40, 110):  # some batches have no reference at all
        rows[index]["reference_label"] = None
    for index, row in enumerate(rows):
        row["speaker"] = f"s{index % 17}"
    other = truncated(random_rows(30, task="other"))
    expected = evaluated([*rows, *other])
    table = runs.labels([*rows, *other])
    assert set(expected[0].scores) == set(NAMES)
    monkeypatch.setattr(reading, "BATCH_ROWS", batch)
    for size in (1, 7, 1000):
        evaluation = evaluate_label_rows(table.to_batches(size), SETTINGS)
        assert [plain(task) for task in evaluation] == [plain(task) for task in expected]
    backwards = table.take(list(range(table.num_rows))[::-1])
    evaluation = evaluate_label_rows(backwards.to_batches(9), SETTINGS)
    assert [plain(task) for task in evaluation] == [plain(task) for task in expected]


# References


def test_labels_that_the_classifier_does_not_have_count_as_wrong():
    rows = random_rows(200, references=[*NAMES, "sideways", "back"])
    evaluation = one(rows)
    references, predicted = columns(rows)
    assert evaluation.unknown_label == sum(r in ("sideways", "back") for r in references) > 0
    assert evaluation.counts.accuracy == metrics.accuracy_score(references, predicted)
    assert evaluation.counts.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(references, predicted))
    assert evaluation.counts.macro_f1 == pytest.approx(
        metrics.f1_score(references, predicted, average="macro", zero_division=0)
    )
    assert set(evaluation.scores) == set(NAMES)


def test_rows_without_a_reference_label_change_no_figure():
    rows = random_rows(100)
    more = [{"scores": dict.fromkeys(NAMES, 0.25), "reference_label": None}] * 30
    evaluation, without_more = one([*rows, *more]), one(rows)
    assert (evaluation.no_reference, without_more.no_reference) == (30, 0)
    assert plain(evaluation) | {"no_reference": 0} == plain(without_more)


def test_without_reference_labels_there_are_no_figures():
    evaluation = one([row | {"reference_label": None} for row in random_rows(20)])
    assert (evaluation.no_reference, evaluation.counts.rows, evaluation.unknown_label) == (20, 0, 0)
    assert {
        evaluation.counts.accuracy,
        evaluation.counts.macro_f1,
        evaluation.calibration.expected_calibration_error,
        evaluation.interval,
    } == {None}
    assert evaluation.scores == {}


def test_without_rows_there_is_no_task():
    assert evaluated([]) == ()


def test_each_task_has_its_own_figures_in_the_order_of_names():
    rows = random_rows(50, 1, task="b"), random_rows(60, 2, task="a")
    evaluation = evaluated([*rows[0], *rows[1]])
    assert [task.task for task in evaluation] == ["a", "b"]
    assert [plain(task) for task in evaluation] == [plain(one(rows[1])), plain(one(rows[0]))]


def test_regression_heads_are_skipped():
    values = [{"scores": {"score": v}, "task": "mos", "reference_label": None} for v in (-3.0, 0.5, 4.5)]
    assert evaluated(values) == ()
    assert [task.task for task in evaluated([*values, *random_rows(5)])] == ["keyword"]


def test_a_score_slightly_above_one_counts_as_one():
    evaluation = one([{"scores": {"a": 1.0000001}, "reference_label": "a"}])
    assert evaluation.calibration.expected_calibration_error == 0


# Units


def test_the_interval_uses_speakers_as_units():
    rows = random_rows(300)
    for index, row in enumerate(rows):
        row["speaker"] = f"s{index % 20}"
    evaluation = one(rows)
    references, predicted = columns(rows)
    wrong = [r != g for r, g in zip(references, predicted, strict=True)]
    errors = [sum(wrong[speaker::20]) for speaker in range(20)]
    expected = rate_interval(errors, [15] * 20, share=True)
    assert evaluation.unit == "speaker"
    assert evaluation.interval.units == 20
    assert (evaluation.interval.low, evaluation.interval.high) == pytest.approx((1 - expected.high, 1 - expected.low))
    assert evaluation.interval.low < evaluation.counts.accuracy < evaluation.interval.high
    assert one(rows[:9]).interval is None  # nine speakers
    assert one(rows, EvaluationSettings(level=0.5)).interval.low > evaluation.interval.low


def test_the_interval_uses_recordings_or_utterances_where_speakers_are_unknown():
    rows = random_rows(300)
    evaluation = one(rows)
    references, predicted = columns(rows)
    wrong = [float(r != g) for r, g in zip(references, predicted, strict=True)]
    expected = rate_interval(wrong, [1] * 300, share=True)
    assert (evaluation.unit, evaluation.interval.units) == ("utterance", 300)
    assert evaluation.interval.high == pytest.approx(1 - expected.low)
    for index, row in enumerate(rows):
        row["utt_id"] = f"tape{index % 30}#{index}-{index + 1}"
    assert (one(rows).unit, one(rows).interval.units) == ("recording", 30)
    assert one(rows, EvaluationSettings(unit="utterance")).interval.units == 300


# References from files


def test_labels_in_files_replace_the_stored_ones_and_the_first_file_has_precedence():
    rows = [{"scores": {"a": 0.9, "b": 0.1}, "reference_label": "b"} for _ in range(4)]
    files = [file_of({"u000000": "a", "u000001": None}), file_of({"u000000": "b", "u000001": "b", "u000002": "a"})]
    evaluation = one(rows, files=files)
    assert (evaluation.counts.labels, evaluation.counts.confusion.tolist()) == (("a", "b"), [[2, 0], [1, 0]])
    assert evaluation.no_reference == 1


def test_the_labels_of_a_run_are_evaluated_from_its_files(tmp_path):
    rows = random_rows(40)
    run = runs.write_run(tmp_path / "run", runs.transcripts([{"text": "a"}] * 40), runs.labels(rows))
    assert [plain(task) for task in evaluate_labels(run)] == [plain(one(rows))]
    (tmp_path / "labels.csv").write_text("utt_id,label\nu000003,down\n")
    settings = EvaluationSettings(scoring=Scoring("basic", (str(tmp_path / "labels.csv"),)))
    (evaluation,) = evaluate_labels(run, settings)
    assert (evaluation.counts.rows, evaluation.no_reference) == (1, 39)
    with pytest.raises(UsageError, match="no references"):
        evaluate_labels(run, EvaluationSettings(scoring=Scoring("basic", (str(tmp_path / "none"),))))


def test_a_run_without_labels_has_no_label_evaluation(tmp_path):
    run = runs.write_run(tmp_path / "run", runs.transcripts([{"text": "a"}]))
    assert evaluate_labels(run) == ()
