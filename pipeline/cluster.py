"""Ray: joining or starting it, and how its processors are shared out between decoding and the model."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray.data import DataContext
from ray.util import get_node_ip_address

from pipeline.config import RunConfig
from pipeline.errors import UsageError

IDLE_WORKERS_MS = 600_000
LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
CONNECT_TIMEOUT_S = 10
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
STORE_SHARE = 0.5  # of a machine's object store, at most, for chunks that wait
# Chunks of the largest size for which there is room in the object stores: decoding need not run further ahead of the
# model. A GPU is through with one in a fraction of a second, in which Ray brings no other.
CHUNKS_A_CPU_ACTOR = 4
CHUNKS_A_GPU_ACTOR = 16
LEAST_STORE_BYTES = 64 * 2**20  # Ray divides it between the stages, and holds one up that has no room


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


def share_out(found: Machines, config: RunConfig) -> Resources:
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
    places = _places(nodes, actor_gpus)
    room = sum(int(node.gpus / actor_gpus + EPSILON) for node in places) if actor_gpus else len(places)
    actors = config.actors or max(1, room)
    if actor_gpus and actors > room:
        raise UsageError(
            f"{actors} actors x {actor_gpus:g} GPUs = {actors * actor_gpus:g} GPUs, "
            f"but Ray has {gpus:g} GPUs{_on(nodes)}, room for {room}"
        )
    together = _together(actors, places, actor_gpus)
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


def _places(nodes: Sequence[Node], actor_gpus: float) -> list[Node]:
    return [node for node in nodes if node.cpus > 2 * SMALL_CPUS and node.gpus + EPSILON >= actor_gpus]


def _together(actors: int, places: Sequence[Node], actor_gpus: float) -> int:
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


def local_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def connect(address: str) -> Iterator[None]:
    """Join the Ray at `address`, or start a local one and end it afterwards; one that is connected already is used.

    Raises:
        UsageError: there is no Ray at `address`.
    """
    _quiet()
    if ray.is_initialized():
        yield
        return
    if address == "local":
        _start_local()
    else:
        _join(address)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray at {address}: {error}") from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray would wait for a minute and then end the process."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _quiet() -> None:
    """Leave Ray Data's words to its log files: what a user must know is said by us, and a bug's traceback is raised."""
    for handler in logging.getLogger("ray.data").handlers:
        # Those of the root are the user's, and hear Ray Data too.
        if isinstance(handler, logging.StreamHandler) and handler not in logging.root.handlers:
            handler.setLevel(logging.CRITICAL)
    # Fewer chunks than workers are no news.
    warnings.filterwarnings("ignore", r"The (max|min)imum number of concurrent (tasks|actors)", UserWarning)


def _start_local() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray ends workers beyond one a processor that were idle for a second, and readers and writers are idle for longer
    # than that between two chunks: starting them anew took a fifth of two processors.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_WORKERS_MS))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ray.init(
        address="local",  # else RAY_ADDRESS, or a cluster that this machine is the head of, would be joined
        num_cpus=local_cpus(),
        num_gpus=torch.cuda.device_count(),  # those that this installation of torch can use
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=int(min(LOCAL_OBJECT_STORE_BYTES, memory / 4)),
        _node_ip_address="127.0.0.1",
    )


def store_share(nodes: Sequence[Node], given: Resources, chunk_bytes: float) -> float:
    """The share of all object stores that chunks may take: room for some, on no machine more than `STORE_SHARE`.

    A chunk lies where it was read until an actor takes it, and readers run where actors leave processors. Ray holds the
    sum over all machines to a half: where machines without GPUs read for some with GPUs and large stores, theirs would
    run over, onto the disk. And it would fill that half, however large, wherever decoding is faster than the model.

    Args:
        nodes: the machines that are there.
        given: what was shared out.
        chunk_bytes: of the largest chunk.
    """
    places = _places(nodes, given.actor_gpus)
    together = _together(given.actors, places, given.actor_gpus)
    readers = []
    for node in nodes:
        actors = min(together, int(node.gpus / given.actor_gpus + EPSILON)) if given.actor_gpus else together
        free = node.cpus - actors * given.actor_cpus * (node in places)
        readers.append(max(0, int(free / given.read_cpus + EPSILON)))
    stores = sum(node.store_bytes for node in nodes)
    each = [node.store_bytes / count for node, count in zip(nodes, readers, strict=True) if count and node.store_bytes]
    if not stores:  # nothing is known of them
        return STORE_SHARE
    if not each:  # nobody knows which of the machines will read: as if it were the smallest one
        each, readers = [min(node.store_bytes for node in nodes if node.cpus > 0)], [1]
    chunks = given.actors * (CHUNKS_A_GPU_ACTOR if given.actor_gpus else CHUNKS_A_CPU_ACTOR)
    room = max(LEAST_STORE_BYTES, chunks * chunk_bytes)
    return min(STORE_SHARE, STORE_SHARE * min(each) * sum(readers) / stores, room / stores)


def data_context(found: Machines, given: Resources, chunk_bytes: float) -> DataContext:
    """Ray Data's settings for one execution.

    A chunk is one row. The smallest block size makes each a block of its own: Ray gathers rows up to that size, and at
    its default several chunks would flow, queue and wait as one.
    """
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    # Ray sets this share of the CPUs aside for the stages, in thirds and from the first on. At its default of a half
    # nothing is left for the last stage of a small machine beside the actors, and nothing is committed before the
    # reading is over. A quarter CPU for each of the light stages is what `share_out` leaves.
    cpus = sum(node.cpus for node in found.there) or min(node.cpus for node in found.may_come if node.cpus)
    context.op_resource_reservation_ratio = min(0.5, 3 * SMALL_CPUS / cpus)
    context.override_object_store_memory_limit_fraction = store_share(found.there, given, chunk_bytes)
    # By default each worker adds up its pages once a second, for a figure in Ray's dashboard: of a process with a model
    # that takes a quarter of a second, in which no thread of it gets memory.
    context.memory_usage_poll_interval_s = None
    # Else a stage's error comes wrapped in one of Ray's, and what caused it is lost on the way between processes.
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
