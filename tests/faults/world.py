"""A Ray cluster of several nodes on this machine, a driver, ways to harm them, and the comparison of two runs."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import tenacity
from ray.cluster_utils import Cluster

import pipeline
from pipeline.runs.commit import commit_objects
from pipeline.schemas import TABLES
from tests.faults.stand_in import MARKS, SECONDS
from tests.support import corpora
from tests.support.s3 import free_port

ROOT = Path(__file__).parents[2]
NODES, CPUS = 2, 3  # CPUs per node: one node alone has room for two actors, a reader and a writer
STORE_BYTES = 100 * 2**20
ACTOR, READER, WRITER = "MapWorker(MapBatches(StandIn))", "MapBatches(slow_read)", "MapBatches(slow_write)"
END_S = 600


def write_corpus(directory: Path, clips: int) -> Path:
    """Write clips of half a second."""
    for index in range(clips):
        corpora.write_audio(directory / f"{index:04d}.wav", 0.5, index)
    return directory


@dataclass
class World:
    """A cluster whose head node runs no tasks, and the drivers on it.

    Attributes:
        model: checkpoint; only its vocabulary is used.
        marks: directory where writers between data and commit leave files, see `stand_in`.
        seconds: time that a chunk takes in each stage.
        nodes: the nodes that run tasks.
        cluster: the cluster; None before `start`.
    """

    model: Path
    marks: Path
    seconds: float
    nodes: list = field(default_factory=list)
    cluster: Cluster | None = None

    def start(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args=self._node(0))
        self.nodes = [self.add_node() for _ in range(NODES)]

    def stop(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()

    @tenacity.retry(  # for busy machines; Ray raises a plain Exception
        retry=tenacity.retry_if_exception_message(match=".*timed out during startup"),
        stop=tenacity.stop_after_attempt(3),
        reraise=True,
    )
    def add_node(self):
        return self.cluster.add_node(**self._node(CPUS))

    def _node(self, cpus: int) -> dict:
        # A raylet that has to find its agents' ports by itself dies if the agents take more than 15 s to start.
        names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
        ports = {name: free_port() for name in names}
        return {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False, **ports}

    def command(self, corpus: str, output: str) -> list[str]:
        return [
            *(sys.executable, "-m", "tests.faults.drive", "transcribe", corpus, "--output", output),
            *("--model", str(self.model), "--address", self.cluster.address, "--actors", "2", "--cpus-per-actor", "1"),
            *("--chunk-rows", "2", "--part-mib", "0.15", "--deadline", "120"),
        ]

    def drive(self, corpus: str, output: str, log: Path) -> subprocess.Popen:
        """Start a driver."""
        with log.open("ab") as file:
            return subprocess.Popen(self.command(corpus, output), stdout=file, stderr=file, cwd=ROOT)

    def workers(self, title: str) -> list[psutil.Process]:
        """The processes of the nodes that work on a stage.

        Args:
            title: Ray's name of the stage, in the command line of the process.
        """
        processes = []
        for node in self.nodes:
            with contextlib.suppress(psutil.Error):
                raylet = psutil.Process(raylet_pid(node))
                processes += [child for child in raylet.children(recursive=True) if self._works_on(child, title)]
        return processes

    def _works_on(self, process: psutil.Process, title: str) -> bool:
        with contextlib.suppress(psutil.Error):
            return title in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
        return False

    def committing(self) -> list[psutil.Process]:
        """The processes that have written the data of a chunk, and not yet its commit."""
        processes = []
        for mark in self.marks.iterdir():
            with contextlib.suppress(psutil.Error):
                processes.append(psutil.Process(int(mark.name)))
        alive = [process for process in processes if self._works_on(process, WRITER)]
        for mark in self.marks.iterdir():
            if mark.name not in {str(process.pid) for process in alive}:
                mark.unlink(missing_ok=True)
        return alive

    def kill_one(self, victims, choose: random.Random, patience_s: float = 60) -> int | None:
        """Kill one process as soon as there is one.

        Args:
            victims: returns the processes to choose from.
            choose: chooses among them.
            patience_s: time to wait for a process, seconds.

        Returns:
            The process id; None if there was no process in time.
        """
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            for victim in choose.sample(candidates := victims(), len(candidates)):
                with contextlib.suppress(psutil.Error):
                    victim.kill()
                    return victim.pid
            time.sleep(0.02)
        return None

    def replace_node(self, choose: random.Random) -> int:
        """Kill the raylet of a node, which ends its workers, and add another node; returns the raylet's process id."""
        node = choose.choice(self.nodes)
        pid = raylet_pid(node)
        os.kill(pid, signal.SIGKILL)
        self.remove_node(node)
        self.nodes.append(self.add_node())
        return pid

    def remove_node(self, node) -> None:
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


def raylet_pid(node) -> int:
    """Process id of a node's raylet."""
    (info,) = node.all_processes["raylet"]
    return info.process.pid


@contextlib.contextmanager
def world(model: Path, seconds: float) -> Iterator[World]:
    """Start a cluster, and stop it afterwards.

    Args:
        model: checkpoint.
        seconds: time that a chunk takes in each stage.
    """
    with tempfile.TemporaryDirectory() as marks:
        # Nodes, workers and drivers inherit the environment of this process.
        changes = {MARKS: marks, SECONDS: str(seconds), "RAY_USAGE_STATS_ENABLED": "0"}
        # No worker is started before it has work: there are many nodes here, and few CPUs.
        changes |= {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
        changes["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        cluster = World(model, Path(marks), seconds)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def commits_of(output: str) -> int:
    """Number of chunks whose commit is an object of its own."""
    return len(commit_objects(output))


def wait_for_commits(output: str, count: int, process: subprocess.Popen) -> None:
    """Wait until a driver has committed `count` chunks; RuntimeError if it ends before."""
    deadline = time.monotonic() + END_S
    while commits_of(output) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"fewer than {count} commits: the driver's exit status is {process.poll()}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Difference:
    """How a run differs from an undisturbed one: numbers of rows, over all tables."""

    lost: int
    duplicated: int
    changed: int

    @property
    def none(self) -> bool:
        """Whether the runs have the same rows."""
        return not (self.lost or self.duplicated or self.changed)


def key(row: dict) -> tuple[str, str | None]:
    """The key of a row, in any table."""
    return row["utt_id"], row.get("task")


def difference(run: str, undisturbed: str) -> Difference:
    """Compare two runs row for row, in every table."""
    lost = duplicated = changed = 0
    for table in TABLES:
        rows, expected = (corpora.rows_of(pipeline.Run.open(uri), table) for uri in (run, undisturbed))
        counts = Counter(map(key, rows))
        duplicated += sum(count - 1 for count in counts.values())
        by_key = {key(row): row for row in rows}
        lost += sum(key(row) not in by_key for row in expected)
        changed += sum(by_key.get(key(row), row) != row for row in expected)
        changed += len(set(by_key) - {key(row) for row in expected})
    return Difference(lost, duplicated, changed)
