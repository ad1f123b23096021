"""How much of Ray's object store chunks may take, and Ray Data's settings."""

from __future__ import annotations

from collections.abc import Sequence

from ray.data import DataContext

from pipeline.cluster.resources import EPSILON, SMALL_CPUS, Machines, Node, Resources, actor_nodes, actors_per_node

STORE_SHARE = 0.5  # of a machine's object store, at most, for chunks that wait
# Chunks of the largest size for which there is room in the object stores: decoding need not run further ahead of the
# model. A GPU is through with one in a fraction of a second, in which Ray brings no other.
CHUNKS_A_CPU_ACTOR = 4
CHUNKS_A_GPU_ACTOR = 16
LEAST_STORE_BYTES = 64 * 2**20  # Ray divides it between the stages, and holds one up that has no room


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
    places = actor_nodes(nodes, given.actor_gpus)
    together = actors_per_node(given.actors, places, given.actor_gpus)
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
    # reading is over. A quarter CPU for each of the light stages is what `allocate` leaves.
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
