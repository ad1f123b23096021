"""Verbs as jobs on a real head: the log is followed, the exit code is the verb's, secrets are never sent."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import pipeline
from pipeline.cluster import jobs_api
from tests.support import corpora
from tests.support.command import sewd
from tests.support.heads import head

SECRET = "a-value-that-must-not-be-sent"
# `sewd` that reacts to Ctrl-C also if the tests were started by a shell's `&`, whose children ignore it.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from jobs.main import main
main()
"""


@pytest.fixture(scope="module")
def cluster():
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        head(Path(folder), {"SEWD_TEST_TOKEN": SECRET}) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(12):
        corpora.write_audio(folder / f"{index:02d}.wav", 1.0 + index / 10, index)
    return folder


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory):
    """More than is transcribed before a test looks at it, in chunks of one file."""
    folder = tmp_path_factory.mktemp("long")
    for index in range(400):
        corpora.write_audio(folder / f"{index:03d}.wav", 4.0, index)
    return folder


def submit(cluster, *arguments, options=(), timeout=300):
    return sewd("submit", "--address", cluster.address, *options, "--", *arguments, timeout=timeout)


def job_name(text: str) -> str:
    return re.search(r"^job (\S+):", text, re.MULTILINE).group(1)


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_run_by_a_job_equals_a_local_run_and_its_log_is_shown_here(cluster, corpus, small_ctc, tmp_path, local_ray):
    submitted = submit(
        cluster, "transcribe", corpus, "--model", small_ctc, "--output", tmp_path / "job", "--threads", "1"
    )
    assert submitted.returncode == 0, submitted.stderr + submitted.stdout
    assert "12" in submitted.stdout
    local = pipeline.transcribe(pipeline.RunConfig((str(corpus),), str(tmp_path / "local"), str(small_ctc), threads=1))
    assert corpora.rows_of(pipeline.Run.open(str(tmp_path / "job"))) == corpora.rows_of(local)

    name = job_name(submitted.stderr)
    listed = sewd("jobs", "list", "--address", cluster.address)
    assert name in listed.stdout
    logs = sewd("jobs", "logs", name, "--address", cluster.address)
    assert logs.stdout == submitted.stdout, "the fetched log equals the streamed one"
    followed = sewd("jobs", "logs", name, "--follow", "--address", cluster.address)
    assert (followed.stdout, followed.returncode) == (submitted.stdout, 0)
    assert sewd("jobs", "stop", name, "--address", cluster.address).stdout == f"job {name} has already ended\n"


@pytest.mark.slow
def test_the_submitted_code_is_small_and_without_data(cluster):
    done = submit(cluster, "status", "/nowhere/run")
    assert done.returncode == 2
    job = jobs_api.details(jobs_api.connect(cluster.address), job_name(done.stderr))
    modules = job.runtime_env["py_modules"]
    assert len(modules) == 3
    assert all(uri.startswith("gcs://") for uri in modules)
    excluded = re.compile(r"__pycache__|demo_corpus")
    sizes = [
        path.stat().st_size
        for folder in jobs_api.runtime_env({})["py_modules"]
        for path in Path(folder).rglob("*")
        if path.is_file() and not excluded.search(str(path))
    ]
    assert sum(sizes) < 20 * 2**20


@pytest.mark.slow
def test_failed_rows_and_usage_errors_exit_as_they_do_locally(cluster, corpus, small_ctc, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "good.wav").write_bytes((corpus / "00.wav").read_bytes())
    (broken / "bad.wav").write_bytes(b"RIFF")
    partial = submit(cluster, "transcribe", broken, "--model", small_ctc, "--output", tmp_path / "partial")
    assert partial.returncode == 3, partial.stderr + partial.stdout
    missing = submit(cluster, "transcribe", tmp_path / "none", "--model", small_ctc, "--output", tmp_path / "missing")
    assert missing.returncode == 2
    assert "sewd: " in missing.stdout, "the job's error message"
    strict = submit(cluster, "transcribe", broken, "--model", small_ctc, "--output", tmp_path / "strict", "--strict")
    assert strict.returncode == 1
    assert "exit code 1" in strict.stderr


def test_a_command_with_a_usage_error_is_not_submitted(cluster):
    before = len(jobs_api.jobs(jobs_api.connect(cluster.address)))
    assert submit(cluster, "transcribe", "x", "--outptu", "y").returncode == 2
    assert submit(cluster, "transcrib", "x").returncode == 2
    assert submit(cluster, "submit", "x").returncode == 2
    assert len(jobs_api.jobs(jobs_api.connect(cluster.address))) == before


@pytest.mark.slow
def test_secrets_are_required_by_name_and_never_sent(cluster, tmp_path):
    options = ("--require-env", "SEWD_TEST_TOKEN", "--env", "AWS_REGION=eu-west-1")
    done = submit(cluster, "status", tmp_path, options=options)
    assert done.returncode == 2
    assert "no run" in done.stdout.lower(), "the verb itself ran"
    job = jobs_api.details(jobs_api.connect(cluster.address), job_name(done.stderr))
    assert SECRET not in json.dumps(job.model_dump(), default=str)
    assert job.runtime_env["env_vars"]["AWS_REGION"] == "eu-west-1"
    lacking = submit(cluster, "status", tmp_path, options=("--require-env", "SEWD_TEST_TOKEN,X", "--detach"))
    assert lacking.returncode == 2
    lacking = submit(cluster, "status", tmp_path, options=("--require-env", "SEWD_UNSET"))
    assert lacking.returncode == 2
    assert "the cluster's environment lacks SEWD_UNSET" in lacking.stdout


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["detach", "stop"])
def test_ctrl_c_detaches_from_the_job_or_stops_it(cluster, long_corpus, small_ctc, tmp_path, choice):
    run = tmp_path / "run"
    verb = (
        "transcribe",
        long_corpus,
        "--model",
        small_ctc,
        "--output",
        run,
        "--chunk-seconds",
        "4",
        "--part-mib",
        "0.2",
    )
    options = ("--address", cluster.address, "--on-interrupt", choice)
    arguments = [sys.executable, "-c", INTERRUPTIBLE, "submit", *options, "--", *map(str, verb)]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: any((run / "commits").rglob("*.json")) or child.poll() is not None)
        assert child.poll() is None, child.communicate()
        child.send_signal(signal.SIGINT)
        _, messages = child.communicate(timeout=90)
    finally:
        child.kill()
    assert child.returncode == 130
    name = job_name(messages)
    client = jobs_api.connect(cluster.address)
    if choice == "detach":
        assert f"detached: job {name} continues" in messages
        assert jobs_api.details(client, name).status.value == "RUNNING"
        assert "stopping job" in sewd("jobs", "stop", name, "--address", cluster.address).stdout
    wait_for(lambda: jobs_api.details(client, name).status.value == "STOPPED")
    assert sewd("jobs", "logs", name, "-f", "--address", cluster.address).returncode == 130
    assert pipeline.Run.open(str(run)).totals().utterances < 400


def scrape(cluster, run) -> dict[str, float]:
    """The project's own metrics of a run as Prometheus would scrape them: values by name, summed over labels."""
    with urllib.request.urlopen(cluster.metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values: dict[str, float] = {}
    for line in lines:
        if line.startswith("ray_sewd_") and f'run="{run}"' in line:
            name, value = line.split("{")[0], float(line.rsplit(" ", 1)[1])
            values[name] = values.get(name, 0.0) + value
    return values


def test_the_metrics_count_audio_rows_errors_and_times(cluster, long_corpus, small_ctc, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_text("no audio")
    verb = ("transcribe", broken, long_corpus, "--model", small_ctc, "--output", tmp_path / "run")
    sizes = ("--chunk-seconds", "4", "--part-mib", "0.2")
    name = job_name(submit(cluster, *verb, *sizes, options=("--detach",)).stderr)
    try:
        wait_for(lambda: consistent(scrape(cluster, tmp_path / "run")))
    finally:
        jobs_api.stop(jobs_api.connect(cluster.address), name)


def consistent(values: dict[str, float]) -> bool:
    """Whether they fit clips of 4 s and one broken file; Ray exports one metric after the other during the run."""
    audio_s, utterances = values.get("ray_sewd_audio_seconds_total", 0), values.get("ray_sewd_utterances_total")
    stages, chunks = values.get("ray_sewd_stage_seconds_count"), values.get("ray_sewd_chunks_total", 0)
    sums = (
        audio_s >= 8
        and audio_s == 4 * (utterances or 0)
        and stages == 4 * chunks == 4 * values.get("ray_sewd_batch_fill_count", 0)
    )
    return (
        sums
        and values["ray_sewd_batch_fill_sum"] <= 1.1 * chunks
        and values["ray_sewd_errors_total"] == 1
        and values["ray_sewd_stage_seconds_sum"] > 0
    )


def test_an_unknown_job_is_a_usage_error(cluster):
    for verb in (("logs", "unknown"), ("logs", "unknown", "-f"), ("stop", "unknown")):
        done = sewd("jobs", *verb, "--address", cluster.address)
        assert (done.returncode, done.stderr) == (2, "sewd: there is no job unknown\n")


def test_an_address_without_a_cluster_is_a_usage_error():
    done = sewd("jobs", "list", "--address", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("sewd: no Ray jobs at http://127.0.0.1:9")
    assert sewd("submit", "--address", "ray://127.0.0.1:9", "--", "status", "x").returncode == 2
    assert sewd("submit", "--", "status", "x").returncode == 2


@pytest.mark.slow
def test_the_loss_of_the_head_is_reported(monkeypatch):
    monkeypatch.setattr(jobs_api, "_RECONNECT_S", 2.0)
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        head(Path(folder)) as started,
    ):
        client = jobs_api.connect(started.address)
        name = client.submit_job(entrypoint="echo started; sleep 600")
        written: list[str] = []
        timer = threading.Timer(0, lambda: (wait_for(lambda: "started" in "".join(written)), started.kill()))
        timer.start()
        with pytest.raises(pipeline.RunFailedError, match=f"stopped answering while job {name} ran"):
            jobs_api.follow(client, name, jobs_api.Log(written.append))
        timer.join()
