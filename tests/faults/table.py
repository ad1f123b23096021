"""Faults, one at a time, on a Ray of several machines, each compared with an undisturbed run.

    python -m tests.faults.table [FAULT...]

prints fault x (rows lost, rows doubled, rows changed, extra time). Ray gives its workers niceness 15: where other work
keeps the processors busy, set RAY_worker_niceness.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

import pipeline
from tests.faults.world import (
    ACTOR,
    END_S,
    READER,
    ROOT,
    Difference,
    World,
    difference,
    raylet_pid,
    wait_for_commits,
    world,
    write_corpus,
)
from tests.support import checkpoints

CLIPS, SECONDS = 60, 0.5
SLOW_S = 8
NOTICE_S = 5

# A machine of each kind: fills its object store, and keeps it full until it is killed.
FILLER = """
import sys, time, numpy, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address=sys.argv[1], log_to_driver=False)
make = ray.remote(lambda: numpy.zeros(20 << 20, numpy.uint8))
nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
kept = [make.options(num_cpus=0, scheduling_strategy=On(n, soft=False)).remote() for n in nodes for _ in range(8)]
ray.wait(kept, num_returns=len(kept))
print("full", flush=True)
time.sleep(3600)
"""


@dataclass(frozen=True)
class Scene:
    """A run under way."""

    world: World
    driver: subprocess.Popen
    log: Path


def actor(scene: Scene) -> None:
    assert scene.world.kill_one(lambda: scene.world.workers(ACTOR), random.Random(0))


def reader(scene: Scene) -> None:
    assert scene.world.kill_one(lambda: scene.world.workers(READER), random.Random(0))


def writer(scene: Scene) -> None:
    assert scene.world.kill_one(scene.world.between, random.Random(0))


def raylet(scene: Scene) -> None:
    scene.world.replace_node(random.Random(0))


def node_removed(scene: Scene) -> None:
    scene.world.forget(scene.world.nodes[0])


def driver(scene: Scene) -> None:
    scene.driver.kill()


def head(scene: Scene) -> None:
    """All of the cluster's head; another cluster is there for the next start."""
    scene.world.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    scene.driver.wait(END_S)
    scene.world.stop()
    scene.world.start()


def store_full(scene: Scene) -> None:
    """The object stores hold others' objects, half as much again as fits: what is ours goes over the disk."""
    command = [sys.executable, "-c", FILLER, scene.world.cluster.address]
    filler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert filler.stdout.readline() == "full\n"
        scene.driver.wait(END_S)
    finally:
        filler.kill()
        filler.wait()


def slow_node(scene: Scene) -> None:
    """A machine's workers stand still for a while."""
    processes = [p for title in (ACTOR, READER) for p in scene.world.workers(title)]
    for process in processes[: len(processes) // 2 + 1]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just had its last task
            process.suspend()
    time.sleep(SLOW_S)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def drained(scene: Scene) -> None:
    """A notice of spot; then the machine goes."""
    node = scene.world.nodes[0]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", scene.world.cluster.address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(NOTICE_S)], check=True, capture_output=True)
    time.sleep(NOTICE_S)
    os.kill(raylet_pid(node), signal.SIGKILL)
    scene.world.forget(node)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "actor killed": actor,
    "decode worker killed": reader,
    "writer killed between data and commit": writer,
    "raylet killed, another machine comes": raylet,
    "node removed for good": node_removed,
    "driver killed with 9": driver,
    "head lost": head,
    "object store full": store_full,
    "slow node": slow_node,
    "spot notice, then the node goes": drained,
}


@dataclass(frozen=True)
class Outcome:
    """Of one run: seconds from its first start to its end, and what it differs in."""

    seconds: float
    difference: Difference
    starts: int


def suffer(fault: Callable[[Scene], None] | None, directory: Path, corpus: Path, calm: str, model: Path) -> Outcome:
    """Run over the corpus; strike once some chunks are committed; start again until it is done; compare."""
    output, log = str(directory / "run"), directory / "log.txt"
    with world(model, SECONDS) as made:
        began = time.monotonic()
        process = made.drive(str(corpus), output, log)
        if fault is not None:
            # Reading is far ahead of the commits, and soon over.
            wait_for_commits(output, 0 if fault is reader else 3, process)
            fault(Scene(made, process, log))
        starts = 1
        while process.wait(END_S) != 0:
            starts += 1
            if starts > 3:
                raise RuntimeError(f"not done after {starts - 1} starts: {log.read_text()}")
            process = made.drive(str(corpus), output, log)
        seconds = time.monotonic() - began
    assert pipeline.Run.open(output).status == "done"
    return Outcome(seconds, difference(output, calm), starts)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the table; 1 where a row is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.table")
    parser.add_argument("fault", nargs="*", help=f"of: {', '.join(FAULTS)}; all where none is named")
    names = parser.parse_args().fault or list(FAULTS)
    os.chdir(ROOT)
    sound = True
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        model = checkpoints.write_ctc(base / "model", checkpoints.SMALL)
        corpus = write_corpus(base / "in", CLIPS)
        calm = base / "calm"
        calm.mkdir()
        undisturbed = suffer(None, calm, corpus, str(calm / "run"), model)
        say(f"{'fault':40} {'lost':>6} {'doubled':>8} {'changed':>8} {'extra s':>8} {'starts':>7}")
        say(f"{'none (' + format(undisturbed.seconds, '.0f') + ' s)':40}")
        for number, name in enumerate(names):
            (directory := base / str(number)).mkdir()
            outcome = suffer(FAULTS[name], directory, corpus, str(calm / "run"), model)
            d = outcome.difference
            extra = outcome.seconds - undisturbed.seconds
            say(f"{name:40} {d.lost:6} {d.doubled:8} {d.changed:8} {extra:8.1f} {outcome.starts:7}")
            sound &= d.none
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
