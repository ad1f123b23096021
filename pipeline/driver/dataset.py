"""The three stages as one Ray Data pipeline: read and decode (tasks), recognise (actors), write and commit (tasks)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from pipeline.cluster.object_store import data_context
from pipeline.cluster.ray_errors import MAX_DEATHS, project_errors
from pipeline.cluster.ray_private import actor_states
from pipeline.cluster.resources import ClusterNodes, Resources
from pipeline.config import RunConfig
from pipeline.decoding.settings import DecoderSettings
from pipeline.driver.stop import stop_uri
from pipeline.runs.fingerprint import cut_of, dtype_of, has_earlier_rules, has_late_starts
from pipeline.runs.record import Addition
from pipeline.runs.run import Run
from pipeline.stages.actor import RecognizerActor
from pipeline.stages.models import ModelInfo
from pipeline.stages.read import ReadSettings, read_parts
from pipeline.stages.settings import RecognizeSettings
from pipeline.stages.write import WriteSettings, write_chunks
from pipeline.storage import uris

# An actor whose node is lost is "unavailable" until the head has missed enough heartbeats, and each call to it until
# then counts as a try: more tries than any limit that is meant for deaths. So the restarts are limited instead.
ACTOR_TASK_RETRIES: Final = -1
MAX_ACTOR_RESTARTS: Final = 50


class Pipeline(Protocol):
    """What an execution runs."""

    @property
    def write(self) -> WriteSettings:
        """The settings of its last stage."""

    @property
    def resources(self) -> Resources:
        """What its stages request of Ray."""

    @property
    def chunk_bytes(self) -> float:
        """Size of the largest chunk between two stages, in bytes."""

    def dataset(self, parts: list[pa.Table]) -> Dataset:
        """The Ray Data pipeline over parts; its rows have the schema `CHUNK_STATS`.

        Args:
            parts: tables of one row each, see `pipeline.driver.remaining`; each becomes a block of Ray's.
        """


@dataclass(frozen=True)
class Stages:
    """The settings of the three stages of a transcription, and what they request of Ray."""

    read: ReadSettings
    recognize: RecognizeSettings
    write: WriteSettings
    resources: Resources

    @property
    def chunk_bytes(self) -> float:
        """See `Pipeline`."""
        return self.read.chunk_s * self.read.audio.sample_rate * np.dtype(np.float32).itemsize

    def dataset(self, parts: list[pa.Table]) -> Dataset:
        """See `Pipeline`."""
        return build_dataset(self, parts)


class CommittedChunk(NamedTuple):
    """What the driver learns of a chunk.

    Attributes:
        commit: the content of its commit object.
        failed: its first rows without a transcript, each with `utt_id`, `uri`, `stage`, `code` and `message`.
    """

    commit: bytes
    failed: list[dict[str, str]]


def configure_stages(
    run: Run,
    config: RunConfig,
    models: ModelInfo,
    decoder: DecoderSettings,
    resources: Resources,
    attempt: str,
    addition: Addition | None = None,
) -> Stages:
    """The stages of one start of the driver.

    Args:
        run: the run; its record has the digests that the checkpoints must have.
        config: of the run.
        models: what the stages need to know of the checkpoints.
        decoder: how posteriors become tokens.
        resources: what each stage requests of Ray.
        attempt: id of the start.
        addition: compute only the classifiers of this addition, which are those of `config` and `models`.
    """
    shared: dict[str, Any] = {
        "run": run.uri,
        "stop_uri": stop_uri(run.uri, attempt),
        "deadline_s": config.deadline_s,
    }
    record = run.record
    folder = addition.folder if addition else ""
    heads = addition.digests if addition else record.classifier_digests
    earlier = has_earlier_rules(record.fingerprint)
    return Stages(
        read=ReadSettings(
            audio=replace(
                models.audio, cut=cut_of(record.fingerprint), skip_silence=config.skip_silence and not earlier
            ),
            min_samples=models.min_samples,
            allow_any_path=config.allow_any_path or earlier,  # version 0.1.0 had no such rule
            chunk_s=config.chunk_s,
            chunk_rows=config.chunk_rows,
            earlier_rules=earlier,
            **shared,
        ),
        recognize=RecognizeSettings(
            model=None if addition else config.model,
            classifiers=tuple(config.tasks.values()),
            digests=(*([] if addition else [record.model_digest]), *(heads[task] for task in config.tasks)),
            device="cuda" if resources.actor_gpus else "cpu",
            dtype=dtype_of(record.fingerprint),
            threads=resources.threads,
            hop_length=models.acoustics.hop_length,
            posteriors=(config.keep_posteriors or not decoder.is_greedy) and addition is None,
            **shared | {"run": uris.join(run.uri, folder)},
        ),
        write=WriteSettings(
            run=run.uri,
            attempt=attempt,
            acoustics=models.acoustics,
            decoder=decoder,
            deadline_s=config.deadline_s,
            word_gap_s=0.0 if earlier else config.word_gap_s,
            extend_words=not earlier,
            extend_starts=not has_late_starts(record.fingerprint),
            normalizer=config.normalizer,
            classifiers=models.classifiers,
            keep_posteriors=config.keep_posteriors,
            folder=folder,
        ),
        resources=resources,
    )


def build_dataset(stages: Stages, parts: list[pa.Table]) -> Dataset:
    """The Ray Data pipeline over parts; its rows have the schema `CHUNK_STATS`.

    Args:
        stages: settings of the stages.
        parts: tables of one row each, see `pipeline.driver.remaining`; each becomes a block of Ray's.
    """
    resources = stages.resources
    whole_block: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    one_row = whole_block | {"batch_size": 1}  # a chunk; Ray requires a number for stages with GPUs
    retries: dict[str, Any] = {"max_retries": MAX_DEATHS}
    with warnings.catch_warnings():
        # Ray 2.64 renames some of these arguments; earlier versions know only the old names. pyproject bounds Ray.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        # Not `from_arrow`: it has a task look at each block, and keeps 40 kB of what that found.
        dataset: Dataset = ray.data.from_blocks(parts)
        return (
            dataset.map_batches(
                functools.partial(read_parts, settings=stages.read),
                num_cpus=resources.read_cpus,
                **retries,
                **whole_block,
            )
            .map_batches(
                RecognizerActor,
                fn_constructor_args=(stages.recognize,),
                num_cpus=resources.actor_cpus,
                num_gpus=resources.actor_gpus,
                compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.actors),
                max_restarts=MAX_ACTOR_RESTARTS,
                max_task_retries=ACTOR_TASK_RETRIES,
                **one_row,
            )
            .map_batches(
                functools.partial(write_chunks, settings=stages.write),
                num_cpus=resources.write_cpus,
                compute=TaskPoolStrategy(size=resources.writers),
                **retries,
                **whole_block,
            )
        )


def run_stages(stages: Pipeline, nodes: ClusterNodes, parts: list[pa.Table]) -> Iterator[CommittedChunk]:
    """Run one Ray Data execution over parts; yields each chunk as soon as it is committed.

    Args:
        stages: what runs.
        nodes: the nodes of the cluster.
        parts: see `Pipeline.dataset`.

    Raises:
        StorageError: an input or the run could not be reached.
        RunFailedError: a worker died at every try; a LeaseLostError if another driver took the run over.
        UsageError: an actor found other checkpoints than the run's record names.
    """
    with DataContext.current(data_context(nodes, stages.resources, stages.chunk_bytes)), project_errors():
        dataset = stages.dataset(parts)
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for batch in cast(Iterable[pa.Table], batches):
            for row in batch.to_pylist():
                yield CommittedChunk(row["commit"], row["failed"])


def recognizer_states() -> str:
    """The states of the recogniser actors, and the free resources of the cluster."""
    return actor_states(RecognizerActor.__name__)
