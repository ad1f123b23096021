"""Starting a local Ray, or joining a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from typing import Any, Final

import ray
import torch

from pipeline.cluster.ray_private import IsolatedJobConfig
from pipeline.errors import UsageError

IDLE_WORKERS_MS: Final = 600_000
LOCAL_OBJECT_STORE_BYTES: Final = 2 * 2**30
CONNECT_TIMEOUT_S: Final = 10
RAY_CLIENT: Final = "ray://"


def local_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def connect(address: str) -> Iterator[None]:
    """Connect to Ray for the body of a `with` statement; a Ray that this process is already connected to is used as is.

    Args:
        address: `local` starts a Ray and stops it afterwards; `auto` or HOST:PORT joins a cluster and leaves it
            afterwards.

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
    # Ray Client creates the job at the other end of the connection, where Ray adds no directories of this machine.
    isolated: dict[str, Any] = {} if address.startswith(RAY_CLIENT) else {"job_config": IsolatedJobConfig()}
    try:
        _probe(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **isolated)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray at {address}: {error}") from error


def _probe(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT. Ray itself would wait for a minute and then end the process."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _silence_ray_data() -> None:
    """Keep Ray Data's messages in its log files: this project reports what a user must know, and bugs are raised."""
    for handler in logging.getLogger("ray.data").handlers:
        # The handlers of the root logger are the user's, and Ray Data's records reach them too.
        if isinstance(handler, logging.StreamHandler) and handler not in logging.root.handlers:
            handler.setLevel(logging.CRITICAL)
    # Ray Data warns when there are fewer chunks than workers, which is not a problem.
    warnings.filterwarnings("ignore", r"The (max|min)imum number of concurrent (tasks|actors)", UserWarning)


def _start_local() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray ends workers above one per CPU that were idle for a second, and readers and writers are idle for longer than
    # that between two chunks: restarting them took a fifth of two CPUs.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_WORKERS_MS))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ray.init(
        address="local",  # else RAY_ADDRESS, or a cluster whose head is this machine, would be joined
        num_cpus=local_cpus(),
        num_gpus=torch.cuda.device_count(),  # those that this installation of torch can use
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=int(min(LOCAL_OBJECT_STORE_BYTES, memory / 4)),
        job_config=IsolatedJobConfig(),
        _node_ip_address="127.0.0.1",
    )
