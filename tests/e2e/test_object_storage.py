"""Runs against S3 servers, Google's and Azure's on loopback: all in buckets, denied permissions, a killed driver."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import pipeline
from pipeline.storage import objects
from tests.faults.stand_in import MARKS, SECONDS
from tests.faults.world import END_S, ROOT, wait_for_commits, write_corpus
from tests.support import clouds, corpora, s3
from tests.support.command import sewd
from tests.support.fault_proxy import fault_proxy


@contextlib.contextmanager
def denying_proxy(endpoint: str) -> Iterator[Callable]:
    """A proxy in front of the server at `endpoint`; yields a function that sets which requests to deny.

    The function takes a predicate (method, path) -> denied.
    """
    with fault_proxy(endpoint) as proxy:

        def deny(denied: Callable[[str, str], bool]) -> None:
            proxy.choose = lambda method, path: "403 AccessDenied" if denied(method, path) else None

        yield deny


@pytest.fixture
def bucket(tmp_path, small_ctc):
    """A directory that rclone serves as the bucket `speech`, with a corpus of twelve clips and the model."""
    folder = tmp_path / "buckets" / "speech"
    for index in range(12):
        corpora.write_audio(folder / "corpus" / f"{index % 3}" / f"{index:02d}.flac", 0.5 + index / 10, index)
        (folder / "corpus" / f"{index % 3}" / f"{index:02d}.txt").write_text(f"clip {index}")
    shutil.copytree(small_ctc, folder / "model")
    return folder


def test_corpus_model_and_run_in_a_bucket_give_the_same_rows_as_on_disk(tmp_path, bucket, small_ctc, local_ray):
    drop = ("uri", "part_id", "chunk")
    local = pipeline.transcribe(
        pipeline.RunConfig(
            inputs=(str(bucket / "corpus"),), output=str(tmp_path / "run"), model=str(small_ctc), threads=1
        )
    )
    with s3.rclone_server(tmp_path / "buckets"):
        done = sewd(
            *("transcribe", "s3://speech/corpus", "--output", "s3://speech/run", "--model", "s3://speech/model"),
            *("--chunk-rows", 2, "--threads", 1),
        )
        assert done.returncode == 0, done.stderr
        assert "12 transcripts" in done.stdout
        remote = pipeline.Run.open("s3://speech/run")
        corpora.assert_same_transcripts(corpora.rows_of(remote, drop=drop), corpora.rows_of(local, drop=drop))
        assert {row["uri"] for row in corpora.rows_of(remote)} == {
            f"s3://speech/corpus/{index % 3}/{index:02d}.flac" for index in range(12)
        }
        evaluated = sewd("evaluate", "s3://speech/run")
        assert evaluated.returncode == 0, evaluated.stderr
        assert "12 scored" in evaluated.stdout
    assert s3.SECRET not in (bucket / "run" / "run.json").read_text()


def test_a_bucket_that_denies_access_fails_the_run_which_is_resumed_once_access_is_granted(tmp_path, bucket, small_ctc):
    arguments = ("transcribe", "s3://speech/corpus", "--output", tmp_path / "run", "--model", small_ctc)
    with s3.rclone_server(tmp_path / "buckets") as endpoint, denying_proxy(endpoint) as deny:
        deny(lambda method, path: True)
        refused = sewd(*arguments)
        assert refused.returncode == 1
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
        assert "s3://speech/corpus" in refused.stderr
        assert not list((tmp_path / "run").rglob("*.parquet"))

        deny(lambda method, path: False)
        done = sewd(*arguments)
        assert done.returncode == 0, done.stderr
    assert len(corpora.rows_of(tmp_path / "run")) == 12
    assert corpora.rows_of(tmp_path / "run", "errors") == []


def test_permissions_revoked_after_listing_fail_the_run_without_error_rows(tmp_path, bucket, small_ctc):
    arguments = (
        *("transcribe", "s3://speech/corpus", "--output", tmp_path / "run", "--model", small_ctc),
        *("--chunk-rows", 1, "--part-mib", 0.00001),
    )
    with s3.rclone_server(tmp_path / "buckets") as endpoint, denying_proxy(endpoint) as deny:
        deny(lambda method, path: method == "GET" and "07.flac" in path)
        refused = sewd(*arguments)
        assert refused.returncode == 1
        assert "Traceback" not in refused.stderr
        failed = pipeline.Run.open(str(tmp_path / "run"))
        assert failed.status == "failed"
        assert failed.record.reason.startswith("s3://speech/corpus/1/07.flac: PermissionError")
        assert len(failed.record.reason.splitlines()) == 1
        assert refused.stderr.strip().splitlines()[-1] == "sewd: " + failed.record.reason
        assert corpora.rows_of(failed, "errors") == []

        deny(lambda method, path: False)
        done = sewd(*arguments)
        assert done.returncode == 0, done.stderr
    assert len(corpora.rows_of(tmp_path / "run")) == 12
    assert corpora.rows_of(tmp_path / "run", "errors") == []


def slowed_transcribe(corpus: object, output: object, model: object) -> list[str]:
    """The command line of a driver whose stages take a while for each chunk."""
    return [
        *(sys.executable, "-m", "tests.faults.drive", "transcribe", str(corpus), "--output", str(output)),
        *("--model", str(model), "--chunk-rows", "2", "--part-mib", "0.15"),
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_ctc):
    """A corpus on disk, and its run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    corpus = write_corpus(folder / "in", 24)
    environment = os.environ | {SECONDS: "0", MARKS: str(folder)}
    command = slowed_transcribe(corpus, folder / "run", small_ctc)
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)
    return corpus, folder / "run"


@pytest.mark.parametrize("scheme", clouds.SERVERS)
def test_a_driver_killed_on_a_cloud_resumes_and_has_the_rows_of_an_undisturbed_run(
    scheme, tmp_path, small_ctc, undisturbed
):
    corpus, expected = undisturbed
    with clouds.SERVERS[scheme]():
        bucket = clouds.make_bucket(scheme, "speech")
        for folder, name in ((corpus, "corpus"), (small_ctc, "model")):
            for path in folder.iterdir():
                objects.put(f"{bucket}/{name}/{path.name}", path.read_bytes())
        run = f"{bucket}/run"
        command = slowed_transcribe(f"{bucket}/corpus", run, f"{bucket}/model")
        environment = os.environ | {SECONDS: "0.3", MARKS: str(tmp_path)}
        with (tmp_path / "output").open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment)
        wait_for_commits(run, 2, process)
        process.kill()
        process.wait(END_S)
        assert pipeline.Run.open(run).status == "running"

        resumed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        assert resumed.returncode == 0, resumed.stderr
        assert all("audio" in line for line in resumed.stderr.splitlines()), resumed.stderr  # progress only
        verified = sewd("verify", run)
        assert (verified.returncode, verified.stderr) == (0, ""), verified.stderr
        drop = ("uri", "part_id", "chunk")
        assert corpora.rows_of(pipeline.Run.open(run), drop=drop) == corpora.rows_of(expected, drop=drop)
        assert len(pipeline.Run.open(run).record.attempts) == 2
