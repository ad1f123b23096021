"""Kill random processes at random times, from a seed, and compare the run row for row with an undisturbed one.

    python -m tests.faults.soak --kills 50 --seed 1 [--storage local|rclone|moto] [--work DIR]

A fifth of the kills hits the driver, a fifth processes between data and commit, a tenth raylets; the rest is random. A
run that is done before all kills are used is compared, and another one is started. Each kill that hit live work is a
line of `DIR/kills.jsonl`: an interrupted soak resumes with the remaining kills (on moto, which keeps objects in the
memory of this process, with new runs).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pipeline
from pipeline.storage import objects, uris
from tests.faults.table import print_line
from tests.faults.world import (
    ACTOR,
    END_S,
    READER,
    ROOT,
    World,
    commits_of,
    difference,
    raylet_pid,
    wait_for_commits,
    world,
    write_corpus,
)
from tests.support import checkpoints, s3

DRIVER, BETWEEN, RAYLET, ACTOR_KIND, READER_KIND = (
    "driver",
    "between data and commit",
    "raylet",
    "actor",
    "decode worker",
)
KINDS = (DRIVER, BETWEEN, RAYLET, ACTOR_KIND, READER_KIND)
CHUNK_ROWS = 2


def schedule(kills: int, choose: random.Random) -> list[str]:
    """The kinds of processes to kill, in order."""
    fixed = [DRIVER] * -(-kills // 5) + [BETWEEN] * -(-kills // 5) + [RAYLET] * -(-kills // 10)
    random_kinds = [choose.choice(KINDS) for _ in range(kills - len(fixed))]
    kinds = (fixed + random_kinds)[:kills]
    choose.shuffle(kinds)
    return kinds


@contextlib.contextmanager
def storage_for_runs(kind: str, work: Path) -> Iterator[str]:
    """Yield the URI below which runs are stored; the servers for it run meanwhile."""
    if kind == "local":
        yield str(work / "runs")
    elif kind == "rclone":
        (work / "buckets" / "soak").mkdir(parents=True, exist_ok=True)
        with s3.rclone_server(work / "buckets"):
            yield "s3://soak/runs"
    else:
        with s3.moto_server():
            yield s3.make_bucket("soak") + "/runs"


@dataclass
class Soak:
    """The remaining kills of a soak.

    Attributes:
        world: the cluster.
        work: directory for logs.
        corpus: the audio.
        undisturbed: URI of the run to compare with.
        runs: URI below which runs are stored.
        gap_s: mean time between a commit and the next kill, seconds.
        choose: random numbers.
        number: number of the current run.
        bad: runs that differ from the undisturbed one.
    """

    world: World
    work: Path
    corpus: Path
    undisturbed: str
    runs: str
    gap_s: float
    choose: random.Random
    number: int = 0
    bad: int = 0

    @property
    def run(self) -> str:
        """URI of the current run."""
        return uris.join(self.runs, f"{self.number:03d}")

    def drive(self) -> subprocess.Popen:
        """Start a driver on the current run."""
        return self.world.drive(str(self.corpus), self.run, self.work / "driver.log")

    def kill_all(self, kinds: list[str], log: Path) -> None:
        """Kill a process of each kind, in order, then let the last run finish.

        Args:
            kinds: the kinds of processes.
            log: file for the kills, one JSON line each.
        """
        self._next_run()
        process = self.drive()
        remaining = list(kinds)
        while remaining:
            self._pause(process)
            if process.poll() is not None:
                process = self._restart(process)
                continue
            before = commits_of(self.run)
            pid = self._kill(remaining[0], process)
            if pid is None:  # the run has ended meanwhile, or no such process was at work
                continue
            entry = {"kind": remaining.pop(0), "run": self.run, "pid": pid, "commits": before, "at": time.time()}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print_line(f"{len(kinds) - len(remaining)}/{len(kinds)}: {entry['kind']} {pid}, after {before} commits")
        while process.wait(END_S) != 0:
            process = self._restart(process)
        self._compare()

    def _next_run(self) -> None:
        while objects.exists(uris.join(self.run, "run.json")) and pipeline.Run.open(self.run).status == "done":
            self.number += 1

    def _restart(self, process: subprocess.Popen) -> subprocess.Popen:
        if process.returncode == 0:
            self._compare()
            self.number += 1
        else:
            print_line(f"a driver ended with status {process.returncode}; restarted")
        return self.drive()

    def _pause(self, process: subprocess.Popen) -> None:
        """Wait for the next commit, then for a random time."""
        with contextlib.suppress(RuntimeError):
            wait_for_commits(self.run, commits_of(self.run) + 1, process)
        time.sleep(self.choose.expovariate(1 / self.gap_s))

    def _kill(self, kind: str, process: subprocess.Popen) -> int | None:
        """Kill a process at work and return its id; None if there is none, or the run has ended."""
        if kind == RAYLET:
            busy = {worker.ppid() for title in (ACTOR, READER) for worker in self.world.workers(title)}
            return self.world.replace_node(self.choose) if busy & set(map(raylet_pid, self.world.nodes)) else None
        if kind == DRIVER:
            if process.poll() is not None or not self.world.workers(ACTOR):
                return None
            process.kill()
            return process.pid
        victims: dict[str, Callable] = {
            BETWEEN: self.world.committing,
            ACTOR_KIND: lambda: self.world.workers(ACTOR),
            READER_KIND: lambda: self.world.workers(READER),
        }
        return self.world.kill_one(victims[kind], self.choose, patience_s=10)

    def _compare(self) -> None:
        differs = difference(self.run, self.undisturbed)
        print_line(f"{self.run}: lost {differs.lost}, duplicated {differs.duplicated}, changed {differs.changed}")
        self.bad += not differs.none


def main() -> int:
    """Run the soak of the command line.

    Returns:
        1 if a row was lost, duplicated or changed, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", choices=("local", "rclone", "moto"), default="local")
    parser.add_argument("--chunks", type=int, default=200, help="chunks per run")
    parser.add_argument("--seconds", type=float, default=6.0, help="time that a chunk takes in each stage")
    parser.add_argument("--gap", type=float, default=5.0, help="mean seconds between a commit and the next kill")
    parser.add_argument("--work", type=Path, help="directory that is kept, to resume an interrupted soak")
    options = parser.parse_args()
    os.chdir(ROOT)
    work = options.work.absolute() if options.work else Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    try:
        return soak(options, work)
    finally:
        if options.work is None:
            shutil.rmtree(work)


def soak(options: argparse.Namespace, work: Path) -> int:
    """Run a soak in the directory `work`; returns as `main`."""
    choose = random.Random(options.seed)
    kinds = schedule(options.kills, choose)
    log = work / "kills.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not (model := work / "model").exists():
        checkpoints.write_ctc(model, checkpoints.SMALL)
    if not (corpus := work / "in").exists():
        write_corpus(corpus, options.chunks * CHUNK_ROWS)
    undisturbed = str(work / "undisturbed")
    with storage_for_runs(options.storage, work) as runs, world(model, options.seconds) as cluster:
        started = time.monotonic()
        if (status := cluster.drive(str(corpus), undisturbed, work / "driver.log").wait()) != 0:
            raise RuntimeError(f"the undisturbed run ended with {status}: see {work}/driver.log")
        chunks = pipeline.Run.open(undisturbed).record.totals.chunks
        print_line(f"undisturbed: {chunks} chunks in {time.monotonic() - started:.0f} s")
        soaking = Soak(cluster, work, corpus, undisturbed, runs, options.gap, choose)
        soaking.kill_all(kinds[len(done) :], log)
    hits = Counter(json.loads(line)["kind"] for line in log.read_text().splitlines())
    print_line(f"{hits.total()} kills that hit live work: " + ", ".join(f"{kind} {hits[kind]}" for kind in KINDS))
    return 1 if soaking.bad else 0


if __name__ == "__main__":
    sys.exit(main())
