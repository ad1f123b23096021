"""`run.json`: typed access to it, records of other versions, and what saving keeps."""

from __future__ import annotations

import json

import pytest

from pipeline.corpus.parts import plan_table
from pipeline.errors import UsageError
from pipeline.runs.record import Attempt, RunRecord, WorkSummary
from pipeline.runs.run import Run, write_plan
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals

TOTALS = {"chunks": 2, "utterances": 3, "errors": 1, "audio_s": 1.5, "source_bytes": 9, "compute_s": 0.5}
WORK = WorkSummary(
    chunks=2,
    utterances=3,
    errors=1,
    audio_s=1.5,
    elapsed_s=3.0,
    stage_s={"read": 1.0},
    rtfx=0.5,
    model_busy=None,
    recognizers=2,
    recognizers_replaced=1,
)


def test_a_record_is_read_by_name():
    record = RunRecord.parse(
        json.dumps(
            {
                "status": "failed",
                "reason": "why",
                "created": "2026-01-01",
                "finished": "2026-01-02",
                "fingerprint": {"model": "aa", "classifiers": {"kw": "bb"}},
                "config": {"normalizer": "basic"},
                "parts": 5,
                "input_bytes": 7,
                "attempts": [{"id": "0", "started": "2026-01-01", "host": "h", "python": "3.11"}],
                "totals": TOTALS,
            }
        ).encode()
    )
    assert (record.status, record.reason) == (RunStatus.FAILED, "why")
    assert (record.created, record.finished) == ("2026-01-01", "2026-01-02")
    assert (record.model_digest, record.classifier_digests) == ("aa", {"kw": "bb"})
    assert (record.normalizer, record.parts, record.input_bytes) == ("basic", 5, 7)
    assert record.totals == Totals(2, 3, 1, 1.5, 9, 0.5)
    [attempt] = record.attempts
    assert (attempt.started, attempt.versions, attempt.work) == ("2026-01-01", {"python": "3.11"}, None)


def test_a_record_without_keys_has_their_defaults():
    record = RunRecord({})
    assert (record.status, record.reason, record.created, record.finished) == (RunStatus.UNKNOWN, None, None, None)
    assert (record.parts, record.input_bytes, record.attempts, record.totals) == (0, 0, (), None)
    assert (dict(record.fingerprint), dict(record.config), record.classifier_digests) == ({}, {}, {})


@pytest.mark.parametrize("status", RunStatus)
def test_every_status_is_read_as_it_is_written(tmp_path, status):
    Run(str(tmp_path), RunRecord({})).save(status=status)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == str(status)
    assert Run.open(tmp_path).status is status


@pytest.mark.parametrize("status", ["paused", "DONE", "", None, 3])
def test_a_status_of_another_version_is_unknown_and_is_kept(tmp_path, status):
    (tmp_path / "run.json").write_text(json.dumps({"status": status}))
    run = Run.open(tmp_path)
    assert run.status is RunStatus.UNKNOWN
    assert not run.is_interrupted()
    write_plan(run.uri, plan_table([]))
    assert run.totals() == Totals()
    run.save(reason="why")
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": status, "reason": "why"}


def test_saving_keeps_unknown_keys_and_their_order(tmp_path):
    text = json.dumps({"z": 1, "status": "running", "a": {"ä": [1, None]}, "attempts": [{"id": "0", "new": 1}]})
    (tmp_path / "run.json").write_text(text)
    run = Run.open(tmp_path)
    run.save(status=RunStatus.STOPPED, attempts=run.record.attempts, totals=Totals(**TOTALS))
    saved = json.loads((tmp_path / "run.json").read_text())
    assert list(saved) == ["z", "status", "a", "attempts", "totals"]
    assert (saved["z"], saved["a"], saved["attempts"]) == (1, {"ä": [1, None]}, [{"id": "0", "new": 1}])
    assert Run.open(tmp_path).record.totals == Totals(**TOTALS)


def test_the_work_of_an_attempt_is_stored_beside_its_versions():
    attempt = Attempt({"id": "0", "started": "t", "host": "h", "python": "3.11"}).with_work(WORK)
    assert list(attempt.values)[:4] == ["id", "started", "host", "python"]
    assert attempt.values["rtfx"] == 0.5
    assert attempt.work == WORK
    assert attempt.versions == {"python": "3.11"}


def test_totals_of_other_versions_are_read():
    assert RunRecord({"totals": TOTALS | {"new": 1}}).totals == Totals(2, 3, 1, 1.5, 9, 0.5)
    assert RunRecord({"totals": {"chunks": 2}}).totals == Totals(chunks=2)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"status": '])
def test_a_record_that_is_not_a_json_object_is_a_usage_error(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json is damaged"):
        Run.open(tmp_path)


@pytest.mark.parametrize("folder", ["/home/user", "../other", "additions/../../other"])
def test_a_record_that_names_a_folder_outside_the_run_is_refused(tmp_path, folder):
    addition = {"folder": folder, "classifiers": {}, "digests": {}, "status": "running"}
    for values in ({"adding": addition}, {"added": [addition]}):
        (tmp_path / "run.json").write_text(json.dumps(values))
        with pytest.raises(UsageError, match="is not below the run"):
            Run.open(tmp_path)


def test_decoding_in_words() -> None:
    assert RunRecord({}).decoding == "greedy"
    weights = {"lm_weight": 0.5, "word_bonus": 1.5, "hotword_weight": 6.0}
    values = {
        "fingerprint": {"beam": 32, "lm": "0a", "hotwords": "0b", **weights},
        "config": {"lm": "s3://models/news.arpa.gz", "hotwords": "names.txt"},
    }
    assert RunRecord(values).decoding == (
        "beam search of width 32, language model news.arpa.gz (weight 0.5, word bonus 1.5), "
        "hot-words names.txt (weight 6.0)"
    )
    assert RunRecord({"fingerprint": {"beam": 8}}).decoding == "beam search of width 8"
