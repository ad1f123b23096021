"""Ray: whether it starts or can be joined, whether its workers have this project, and what a run would ask of it."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayError

from pipeline.cluster.ray_start import connect
from pipeline.cluster.resources import EPSILON, allocate, cluster_nodes
from pipeline.config import RunConfig
from pipeline.doctor.check import Check, failure, ok, warning
from pipeline.doctor.versions import DISTRIBUTION
from pipeline.errors import RunFailedError, UsageError

WORKER_S: Final = 90.0  # for a worker to start; on a grown cluster it is there already


def cluster_checks(config: RunConfig) -> Iterator[Check]:
    """Start or join Ray as a run would, and leave it again.

    Args:
        config: the run: `address`, and what it asks of the cluster.
    """
    started = time.perf_counter()
    try:
        with connect(config.address):
            seconds = time.perf_counter() - started
            verb = "started" if config.address == "local" else f"joined {config.address}"
            yield ok("Ray", f"{verb} in {seconds:.1f} s")
            yield _workers()
            yield resources(config)
    except (UsageError, RunFailedError) as error:
        yield failure("Ray", str(error), "see the message; `ray status` shows the cluster's nodes")


def _version() -> str:
    return importlib.metadata.version(DISTRIBUTION)


def _workers() -> Check:
    """Whether a worker of the cluster starts and imports this project."""
    started = time.perf_counter()
    try:
        task: Any = ray.remote(_version).options(num_cpus=0)
        found = ray.get(task.remote(), timeout=WORKER_S)
    except GetTimeoutError:
        return failure(
            "Ray worker",
            f"none started within {WORKER_S:.0f} s",
            "look at `ray status` and the logs of the cluster's nodes",
        )
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        return failure("Ray worker", reason, "install this project, in the same versions, on every node")
    here = _version()
    if found != here:
        return failure(
            "Ray worker", f"it has {DISTRIBUTION} {found}, and this machine {here}", "install the same version"
        )
    return ok("Ray worker", f"a worker with {DISTRIBUTION} {found} answered in {time.perf_counter() - started:.1f} s")


def resources(config: RunConfig) -> Check:
    """The resources of the connected cluster against what a run would ask for."""
    nodes = cluster_nodes(config.address)
    every = [*nodes.current, *nodes.potential]
    cpus, gpus = sum(node.cpus for node in every), sum(node.gpus for node in every)
    has = f"{len(every)} nodes with {cpus:g} CPUs and {gpus:g} GPUs"
    try:
        wanted = allocate(nodes, config)
    except UsageError as error:
        return failure("resources", str(error), "add CPUs or nodes, or ask for less")
    each = f"{wanted.actor_cpus:g} CPUs" + (f" and {wanted.actor_gpus:g} GPUs" if wanted.actor_gpus else "")
    asked = f"a run asks for {wanted.actors} recognisers of {each}, {wanted.threads} threads each"
    available = ray.available_resources()  # type: ignore[no-untyped-call]
    free_cpus, free_gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    need_cpus = wanted.min_actors * wanted.actor_cpus + wanted.read_cpus + wanted.write_cpus
    need_gpus = wanted.min_actors * wanted.actor_gpus
    lacks = free_cpus + EPSILON < need_cpus or free_gpus + EPSILON < need_gpus
    if lacks and not nodes.potential:
        return warning(
            "resources",
            f"busy: {free_cpus:g} of {cpus:g} CPUs and {free_gpus:g} of {gpus:g} GPUs are free, and {asked}",
            "wait until other jobs have ended, or ask for less (--actors, --cpus-per-actor): a run would wait for them",
        )
    return ok("resources", f"{has}; {asked}")
