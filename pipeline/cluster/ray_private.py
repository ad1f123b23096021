"""Everything that needs a part of Ray which is not public, or which its public API answers only with a dashboard."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray


def recognizers(stage: str) -> str:
    """How the actors of a stage are, by Ray's word for it, and what of the cluster is free: `2 ALIVE, 1 RESTARTING`."""
    state: Any = ray._private.state  # the public call asks a dashboard, which is not always there
    job = ray.get_runtime_context().get_job_id()
    ours = [actor for actor in state.actors().values() if actor["JobID"] == job]
    states = Counter(actor["State"] for actor in ours if stage in actor["Name"] + actor["ActorClassName"])
    words = ", ".join(f"{count} {name}" for name, count in sorted(states.items()) if name != "DEAD") or "none"
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    rest = ", ".join(f"{free.get(name, 0.0):g} {name}s" for name in ("CPU", "GPU"))
    alive = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    return f"recognisers: {words}; {rest} free on {alive} machines"


def task_attempt() -> int:
    """How often this Ray task was tried before: because its process or machine died, or its output with one.

    Ray keeps it for the names of its logs and has no public call for it; the tests of `tests/faults` rest on it.
    """
    worker: Any = ray._private.worker.global_worker
    return int(worker.core_worker.get_current_task_attempt_number())


def current_node() -> str:
    """Ray's name of the machine that this process is on; nothing where there is no Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def node_is_alive(machine: str) -> bool:
    """Whether a machine is in the cluster: one of an earlier Ray is not; of one without a name nothing is known."""
    if not machine or not ray.is_initialized():
        return not machine
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return machine in {node["NodeID"] for node in nodes if node["Alive"]}


def actor_was_restarted() -> bool:
    """Whether this is an actor of Ray that is there in the place of one that died."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and context.was_current_actor_reconstructed
