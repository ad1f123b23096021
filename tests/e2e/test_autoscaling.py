"""A cluster of only a head grows for a run and shrinks to its head again, by Ray's own autoscaler."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ray._raylet import GcsClient

import pipeline
from tests.faults.stand_in import MARKS, SECONDS
from tests.faults.world import ROOT, write_corpus
from tests.support import corpora
from tests.support.command import sewd
from tests.support.heads import head

ALIVE = 0
CLIPS = 120  # more than one node transcribes before another one has started


@pytest.fixture(scope="module")
def growing_cluster(tmp_path_factory):
    """A head that may start two nodes with a GPU and one without."""
    variables = {
        MARKS: str(tmp_path_factory.mktemp("marks")),
        SECONDS: "1.5",
        "PYTHONPATH": str(ROOT),
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    store = {"object_store_memory": 100 * 2**20}
    node_types = {
        "gpu": {"resources": {"CPU": 1, "GPU": 1, **store}, "max_workers": 2},
        "cpu": {"resources": {"CPU": 2, **store}, "max_workers": 1},
    }
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        head(Path(folder), variables, cpus=0, workers=node_types) as started,
    ):
        yield started, variables | {"HOME": folder}


def worker_nodes(cluster: str) -> int:
    """The number of live nodes, without the head."""
    return sum(info.state == ALIVE for info in GcsClient(address=cluster).get_all_node_info().values()) - 1


def wait_for_worker_nodes(cluster: str, count: int) -> None:
    deadline = time.monotonic() + 120
    while worker_nodes(cluster) != count:
        assert time.monotonic() < deadline, f"{worker_nodes(cluster)} worker nodes, not {count}"
        time.sleep(0.5)


@pytest.mark.slow
def test_a_cluster_grows_for_a_run_and_shrinks_after_it(growing_cluster, tmp_path, small_ctc):
    started, variables = growing_cluster
    corpus = write_corpus(tmp_path / "in", CLIPS)
    command = [
        *(sys.executable, "-m", "tests.faults.drive", "transcribe", str(corpus), "-o", str(tmp_path / "run")),
        *("--model", str(small_ctc), "--address", started.cluster, "--actors", "1:2"),
        *("--chunk-rows", "2", "--part-mib", "0.15"),
    ]
    wait_for_worker_nodes(started.cluster, 0)
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, stderr=log)
    counts, deadline = [0], time.monotonic() + 600
    while process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.5)
        if (count := worker_nodes(started.cluster)) != counts[-1]:
            counts.append(count)
    assert process.returncode == 0, (tmp_path / "log.txt").read_text()
    run = pipeline.Run.open(str(tmp_path / "run"))
    assert len(corpora.rows_of(run)) == CLIPS
    wait_for_worker_nodes(started.cluster, 0)
    assert 2 <= max(counts) <= 3
    recognizers = {commit.workers["recognizer"] for commit in run.commits()}
    assert len(recognizers) == 2


@pytest.mark.slow
def test_a_request_beyond_the_limits_of_the_cluster_is_refused_with_the_numbers(growing_cluster, tmp_path, small_ctc):
    started, variables = growing_cluster
    wait_for_worker_nodes(started.cluster, 0)
    corpus = write_corpus(tmp_path / "in", 2)
    arguments = ("transcribe", corpus, "-o", tmp_path / "run", "--model", small_ctc, "--address", started.cluster)
    refused = sewd(*arguments, "--actors", 3, environment={"HOME": variables["HOME"]})
    assert refused.returncode == 2
    assert "3 actors x 1 GPUs = 3 GPUs, but Ray has 2 GPUs on 4 nodes, room for 2" in refused.stderr
