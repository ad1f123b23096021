"""A Ray of several machines on this one, a driver, and ways to harm them; and what a run lost, gained or changed."""

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
NODES, CPUS = 2, 3  # of which one alone can hold two actors, a reader and a writer
STORE_BYTES = 100 * 2**20
ACTOR, READER, WRITER = "MapWorker(MapBatches(StandIn))", "MapBatches(slow_read)", "MapBatches(slow_write)"
END_S = 600


def write_corpus(directory: Path, clips: int) -> Path:
    """Clips of half a second."""
    for index in range(clips):
        corpora.write_audio(directory / f"{index:04d}.wav", 0.5, index)
    return directory


@dataclass
class World:
    """A cluster whose head runs no tasks, and what is run on it.

    Attributes:
        model: checkpoint, for its vocabulary.
        seconds: that a chunk takes in each stage.
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

    @tenacity.retry(  # on a busy machine; Ray raises a plain Exception
        retry=tenacity.retry_if_exception_message(match=".*timed out during startup"),
        stop=tenacity.stop_after_attempt(3),
        reraise=True,
    )
    def add_node(self):
        return self.cluster.add_node(**self._node(CPUS))

    def _node(self, cpus: int) -> dict:
        # A raylet that is to find out its agents' ports gives up, and dies, where they take 15 s to start.
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
        """Processes of the cluster's machines that are at work on a stage."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.Error):
                raylet = psutil.Process(raylet_pid(node))
                found += [child for child in raylet.children(recursive=True) if self._at(child, title)]
        return found

    def _at(self, process: psutil.Process, title: str) -> bool:
        with contextlib.suppress(psutil.Error):
            return title in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
        return False

    def between(self) -> list[psutil.Process]:
        """Processes between the data of a chunk and its commit."""
        found = []
        for mark in self.marks.iterdir():
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(int(mark.name)))
        alive = [process for process in found if self._at(process, WRITER)]
        for mark in self.marks.iterdir():
            if mark.name not in {str(process.pid) for process in alive}:
                mark.unlink(missing_ok=True)
        return alive

    def kill_one(self, victims, choose: random.Random, patience_s: float = 60) -> int | None:
        """Kill one of what `victims` gives, as soon as there is one; its process id."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            for victim in choose.sample(found := victims(), len(found)):
                with contextlib.suppress(psutil.Error):
                    victim.kill()
                    return victim.pid
            time.sleep(0.02)
        return None

    def replace_node(self, choose: random.Random) -> int:
        """Kill a machine's raylet, which ends its workers, and let another come. Gives the raylet's process id."""
        node = choose.choice(self.nodes)
        pid = raylet_pid(node)
        os.kill(pid, signal.SIGKILL)
        self.forget(node)
        self.nodes.append(self.add_node())
        return pid

    def forget(self, node) -> None:
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


def raylet_pid(node) -> int:
    (info,) = node.all_processes["raylet"]
    return info.process.pid


@contextlib.contextmanager
def world(model: Path, seconds: float) -> Iterator[World]:
    """A cluster that is up."""
    with tempfile.TemporaryDirectory() as marks:
        # Nodes, workers and drivers are started with this process's environment.
        changes = {MARKS: marks, SECONDS: str(seconds), "RAY_USAGE_STATS_ENABLED": "0"}
        # No worker is started before it has work: there are many machines here, and few processors.
        changes |= {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
        changes["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        made = World(model, Path(marks), seconds)
        try:
            made.start()
            yield made
        finally:
            made.stop()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def commits_of(output: str) -> int:
    """How many chunks are committed by now, as far as they are objects."""
    return len(commit_objects(output))


def wait_for_commits(output: str, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + END_S
    while commits_of(output) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no {count} commits: the driver's exit status is {process.poll()}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Difference:
    """Of a run from an undisturbed one, in rows of all tables."""

    lost: int
    doubled: int
    changed: int

    @property
    def none(self) -> bool:
        return not (self.lost or self.doubled or self.changed)


def key(row: dict) -> tuple[str, str | None]:
    """What names a row of any table."""
    return row["utt_id"], row.get("task")


def difference(run: str, calm: str) -> Difference:
    """Row for row, of every table."""
    lost = doubled = changed = 0
    for table in TABLES:
        got, want = (corpora.rows_of(pipeline.Run.open(uri), table) for uri in (run, calm))
        counts = Counter(map(key, got))
        doubled += sum(count - 1 for count in counts.values())
        known = {key(row): row for row in got}
        lost += sum(key(row) not in known for row in want)
        changed += sum(known.get(key(row), row) != row for row in want)
        changed += sum(name not in {key(row) for row in want} for name in known)
    return Difference(lost, doubled, changed)
