"""Starting a local Ray, or joining a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from typing import Any, Final

import ray

from pipeline.cluster.local_machine import (
    ENLARGE_SHARED_MEMORY,
    LOCAL_OBJECT_STORE_BYTES,
    MIN_OBJECT_STORE_BYTES,
    SHARED_MEMORY,
    local_cpus,
    local_gpus,
)
from pipeline.cluster.local_ray import end_local_ray, few_daemons, shielded_daemons
from pipeline.cluster.ray_private import IsolatedJobConfig, is_start_failure, ray_temporary_directory
from pipeline.errors import RunFailedError, UsageError

IDLE_WORKERS_MS: Final = 600_000
STORE_BYTES_PER_CPU: Final = 2**28  # half of it for the chunks of 20 minutes that wait for an actor on each CPU
CONNECT_TIMEOUT_S: Final = 10
RAY_CLIENT: Final = "ray://"
SHARED_MEMORY_SHARE: Final = 0.9  # others use it, too
MAX_SOCKET_NAME: Final = 107
_SOCKET_BELOW_IT: Final = "/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"

log = logging.getLogger("sewd")


@contextlib.contextmanager
def connect(address: str) -> Iterator[None]:
    """Connect to Ray for the body of a `with` statement; a Ray that this process is already connected to is used as is.

    Args:
        address: `local` starts a Ray and stops it afterwards; `auto` or HOST:PORT joins a cluster and leaves it
            afterwards.

    Raises:
        UsageError: there is no Ray at `address`, or none can be started here.
        RunFailedError: Ray did not start in time.
    """
    _silence_ray()
    if ray.is_initialized():
        yield
        return
    if address == "local":
        _start_local()
    else:
        _join(address)
    _silence_ray()  # again: Ray has set up its logging
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    # Ray Client creates the job at the other end of the connection, where Ray adds no directories of this machine.
    isolated: dict[str, Any] = {} if address.startswith(RAY_CLIENT) else {"job_config": IsolatedJobConfig()}
    try:
        _probe(address)
        with shielded_daemons():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **isolated)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray at {address}: {error}") from error


def _probe(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT. Ray itself would wait for a minute and then end the process."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _silence_ray() -> None:
    """Keep Ray's messages in its log files, and in that of this project, if there is one.

    This project reports what a user must know, and bugs are raised.
    """
    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            # Other handlers are the user's. Those of the root logger are, too, and Ray Data's records reach them.
            is_console = isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
            if is_console and handler not in logging.root.handlers:
                handler.setLevel(logging.CRITICAL + 1)
    ray_log = logging.getLogger("ray")
    targets = {handler.target for handler in ray_log.handlers if isinstance(handler, MemoryHandler)}
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler) and handler not in targets:
            # Through another handler: Ray sets the format of its own handlers when it starts.
            ray_log.addHandler(MemoryHandler(1, target=handler))
    # Ray Data warns when there are fewer chunks than workers, which is not a problem.
    warnings.filterwarnings("ignore", r"The (max|min)imum number of concurrent (tasks|actors)", UserWarning)


def _start_local() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray ends workers above one per CPU that were idle for a second, and readers and writers are idle for longer than
    # that between two chunks: restarting them took a fifth of two CPUs.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_WORKERS_MS))
    _check_temporary_directory()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = local_gpus()
    store_bytes = _fitting_store(_enough_store(local_cpus(), gpus, memory))
    try:
        with shielded_daemons(), few_daemons():
            ray.init(
                address="local",  # else RAY_ADDRESS, or a cluster whose head is this machine, would be joined
                num_cpus=local_cpus(),
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=store_bytes,
                job_config=IsolatedJobConfig(),
                _node_ip_address="127.0.0.1",
            )
    except Exception as error:
        if not is_start_failure(error):
            raise
        end_local_ray()
        raise RunFailedError(_start_failure(error)) from error


def _enough_store(cpus: int, gpus: int, memory_bytes: int) -> int:
    """The size of a local object store: more would only let decoding run further ahead of the model.

    The pages of the store that a process has used count as its memory.
    """
    enough = LOCAL_OBJECT_STORE_BYTES if gpus else max(MIN_OBJECT_STORE_BYTES, cpus * STORE_BYTES_PER_CPU)
    return min(enough, LOCAL_OBJECT_STORE_BYTES, memory_bytes // 4)


def _check_temporary_directory() -> None:
    """Refuse a temporary directory in which Ray's sockets cannot be: their names have a limit.

    Raises:
        UsageError: its name is too long, or nothing can be written there.
    """
    directory = ray_temporary_directory()
    longest = len(os.fsencode(directory)) + len(_SOCKET_BELOW_IT.format(pid=os.getpid()))
    if longest > MAX_SOCKET_NAME:
        raise UsageError(
            f"Ray cannot put its sockets below {directory}: their names would have {longest} bytes, and may have "
            f"{MAX_SOCKET_NAME}. Set RAY_TMPDIR to a directory with a shorter name, such as /tmp"
        )
    try:
        os.makedirs(directory, exist_ok=True)  # noqa: PTH103
    except OSError as error:
        raise UsageError(
            f"Ray cannot write to {directory}: {error}. Set RAY_TMPDIR to a directory that it can use"
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"Ray cannot write to {directory}. Set RAY_TMPDIR to a directory that it can use")


def _fitting_store(wanted: int) -> int:
    """The size of the object store: what is wanted, or what shared memory has room for.

    Where it has room for little, Ray would keep the store in its temporary directory, which is slow on a disk.
    """
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:  # not Linux
        return wanted
    free = int(found.f_bavail * found.f_frsize * SHARED_MEMORY_SHARE)
    if free >= wanted:
        return wanted
    if free >= MIN_OBJECT_STORE_BYTES:
        return free
    log.warning(
        f"{SHARED_MEMORY} has room for {free / 2**20:,.0f} MiB: chunks wait on the disk instead, which is slower: "
        f"{ENLARGE_SHARED_MEMORY}"
    )
    return wanted


def _start_failure(error: BaseException) -> str:
    load = f", its load is {os.getloadavg()[0]:.0f} on {local_cpus()} CPUs" if hasattr(os, "getloadavg") else ""
    first = " ".join(str(error).split("\n")[0].split())
    return (
        f"Ray did not start on this machine ({first}){load}. Run the same command again when the machine is less busy; "
        f"Ray's logs are in {ray_temporary_directory()}/session_latest/logs"
    )
