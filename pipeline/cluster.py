"""Ray: joining or starting it, and how its processors are shared out between decoding and the model."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.data import DataContext

from pipeline.config import RunConfig
from pipeline.errors import UsageError

LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
# What a decode task asks for beside CPU actors, which take the rest of the machine; torch threads are set apart from this.
SMALL_CPUS = 0.25


@dataclass(frozen=True)
class Resources:
    """Ray's resource requests of each stage, and torch threads an actor."""

    actors: int
    actor_cpus: float
    actor_gpus: float
    read_cpus: float
    sink_cpus: float
    threads: int


def share_out(cpus: float, gpus: float, config: RunConfig) -> Resources:
    """Divide a cluster of `cpus` and `gpus` between the stages.

    Decoding must never be fused into the actors: Ray fuses neighbours whose requests are equal, so they are kept unequal.
    And the actors must leave room for one decode task, or both would wait for each other for ever.

    Raises:
        UsageError: the request cannot fit, with the numbers.
    """
    actor_gpus = config.gpus_per_actor if config.gpus_per_actor is not None else float(gpus >= 1)
    actors = config.actors or (max(1, int(gpus / actor_gpus)) if actor_gpus else 1)
    read_cpus = 1.0 if actor_gpus and cpus >= 2 * actors + 2 else SMALL_CPUS
    if config.cpus_per_actor is not None:
        actor_cpus = config.cpus_per_actor
    elif actor_gpus:
        actor_cpus = min(1.0, (cpus - 2 * SMALL_CPUS) / actors)
    else:
        actor_cpus = int((cpus - 2 * SMALL_CPUS) / actors * 1e4) / 1e4  # Ray counts CPUs in ten-thousandths
    if actor_cpus == read_cpus and not actor_gpus:
        read_cpus /= 2
    if actors * actor_gpus > gpus:
        raise UsageError(f"{actors} actors x {actor_gpus:g} GPUs = {actors * actor_gpus:g}, but Ray has {gpus:g} GPUs")
    needed = actors * actor_cpus + read_cpus
    if needed > cpus or actor_cpus <= 0:
        raise UsageError(
            f"{actors} actors x {actor_cpus:g} CPUs and one decode task of {read_cpus:g} need {needed:g}, "
            f"but Ray has {cpus:g} CPUs: ask for fewer actors or fewer CPUs an actor"
        )
    threads = config.threads or max(1, int(cpus / actors))
    return Resources(actors, actor_cpus, actor_gpus, read_cpus, SMALL_CPUS, threads)


def local_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def connect(address: str) -> Iterator[None]:
    """Join the Ray at `address`, or start a local one and end it afterwards. A Ray that is connected already is used as it is.

    Raises:
        UsageError: there is no Ray at `address`.
    """
    _quiet()
    if ray.is_initialized():
        yield
        return
    try:
        if address == "local":
            _start_local()
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UsageError(f"no Ray at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _quiet() -> None:
    """Leave Ray Data's words to its log files: what a user must know is said by us, and a bug's traceback is raised."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _start_local() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ray.init(
        num_cpus=local_cpus(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=int(min(LOCAL_OBJECT_STORE_BYTES, memory / 4)),
        _node_ip_address="127.0.0.1",
    )


def data_context() -> DataContext:
    """Ray Data's settings for one execution.

    A chunk is one row. The smallest block size makes each a block of its own: Ray gathers rows up to that size, and at
    its default several chunks would flow, queue and wait as one.
    """
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
