"""Starting a local Ray, or joining one."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator

import ray
import torch

from pipeline.errors import UsageError

IDLE_WORKERS_MS = 600_000
LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
CONNECT_TIMEOUT_S = 10


def local_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def connect(address: str) -> Iterator[None]:
    """Join the Ray at `address`, or start a local one and end it afterwards; one that is connected already is used.

    Raises:
        UsageError: there is no Ray at `address`.
    """
    _silence_ray_data()
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
        _probe(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray at {address}: {error}") from error


def _probe(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray would wait for a minute and then end the process."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _silence_ray_data() -> None:
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
