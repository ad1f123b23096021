"""A run reports what computed it: its engines, halved batches, and a fallback with its reason."""

from __future__ import annotations

import json

import pipeline
from pipeline.driver import dataset
from pipeline.driver import transcribe as driver
from pipeline.runs.verify import verify
from pipeline.storage import objects, uris
from sewd_model.packed.gpu_batches import BUDGET_S
from tests.faults import small_device
from tests.support import corpora
from tests.support.command import sewd

DROP = ("confidence", "words")  # the last digits may differ


def test_a_run_reports_its_engines_also_if_they_changed_between_two_starts(tmp_path, local_ray, small_ctc, monkeypatch):
    for index in range(8):
        corpora.write_audio(tmp_path / "in" / f"{index}.wav", 1.0, index)
    config = {"inputs": (str(tmp_path / "in"),), "model": str(small_ctc), "chunk_rows": 4, "threads": 1}

    def transcribe(name):
        return pipeline.transcribe(pipeline.RunConfig(output=str(tmp_path / name), **config))

    undisturbed = transcribe("undisturbed")
    (packed,) = undisturbed.record.totals.engines
    assert packed.startswith("packed float32 on cpu ")
    assert packed.endswith(", batches of 20 s")
    assert undisturbed.totals().warnings == []

    monkeypatch.setattr(dataset, "RecognizerActor", small_device.SmallDevice)
    with monkeypatch.context() as patch:  # the driver ends before it compacts the files, as if it was killed then
        patch.setattr(driver, "finish_run", lambda run, *_: run.save(status="failed"))
        transcribe("run")
    first, second = sorted(pipeline.Run.open(tmp_path / "run").commits(), key=lambda commit: commit.chunk)
    assert [commit.engines[0].budget_s for commit in (first, second)] == [BUDGET_S, BUDGET_S]
    assert [commit.splits for commit in (first, second)] == [1, 1], "two of four clips fit in memory"
    objects.delete([uris.join(str(tmp_path / "run"), second.path)])

    monkeypatch.setattr(dataset, "RecognizerActor", small_device.Disagreeing)
    run = transcribe("run")
    totals = run.totals()
    assert totals.engines == {first.engine: 4, first.engine.replace("packed", "padded"): 4}
    assert totals.splits == 1
    ((reason, count),) = totals.fallbacks.items()
    assert count == 4
    assert reason.startswith("no packed batches: DisagreementError: logits differ from those of the reference by ")
    assert verify(run).problems == ()
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(undisturbed, drop=DROP)

    warnings = [
        f"warning: 4 of 8 transcripts, or their labels, were computed by a fallback: {reason}",
        "warning: a batch was halved 1 time because memory ran out",
    ]
    arguments = ("--model", small_ctc, "--chunk-rows", 4, "--threads", 1)
    for verb in (("transcribe", tmp_path / "in", "-o", run.uri, *arguments), ("status", run.uri), ("report", run.uri)):
        done = sewd(*verb)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines() == warnings
    assert "padded float32" in sewd("status", run.uri).stdout
    html = (tmp_path / "run" / "report.html").read_text()
    assert "padded float32 on cpu" in html
    assert f"4 of 8 transcripts, or their labels, were computed by a fallback: {reason.partition(':')[0]}" in html
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["totals"]["engines"] == totals.engines


def test_a_device_that_fails_ends_its_actor_and_the_run_survives(tmp_path, local_ray, small_ctc, monkeypatch):
    for index in range(8):
        corpora.write_audio(tmp_path / "in" / f"{index}.wav", 1.0, index)
    config = {"inputs": (str(tmp_path / "in"),), "model": str(small_ctc), "chunk_rows": 4, "threads": 1}
    undisturbed = pipeline.transcribe(pipeline.RunConfig(output=str(tmp_path / "undisturbed"), **config))
    failed = tmp_path / "failed"
    monkeypatch.setattr(dataset, "RecognizerActor", small_device.fails_once(failed))
    run = pipeline.transcribe(pipeline.RunConfig(output=str(tmp_path / "run"), **config))
    assert failed.exists()
    assert verify(run).problems == ()
    assert corpora.rows_of(run, drop=DROP) == corpora.rows_of(undisturbed, drop=DROP)
    assert corpora.rows_of(run, "errors") == []


def test_the_record_of_a_version_without_engines_is_read(tmp_path, local_ray, small_ctc):
    corpora.write_audio(tmp_path / "in" / "a.wav", 1.0)
    config = pipeline.RunConfig(inputs=(str(tmp_path / "in"),), output=str(tmp_path / "run"), model=str(small_ctc))
    run = pipeline.transcribe(config)
    totals = {name: value for name, value in run.record.values["totals"].items() if name not in NEW_TOTALS}
    run.save(totals=totals)
    old = pipeline.transcribe(config)
    assert (old.totals().utterances, old.totals().engines, old.totals().warnings) == (1, {}, [])
    assert verify(old).problems == ()
    done = sewd("status", old.uri)
    assert (done.returncode, done.stderr) == (0, "")


NEW_TOTALS = ("engines", "fallbacks", "splits")
