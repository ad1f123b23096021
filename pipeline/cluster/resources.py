"""The nodes of the cluster, and how their CPUs and GPUs are divided between decoding, the model and writing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import ray
import yaml
from ray.util import get_node_ip_address

from pipeline.cluster.local_machine import local_gpus
from pipeline.config import RunConfig
from pipeline.errors import UsageError

# CPUs that a reader requests beside CPU actors, which take the rest of the node, and that a writer requests.
# Ray counts these; threads are set separately.
SMALL_CPUS: Final = 0.25
# Writers at a time: writing a chunk takes a fraction of its time in the model. Without a limit Ray starts a worker
# process for each chunk that waits as soon as an actor ends and frees its CPUs, and these slow each other down.
WRITERS_PER_CPU_ACTOR: Final = 2
WRITERS_PER_GPU_ACTOR: Final = 4
# A beam search takes a CPU of its own beside GPUs, which recognise faster than several CPUs search.
BEAM_CPUS: Final = 1.0
# Where `ray up` puts the cluster's configuration on its head.
AUTOSCALING_CONFIG: Final = Path("~/ray_bootstrap_config.yaml")
DEFAULT_MAX_WORKERS: Final = 2  # of a cluster's configuration, by defaults.yaml of Ray's providers of clouds
HEAD_RESOURCE: Final = "node:__internal_head__"  # the resource by which Ray marks the head
EPSILON: Final = 1e-9  # rounding: ten tenths of a GPU are one


@dataclass(frozen=True)
class Node:
    """The resources of a node.

    Attributes:
        cpus: CPUs, as Ray counts them.
        gpus: GPUs, as Ray counts them.
        store_bytes: size of its object store, in bytes; 0 if unknown, as for a node that does not run yet.
    """

    cpus: float
    gpus: float
    store_bytes: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class ClusterNodes:
    """The nodes of the cluster that this process is connected to.

    Attributes:
        current: nodes that run.
        potential: nodes that the cluster's autoscaler can add to them.
    """

    current: tuple[Node, ...]
    potential: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What each stage requests of Ray.

    Attributes:
        actors: recogniser actors, at most.
        min_actors: recogniser actors, at least.
        actor_cpus: CPUs that an actor requests.
        actor_gpus: GPUs that an actor requests.
        read_cpus: CPUs that a reader task requests.
        write_cpus: CPUs that a writer task requests.
        writers: writer tasks at a time, at most.
        threads: threads that an actor computes with.
    """

    actors: int
    min_actors: int
    actor_cpus: float
    actor_gpus: float
    read_cpus: float
    write_cpus: float
    writers: int
    threads: int


def cluster_nodes(address: str) -> ClusterNodes:
    """The nodes of the connected cluster.

    Its autoscaler's limits are known only on the head, where jobs run by default.

    Args:
        address: the address that was connected to. A local Ray does not grow, whatever else runs on this machine.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    current = tuple(map(_node, nodes))
    autoscaling_config = AUTOSCALING_CONFIG.expanduser()
    heads = [node for node in nodes if HEAD_RESOURCE in node["Resources"]]
    this_machine = get_node_ip_address()  # type: ignore[no-untyped-call]
    is_head = address != "local" and any(head["NodeManagerAddress"] == this_machine for head in heads)
    if not is_head or not autoscaling_config.exists():
        return ClusterNodes(current)
    workers = [_node(node) for node in nodes if node not in heads]
    return ClusterNodes(current, _potential_nodes(yaml.safe_load(autoscaling_config.read_bytes()), workers))


def _node(node: Mapping[str, Any]) -> Node:
    resources = node["Resources"]
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("object_store_memory", 0.0))


def _potential_nodes(config: Mapping[str, Any], workers: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes that `max_workers`, of each type and of all, allow beside the current ones; those with GPUs first."""
    running, potential = list(workers), []
    for node_type in config["available_node_types"].values():
        resources = node_type["resources"]
        node = Node(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))
        for _ in range(node_type.get("max_workers", 0)):
            if node in running:
                running.remove(node)
            else:
                potential.append(node)
    potential.sort(key=lambda node: -node.gpus)
    return tuple(potential[: max(0, config["max_workers"] - len(workers))])


def nodes_of(cluster: Path) -> tuple[Node, ...]:
    """The nodes that a cluster's configuration, as `ray up` takes it, allows when all of them run; without the head.

    What the file leaves out has the defaults of `ray up`: the cluster's `max_workers` for a node type's.

    Raises:
        UsageError: it is not such a file, it does not say what its workers have, or it allows none.
    """
    try:
        config = yaml.safe_load(cluster.read_bytes())
        head, at_most = config.get("head_node_type"), config.get("max_workers", DEFAULT_MAX_WORKERS)
        types = {
            name: {"max_workers": at_most, **node_type}
            for name, node_type in config["available_node_types"].items()
            if name != head and node_type.get("max_workers") != 0
        }
        unknown = [name for name, node_type in types.items() if not node_type.get("resources")]
        nodes = () if unknown else _potential_nodes({"available_node_types": types, "max_workers": at_most}, ())
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"cluster: {cluster} is no configuration of a Ray cluster: {why}") from error
    if unknown:
        raise UsageError(
            f"cluster: {cluster}: node type {unknown[0]} has no resources: add `resources: {{CPU: ...}}`, and GPU if "
            "it has GPUs"
        )
    if not any(node.cpus for node in nodes):
        raise UsageError(f"cluster: {cluster} allows no workers with CPUs: see its max_workers, and its node types")
    return nodes


def allocate(cluster: ClusterNodes, config: RunConfig) -> Resources:
    """Divide a cluster between the stages. A cluster that can grow is divided as if it had all its potential nodes.

    Decoding must never be fused into the actors: Ray fuses neighbouring stages with equal requests, so the requests
    differ. And the actors must leave room for one reader and one writer, or the stages would wait for each other for
    ever.

    Raises:
        UsageError: the request cannot fit; the message has the numbers.
    """
    nodes = [*cluster.current, *cluster.potential]
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if not cpus:
        raise UsageError("Ray has no nodes with CPUs for tasks: wait for the cluster's workers, or start some")
    actor_gpus = config.gpus_per_actor if config.gpus_per_actor is not None else float(gpus >= 1)
    _check_dtype(config, actor_gpus)
    if actor_gpus > 1 and actor_gpus != int(actor_gpus):
        raise UsageError(f"gpus-per-actor {actor_gpus:g}: above 1 it must be a whole number")
    candidates = actor_nodes(nodes, actor_gpus)
    room = sum(int(node.gpus / actor_gpus + EPSILON) for node in candidates) if actor_gpus else len(candidates)
    actors = config.actors or max(1, room)
    if actor_gpus and actors > room:
        raise UsageError(
            f"{actors} actors x {actor_gpus:g} GPUs = {actors * actor_gpus:g} GPUs, "
            f"but Ray has {gpus:g} GPUs{_on_nodes(nodes)}, room for {room}"
        )
    per_node = max_actors_per_node(actors, candidates, actor_gpus)
    smallest = min((node.cpus for node in candidates), default=cpus)
    actor_cpus = config.cpus_per_actor or _round_down((smallest - 2 * SMALL_CPUS) / per_node)
    if actor_gpus and config.cpus_per_actor is None:
        actor_cpus = min(1.0, actor_cpus)
    read_cpus = SMALL_CPUS / 2 if actor_cpus == SMALL_CPUS else SMALL_CPUS
    if actor_gpus and cpus >= 2 * actors + 2 and _fits(nodes, actors, actor_cpus, actor_gpus, 1.0 + SMALL_CPUS):
        read_cpus = 1.0
    if not _fits(nodes, actors, actor_cpus, actor_gpus, read_cpus + SMALL_CPUS):
        needed = actors * actor_cpus + read_cpus + SMALL_CPUS
        raise UsageError(
            f"{actors} actors x {actor_cpus:g} CPUs, one reader of {read_cpus:g} and one writer of {SMALL_CPUS:g} "
            f"need {needed:g} CPUs, but Ray has {cpus:g} CPUs{_on_nodes(nodes)}: ask for fewer actors, or fewer CPUs "
            "per actor"
        )
    threads = config.threads or max(1, int(smallest / per_node))
    write_cpus, writers = SMALL_CPUS, actors * (WRITERS_PER_GPU_ACTOR if actor_gpus else WRITERS_PER_CPU_ACTOR)
    if config.has_beam and not actor_gpus:  # a writer searches for a fraction of the time that a thread recognises
        writers = max(writers, actors * threads)
    elif config.has_beam and _fits(nodes, actors, actor_cpus, actor_gpus, read_cpus + BEAM_CPUS):
        write_cpus, writers = BEAM_CPUS, max(writers, int(cpus - actors * actor_cpus - read_cpus))
    return Resources(
        actors=actors,
        min_actors=config.min_actors or (1 if cluster.potential and config.actors is None else actors),
        actor_cpus=actor_cpus,
        actor_gpus=actor_gpus,
        read_cpus=read_cpus,
        write_cpus=write_cpus,
        writers=writers,
        threads=threads,
    )


def check_dtype(config: RunConfig) -> None:
    """Refuse a dtype that the actors cannot compute in, as far as that is known before Ray is connected.

    Raises:
        UsageError: the dtype is for GPUs and the actors have none, or it is for CPUs and the actors have GPUs.
    """
    if config.gpus_per_actor is not None:
        _check_dtype(config, config.gpus_per_actor)
    elif config.address == "local" and not ray.is_initialized():
        _check_dtype(config, local_gpus())


def _check_dtype(config: RunConfig, actor_gpus: float) -> None:
    if config.dtype == "int8" and actor_gpus:
        raise UsageError("dtype int8 is for CPUs, and the recognisers have GPUs: add --gpus-per-actor 0")
    if config.dtype in ("bfloat16", "float16") and not actor_gpus:
        raise UsageError(f"dtype {config.dtype} is for GPUs, and the recognisers have none: choose float32 or int8")


def actor_nodes(nodes: Sequence[Node], actor_gpus: float) -> list[Node]:
    """The nodes that can hold an actor.

    Args:
        nodes: the nodes of the cluster.
        actor_gpus: GPUs that an actor requests.
    """
    return [node for node in nodes if node.cpus > 2 * SMALL_CPUS and node.gpus + EPSILON >= actor_gpus]


def max_actors_per_node(actors: int, candidates: Sequence[Node], actor_gpus: float) -> int:
    """The largest number of actors that one node may have to hold.

    Args:
        actors: recogniser actors, in all.
        candidates: the nodes that can hold an actor.
        actor_gpus: GPUs that an actor requests.
    """
    if actor_gpus:
        return min(actors, max((int(node.gpus / actor_gpus + EPSILON) for node in candidates), default=1))
    return math.ceil(actors / max(len(candidates), 1))


def _round_down(cpus: float) -> float:
    return int(cpus * 1e4) / 1e4  # Ray counts CPUs in ten-thousandths


def _on_nodes(nodes: Sequence[Node]) -> str:
    return f" on {len(nodes)} nodes" if len(nodes) > 1 else ""


def _fits(nodes: Sequence[Node], actors: int, actor_cpus: float, actor_gpus: float, task_cpus: float) -> bool:
    """Whether some node has room for tasks of `task_cpus` while all nodes together hold the actors."""

    def actors_in(node: Node, cpus: float) -> int:
        by_cpus = int(cpus / actor_cpus + EPSILON)
        return min(by_cpus, int(node.gpus / actor_gpus + EPSILON)) if actor_gpus else by_cpus

    if actor_cpus <= 0:
        return False
    total = sum(actors_in(node, node.cpus) for node in nodes)
    return any(
        total - actors_in(node, node.cpus) + actors_in(node, node.cpus - task_cpus) >= actors
        for node in nodes
        if node.cpus >= task_cpus
    )
