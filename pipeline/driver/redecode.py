"""Make a run of the kept posteriors of another: the same parts, chunks and rows, with transcripts decoded anew.

    plan of the source -> [read posteriors, decode, words, counts, Parquet, commit]

What a run is, how it is resumed, stopped and finished is that of `pipeline.driver.transcribe`; no model is loaded.
"""

from __future__ import annotations

import functools
import threading
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset
from ray.util.annotations import RayDeprecationWarning

from pipeline.cluster.ray_errors import MAX_DEATHS
from pipeline.cluster.resources import ClusterNodes, Resources
from pipeline.config import DECODING, OPTIONS, RedecodeConfig, RunConfig, make_redecode_config
from pipeline.decoding.decoder import load_decoder
from pipeline.decoding.settings import DecoderSettings
from pipeline.driver.progress import Progress
from pipeline.driver.stop import stop_uri
from pipeline.driver.transcribe import new_attempt, process, stopped
from pipeline.errors import UsageError
from pipeline.runs.damage import damaged
from pipeline.runs.fingerprint import has_late_starts, redecoding_fingerprint
from pipeline.runs.lease import hold_lease
from pipeline.runs.lifecycle import check_output, create_run, find_existing_run, remove_run
from pipeline.runs.redecoding import plan_redecoding, require_source, source_digest
from pipeline.runs.run import RECORD, Run
from pipeline.runs.status import RunStatus
from pipeline.scoring.normalize import normalize
from pipeline.settings import checked
from pipeline.stages.redecode import RedecodeSettings, redecode_parts


@dataclass(frozen=True)
class RedecodeStage:
    """The settings of the stage, and what it requests of Ray."""

    write: RedecodeSettings
    resources: Resources
    chunk_bytes: float = 0.0  # nothing flows between stages

    def dataset(self, parts: list[pa.Table]) -> Dataset:
        """See `pipeline.driver.dataset.Pipeline`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RayDeprecationWarning)  # see `pipeline.driver.dataset.build_dataset`
            dataset: Dataset = ray.data.from_blocks(parts)
            return dataset.map_batches(
                functools.partial(redecode_parts, settings=self.write),
                num_cpus=self.resources.write_cpus,
                max_retries=MAX_DEATHS,
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
            )


def redecode(
    config: RedecodeConfig,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Run:
    """Decode the kept posteriors of a run to another run, or resume one that was interrupted.

    Args:
        config: of which run, how, and where to.
        on_progress: called at the start and after each chunk, from the calling thread.
        stop: once it is set, the chunks that are being decoded are committed, and the run stops.
        on_step: called before each step that may take long, until the first progress, with what it does.

    Returns:
        The run, with status `done` or `stopped`.

    Raises:
        UsageError: the request cannot be carried out: the source keeps no posteriors or is not finished, `output` holds
            another run, or another driver is working on it.
        StorageError: one of the runs could not be reached; committed chunks stay.
        RunFailedError: a worker died at every try; a LeaseLostError if another driver took the run over.
    """
    config = make_redecode_config(**vars(config))
    on_step("reading the source")
    source = Run.open(config.run)
    require_source(source)
    made = run_config(config, source)
    decoder = made.decoder()
    load_decoder(decoder, source.acoustics)  # what is wrong with it is said here, and not by workers
    normalize("", made.normalizer)
    if f"{made.output}/".startswith(f"{source.uri}/") or f"{source.uri}/".startswith(f"{made.output}/"):
        raise UsageError(f"output: {made.output} and {source.uri} are one inside the other")
    expected = redecoding_fingerprint(source.record.fingerprint, made, decoder, source_digest(source))
    run = find_existing_run(made, expected)
    if run is not None and run.status == RunStatus.DONE:
        return run
    on_step("planning")
    parts = None
    if run is None:
        check_output(made)
        parts = plan_redecoding(source)
    attempt = uuid.uuid4().hex[:12]
    with hold_lease(made.output, attempt):
        if made.existing == "overwrite":
            remove_run(made)
        run = find_existing_run(made, expected)  # once more, under the lease
        if run is None:
            parts = plan_redecoding(source) if parts is None else parts
            run = create_run(made, expected, parts, source=source.uri, added=list(source.record.added))
        if run.status == RunStatus.DONE:
            return run
        stop = stop or threading.Event()
        if stop.is_set():
            return stopped(run)
        on_step("starting Ray")
        configure = functools.partial(configure_stage, run, made, decoder, source, attempt)
        return process(run, made, configure, new_attempt(attempt), on_progress or (lambda _: None), stop)


def run_config(config: RedecodeConfig, source: Run) -> RunConfig:
    """The configuration of the new run: that of the source, with what decoding changes.

    Raises:
        DamagedRunError: the source has another configuration than this version knows.
    """
    names = ("output", "existing", "address", *DECODING)
    chosen: dict[str, Any] = {name: getattr(config, name) for name in names}
    for name in ("word_gap_s", "normalizer"):
        chosen |= {name: value} if (value := getattr(config, name)) is not None else {}
    try:
        before = checked(RunConfig, source.record.config, OPTIONS)
    except UsageError as error:
        raise damaged(source.uri, RECORD, f"has a configuration that this version does not know ({error})") from error
    return replace(
        before,
        **chosen,
        keep_posteriors=False,
        add_classifiers=(),
        retry_errors=(),
        strict=False,
        max_error_rate=1.0,
        min_actors=None,
        actors=None,
    )


def configure_stage(
    run: Run, config: RunConfig, decoder: DecoderSettings, source: Run, attempt: str, nodes: ClusterNodes
) -> RedecodeStage:
    """The stage of one start of the driver: a task for each CPU, which Ray starts as the cluster grows."""
    tasks = max(1, int(sum(node.cpus for node in nodes.current)))
    settings = RedecodeSettings(
        run=run.uri,
        attempt=attempt,
        source=source.uri,
        stop_uri=stop_uri(run.uri, attempt),
        acoustics=source.acoustics,
        decoder=decoder,
        deadline_s=config.deadline_s,
        word_gap_s=config.word_gap_s,
        extend_words=True,
        extend_starts=not has_late_starts(run.record.fingerprint),
        normalizer=config.normalizer,
        classifiers=(),
    )
    return RedecodeStage(settings, Resources(tasks, tasks, 1.0, 0.0, 1.0, 1.0, tasks, 1))
