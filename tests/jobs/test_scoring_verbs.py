"""`sewd evaluate`, `compare` and `report`: what they print and write, and their exit codes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from jobs.app import application_for
from jobs.console import run as run_app
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.settings import EvaluationSettings
from tests.support import runs

SPEAKERS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs: `here` has fewer errors than `there` on the same references, and `bare` has no references."""
    path = tmp_path_factory.mktemp("runs")
    spoken = runs.random_rows(200, speakers=SPEAKERS, wrong=0.0, tags=json.dumps({"room": "hall"}))
    noisy = runs.random_rows(200, speakers=SPEAKERS, wrong=0.0)
    for index, row in enumerate(noisy):
        if index % 3:
            row["text"] += " <script>"
    labels = [{"label": "yes", "reference_label": "yes" if i % 4 else "no", "speaker": f"s{i % 15}"} for i in range(60)]
    runs.write_run(path / "here", runs.transcripts(spoken), runs.labels(labels), runs.errors([{}, {}]))
    runs.write_run(path / "there", runs.transcripts(noisy))
    runs.write_run(path / "bare", runs.transcripts([{"text": "one two"}, {"text": ""}]))
    return path


@pytest.fixture
def sewd(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["sewd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_app(application_for())
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return ended.value.code, printed.out, printed.err

    return call


def test_evaluate_prints_rates_coverage_groups_and_labels_and_writes_them(sewd, folder):
    code, out, _ = sewd("evaluate", folder / "there", "--by", "speaker,duration")
    evaluation = evaluate_run(runs.Run.open(folder / "there"), EvaluationSettings(by=("speaker", "duration")))
    assert code == 0
    assert f"{evaluation.wer:.2%}" in out
    interval = evaluation.intervals["wer"]
    assert f"{100 * interval.low:.2f}-{100 * interval.high:.2f}" in out
    assert "coverage 100.00%: 200 scored, 0 without a reference, 0 failed" in out
    assert f"95 % over {SPEAKERS} units (speaker)" in out
    assert "WER by speaker" in out
    assert "WER by duration" in out
    stored = pq.read_table(folder / "there" / "metrics" / "basic.parquet")
    assert set(stored["scope"].to_pylist()) == {"corpus", "speaker", "duration"}

    code, out, _ = sewd("evaluate", folder / "here")
    assert code == 0
    assert "keyword: accuracy 75.00%" in out
    assert "coverage 99.01%: 200 scored, 0 without a reference, 2 failed" in out


def test_no_number_is_cut_off_on_a_narrow_terminal(sewd, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = sewd("evaluate", folder / "there")
    assert "…" not in out


def test_evaluate_takes_other_references_and_names_those_that_match_no_utterance(sewd, folder, tmp_path):
    (tmp_path / "refs.jsonl").write_text(
        "".join(json.dumps({"utt_id": f"u{index:06d}", "text": "nothing"}) + "\n" for index in (*range(150), 999))
    )
    code, out, _ = sewd("evaluate", folder / "here", "--refs", tmp_path / "refs.jsonl", "--compounds")
    assert code == 0
    assert "coverage 74.26%: 150 scored, 50 without a reference, 2 failed" in out
    assert "50 utterances of the run have none and are not scored: u0001" in out
    assert "1 utterances are not in the run: u000999" in out
    assert list((folder / "here" / "metrics").glob("basic-compounds-refs-*.parquet"))


@pytest.mark.parametrize(
    ("condition", "code"),
    [("wer > 50", 0), ("wer >= 0", 4), ("coverage < 99.5", 4), ("accuracy.keyword < 75", 0), ("failed > 0.9", 4)],
)
def test_a_gate_decides_the_exit_code(sewd, folder, condition, code):
    exit_code, out, err = sewd("evaluate", folder / "here", "--fail-if", condition)
    assert exit_code == code
    assert ("sewd: failed: " + condition in err) == (code == 4)
    assert "WER" in out


def test_a_gate_on_a_run_without_references_fails(sewd, folder):
    code, _, err = sewd("evaluate", folder / "bare", "--fail-if", "wer > 50")
    assert code == 4
    assert "it cannot be checked" in err


def test_compare_prints_differences_tests_and_examples(sewd, folder):
    code, out, _ = sewd("compare", folder / "here", folder / "there", "--fail-if", "wer > baseline + 0.2")
    assert code == 0
    assert (
        f"a, the run:      {folder / 'here'} (model models/tiny; greedy)\nb, the baseline: {folder / 'there'} (model"
        in out
    )
    assert "P(a is better)" in out
    assert "100.00%" in out
    assert "McNemar: p = " in out
    assert "133 utterances with fewer in a, 0 with more, 67 with as many" in out
    assert "fewer errors in a:" in out
    assert "more errors in a:" not in out
    assert "<script>" in out

    code, _, err = sewd("compare", folder / "there", folder / "here", "--fail-if", "wer > baseline + 0.2")
    assert code == 4
    assert "failed: wer > baseline + 0.2: the value is " in err


def test_compare_of_equal_runs_reports_no_improvement(sewd, folder):
    code, out, _ = sewd("compare", folder / "here", folder / "here")
    assert code == 0
    assert "a and b are the same run" in out
    assert "no difference: a and b have as many word errors in each utterance" in out
    for absent in ("50.00%", "McNemar", "a - b", "errors in a:"):
        assert absent not in out


def test_compare_names_the_fallbacks_of_either_run(sewd, folder, tmp_path):
    rows = runs.transcripts(runs.random_rows(200, speakers=SPEAKERS, wrong=0.0))
    slow = runs.write_run(tmp_path / "slow", rows)
    totals = slow.record.totals
    assert totals is not None
    slow.save(
        totals=replace(totals, engines={"clip by clip float32 on CPU": 200}, fallbacks={"no AVX-512": 150}, splits=2)
    )
    for first, second, side in ((tmp_path / "slow", folder / "there", "a"), (folder / "there", tmp_path / "slow", "b")):
        code, out, _ = sewd("compare", first, second)
        assert code == 0
        lines = out.splitlines()
        [at] = [i for i, line in enumerate(lines) if "150 of 200 transcripts" in line]
        assert lines[at].endswith("were computed by a fallback: no AVX-512")
        assert lines[at - 1].startswith(f"{side}, ")
        assert lines[at - 1].endswith("(model models/tiny, clip by clip float32 on CPU; greedy)")
        assert "halved 2 times" in lines[at + 1]

        sewd("report", first, "--baseline", second, "--output", tmp_path / "r.md")
        text = (tmp_path / "r.md").read_text()
        assert f"{side}, {'this run' if side == 'a' else 'the baseline'}: 150 of 200 transcripts" in text


def test_groups_by_a_key_of_the_manifest_need_no_prefix(sewd, folder, tmp_path):
    tables = []
    for name in ("room", "tags.room"):
        code, out, _ = sewd("evaluate", folder / "here", "--by", name)
        assert code == 0
        tables.append([word for line in out.splitlines() if line.startswith("  hall ") for word in line.split()])
    assert tables[0] == tables[1]
    assert len(tables[0]) >= 6

    code, _, err = sewd("report", folder / "here", "--by", "rooom", "--output", tmp_path / "r.md")
    assert code == 2
    assert "cannot group by 'rooom': no utterance has it. Choose a key of the source (room)" in err


def test_groups_show_durations_in_a_unit_that_fits_and_no_group_without_references(sewd, tmp_path):
    made = [{"text": "a", "reference": "a", "speaker": "s", "duration_s": 2.25}]
    made += [{"text": "a", "speaker": f"unscored{i}", "duration_s": 3.0} for i in range(3)]
    runs.write_run(tmp_path / "run", runs.transcripts(made))
    _, out, _ = sewd("evaluate", tmp_path / "run", "--by", "speaker")
    assert "2.2 s" in out
    assert "0.00 " not in out.split("WER by speaker")[1]
    assert "unscored" not in out
    assert "3 groups without a reference left out" in out


@pytest.mark.parametrize("kind", ["html", "md", "json"])
def test_report_writes_one_file_in_the_format_of_its_suffix(sewd, folder, tmp_path, kind):
    target = tmp_path / f"report.{kind}"
    code, out, _ = sewd("report", folder / "there", "--baseline", folder / "here", "--output", target, "--by", "uri")
    assert code == 0
    assert str(target) in out.replace("\n", "")
    text = target.read_text()
    assert ("<script>" in text) == (kind == "json") or kind == "html"
    evaluation = evaluate_run(runs.Run.open(folder / "there"))
    if kind == "json":
        content = json.loads(text)
        assert content["headline"][0]["rate"] == evaluation.wer
        assert content["groups"][0]["by"] == "uri"
    else:
        assert f"{100 * evaluation.wer:.1f}" in text


def test_report_is_written_into_the_run_by_default_and_applies_the_gate(sewd, folder):
    code, _, err = sewd("report", folder / "here", "--fail-if", "failed > 0.5", "--cost-per-hour", "2.5")
    assert code == 4
    assert "failed > 0.5" in err
    page = (folder / "here" / "report.html").read_text()
    assert "the run fails if failed &gt; 0.5" in page
    assert "USD" in page


def test_report_of_a_corpus_without_references(sewd, folder, tmp_path):
    for options in ([], ["--corpus"]):
        code, _, _ = sewd("report", folder / "bare", "--output", tmp_path / "r.json", *options)
        content = json.loads((tmp_path / "r.json").read_text())
        assert code == 0
        assert (content["headline"], content["worst"], content["corpus"]["utterances"]) == ([], None, 2)
    sewd("report", folder / "here", "--output", tmp_path / "r.json", "--corpus")
    content = json.loads((tmp_path / "r.json").read_text())
    assert (content["headline"], content["classification"], content["corpus"]["utterances"]) == ([], [], 200)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "HERE", "--by", "colour"], ["cannot group by 'colour'", "speaker", "room"]),
        (["evaluate", "HERE", "--unit", "word"], ["unknown unit 'word'", "recording"]),
        (["evaluate", "HERE", "--level", "95"], ["level"]),
        (["evaluate", "HERE", "--normalizer", "odd"], ["odd", "basic, none"]),
        (["evaluate", "HERE", "--refs", "nowhere.jsonl"], ["no references at", "nowhere.jsonl"]),
        (["evaluate", "HERE", "--fail-if", "good"], ["'good' is not a condition"]),
        (["evaluate", "HERE", "--fail-if", "wer > baseline"], ["needs a baseline"]),
        (["evaluate", "HERE", "--fail-if", "speed > 1"], ["unknown metric 'speed'", "wer"]),
        (["compare", "HERE", "nowhere"], ["no run at", "nowhere"]),
        (["compare", "HERE", "BARE"], ["bare", "no scored utterance", "--refs FILE"]),
        (["report", "HERE", "--output", "report.pdf"], ["report.pdf", ".html, .md, .json"]),
    ],
)
def test_a_usage_error_gives_one_line(sewd, folder, arguments, words):
    paths = {"HERE": folder / "here", "BARE": folder / "bare"}
    code, _, err = sewd(*(paths.get(argument, argument) for argument in arguments))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err


def test_a_gate_against_a_baseline_uses_paired_and_lost_utterances(sewd, tmp_path):
    easy = [{"text": "a b", "reference": "a b", "utt_id": f"e{i}"} for i in range(20)]
    hard = [{"text": "x y", "reference": "c d", "utt_id": f"h{i}"} for i in range(20)]
    runs.write_run(tmp_path / "base", runs.transcripts(easy + hard))
    # Worse on the easy utterances and without the hard ones: its own WER is not higher than the baseline's.
    runs.write_run(tmp_path / "new", runs.transcripts([row | {"text": "a x"} for row in easy]))
    gate = ("--fail-if", "wer > baseline + 0.2", "--fail-if", "lost > 0")
    code, out, err = sewd("compare", tmp_path / "new", tmp_path / "base", *gate)
    assert code == 4
    assert "wer > baseline + 0.2: the value is 50.00, the limit 0.20" in err
    assert "lost > 0: the value is 50.00" in err
    assert "20 scored only in b" in " ".join(out.split())  # a long path wraps the line
    code, _, err = sewd("report", tmp_path / "new", "--baseline", tmp_path / "base", *gate)
    assert code == 4
    assert "the value is 50.00, the limit 0.20" in err


def test_a_gate_fails_on_a_run_that_is_not_done(sewd, tmp_path):
    runs.write_run(tmp_path / "run", runs.transcripts(runs.random_rows(20)), status="stopped")
    code, out, err = sewd("evaluate", tmp_path / "run", "--fail-if", "wer > 99")
    assert code == 4
    assert "is not done" in err
    assert "not done (stopped)" in out


def test_names_that_look_like_markup_are_printed_as_they_are(sewd, tmp_path):
    names = ["[/INST]", "[noise]", "[red]Anna"]
    rows = [{"text": "a", "reference": "a", "speaker": name} for name in names]
    labels = [{"label": name, "reference_label": name} for name in names]
    runs.write_run(tmp_path / "run", runs.transcripts(rows), runs.labels(labels))
    code, out, _ = sewd("evaluate", tmp_path / "run", "--by", "speaker")
    assert code == 0
    for name in names:
        assert out.count(name) == 2


def test_the_texts_of_recordings_are_printed_and_nothing_is_written(sewd, tmp_path):
    rows = [
        {"utt_id": f"call#{start}-{start + 1000}", "text": text, "uri": "/in/call.wav", "start_s": start / 1000}
        for start, text in ((1000, "there [bold]\x1b[31m"), (0, "hello"))
    ]
    rows.append({"utt_id": "quiet", "text": "", "uri": "/in/quiet.wav"})
    rows = [row | {"duration_s": 1.0} for row in rows]
    failed = {"utt_id": "bad", "uri": "/in/bad.wav", "code": "TRUNCATED", "message": "it ends at byte 9"}
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows), errors=runs.errors([failed]))
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = sewd("recordings", tmp_path / "run", "--text")
    assert (code, sorted(tmp_path.rglob("*"))) == (0, before)
    assert sorted(out.splitlines()) == [
        "bad: (TRUNCATED: it ends at byte 9)",
        "call: hello there [bold]\ufffd[31m",
        "quiet: (nothing was recognised)",
    ]
    assert sewd("recordings", run.uri, "--text", "--output", "a.parquet")[0] == 2


def test_labels_without_references_are_a_line_and_no_empty_table(sewd, tmp_path):
    labels = [{"label": "yes", "reference_label": None} for _ in range(3)]
    run = runs.write_run(tmp_path / "run", runs.transcripts(runs.random_rows(20)), runs.labels(labels))
    code, out, _ = sewd("evaluate", run.uri)
    assert code == 0
    assert "no accuracy: 0 scored, 3 without a reference label" in out
    assert "precision" not in out


def test_export_prints_what_it_wrote_and_what_it_left_out(sewd, folder, tmp_path):
    code, out, _ = sewd(
        "export", folder / "here", "--format", "trn", "--output", tmp_path / "a", "--where", "speaker = 's03'"
    )
    written = (tmp_path / "a").read_text().splitlines()
    assert code == 0
    assert f"{len(written)} utterances of {len(written)} recordings" in out
    assert f"{200 - len(written)} utterances left out by --where" in out
    assert "2 error rows of the run left out" in out
    code, _, err = sewd("export", folder / "here", "--format", "docx", "--output", tmp_path / "b")
    assert (code, "choose one of" in err) == (2, True)
    code, _, err = sewd("export", folder / "here", "--format", "trn", "--output", tmp_path / "b", "--where", "wer > 1")
    assert (code, "there is no column 'wer'" in err) == (2, True)
    assert not (tmp_path / "b").exists()


def test_rules_of_a_file_score_again_and_are_named_by_their_digest(sewd, folder, tmp_path):
    pytest.importorskip("re2")
    (tmp_path / "my.tsv").write_text(r"<script>" + "\n")
    rules = f"rules:{tmp_path / 'my.tsv'}"
    code, out, _ = sewd("evaluate", folder / "there", "--normalizer", rules)
    assert code == 0
    (stored,) = (folder / "there" / "metrics").glob("rules.*.parquet")
    assert f"errors, normalizer {stored.stem}" in out
    assert pq.read_table(stored)["normalizer"].unique().to_pylist() == ['rules:[["<script>",""]]']
    assert re.search(r"WER +0\.00%", out)
    assert sewd("compare", folder / "there", folder / "here", "--normalizer", rules)[0] == 0
    page = tmp_path / "a.md"
    assert sewd("report", folder / "there", "--normalizer", rules, "--output", page, "--audio", "none")[0] == 0
    assert stored.stem in page.read_text()


def test_confidences_are_calibrated_on_one_run_and_applied_in_evaluation_and_export(sewd, tmp_path):
    def rows(seed):
        words = [{"word": "a", "start_s": 0.0, "end_s": 0.5}, {"word": "b", "start_s": 0.5, "end_s": 1.0}]
        for index in range(300):
            confidence = 0.9 if index % 3 else 0.5
            reference = "a b" if (index + seed) % 2 else "a c"
            own = {"text": "a b", "reference": reference, "confidence": confidence}
            yield own | {"words": [word | {"confidence": confidence} for word in words]}

    for name, seed in (("learned", 0), ("other", 1)):
        runs.write_run(tmp_path / name, runs.transcripts(list(rows(seed))))
    code, out, _ = sewd("calibrate", tmp_path / "learned")
    assert code == 0
    assert re.search(r"word +600 +75\.00%", out)
    stored = tmp_path / "learned" / "calibration.json"
    errors = {}
    for options in ((), ("--calibration", stored)):
        code, out, _ = sewd("evaluate", tmp_path / "other", *options)
        errors[options] = float(re.search(r"ECE\) ([0-9.]+)%", " ".join(out.split()))[1])
    assert code == 0
    assert errors[()] > 25
    assert errors["--calibration", stored] < 1
    target = tmp_path / "out.jsonl"
    code, out, _ = sewd(
        *("export", tmp_path / "other", "--format", "jsonl", "--output", target),
        *("--calibration", stored, "--where", "confidence < 0.6"),
    )
    assert (code, "300 utterances" in out) == (0, True)
    line = json.loads(target.read_text().splitlines()[0])
    assert line["words"][0]["confidence"] == pytest.approx(0.75, abs=0.01)
    assert line["segments"][0]["confidence"] == pytest.approx(0.5, abs=0.01)
    code, _, err = sewd("evaluate", tmp_path / "other", "--calibration", tmp_path / "none.json")
    assert (code, "sewd calibrate RUN" in err) == (2, True)
