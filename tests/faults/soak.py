"""Kills at random times, of random victims, by a seed; then the run is compared, row for row, with an undisturbed one.

    python -m tests.faults.soak --kills 50 --seed 1 [--storage local|rclone|moto] [--work DIR]

A fifth of the kills goes to the driver, a fifth to processes between data and commit, a tenth to raylets;
the rest is drawn. A run that is done before the kills are used up is compared, and another one begun. Each kill that
hit live work is a line
of `DIR/kills.jsonl`: a soak that was itself interrupted goes on with the kills that are
left (on moto, whose objects live in this process, with runs anew).
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
from tests.faults.table import say
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
    """Whom to kill, in order."""
    fixed = [DRIVER] * -(-kills // 5) + [BETWEEN] * -(-kills // 5) + [RAYLET] * -(-kills // 10)
    drawn = [choose.choice(KINDS) for _ in range(kills - len(fixed))]
    kinds = (fixed + drawn)[:kills]
    choose.shuffle(kinds)
    return kinds


@contextlib.contextmanager
def place_of_runs(kind: str, work: Path) -> Iterator[str]:
    """Where runs go; the servers that it takes are up meanwhile."""
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
    """Goes through the kills that are left."""

    world: World
    work: Path
    corpus: Path
    calm: str
    runs: str
    gap_s: float
    choose: random.Random
    number: int = 0
    bad: int = 0

    @property
    def run(self) -> str:
        """The run at hand."""
        return uris.join(self.runs, f"{self.number:03d}")

    def drive(self) -> subprocess.Popen:
        return self.world.drive(str(self.corpus), self.run, self.work / "driver.log")

    def go(self, kinds: list[str], log: Path) -> None:
        """Kill them all, then let the last run come to its end."""
        self._next_run()
        process = self.drive()
        waiting = list(kinds)
        while waiting:
            self._pause(process)
            if process.poll() is not None:
                process = self._started_again(process)
                continue
            before = commits_of(self.run)
            pid = self._kill(waiting[0], process)
            if pid is None:  # the run came to its end meanwhile, or nobody was at it
                continue
            entry = {"kind": waiting.pop(0), "run": self.run, "pid": pid, "commits": before, "at": time.time()}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            say(f"{len(kinds) - len(waiting)}/{len(kinds)}: {entry['kind']} {pid}, after {before} commits")
        while process.wait(END_S) != 0:
            process = self._started_again(process)
        self._compare()

    def _next_run(self) -> None:
        while objects.exists(uris.join(self.run, "run.json")) and pipeline.Run.open(self.run).status == "done":
            self.number += 1

    def _started_again(self, process: subprocess.Popen) -> subprocess.Popen:
        if process.returncode == 0:
            self._compare()
            self.number += 1
        else:
            say(f"a driver ended with {process.returncode}; started again")
        return self.drive()

    def _pause(self, process: subprocess.Popen) -> None:
        """A time drawn, from the moment on at which something new is committed."""
        with contextlib.suppress(RuntimeError):
            wait_for_commits(self.run, commits_of(self.run) + 1, process)
        time.sleep(self.choose.expovariate(1 / self.gap_s))

    def _kill(self, kind: str, process: subprocess.Popen) -> int | None:
        """Kill one that is at work; its process id, None where there is none, or no run any more."""
        if kind == RAYLET:
            busy = {worker.ppid() for title in (ACTOR, READER) for worker in self.world.workers(title)}
            return self.world.replace_node(self.choose) if busy & set(map(raylet_pid, self.world.nodes)) else None
        if kind == DRIVER:
            if process.poll() is not None or not self.world.workers(ACTOR):
                return None
            process.kill()
            return process.pid
        victims: dict[str, Callable] = {
            BETWEEN: self.world.between,
            ACTOR_KIND: lambda: self.world.workers(ACTOR),
            READER_KIND: lambda: self.world.workers(READER),
        }
        return self.world.kill_one(victims[kind], self.choose, patience_s=10)

    def _compare(self) -> None:
        found = difference(self.run, self.calm)
        say(f"{self.run}: lost {found.lost}, doubled {found.doubled}, changed {found.changed}")
        self.bad += not found.none


def main() -> int:
    """Soak; 1 where a row was lost, doubled or changed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", choices=("local", "rclone", "moto"), default="local")
    parser.add_argument("--chunks", type=int, default=200, help="chunks a run")
    parser.add_argument("--seconds", type=float, default=6.0, help="a chunk takes so long in each stage")
    parser.add_argument("--gap", type=float, default=5.0, help="mean seconds between something done and the next kill")
    parser.add_argument("--work", type=Path, help="directory that is kept, to go on with an interrupted soak")
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
    """With a directory to work in."""
    choose = random.Random(options.seed)
    kinds = schedule(options.kills, choose)
    log = work / "kills.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not (model := work / "model").exists():
        checkpoints.write_ctc(model, checkpoints.SMALL)
    if not (corpus := work / "in").exists():
        write_corpus(corpus, options.chunks * CHUNK_ROWS)
    calm = str(work / "calm")
    with place_of_runs(options.storage, work) as runs, world(model, options.seconds) as made:
        began = time.monotonic()
        if (status := made.drive(str(corpus), calm, work / "driver.log").wait()) != 0:
            raise RuntimeError(f"the undisturbed run ended with {status}: see {work}/driver.log")
        chunks = pipeline.Run.open(calm).record.totals.chunks
        say(f"undisturbed: {chunks} chunks in {time.monotonic() - began:.0f} s")
        soaking = Soak(made, work, corpus, calm, runs, options.gap, choose)
        soaking.go(kinds[len(done) :], log)
    hits = Counter(json.loads(line)["kind"] for line in log.read_text().splitlines())
    say(f"{hits.total()} kills that hit live work: " + ", ".join(f"{kind} {hits[kind]}" for kind in KINDS))
    return 1 if soaking.bad else 0


if __name__ == "__main__":
    sys.exit(main())
