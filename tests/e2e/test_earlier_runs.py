"""A run of version 0.1.0 is read, evaluated, verified and resumed; tests/fixtures/earlier_run/make.py made it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

import pipeline
from pipeline.runs.verify import verify
from pipeline.storage import objects
from tests.support import corpora, s3
from tests.support.command import sewd
from tests.support.without_ray import without_ray

FIXTURE = Path(__file__).parents[1] / "fixtures" / "earlier_run"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
NEW = ("warning", "skipped_s", "recording_reference", "nbest")  # columns that the earlier version did not have


@pytest.fixture(scope="module")
def bucket():
    """The bucket of the earlier version, on an S3 server. Versions of its objects are digests of their content."""
    with s3.moto_server():
        uri = s3.make_bucket("earlier")
        with tarfile.open(FIXTURE / "bucket.tar") as tar:
            for member in tar.getmembers():
                objects.put(f"{uri}/{member.name}", tar.extractfile(member).read())
        yield uri


def resume(bucket: str, name: str) -> subprocess.CompletedProcess[str]:
    """Run the command that made the run, in a separate process, whose workers get the address of the server."""
    arguments = (f"{bucket}/corpus", "--output", f"{bucket}/{name}", "--model", f"{bucket}/model")
    return sewd("transcribe", *arguments, "--chunk-rows", 3, "--part-mib", 0.05)


def test_a_finished_run_is_read_evaluated_and_verified(bucket):
    run = pipeline.Run.open(f"{bucket}/done")
    assert run.status == "done"
    corpora.assert_same_transcripts(corpora.rows_of(run, drop=NEW), EXPECTED["transcripts"])
    assert corpora.rows_of(run, "errors", drop=("recording_reference",)) == EXPECTED["errors"]
    totals = run.totals()
    assert {name: getattr(totals, name) for name in EXPECTED["totals"]} == EXPECTED["totals"]
    evaluation = pipeline.evaluate_run(run)
    assert {name: getattr(evaluation, name) for name in EXPECTED["figures"]} == EXPECTED["figures"]
    assert [str(problem) for problem in verify(run).problems] == EXPECTED["problems"] == []


def test_a_finished_run_is_resumed_without_work(bucket):
    before = objects.list_objects(f"{bucket}/done")
    resumed = resume(bucket, "done")
    assert resumed.returncode == 3, resumed.stderr
    assert "13 transcripts" in resumed.stdout
    assert objects.list_objects(f"{bucket}/done") == before


def test_a_stopped_run_is_resumed_with_its_commits_and_its_quarantine(bucket):
    stopped = pipeline.Run.open(f"{bucket}/stopped")
    assert stopped.status == "stopped"
    assert stopped.totals().chunks == EXPECTED["stopped"]["chunks"] == 3
    committed = corpora.rows_of(stopped, drop=NEW)
    corpora.assert_same_transcripts(
        committed, [row for row in EXPECTED["transcripts"] if row["utt_id"] in {row["utt_id"] for row in committed}]
    )

    resumed = resume(bucket, "stopped")

    assert resumed.returncode == 3, resumed.stderr
    run = pipeline.Run.open(f"{bucket}/stopped")
    assert run.status == "done"
    crashed = EXPECTED["stopped"]["crashed"]
    corpora.assert_same_transcripts(
        corpora.rows_of(run, drop=NEW), [row for row in EXPECTED["transcripts"] if row["utt_id"] != crashed]
    )
    assert [(row["utt_id"], row["code"]) for row in corpora.rows_of(run, "errors")] == [
        *[(row["utt_id"], row["code"]) for row in EXPECTED["errors"]],
        (crashed, "CRASHED"),
    ]
    assert verify(run).problems == ()


def test_a_classifier_is_added_to_a_finished_run(bucket, small_classifier):
    config = pipeline.RunConfig(
        inputs=(f"{bucket}/corpus",),
        output=f"{bucket}/done",
        model=f"{bucket}/model",
        chunk_rows=3,
        part_mib=0.05,
        add_classifiers=(f"kw={small_classifier}",),
    )
    with without_ray():
        run = pipeline.transcribe(config)
    transcribed = [row["utt_id"] for row in corpora.rows_of(run)]
    assert [row["utt_id"] for row in corpora.rows_of(run, "labels") if row["task"] == "kw"] == transcribed
    corpora.assert_same_transcripts(corpora.rows_of(run, drop=NEW), EXPECTED["transcripts"])
    assert verify(run).problems == ()


def test_a_finished_run_is_updated_by_its_rules(bucket):
    with tarfile.open(FIXTURE / "bucket.tar") as tar:
        for member in tar.getmembers():
            if member.name.startswith("done/"):
                objects.put(f"{bucket}/updated/{member.name.removeprefix('done/')}", tar.extractfile(member).read())
    config = pipeline.RunConfig(
        inputs=(f"{bucket}/corpus",),
        output=f"{bucket}/updated",
        model=f"{bucket}/model",
        chunk_rows=3,
        part_mib=0.05,
        existing="update",
    )
    before = {commit.part_id for commit in pipeline.Run.open(config.output).commits()}
    objects.put(f"{bucket}/corpus/added.flac", objects.fetch(f"{bucket}/corpus/00.flac"))
    try:
        with without_ray():
            run = pipeline.transcribe(config)
    finally:
        objects.delete([f"{bucket}/corpus/added.flac"])
    (update,) = run.record.updates
    assert (update.added, update.changed, update.removed) == (1, 0, 0)
    assert before < {commit.part_id for commit in run.commits()}, "what has not changed is not done again"
    rows = corpora.rows_of(run, drop=(*NEW, "part_id", "chunk"))
    corpora.assert_same_transcripts(
        [row for row in rows if row["utt_id"] != "added"],
        [{key: row[key] for key in row if key not in ("part_id", "chunk")} for row in EXPECTED["transcripts"]],
    )
    texts = {row["utt_id"]: row["text"] for row in rows}
    assert texts["added"] == texts["00"]
    assert verify(run).problems == ()


def test_failed_rows_of_a_finished_run_are_retried(bucket):
    config = pipeline.RunConfig(
        inputs=(f"{bucket}/corpus",),
        output=f"{bucket}/done",
        model=f"{bucket}/model",
        chunk_rows=3,
        part_mib=0.05,
        retry_errors=("all",),
    )
    record = pipeline.Run.open(f"{bucket}/done").record
    heads = tuple(f"{task}={uri}" for addition in record.added for task, uri in addition.classifiers.items())
    with without_ray():
        run = pipeline.transcribe(dataclasses.replace(config, classifiers=heads))
    assert run.status == "done"
    assert len(run.record.updates) == 1
    corpora.assert_same_transcripts(
        corpora.rows_of(run, drop=(*NEW, "part_id", "chunk")),
        [{name: row[name] for name in row if name not in ("part_id", "chunk")} for row in EXPECTED["transcripts"]],
    )
    assert [(row["utt_id"], row["code"]) for row in corpora.rows_of(run, "errors")] == [
        (row["utt_id"], row["code"]) for row in EXPECTED["errors"]
    ]
    assert verify(run).problems == ()
