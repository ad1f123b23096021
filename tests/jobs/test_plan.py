"""`sewd plan`: what it prints, and its exit codes."""

from __future__ import annotations

import json

import pytest

from jobs.console import out
from jobs.plan import show_prediction
from pipeline import Run
from pipeline.errors import UsageError
from pipeline.report.formats import duration
from pipeline.report.summary import summarize_run
from pipeline.runs import hub_commits
from pipeline.runs.record import RunRecord
from tests.support.command import sewd_in_process
from tests.support.corpora import write_audio
from tests.support.inputs import manifest, tar, write_files


def test_what_is_recognised_is_printed_by_input(tmp_path):
    write_files(tmp_path / "d", "a.txt", "x.pdf")
    for name in "ab":
        write_audio(tmp_path / "d" / f"{name}.wav", 1.0)
    tar(tmp_path / "s.tar", ("c.wav", write_audio(tmp_path / "c.wav", 1.6, rate=8000).read_bytes()))
    done = sewd_in_process("plan", tmp_path / "d", tmp_path / "s.tar")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{tmp_path}/d",
        "  audio: 2 objects in 1 parts, 0.1 MiB",
        "    utterances 2, with a reference 1, with a label only 0",
        "    audio: wav 2 (0.1 MiB)",
        f"{tmp_path}/s.tar",
        "  webdataset: 1 objects in 1 parts, 0.0 MiB",
        "    utterances ?, with a reference ?, with a label only ?",
        "  all: 3 objects in 2 parts, 0.1 MiB",
        "    utterances ?, with a reference ?, with a label only ?",
        "    audio: wav 2 (0.1 MiB)",
        "headers: 3 of 3 recordings; 0.00 h",
        "  8,000 Hz 1, 16,000 Hz 2; 1 channel 3",
    ]
    assert done.stderr.splitlines() == ["warning: left out: 1 file that is neither audio nor text of it: .pdf 1"]


def test_json_has_the_same_numbers_and_rows_with_errors_give_code_3(tmp_path):
    path = manifest(tmp_path / "m.jsonl", {"clip": "a.wav", "text": "x"}, {"clip": "a.wav"}, {"clip": 5})
    done = sewd_in_process("plan", path, "--json", "--column", "audio=clip", "--input-format", "manifest")
    (of_input,) = json.loads(done.stdout)["inputs"]
    (found,) = of_input["found"]
    assert (of_input["uri"], of_input["problem"]) == (str(path), None)
    assert (found["format"], found["utterances"], found["references"]) == ("manifest", 3, 1)
    assert (found["suffixes"], found["errors"]) == ({"wav": 2, "": 1}, {"DUPLICATE_ID": 1})
    assert done.returncode == 3
    of_headers = json.loads(done.stdout)["recordings"]
    assert (of_headers["headers_read"], of_headers["failed"]) == (3, {"MISSING": 3})


def test_an_input_that_is_refused_gives_code_2_and_the_others_are_printed(tmp_path):
    write_files(tmp_path, "a.wav", "b.zip")
    done = sewd_in_process("plan", tmp_path / "b.zip", tmp_path / "a.wav")
    assert done.returncode == 2
    assert "audio: 1 objects" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("sewd: ")
    assert "unpack it" in line


def test_what_cannot_be_read_is_shown_with_examples(tmp_path):
    write_files(tmp_path, "a.wav")
    done = sewd_in_process("plan", tmp_path)
    assert done.returncode == 3
    assert "  cannot be read: 100.00% (UNDECODABLE 1)" in done.stdout
    assert f"    {tmp_path}/a.wav: UNDECODABLE: " in done.stdout


def test_a_run_in_the_working_directory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_audio(tmp_path / "a.wav", 1.0)
    Run(".", RunRecord({"status": "done", "fingerprint": {"commits": {"hf://org/name": "a" * 40}}})).save()
    asked = []

    def pinned(uri):
        asked.append(uri)
        raise UsageError(f"{uri} is not looked up")

    monkeypatch.setattr(hub_commits, "pinned", pinned)
    assert sewd_in_process("plan", "a.wav", "--model", "org/name").returncode == 2
    assert asked == ["org/name"]  # not at the commit of that run


@pytest.mark.parametrize("option", [("--cluster", "c.yaml"), ("--cost-per-hour", "2"), ("--classifier", "bundled")])
def test_options_of_a_prediction_need_a_model(tmp_path, option):
    done = sewd_in_process("plan", tmp_path, *option)
    assert done.returncode == 2
    assert "--model" in done.stderr


@pytest.mark.usefixtures("local_ray")
def test_a_prediction_is_printed_and_compared_with_the_run(tmp_path, small_ctc):
    for index in range(4):
        write_audio(tmp_path / "audio" / f"{index}.wav", 2.0, seed=index)
    shown = sewd_in_process("plan", tmp_path / "audio", "--model", small_ctc, "--cost-per-hour", 3600, "--json")
    assert shown.returncode == 0
    found = json.loads(shown.stdout)["prediction"]
    assert found["audio_s"] == 8.0
    assert found["cost"] == pytest.approx(found["time_s"])
    with out.capture() as printed:
        show_prediction(found, "m", None)
    assert "prediction for m on this machine: 1 recogniser, " in printed.get()
    assert "actor hours" in printed.get()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio"]  # nothing is written

    prediction = tmp_path / "plan.json"
    prediction.write_text(json.dumps({"prediction": found | {"run_s": 2.0}}))
    run = tmp_path / "run"
    done = sewd_in_process(
        *("transcribe", tmp_path / "audio", "--output", run, "--model", small_ctc, "--prediction", prediction)
    )
    assert done.returncode == 0, done.stderr
    opened = Run.open(run)
    assert opened.record.predicted_s == 2.0
    took = f"predicted 2.0 s, took {duration(opened.record.wall_s)} ("
    assert took in done.stdout
    assert took in sewd_in_process("status", run).stdout
    assert "predicted" not in opened.record.attempts[0].versions
    assert summarize_run(opened).predicted_s == 2.0
    sewd_in_process("report", run, "--output", tmp_path / "report.md")
    assert "Predicted by sewd plan" in (tmp_path / "report.md").read_text()


NO_PREDICTIONS = {
    "empty": "",
    "no-prediction": "{}",
    "null": '{"prediction": null}',
    "text": '{"prediction": {"run_s": "x"}}',
    "zero": '{"prediction": {"run_s": 0}}',
    "negative": '{"prediction": {"run_s": -5.0}}',
    "nan": '{"prediction": {"run_s": NaN}}',
    "infinite": '{"prediction": {"run_s": Infinity}}',
    "bool": '{"prediction": {"run_s": true}}',
    "no-audio": '{"prediction": {"run_s": 2.0, "audio_s": null}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", NO_PREDICTIONS.values(), ids=NO_PREDICTIONS)
def test_what_is_no_prediction_is_bad_usage(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    write_files(tmp_path, "a.wav")
    done = sewd_in_process(
        *("transcribe", tmp_path / "a.wav", "--output", tmp_path / "run", "--prediction", tmp_path / "plan.json")
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("sewd: prediction: ")
    assert not (tmp_path / "run").exists()
