"""Faults, one at a time, on a Ray cluster of several nodes; each run is compared with an undisturbed one.

    python -m tests.faults.table [FAULT...]

prints for each fault the rows lost, duplicated and changed, and the extra time. Ray gives its workers niceness 15: if
other work keeps the CPUs busy, set RAY_worker_niceness.
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
SLOW_S = 8  # that the workers of a slow node stand still
NOTICE_S = 5  # between a spot notice and the end of its node

# Fills the object store of each node, and keeps it full until this program is killed.
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
    """A run in progress."""

    world: World
    driver: subprocess.Popen
    log: Path


def kill_actor(scene: Scene) -> None:
    assert scene.world.kill_one(lambda: scene.world.workers(ACTOR), random.Random(0))


def kill_reader(scene: Scene) -> None:
    assert scene.world.kill_one(lambda: scene.world.workers(READER), random.Random(0))


def kill_writer(scene: Scene) -> None:
    assert scene.world.kill_one(scene.world.committing, random.Random(0))


def kill_raylet(scene: Scene) -> None:
    scene.world.replace_node(random.Random(0))


def remove_node(scene: Scene) -> None:
    scene.world.remove_node(scene.world.nodes[0])


def kill_driver(scene: Scene) -> None:
    scene.driver.kill()


def kill_head(scene: Scene) -> None:
    """Kill all processes of the head node; start another cluster for the next start of the driver."""
    scene.world.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    scene.driver.wait(END_S)
    scene.world.stop()
    scene.world.start()


def fill_object_stores(scene: Scene) -> None:
    """Fill the object stores with half as much again as fits: the objects of the run spill to disk."""
    command = [sys.executable, "-c", FILLER, scene.world.cluster.address]
    filler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert filler.stdout.readline() == "full\n"
        scene.driver.wait(END_S)
    finally:
        filler.kill()
        filler.wait()


def slow_node(scene: Scene) -> None:
    """Stop half of the workers for a while."""
    processes = [p for title in (ACTOR, READER) for p in scene.world.workers(title)]
    for process in processes[: len(processes) // 2 + 1]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended after its last task
            process.suspend()
    time.sleep(SLOW_S)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def drain_node(scene: Scene) -> None:
    """Give the notice of a spot instance, then kill the node."""
    node = scene.world.nodes[0]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", scene.world.cluster.address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(NOTICE_S)], check=True, capture_output=True)
    time.sleep(NOTICE_S)
    os.kill(raylet_pid(node), signal.SIGKILL)
    scene.world.remove_node(node)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "actor killed": kill_actor,
    "decode worker killed": kill_reader,
    "writer killed between data and commit": kill_writer,
    "raylet killed, another node is added": kill_raylet,
    "node removed for good": remove_node,
    "driver killed with 9": kill_driver,
    "head lost": kill_head,
    "object store full": fill_object_stores,
    "slow node": slow_node,
    "spot notice, then the node is lost": drain_node,
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run.

    Attributes:
        seconds: from its first start to its end.
        difference: from the undisturbed run.
        starts: starts of the driver.
    """

    seconds: float
    difference: Difference
    starts: int


def run_with_fault(
    fault: Callable[[Scene], None] | None, directory: Path, corpus: Path, undisturbed: str, model: Path
) -> Outcome:
    """Transcribe the corpus, cause the fault once some chunks are committed, restart until the run is done, compare.

    Args:
        fault: causes the fault; None for an undisturbed run.
        directory: where the run and the log go.
        corpus: the audio.
        undisturbed: URI of the run to compare with.
        model: checkpoint.
    """
    output, log = str(directory / "run"), directory / "log.txt"
    with world(model, SECONDS) as cluster:
        started = time.monotonic()
        process = cluster.drive(str(corpus), output, log)
        if fault is not None:
            # Reading is far ahead of the commits, and soon done.
            wait_for_commits(output, 0 if fault is kill_reader else 3, process)
            fault(Scene(cluster, process, log))
        starts = 1
        while process.wait(END_S) != 0:
            starts += 1
            if starts > 3:
                raise RuntimeError(f"not done after {starts - 1} starts: {log.read_text()}")
            process = cluster.drive(str(corpus), output, log)
        seconds = time.monotonic() - started
    assert pipeline.Run.open(output).status == "done"
    return Outcome(seconds, difference(output, undisturbed), starts)


def print_line(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the table.

    Returns:
        1 if a row was lost, duplicated or changed, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.faults.table")
    parser.add_argument("fault", nargs="*", help=f"the faults to cause, by default all: {', '.join(FAULTS)}")
    names = parser.parse_args().fault or list(FAULTS)
    os.chdir(ROOT)
    all_same = True
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        model = checkpoints.write_ctc(base / "model", checkpoints.SMALL)
        corpus = write_corpus(base / "in", CLIPS)
        (reference := base / "undisturbed").mkdir()
        undisturbed = run_with_fault(None, reference, corpus, str(reference / "run"), model)
        print_line(f"{'fault':40} {'lost':>6} {'duplicated':>10} {'changed':>8} {'extra s':>8} {'starts':>7}")
        print_line(f"{'none (' + format(undisturbed.seconds, '.0f') + ' s)':40}")
        for number, name in enumerate(names):
            (directory := base / str(number)).mkdir()
            outcome = run_with_fault(FAULTS[name], directory, corpus, str(reference / "run"), model)
            d = outcome.difference
            extra = outcome.seconds - undisturbed.seconds
            print_line(f"{name:40} {d.lost:6} {d.duplicated:10} {d.changed:8} {extra:8.1f} {outcome.starts:7}")
            all_same &= d.none
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
