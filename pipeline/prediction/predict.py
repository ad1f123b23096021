"""The prediction of a run: its time, the hours of its actors, memory, object store and cost."""

from __future__ import annotations

import math
import resource
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.cluster.local_machine import local_gpus
from pipeline.cluster.object_store import store_share
from pipeline.cluster.resources import ClusterNodes, Resources, allocate, nodes_of
from pipeline.config import RunConfig
from pipeline.errors import UsageError
from pipeline.prediction.recordings import Recordings, Work
from pipeline.prediction.trial import Trial, run_trial
from pipeline.stages.models import ModelInfo
from pipeline.storage.checkpoints import checkpoint_digest

MIN_CLIP_S: Final = 1 / 16


@dataclass(frozen=True)
class Prediction:
    """What a run will take. All seconds are of wall time unless they say otherwise.

    Attributes:
        audio_s: audio of the run.
        time_s: of the command, from its start to its end.
        run_s: from the start of the driver to its end, as the record has it: without what comes before, which is to
            load packages and models, and to list the corpus.
        start_s: of that, to start and end Ray and the recognisers.
        model_s: that all recognisers together compute.
        decode_cpu_s: CPU seconds to read and decode.
        recognizers: recogniser actors.
        threads: threads of each.
        actor_hours: hours of recogniser actors, those included in which they wait.
        nodes: machines that are used.
        chunks: about how many.
        memory_bytes: of the processes of a machine that holds most recognisers, without the object store.
        store_bytes: that chunks may take of all object stores.
        speeds: seconds of audio per second of one recogniser, by the length of clips in seconds.
        engine: what computes.
        cost: of all machines; None without a price.
    """

    audio_s: float
    time_s: float
    run_s: float
    start_s: float
    model_s: float
    decode_cpu_s: float
    recognizers: int
    threads: int
    actor_hours: float
    nodes: int
    chunks: int
    memory_bytes: float
    store_bytes: float
    speeds: dict[str, float]
    engine: str
    cost: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As `sewd plan --json` prints it, and the record of a run keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Machines:
    """What a run is predicted for.

    Attributes:
        cluster: configuration of a cluster, as `ray up` takes it; None: this machine.
        speed: seconds of audio per second of one recogniser, in place of what is timed; None: timed here.
        cost_per_hour: price of all machines together.
    """

    cluster: Path | None = None
    speed: float | None = None
    cost_per_hour: float | None = None


def predict(
    config: RunConfig, models: ModelInfo, machines: Machines, recordings: Recordings, parts: int, prepare_s: float
) -> Prediction:
    """Predict a run.

    Args:
        config: the run: its models, and what it asks of the machines.
        models: what is known of its checkpoints.
        machines: what it runs on.
        recordings: of the corpus, with the work on them, timed on this machine.
        parts: number of parts of the plan.
        prepare_s: how long a command takes before it starts Ray: to load packages and models, and to list the corpus.

    Raises:
        UsageError: the request does not fit the machines; or only they, or only this machine, computes on GPUs, and
            there is no speed.
        StorageError, RunFailedError: as `run_trial`.
    """
    audio_s, work = recordings.audio_s, recordings.work
    digests = tuple(map(checkpoint_digest, (config.model, *config.tasks.values())))
    lengths = {exponent: seconds / number for exponent, (seconds, number) in work.clips.items() if number}
    of_cluster = None
    if machines.cluster is not None:
        cluster = ClusterNodes((), nodes_of(machines.cluster))
        of_cluster = cluster, allocate(cluster, config)
        config = _of_this_machine(config, of_cluster[1], machines.speed)
    trial = run_trial(config, models, digests, sorted(lengths.values()) or [MIN_CLIP_S])
    nodes, wanted = of_cluster or (trial.nodes, trial.resources)
    threads = wanted.threads
    slower = trial.threads / threads if not wanted.actor_gpus else 1.0
    model_s = sum(
        seconds * (1 / machines.speed if machines.speed else trial.seconds[lengths[exponent]] * slower)
        for exponent, (seconds, number) in work.clips.items()
        if number
    )
    chunks = max(1, parts, math.ceil(audio_s / config.chunk_s))
    work_s = _work_s(nodes, wanted, trial, work, model_s, chunks)
    run_s = trial.start_s + work_s
    every = [*nodes.current, *nodes.potential]
    return Prediction(
        audio_s=audio_s,
        time_s=prepare_s + run_s,
        run_s=run_s,
        start_s=trial.start_s,
        model_s=model_s,
        decode_cpu_s=work.read_cpu_s,
        recognizers=wanted.actors,
        threads=threads,
        actor_hours=wanted.actors * run_s / 3600,
        nodes=len(every),
        chunks=chunks,
        memory_bytes=_memory_bytes(nodes, wanted, trial),
        store_bytes=_store_bytes(nodes, wanted, config, models, audio_s),
        speeds={f"{length:.2g}": 1 / seconds for length, seconds in trial.seconds.items()},
        engine=trial.engine,
        cost=None if machines.cost_per_hour is None else machines.cost_per_hour * (prepare_s + run_s) / 3600,
    )


def _of_this_machine(config: RunConfig, wanted: Resources, speed: float | None) -> RunConfig:
    """The run whose trial is made here: options of machines are those of the cluster's actors, not of this machine.

    Raises:
        UsageError: only the cluster, or only this machine, computes on GPUs, and there is no speed.
    """
    has_gpus = config.gpus_per_actor != 0 and local_gpus() > 0
    is_alike = has_gpus == bool(wanted.actor_gpus)
    give_speed = "give --speed, the seconds of audio that one recogniser computes in a second"
    if not is_alike and speed is None and wanted.actor_gpus:
        raise UsageError(
            "the recognisers have GPUs, and this machine has none to time them on: run sewd plan on a machine with "
            f"such a GPU, or {give_speed}"
        )
    if not is_alike and speed is None:
        raise UsageError(
            "the recognisers of the cluster have no GPUs, and this machine would time them on its own: add "
            f"--gpus-per-actor 0 to time them on its CPUs, or {give_speed}"
        )
    return replace(
        config,
        actors=None,
        min_actors=None,
        cpus_per_actor=None,
        gpus_per_actor=float(has_gpus),
        threads=None,
        dtype=config.dtype if is_alike else "float32",
    )


def _work_s(nodes: ClusterNodes, wanted: Resources, trial: Trial, work: Work, model_s: float, chunks: int) -> float:
    """Time between the moment when all is started and the last commit.

    The first chunk is read before there is work for the model, while the recogniser may still load. After that the
    slowest of three things decides: the recognisers, with the last chunks not evenly divided; the CPUs, which decoding
    and the model share; and the readers.
    """
    every = [*nodes.current, *nodes.potential]
    cpus = sum(node.cpus for node in every)
    first_s = work.read_s / chunks
    rest = 1 - 1 / chunks
    by_model = model_s / chunks * math.ceil(chunks / wanted.actors)
    # Beside the model, decoding takes its turns on the same CPUs: as much longer as the threads of the model waited.
    on_cpus = not (wanted.actor_gpus or trial.resources.actor_gpus)
    waits = max(1.0, trial.threads / trial.cpus) if on_cpus else 1.0
    busy = 1.0 if wanted.actor_gpus else min(float(wanted.threads), cpus)
    by_cpus = (model_s * busy + work.read_cpu_s * waits * rest) / cpus
    free = cpus - wanted.actors * wanted.actor_cpus - wanted.write_cpus
    readers = max(1, min(int(free / wanted.read_cpus), chunks))
    by_readers = work.read_s * rest / readers
    return max(0.0, first_s - trial.actor_s) + max(by_model, by_cpus, by_readers)


def _memory_bytes(nodes: ClusterNodes, wanted: Resources, trial: Trial) -> float:
    """Memory of the processes of one machine: recognisers as measured, readers and the driver as this process."""
    every = [*nodes.current, *nodes.potential]
    actors = math.ceil(wanted.actors / max(1, len([node for node in every if node.cpus])))
    cpus = max(node.cpus for node in every)
    readers = max(1, int((cpus - actors * wanted.actor_cpus - wanted.write_cpus) / wanted.read_cpus))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return actors * trial.actor_bytes + (readers + 1) * own


def _store_bytes(nodes: ClusterNodes, wanted: Resources, config: RunConfig, models: ModelInfo, audio_s: float) -> float:
    """What chunks may take of the object stores, at most all of the audio."""
    chunk_bytes = config.chunk_s * models.audio.sample_rate * np.dtype(np.float32).itemsize
    known = sum(node.store_bytes for node in nodes.current)
    share = store_share(nodes.current or nodes.potential, wanted, chunk_bytes)
    limit = share * known if known else 4 * wanted.actors * chunk_bytes
    return min(limit, audio_s * models.audio.sample_rate * np.dtype(np.float32).itemsize)
