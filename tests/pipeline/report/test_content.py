"""The dict that a report is rendered from: true to the run, plain values, and whole whatever the run lacks."""

from __future__ import annotations

import json

import jiwer
import pytest

from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.gate import Verdict
from pipeline.evaluation.reading import EvaluationSettings
from pipeline.report import render
from pipeline.report.content import WORST, Cost, ReportSettings, report
from tests.support import reports, runs


@pytest.fixture(scope="module")
def rows():
    made = runs.random_rows(400, speakers=15, wrong=0.2, tags=json.dumps({"lang": "en"}))
    word = {"word": "one", "start_s": 0.0, "end_s": 0.25, "confidence": 0.9}
    return [row | {"words": [word] * len(row["text"].split())} for row in made]


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    scores = [{"yes": 0.7, "no": 0.3}, {"yes": 0.2, "no": 0.8}]
    labels = [{"scores": scores[i % 2], "reference_label": "yes", "speaker": f"s{i % 20}"} for i in range(100)]
    errors = [{"message": f"ends at byte {i}"} for i in range(7)] + [{"code": "MISSING", "message": "gone"}]
    path = tmp_path_factory.mktemp("report") / "run"
    return runs.write_run(path, runs.transcripts(rows), runs.labels(labels), runs.errors(errors), chunk_rows=50)


@pytest.fixture(scope="module")
def told(run):
    return report(run, settings=ReportSettings(EvaluationSettings(by=("tags.lang",)), cost=Cost(6.0, "EUR")))


def same_shape(made, example, where="report"):
    """Every key that the renderer's example has is there, at every depth where both have something."""
    if where.endswith(("fingerprint", "config", "versions")):  # of whatever the run has
        return
    if isinstance(made, dict) and isinstance(example, dict):
        missing = set(example) - set(made)
        assert not missing, f"{where}: {missing}"
        for key in set(made) & set(example):
            same_shape(made[key], example[key], f"{where}.{key}")
    if isinstance(made, list) and isinstance(example, list) and made and example:
        same_shape(made[0], example[0], f"{where}[0]")


def test_it_has_all_that_the_renderer_is_tested_on(told, run):
    same_shape(told, reports.full())
    same_shape(report(run, run), reports.full())


def test_it_is_plain_json(told):
    assert json.loads(json.dumps(told, allow_nan=False)) == json.loads(json.dumps(told))


def test_its_figures_are_those_of_the_evaluation(told, run):
    found = evaluate_run(run)
    assert {each["metric"]: each["rate"] for each in told["headline"]} == found.rates
    wer = told["headline"][0]
    assert (wer["interval"]["low"], wer["interval"]["units"]) == (found.intervals["wer"].low, 15)
    assert told["coverage"] == {"rows": 408, "scored": 400, "no_reference": 0, "failed": 8, "share": 400 / 408}
    assert sum(told["distribution"]["counts"]) == 400
    assert [grouping["by"] for grouping in told["groups"]] == ["tags.lang", "speaker", "duration", "confidence"]
    assert len(told["confidence"]["bins"]) == 10
    for each in told["confidence"]["bins"]:
        assert each["low"] <= each["confidence"] <= each["high"] + 1e-3


def test_speed_and_cost_come_from_the_record(told):
    audio_s = told["run"]["audio_s"]
    assert told["run"]["wall_s"] == 60
    assert told["run"]["rtfx"] == pytest.approx(audio_s / 60)
    assert told["run"]["compute_rtfx"] == pytest.approx(50)
    assert told["run"]["cost"]["total"] == pytest.approx(0.1)
    assert told["run"]["cost"]["per_audio_hour"] == pytest.approx(0.1 / (audio_s / 3600))


def test_the_worst_are_shown_aligned(told, rows):
    worst = told["worst"]
    by_id = {f"u{index:06d}": row for index, row in enumerate(rows)}
    wrong = [row for row in rows if row["text"] != row["reference"]]
    assert (worst["shown"], worst["of"]) == (min(len(wrong), WORST), len(wrong))
    errors = [row["counts"]["errors"] for row in worst["rows"]]
    assert errors == sorted(errors, reverse=True)
    for row in worst["rows"]:
        source = by_id[row["utt_id"]]
        steps = row["alignment"]
        assert " ".join(filter(None, (wanted for _, wanted, _ in steps))) == source["reference"]
        assert " ".join(filter(None, (found for _, _, found in steps))) == source["text"]
        words = jiwer.process_words(source["reference"], source["text"])
        assert row["counts"]["errors"] == words.substitutions + words.deletions + words.insertions


def test_confusions_count_what_the_alignments_show(told):
    found = told["confusions"]
    assert found["sampled"] == found["of"] == told["headline"][2]["counts"]["errors"]
    counts = told["headline"][0]["counts"]
    for kind in ("substitutions", "deletions", "insertions"):
        shown = [each["count"] for each in found[kind]]
        assert shown == sorted(shown, reverse=True)
        assert sum(shown) <= counts[kind]
    assert sum(each["count"] for each in found["deletions"]) == counts["deletions"]
    assert found["insertions"][0]["hypothesis"] == "um"


def test_errors_are_grouped_by_code_and_by_words(told):
    assert [(each["code"], each["count"], each["share"]) for each in told["errors"]] == [
        ("UNDECODABLE", 7, 7 / 8),
        ("MISSING", 1, 1 / 8),
    ]
    assert told["errors"][0]["messages"] == [{"message": "ends at byte #", "count": 7}]
    assert len(told["errors"][0]["examples"]) == 5


def test_labels_are_described(told):
    (task,) = told["classification"]
    assert (task["accuracy"], task["scored"]) == (0.5, 100)
    assert task["interval"]["units"] == 20
    assert sum(map(sum, task["confusion"]["matrix"])) == 100
    assert [(row["label"], row["count"]) for row in told["corpus"]["labels"][0]["labels"]] == [("no", 50), ("yes", 50)]


def test_the_corpus_is_described_without_references(told, rows):
    corpus = told["corpus"]
    words = sum(len(row["text"].split()) for row in rows)
    seconds = sum(row["duration_s"] for row in rows)
    assert corpus["utterances"] == 400
    assert corpus["words"] == words
    assert corpus["speech_share"] == pytest.approx(0.25 * words / seconds)
    assert sum(corpus["durations"]["counts"]) == 400
    assert corpus["empty_texts"] == sum(row["text"] == "" for row in rows)
    assert corpus["by_tag"][0]["values"][0]["utterances"] == 400


def test_a_gate_and_a_comparison_are_told(run, rows, tmp_path):
    other = [row | {"text": row["reference"]} for row in rows]
    baseline = runs.write_run(tmp_path / "other", runs.transcripts(other))
    verdict = Verdict("wer > baseline", 9.0, 0.0, failed=True)
    told = report(run, baseline, gate=[verdict])
    assert told["gate"] == [{"condition": "wer > baseline", "value": 9.0, "limit": 0.0, "failed": True}]
    compared = told["comparison"]
    assert compared["changes"]["better"] == 0
    assert compared["metrics"][0]["difference"] == pytest.approx(told["headline"][0]["rate"])
    assert compared["worse"][0]["difference"] == compared["worse"][0]["here"]["errors"] > 0
    assert compared["worse"][0]["baseline"]["errors"] == 0
    assert "Against the baseline" in render.html(told)


@pytest.mark.parametrize(
    "made",
    [
        [],
        [{"text": ""}],
        [{"text": "", "reference": ""}],
        [{"text": "x", "reference": ""}],
        [{"text": "", "reference": "x"}],
        [{"text": "a b", "reference": "a b", "duration_s": None, "confidence": None}],
        [{"text": "a", "reference": None, "tags": json.dumps({"b": [1], "c": None})}],
    ],
    ids=str,
)
def test_whatever_a_run_lacks_the_report_is_whole(made, tmp_path):
    for name, errors in (("sound", None), ("broken", runs.errors([{}]))):
        run = runs.write_run(tmp_path / name, runs.transcripts(made), errors=errors, status="running")
        told = report(run)
        json.dumps(told, allow_nan=False)
        assert "coverage" in render.html(told).lower()
        assert "overage" in render.markdown(told)
