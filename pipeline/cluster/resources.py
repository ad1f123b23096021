"""Ray: joining or starting it, and how its processors are shared out between decoding and the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray.util import get_node_ip_address

from pipeline.config import RunConfig
from pipeline.errors import UsageError

# What a decode task asks for beside CPU actors, which take the rest of the machine; threads are counted apart.
SMALL_CPUS = 0.25
# Writers at a time: a chunk is written in a fraction of its time in the model. Without a bound Ray starts, once an
# actor ends and gives its CPUs back, a worker process for each chunk that waits, and they hold each other up.
SINKS_A_CPU_ACTOR = 2
SINKS_A_GPU_ACTOR = 4
# Where `ray up` puts the cluster's configuration on its head.
AUTOSCALING_CONFIG = Path("~/ray_bootstrap_config.yaml")
HEAD = "node:__internal_head__"  # what Ray calls the head among its resources
EPSILON = 1e-9  # ten tenths of a GPU are one


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster offers. Of one that is not there yet, what it will have to store is not known."""

    cpus: float
    gpus: float
    store_bytes: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Resources:
    """Ray's resource requests of each stage, actors and tasks of the last stage at a time, and threads an actor."""

    actors: int
    min_actors: int
    actor_cpus: float
    actor_gpus: float
    read_cpus: float
    sink_cpus: float
    sinks: int
    threads: int


@dataclass(frozen=True)
class Machines:
    """Those of the Ray that is connected: that are `there`, and that its autoscaler may have come beside them."""

    there: tuple[Node, ...]
    may_come: tuple[Node, ...] = ()


def machines(address: str) -> Machines:
    """Of the Ray that is connected, and of its autoscaler where its head is this machine, on which jobs run by default.

    Args:
        address: that was connected to. A Ray of this process's own does not grow, whatever else runs on this machine.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    there = tuple(map(_node, nodes))
    limits = AUTOSCALING_CONFIG.expanduser()
    heads = [node for node in nodes if HEAD in node["Resources"]]
    own = get_node_ip_address()  # type: ignore[no-untyped-call]
    here = address != "local" and any(head["NodeManagerAddress"] == own for head in heads)
    if not here or not limits.exists():
        return Machines(there)
    workers = [_node(node) for node in nodes if node not in heads]
    return Machines(there, _may_come(yaml.safe_load(limits.read_bytes()), workers))


def _node(node: Mapping[str, Any]) -> Node:
    there = node["Resources"]
    return Node(there.get("CPU", 0.0), there.get("GPU", 0.0), there.get("object_store_memory", 0.0))


def _may_come(config: Mapping[str, Any], workers: Sequence[Node]) -> tuple[Node, ...]:
    """What `max_workers`, of each type and of all, leave beside the workers that are there; those with GPUs first."""
    running, found = list(workers), []
    for kind in config["available_node_types"].values():
        node = Node(float(kind["resources"].get("CPU", 0)), float(kind["resources"].get("GPU", 0)))
        for _ in range(kind.get("max_workers", 0)):
            if node in running:
                running.remove(node)
            else:
                found.append(node)
    found.sort(key=lambda node: -node.gpus)
    return tuple(found[: max(0, config["max_workers"] - len(workers))])


def allocate(found: Machines, config: RunConfig) -> Resources:
    """Divide a cluster between the stages: one that grows as if it had grown.

    Decoding must never be fused into the actors: Ray fuses neighbours whose requests are equal, so they are unequal.
    And the actors must leave room for one decode and one sink task, or they would wait for each other for ever.

    Raises:
        UsageError: the request cannot fit, with the numbers.
    """
    nodes = [*found.there, *found.may_come]
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if not cpus:
        raise UsageError("Ray has no machine with CPUs for tasks: wait for the cluster's workers, or start some")
    actor_gpus = config.gpus_per_actor if config.gpus_per_actor is not None else float(gpus >= 1)
    _check_dtype(config, actor_gpus)
    if actor_gpus > 1 and actor_gpus != int(actor_gpus):
        raise UsageError(f"gpus-per-actor {actor_gpus:g}: above 1 it must be a whole number")
    # Where actors can be at all, and how many of them share one machine.
    places = actor_nodes(nodes, actor_gpus)
    room = sum(int(node.gpus / actor_gpus + EPSILON) for node in places) if actor_gpus else len(places)
    actors = config.actors or max(1, room)
    if actor_gpus and actors > room:
        raise UsageError(
            f"{actors} actors x {actor_gpus:g} GPUs = {actors * actor_gpus:g} GPUs, "
            f"but Ray has {gpus:g} GPUs{_on(nodes)}, room for {room}"
        )
    together = actors_per_node(actors, places, actor_gpus)
    smallest = min((node.cpus for node in places), default=cpus)
    actor_cpus = config.cpus_per_actor or _floor((smallest - 2 * SMALL_CPUS) / together)
    if actor_gpus and config.cpus_per_actor is None:
        actor_cpus = min(1.0, actor_cpus)
    read_cpus = SMALL_CPUS / 2 if actor_cpus == SMALL_CPUS else SMALL_CPUS
    if actor_gpus and cpus >= 2 * actors + 2 and _fits(nodes, actors, actor_cpus, actor_gpus, 1.0 + SMALL_CPUS):
        read_cpus = 1.0
    if not _fits(nodes, actors, actor_cpus, actor_gpus, read_cpus + SMALL_CPUS):
        needed = actors * actor_cpus + read_cpus + SMALL_CPUS
        raise UsageError(
            f"{actors} actors x {actor_cpus:g} CPUs, one decode task of {read_cpus:g} and one writer of {SMALL_CPUS:g} "
            f"need {needed:g} CPUs, but Ray has {cpus:g} CPUs{_on(nodes)}: ask for fewer actors or fewer CPUs an actor"
        )
    threads = config.threads or max(1, int(smallest / together))
    sinks = actors * (SINKS_A_GPU_ACTOR if actor_gpus else SINKS_A_CPU_ACTOR)
    fewest = config.min_actors or (1 if found.may_come and config.actors is None else actors)
    return Resources(actors, fewest, actor_cpus, actor_gpus, read_cpus, SMALL_CPUS, sinks, threads)


def check_dtype(config: RunConfig) -> None:
    """Refuse a dtype that the actors cannot compute in, as far as that is known before there is a Ray.

    Raises:
        UsageError: it is for GPUs and they have none, or for CPUs and they have some.
    """
    if config.gpus_per_actor is not None:
        _check_dtype(config, config.gpus_per_actor)
    elif config.address == "local" and not ray.is_initialized():
        _check_dtype(config, torch.cuda.device_count())


def _check_dtype(config: RunConfig, actor_gpus: float) -> None:
    if config.dtype == "int8" and actor_gpus:
        raise UsageError("dtype int8 is for CPUs, and the recognisers have GPUs: add --gpus-per-actor 0")
    if config.dtype in ("bfloat16", "float16") and not actor_gpus:
        raise UsageError(f"dtype {config.dtype} is for GPUs, and the recognisers have none: choose float32 or int8")


def actor_nodes(nodes: Sequence[Node], actor_gpus: float) -> list[Node]:
    return [node for node in nodes if node.cpus > 2 * SMALL_CPUS and node.gpus + EPSILON >= actor_gpus]


def actors_per_node(actors: int, places: Sequence[Node], actor_gpus: float) -> int:
    """How many actors one machine may come to hold."""
    if actor_gpus:
        return min(actors, max((int(node.gpus / actor_gpus + EPSILON) for node in places), default=1))
    return math.ceil(actors / max(len(places), 1))


def _floor(cpus: float) -> float:
    return int(cpus * 1e4) / 1e4  # Ray counts CPUs in ten-thousandths


def _on(nodes: Sequence[Node]) -> str:
    return f" on {len(nodes)} machines" if len(nodes) > 1 else ""


def _fits(nodes: Sequence[Node], actors: int, actor_cpus: float, actor_gpus: float, beside: float) -> bool:
    """Is there a machine that can hold the tasks' `beside` CPUs, while all of them together hold the actors?"""

    def held(node: Node, cpus: float) -> int:
        by_cpus = int(cpus / actor_cpus + EPSILON)
        return min(by_cpus, int(node.gpus / actor_gpus + EPSILON)) if actor_gpus else by_cpus

    if actor_cpus <= 0:
        return False
    total = sum(held(node, node.cpus) for node in nodes)
    return any(
        total - held(node, node.cpus) + held(node, node.cpus - beside) >= actors
        for node in nodes
        if node.cpus >= beside
    )
