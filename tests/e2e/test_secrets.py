"""Secrets of the environment are seen nowhere: a run in a bucket, its report, and runs that the store refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.support import corpora, s3
from tests.support.command import command, sewd

MARK = "SEWD_TEST_SECRETS"
# What the environment of a speech team holds; each value is found wherever it is written.
CANARIES = {
    "AWS_SECRET_ACCESS_KEY": s3.SECRET,
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanaryCanaryCanary",
    "AZURE_STORAGE_ACCOUNT_KEY": "canaryAzureAccountKey0123456789==",
    "FSSPEC_FTP_PASSWORD": "canary-storage-option-0123456789",
    "WANDB_API_KEY": "canary-of-another-tool-0123456789",
}
WRONG = "wrongwrongwrongwrongwrongwrongwrongwrong"


@pytest.fixture
def ray_folder():
    """Where Ray keeps its sessions: its path must be short."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def arguments_of(mark: str) -> Iterator[str]:
    """The command lines of the processes that inherited a mark in their environment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                yield "\n".join(process.cmdline())
        except psutil.Error:
            continue


def contents(folder: Path) -> Iterator[tuple[Path, str]]:
    """The text of each file; the values and the metadata of Parquet files, which are compressed."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        yield path, path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path, f"{table.to_pylist()} {table.schema.metadata}"


def test_secrets_reach_no_log_record_plan_report_or_process_list(tmp_path, small_ctc, ray_folder):
    bucket = tmp_path / "buckets" / "speech"
    for index in range(4):
        corpora.write_audio(bucket / f"corpus/{index}.flac", 0.8, index)
        (bucket / f"corpus/{index}.txt").write_text("a latte")
    (bucket / "corpus/bad.wav").write_text("no audio")
    shutil.copytree(small_ctc, bucket / "model")
    run = ("transcribe", "s3://speech/corpus", "--model", "s3://speech/model", "--max-error-rate", 1, "--threads", 1)
    ours = CANARIES | {MARK: str(tmp_path), "RAY_TMPDIR": str(ray_folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    with s3.rclone_server(tmp_path / "buckets"):
        seen: set[str] = set()
        logged = ("--log", tmp_path / "log.jsonl")
        with subprocess.Popen(
            command(*run, "--output", "s3://speech/run", *logged),
            env=os.environ | ours,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            while process.poll() is None:
                seen.update(arguments_of(str(tmp_path)))
                time.sleep(0.2)
            printed = [process.stdout.read()]
        assert process.returncode == 3, printed
        assert any("raylet" in line for line in seen), "the processes of Ray were looked at"

        reported = sewd(
            "report", "s3://speech/run", "-o", tmp_path / "report.html", "--audio", "link", environment=ours
        )
        assert reported.returncode == 0, reported.stderr
        refused_log = ("--log", tmp_path / "refused.jsonl")
        refused = sewd(
            *(*run, "--output", "s3://speech/other", *refused_log),
            environment=ours | {"AWS_SECRET_ACCESS_KEY": WRONG},
        )
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
        assert "check the credentials" in refused.stderr
        printed += [reported.stdout, reported.stderr, refused.stdout, refused.stderr]

    written = [*contents(tmp_path), *contents(ray_folder)]
    names = {path.name for path, _ in written}
    assert {"run.json", "plan.parquet", "log.jsonl", "report.html", "raylet.out"} <= names
    assert any(path.suffix == ".parquet" and "a latte" in text for path, text in written), "values are looked at"
    texts = [*written, *(("printed", text) for text in printed), *(("arguments", line) for line in seen)]
    found = [
        (name, str(place))
        for place, text in texts
        for name, value in {**CANARIES, "wrong": WRONG}.items()
        if value in text
    ]
    assert found == []
