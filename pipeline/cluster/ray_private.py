"""Every use of a part of Ray that is not public, or whose public form needs a dashboard."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError, RpcError
from ray.job_config import JobConfig

# The directory that this project's packages are imported from: a checkout, or where they are installed.
_START_FAILURE: Final = re.compile(r"timed out|failed to start|Failed to|Failed to get|not (be )?found|died|GCS", re.I)
_IMPORTED_FROM: Final = Path(__file__).resolve().parents[2]


class IsolatedJobConfig(JobConfig):
    """A Ray job whose workers import nothing from the directory in which the driver happens to run.

    Ray puts the driver's script directory and its working directory first on the workers' `sys.path`
    (`ray._private.worker.connect`). A `pipeline.py` or `jobs/` there would hide this project's packages, in the workers
    only: a driver that was started as `sewd` does not import from its working directory. So both are left out, unless
    they hold this project's packages, as in a checkout that is not installed.
    """

    def _serialize(self) -> str:
        """The job for Ray; Ray calls it once it has added its directories."""
        self._py_driver_sys_path = [path for path in self._py_driver_sys_path if _is_import_directory(path)]
        return super()._serialize()


def _is_import_directory(path: str) -> bool:
    return Path(path).resolve() == _IMPORTED_FROM


def ray_temporary_directory() -> str:
    """The directory below which a local Ray has its sockets and logs."""
    utils: Any = ray._common.utils
    return str(utils.get_default_ray_temp_dir())


def is_start_failure(error: BaseException) -> bool:
    """Whether Ray raised `error` because one of its processes did not start, or not in time.

    It has no type for that: it raises Exception and RuntimeError, and errors of its connections.
    """
    if isinstance(error, RayError | TimeoutError | ConnectionError | RpcError):
        return True
    return type(error) in (Exception, RuntimeError) and bool(_START_FAILURE.search(str(error)))


def actor_states(class_name: str) -> str:
    """The states of the actors of a class and the free resources: `2 ALIVE, 1 RESTARTING; 1 CPUs, ... free ...`.

    Args:
        class_name: name of the class, as Ray Data puts it into the actor's name; only actors of this job count.
    """
    state: Any = ray._private.state  # the public call needs a dashboard, which a local Ray does not have
    job = ray.get_runtime_context().get_job_id()
    actors = [actor for actor in state.actors().values() if actor["JobID"] == job]
    counts = Counter(actor["State"] for actor in actors if class_name in actor["Name"] + actor["ActorClassName"])
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()) if state != "DEAD") or "none"
    available = ray.available_resources()  # type: ignore[no-untyped-call]
    free = ", ".join(f"{available.get(name, 0.0):g} {name}s" for name in ("CPU", "GPU"))
    alive = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    return f"{states}; {free} free on {alive} nodes"


def task_attempt() -> int:
    """How often this Ray task was tried before: because its process or node died, or its output was lost with a node.

    Ray keeps this number for the names of its log files and has no public call for it; the tests in `tests/faults`
    depend on it.
    """
    worker: Any = ray._private.worker.global_worker
    return int(worker.core_worker.get_current_task_attempt_number())


def current_node() -> str:
    """Ray's id of the node on which this process runs; empty without Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def node_is_alive(node_id: str) -> bool:
    """Whether a node is in the cluster. A node of an earlier Ray is not; an empty id counts as alive."""
    if not node_id or not ray.is_initialized():
        return not node_id
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return node_id in {node["NodeID"] for node in nodes if node["Alive"]}


def actor_was_restarted() -> bool:
    """Whether this process is a Ray actor that Ray started in place of one that died."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and context.was_current_actor_reconstructed
