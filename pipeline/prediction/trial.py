"""A trial on this machine: Ray is started as a run starts it, and the model is timed on clips of each length.

The clips are noise, packed as runs pack them, in an actor as runs have it. Nothing is read and nothing is written.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from pipeline.cluster.object_store import data_context
from pipeline.cluster.ray_errors import project_errors
from pipeline.cluster.ray_start import connect
from pipeline.cluster.resources import ClusterNodes, Resources, allocate, cluster_nodes
from pipeline.config import RunConfig
from pipeline.stages.models import ModelInfo
from pipeline.stages.read import worker_name
from pipeline.stages.settings import RecognizeSettings

PACK_S: Final = 30.0  # of audio for each thread at a time, where the engine has no batches
TIMED_S: Final = 1.5  # for each length, at least, or so many batches
MAX_BATCHES: Final = 6
MAX_CLIPS: Final = 1000  # in a batch
SPREAD: Final = 0.3  # of the lengths in a batch, about their mean: neighbours are a factor of two apart


@dataclass(frozen=True)
class Trial:
    """What a trial measured.

    Attributes:
        start_s: from before Ray is started to the first batch, and from the last one to the end of Ray.
        actor_s: of that, how much later the actor was ready than a reader was.
        seconds: of one actor, for a second of audio in clips of each length, by the length in seconds.
        cpus: CPUs that the model kept busy: CPU seconds over seconds.
        threads: threads that it computed with.
        actor_bytes: largest memory of the actor's process.
        engine: what computed.
        resources: what each stage requested.
        nodes: the nodes of the local Ray.
    """

    start_s: float
    actor_s: float
    seconds: dict[float, float]
    cpus: float
    threads: int
    actor_bytes: int
    engine: str
    resources: Resources
    nodes: ClusterNodes


class _TimedRecognizer:
    """The actor: times the model on clips of the lengths in its rows."""

    def __init__(self, settings: RecognizeSettings, rate: int) -> None:
        from pipeline.stages.recognize import ChunkRecognizer  # noqa: PLC0415 - loads torch

        self._recognizer, self._rate = ChunkRecognizer(settings), rate
        if self._recognizer.load_error is not None:
            raise self._recognizer.load_error
        self._ready_at = time.time()

    def __call__(self, lengths: pa.Table) -> pa.Table:
        threads = self._recognizer.settings.threads
        status = self._recognizer.encoders[0].engine.status()
        rows = []
        for index, length in enumerate(lengths["length"].to_pylist()):
            number = max(1, round((status.budget_s or PACK_S) / length)) * threads
            clips = self._clips(length, min(number, MAX_CLIPS))
            if not index:
                self._recognizer.recognize(clips[:threads])  # the first time compiles, and takes memory
            started, cpu_started, batches = time.perf_counter(), time.process_time(), 0
            while batches < MAX_BATCHES and (not batches or time.perf_counter() - started < TIMED_S):
                self._recognizer.recognize(clips)
                batches += 1
            spent_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
            rows.append(
                {"length": length, "audio_s": batches * len(clips) * length, "spent_s": spent_s, "cpu_s": cpu_s}
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        shared = {"reader_at": lengths["reader_at"][0].as_py(), "ready_at": self._ready_at, "peak": peak}
        return pa.Table.from_pylist([row | shared | {"engine": str(status)} for row in rows])

    def _clips(self, length: float, number: int) -> list[np.ndarray]:
        """Noise around a length: packs of clips of equal length would be quicker than those of a corpus."""
        generator = np.random.default_rng(0)
        lengths = length * generator.permutation(np.linspace(1 - SPREAD, 1 + SPREAD, number))
        samples = np.maximum(self._recognizer.min_samples, np.rint(lengths * self._rate).astype(int))
        return [generator.normal(0, 0.1, size).astype(np.float32) for size in samples]


def _read(lengths: pa.Table) -> pa.Table:
    """As a reader starts: a worker that has imported what it needs."""
    worker_name()
    return lengths.append_column("reader_at", pa.array([time.time()] * len(lengths)))


def run_trial(config: RunConfig, models: ModelInfo, digests: tuple[str, ...], lengths: Sequence[float]) -> Trial:
    """Start Ray, time the model on clips of some lengths, and end Ray.

    Args:
        config: of the run.
        models: what is known of its checkpoints.
        digests: of the checkpoints, the model's first.
        lengths: of clips, in seconds; at least one.

    Raises:
        UsageError: the resources that are asked for do not fit this machine.
        StorageError: a checkpoint could not be read.
        RunFailedError: Ray did not start, or its workers died.
    """
    started = time.perf_counter()
    with connect("local"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # as in `pipeline.driver.dataset`
        nodes = cluster_nodes("local")
        wanted = allocate(nodes, config)
        settings = RecognizeSettings(
            model=config.model,
            classifiers=tuple(config.tasks.values()),
            digests=digests,
            device="cuda" if wanted.actor_gpus else "cpu",
            dtype=config.dtype,
            threads=wanted.threads,
            stop_uri="",
            run="",
            deadline_s=config.deadline_s,
            hop_length=models.acoustics.hop_length,
        )
        chunk_bytes = config.chunk_s * models.audio.sample_rate * np.dtype(np.float32).itemsize
        with DataContext.current(data_context(nodes, wanted, chunk_bytes)), project_errors():
            whole_block: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
            dataset = (
                ray.data.from_blocks([pa.table({"length": pa.array(lengths, pa.float64())})])
                .map_batches(_read, num_cpus=wanted.read_cpus, batch_size=None, **whole_block)
                .map_batches(
                    _TimedRecognizer,
                    fn_constructor_args=(settings, models.audio.sample_rate),
                    num_cpus=wanted.actor_cpus,
                    num_gpus=wanted.actor_gpus,
                    compute=ActorPoolStrategy(size=1),
                    max_restarts=0,
                    batch_size=len(lengths),
                    **whole_block,
                )
            )
            batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            rows = [row for batch in batches for row in cast(pa.Table, batch).to_pylist()]
    spent_s = sum(row["spent_s"] for row in rows)
    return Trial(
        start_s=time.perf_counter() - started - spent_s,
        actor_s=max(0.0, rows[0]["ready_at"] - rows[0]["reader_at"]),
        seconds={row["length"]: row["spent_s"] / row["audio_s"] for row in rows},
        cpus=sum(row["cpu_s"] for row in rows) / spent_s,
        threads=wanted.threads,
        actor_bytes=max(row["peak"] for row in rows),
        engine=rows[0]["engine"],
        resources=wanted,
        nodes=nodes,
    )
