"""Ray Data's settings, and how much of Ray's object store chunks may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ray.data import DataContext

from pipeline.cluster.resources import (
    EPSILON,
    SMALL_CPUS,
    ClusterNodes,
    Node,
    Resources,
    actor_nodes,
    max_actors_per_node,
)

STORE_SHARE: Final = 0.5  # at most, of a node's object store, for chunks that wait
# The object stores have room for this many chunks of the largest size: decoding need not run further ahead of the
# model. A GPU processes a chunk in a fraction of a second, in which Ray brings no other.
CHUNKS_PER_CPU_ACTOR: Final = 4
CHUNKS_PER_GPU_ACTOR: Final = 16
RELEASE_INTERVAL_S: Final = 300.0  # a chunk of 20 minutes takes less, at 4 times real time or more
MIN_STORE_BYTES: Final = 64 * 2**20  # Ray divides it between the stages, and holds back a stage that has no room


def store_share(nodes: Sequence[Node], resources: Resources, chunk_bytes: float) -> float:
    """The share of all object stores that chunks may take, 0..1: room for a few, at most `STORE_SHARE` of any node's.

    A chunk stays where it was read until an actor takes it, and readers run where actors leave CPUs. Ray limits only
    the sum over all nodes, to a half. Where nodes without GPUs read for a few nodes with GPUs and large stores, the
    stores of the former would overflow onto the disk. And Ray would fill that half, however large, wherever decoding is
    faster than the model.

    Args:
        nodes: the current nodes of the cluster.
        resources: what each stage requests.
        chunk_bytes: size of the largest chunk, in bytes.
    """
    candidates = actor_nodes(nodes, resources.actor_gpus)
    per_node = max_actors_per_node(resources.actors, candidates, resources.actor_gpus)
    readers = []  # reader tasks that fit on each node
    for node in nodes:
        actors = per_node
        if resources.actor_gpus:
            actors = min(per_node, int(node.gpus / resources.actor_gpus + EPSILON))
        free_cpus = node.cpus - actors * resources.actor_cpus * (node in candidates)
        readers.append(max(0, int(free_cpus / resources.read_cpus + EPSILON)))
    total_bytes = sum(node.store_bytes for node in nodes)
    stores = [node.store_bytes for node in nodes if node.cpus > 0 and node.store_bytes > 0]
    if not stores:  # unknown, as before the workers of a cluster that grows from only a head have started
        return STORE_SHARE
    bytes_per_reader = [
        node.store_bytes / count for node, count in zip(nodes, readers, strict=True) if count and node.store_bytes
    ]
    if not bytes_per_reader:  # it is unknown which nodes will read: assume that the one with the smallest store does
        bytes_per_reader, readers = [min(stores)], [1]
    chunks = resources.actors * (CHUNKS_PER_GPU_ACTOR if resources.actor_gpus else CHUNKS_PER_CPU_ACTOR)
    enough_bytes = max(MIN_STORE_BYTES, chunks * chunk_bytes)
    without_overflow = STORE_SHARE * min(bytes_per_reader) * sum(readers) / total_bytes
    return min(STORE_SHARE, without_overflow, enough_bytes / total_bytes)


def data_context(nodes: ClusterNodes, resources: Resources, chunk_bytes: float) -> DataContext:
    """Ray Data's settings for one execution.

    A chunk is one row. The smallest block size makes each chunk a block of its own: Ray gathers rows up to that size,
    and at its default several chunks would flow, queue and wait as one.

    Args:
        nodes: the nodes of the cluster.
        resources: what each stage requests.
        chunk_bytes: size of the largest chunk, in bytes.
    """
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    # Ray reserves this share of the CPUs for the stages, a third of it for each, from the start. At its default of a
    # half nothing is left for the last stage of a small machine beside the actors, and nothing is committed before all
    # is read. `allocate` leaves a quarter of a CPU for each of the light stages.
    cpus = sum(node.cpus for node in nodes.current) or min(node.cpus for node in nodes.potential if node.cpus)
    context.op_resource_reservation_ratio = min(0.5, 3 * SMALL_CPUS / cpus)
    context.override_object_store_memory_limit_fraction = store_share(nodes.current, resources, chunk_bytes)
    # By default Ray takes one more chunk from a reader than there is room for whenever it took none for ten seconds, in
    # case something waits for it. Where an actor needs longer for a chunk, the whole corpus would pile up in the store
    # and then on the disk. (Ray before 2.60 has no such setting.)
    if hasattr(context, "output_backpressure_guard_release_interval_s"):
        context.output_backpressure_guard_release_interval_s = RELEASE_INTERVAL_S
    # By default each worker sums up its memory pages once a second, for a figure in Ray's dashboard. In a process with
    # a model that takes a quarter of a second, in which none of its threads can allocate memory.
    context.memory_usage_poll_interval_s = None
    # Without it a stage's error arrives in one of Ray's, and its cause is lost on the way between processes.
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
