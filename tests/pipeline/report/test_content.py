"""The content of a report: its figures are those of the run, it serialises to JSON, and empty runs have one too."""

from __future__ import annotations

import itertools
import json

import jiwer
import pytest

from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.gate import Verdict
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.report import render
from pipeline.report.content import WORST, ReportSettings, build_report
from pipeline.report.model import Coverage, ErrorMessage, GateResult, to_json
from pipeline.report.summary import Cost
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
def report(run):
    return build_report(run, settings=ReportSettings(EvaluationSettings(by=("tags.lang",)), cost=Cost(6.0, "EUR")))


def assert_same_shape(made, example, where="report"):
    """Every key of the example is in the made report, at every depth where both have something."""
    if where.endswith(("fingerprint", "config", "versions")):  # their keys are the run's
        return
    if isinstance(made, dict) and isinstance(example, dict):
        missing = set(example) - set(made)
        assert not missing, f"{where}: {missing}"
        for key in set(made) & set(example):
            assert_same_shape(made[key], example[key], f"{where}.{key}")
    if isinstance(made, list) and isinstance(example, list) and made and example:
        assert_same_shape(made[0], example[0], f"{where}[0]")


def test_reports_have_the_shape_that_the_renderer_is_tested_on(report, run):
    assert_same_shape(to_json(report), to_json(reports.full()))
    assert_same_shape(to_json(build_report(run, run)), to_json(reports.full()))


def test_the_json_report_is_plain_json(report):
    assert json.loads(json.dumps(to_json(report), allow_nan=False)) == to_json(report)
    assert json.loads(render.json_text(report)) == to_json(report)


def test_figures_are_those_of_the_evaluation(report, run):
    evaluation = evaluate_run(run)
    assert {each.metric: each.rate for each in report.headline} == evaluation.rates
    wer = report.headline[0]
    assert (wer.interval.low, wer.interval.units) == (evaluation.intervals["wer"].low, 15)
    assert report.coverage == Coverage(rows=408, scored=400, no_reference=0, failed=8, share=400 / 408)
    assert sum(report.distribution.counts) == 400
    assert [grouping.by for grouping in report.groups] == ["tags.lang", "speaker", "duration", "confidence"]
    assert len(report.confidence.bins) == 10
    for each in report.confidence.bins:
        assert each.low <= each.confidence <= each.high + 1e-3


def test_speed_and_cost_come_from_the_record(report):
    audio_s = report.run.audio_s
    assert report.run.wall_s == 60
    assert report.run.rtfx == pytest.approx(audio_s / 60)
    assert report.run.compute_rtfx == pytest.approx(50)
    assert report.run.cost.total == pytest.approx(0.1)
    assert report.run.cost.per_audio_hour == pytest.approx(0.1 / (audio_s / 3600))


def test_the_worst_utterances_are_aligned(report, rows):
    worst = report.worst
    by_id = {f"u{index:06d}": row for index, row in enumerate(rows)}
    wrong = [row for row in rows if row["text"] != row["reference"]]
    assert (worst.shown, worst.of) == (min(len(wrong), WORST), len(wrong))
    errors = [utterance.counts.errors for utterance in worst.rows]
    assert errors == sorted(errors, reverse=True)
    for utterance in worst.rows:
        source = by_id[utterance.utt_id]
        assert " ".join(filter(None, (reference for _, reference, _ in utterance.alignment))) == source["reference"]
        assert " ".join(filter(None, (hypothesis for _, _, hypothesis in utterance.alignment))) == source["text"]
        words = jiwer.process_words(source["reference"], source["text"])
        assert utterance.counts.errors == words.substitutions + words.deletions + words.insertions


def test_confusions_sum_to_the_error_counts(report):
    confusions = report.confusions
    assert confusions.sampled == confusions.of == report.headline[2].counts.errors
    counts = report.headline[0].counts
    for kind in ("substitutions", "deletions", "insertions"):
        shown = [each.count for each in getattr(confusions, kind)]
        assert shown == sorted(shown, reverse=True)
        assert sum(shown) <= getattr(counts, kind)
    assert sum(each.count for each in confusions.deletions) == counts.deletions
    assert confusions.insertions[0].hypothesis == "um"


def test_errors_are_grouped_by_code_and_by_message(report):
    assert [(each.code, each.count, each.share) for each in report.errors] == [
        ("UNDECODABLE", 7, 7 / 8),
        ("MISSING", 1, 1 / 8),
    ]
    assert report.errors[0].messages == [ErrorMessage("ends at byte #", 7)]
    assert len(report.errors[0].examples) == 5


def test_labels_are_evaluated_and_counted(report):
    (task,) = report.classification
    assert (task.accuracy, task.scored) == (0.5, 100)
    assert task.interval.units == 20
    assert sum(map(sum, task.confusion.matrix)) == 100
    assert [(each.label, each.count) for each in report.corpus.labels[0].labels] == [("no", 50), ("yes", 50)]


def test_labels_are_counted_over_the_rows_that_the_classifier_was_meant_for(tmp_path):
    def rows(task, scores, reference, count):
        return [{"task": task, "scores": scores, "reference_label": reference} for _ in range(count)]

    labels = [
        *rows("language", {"en": 0.9, "de": 0.1}, "en", 6),
        *rows("language", {"en": 0.3, "de": 0.7}, "de", 2),
        *rows("language", {"en": 0.9, "de": 0.1}, "yes", 5),  # meant for the other classifier
        *rows("language", {"en": 0.9, "de": 0.1}, "klingon", 1),  # no classifier has it
        *rows("language", {"en": 0.9, "de": 0.1}, None, 4),
        *rows("keyword", {"yes": 0.8, "no": 0.2}, "yes", 5),
        *rows("keyword", {"yes": 0.8, "no": 0.2}, "en", 6),
        *rows("keyword", {"yes": 0.8, "no": 0.2}, None, 4),
        *rows("age", {"old": 0.8, "young": 0.2}, None, 9),
    ]
    run = runs.write_run(tmp_path / "run", runs.transcripts([{"text": "a"}]), runs.labels(labels))
    report = build_report(run)

    scored = {each.task: each for each in report.classification}
    assert (scored["language"].scored, scored["language"].other_label, scored["language"].unknown_label) == (9, 5, 1)
    assert scored["language"].accuracy == pytest.approx(8 / 9)
    assert sum(each.count for each in scored["language"].calibration.bins) == 9
    assert (scored["keyword"].scored, scored["keyword"].other_label, scored["keyword"].accuracy) == (5, 6, 1.0)

    counted = {each.task: each for each in report.corpus.labels}
    language = {each.label: (each.count, each.others) for each in counted["language"].labels}
    assert (counted["language"].rows, counted["language"].others, language) == (9, 9, {"en": (7, 9), "de": (2, 0)})
    assert counted["language"].labels[0].share == pytest.approx(7 / 9)
    assert [(each.count, each.others) for each in counted["keyword"].labels] == [(5, 10)]
    assert (counted["age"].rows, counted["age"].others) == (9, 0)  # nothing has a label of it: all rows are counted
    text = render.markdown(report)
    assert "5 have a reference label of another classifier and are not scored" in text
    assert "Predicted labels of language: 9 utterances with a reference label of it" in text


def test_groups_without_references_are_counted_and_not_shown(tmp_path):
    made = [{"text": "a", "reference": "b", "speaker": "s"}] + [{"text": "a", "speaker": f"t{i}"} for i in range(5)]
    report = build_report(runs.write_run(tmp_path / "run", runs.transcripts(made)))
    grouping = next(each for each in report.groups if each.by == "speaker")
    assert ([each.key for each in grouping.groups], grouping.total, grouping.unscored) == (["s"], 1, 5)
    assert "5 groups without a reference left out" in render.markdown(report)


@pytest.mark.parametrize("values", [[0.93, 0.97, 1.0], [1.0], [0.0, 1.0], [0.5, 0.5000001], [3.7, 21.9, 0.2], [4000.0]])
def test_histograms_have_round_edges_and_hold_every_value(values, tmp_path):
    made = [{"text": "a", "confidence": min(value, 1.0), "duration_s": value} for value in values]
    corpus = build_report(runs.write_run(tmp_path / "run", runs.transcripts(made))).corpus
    for histogram in (corpus.durations, corpus.confidences):
        assert sum(histogram.counts) == len(values)
        assert len(histogram.counts) <= 26
        assert all(len(f"{edge:g}") <= 5 for edge in histogram.edges)
    assert min(corpus.confidences.counts[0], corpus.confidences.counts[-1]) > 0


def seconds_of_speech(words: list[dict]) -> float:
    """Hundredths of a second that lie in a word, or between two words less than half a second apart."""
    spans = [(word["start_s"], word["end_s"]) for word in words]
    gaps = [(before[1], after[0]) for before, after in itertools.pairwise(spans) if after[0] - before[1] < 0.5]
    return sum(stop - start for start, stop in spans + gaps)


@pytest.mark.parametrize(
    ("spans", "share"),
    [([(0, 1)], 0.1), ([(0, 1), (1.4, 2)], 0.2), ([(0, 1), (1.6, 2)], 0.14), ([(0, 1), (9, 10)], 0.2), ([], 0.0)],
)
def test_the_share_of_speech_has_short_gaps_between_words_and_no_pauses(tmp_path, spans, share):
    words = [{"word": "a", "start_s": start, "end_s": stop, "confidence": 1.0} for start, stop in spans]
    made = [{"text": "a" * bool(words), "duration_s": 10.0, "words": words}] * 2  # the gap between rows counts as none
    report = build_report(runs.write_run(tmp_path / "run", runs.transcripts(made)))
    assert report.corpus.speech_share == pytest.approx(share)


def test_the_corpus_is_described_without_references(report, rows):
    corpus = report.corpus
    words = sum(len(row["text"].split()) for row in rows)
    seconds = sum(row["duration_s"] for row in rows)
    assert corpus.utterances == 400
    assert corpus.words == words
    assert corpus.speech_share == pytest.approx(sum(seconds_of_speech(row["words"]) for row in rows) / seconds)
    assert sum(corpus.durations.counts) == 400
    assert corpus.empty_texts == sum(row["text"] == "" for row in rows)
    assert corpus.by_tag[0].values[0].utterances == 400


def test_gate_and_comparison_are_reported(run, rows, tmp_path):
    correct = [row | {"text": row["reference"]} for row in rows]
    baseline = runs.write_run(tmp_path / "other", runs.transcripts(correct))
    verdict = Verdict("wer > baseline", 9.0, 0.0, failed=True)
    report = build_report(run, baseline, gate=[verdict])
    assert report.gate == [GateResult("wer > baseline", value=9.0, limit=0.0, failed=True)]
    compared = report.comparison
    assert compared.changes.better == 0
    assert compared.metrics[0].difference == pytest.approx(report.headline[0].rate)
    assert compared.worse[0].difference == compared.worse[0].here.errors > 0
    assert compared.worse[0].baseline.errors == 0
    assert "Comparison with the baseline" in render.html(report)


def test_a_comparison_of_a_run_with_itself_reports_no_difference(run):
    report = build_report(run, run)
    assert report.comparison.changes.same == report.comparison.paired.utterances == 400
    assert "No difference: both runs have the same error rates" in render.markdown(report)


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
def test_runs_with_missing_values_have_a_complete_report(made, tmp_path):
    for name, errors in (("sound", None), ("broken", runs.errors([{}]))):
        run = runs.write_run(tmp_path / name, runs.transcripts(made), errors=errors, status="running")
        report = build_report(run)
        json.dumps(to_json(report), allow_nan=False)
        assert "coverage" in render.html(report).lower()
        assert "overage" in render.markdown(report)


def test_no_form_of_a_report_has_the_signature_of_an_address(tmp_path):
    signed = {"uri": "https://x.org/a.wav?sv=1&sig=hushhush"}
    rows = [{"text": "a", "reference": "b", **signed} for _ in range(3)]
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows), errors=runs.errors([signed]))
    made = build_report(run, settings=ReportSettings(EvaluationSettings(), audio="link"))
    for written in (render.html(made), render.markdown(made), render.json_text(made)):
        assert "hushhush" not in written
        assert "x.org/a.wav" in written
