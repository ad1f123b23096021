"""The main job: a corpus and checkpoints in, a committed run out.

    list -> plan -> [read+decode+segment -> recognise -> words, counts, Parquet, commit]

The bracket is one Ray Data pipeline (`pipeline.driver.dataset`); the driver sees ids and counters of chunks only.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import platform
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import ray
from ray.exceptions import RayError

from pipeline.cluster.ray_errors import MAX_DEATHS, project_errors
from pipeline.cluster.ray_start import connect
from pipeline.cluster.resources import ClusterNodes, allocate, check_dtype, cluster_nodes
from pipeline.config import RunConfig, make_config
from pipeline.decoding.decoder import load_decoder
from pipeline.driver.dataset import Pipeline, configure_stages
from pipeline.driver.execution import Execution
from pipeline.driver.progress import Progress
from pipeline.driver.stop import stop_marker, stop_uri
from pipeline.errors import RunFailedError, StorageError, UsageError
from pipeline.runs.additions import complete_record, find_addition, finish_addition, save_state
from pipeline.runs.changes import CorpusChanges, corpus_changes
from pipeline.runs.commit import DataFile
from pipeline.runs.compact import FileGroup, compact_group
from pipeline.runs.fingerprint import fingerprint
from pipeline.runs.hub_commits import pin_commits
from pipeline.runs.lease import hold_lease, require_lease
from pipeline.runs.lifecycle import (
    create_run,
    find_existing_run,
    finish_run,
    plan_new_run,
    record_failure,
    remove_run,
)
from pipeline.runs.record import Addition, Attempt
from pipeline.runs.retry import Carried, carry_batch, carry_over, retry_errors
from pipeline.runs.run import Run, now
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals
from pipeline.runs.update import follow_plan, update_run
from pipeline.scoring.normalize import normalize
from pipeline.stages.models import load_model_info
from pipeline.storage.checkpoints import checkpoint_digest

COMPACT_CPUS: Final = 0.5
_RECORDED_PACKAGES: Final = ("sewd-pipeline", "ray", "torch", "pyarrow", "soundfile", "soxr", "numpy")

log = logging.getLogger("sewd")


def transcribe(
    config: RunConfig,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    on_changes: Callable[[CorpusChanges], None] = lambda changes: log.warning(changes.line),
    predicted: Mapping[str, Any] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Run:
    """Transcribe a corpus, or resume a run that was interrupted.

    Args:
        config: what to transcribe, with which models, and where the run is stored.
        on_progress: called at the start and after each chunk, from the calling thread.
        stop: once it is set, the chunks that are in the model are finished and committed, and the run stops.
        on_changes: called if the inputs of a run that exists have changed since it was planned; logs a warning. With
            `existing="update"` the run follows them; it is called once that is sure to happen.
        predicted: a prediction, as `sewd plan --json` prints it, which the record keeps beside what came.
        on_step: called before each step that may take long, until the first progress, with what it does.

    Returns:
        The run, with status `done` or `stopped`.

    Raises:
        UsageError: the request cannot be carried out: there is no input or no model, there are too few CPUs, `output`
            holds another run, or another driver is working on it.
        StorageError: an input or the run could not be reached; committed chunks stay.
        RunFailedError: too many rows failed, or the first one under `strict`; a LeaseLostError if another driver took
            the run over.
    """
    config = make_config(**{name: getattr(config, name) for name in config.__dataclass_fields__})
    check_dtype(config)
    on_step("reading the model")
    config, commits = pin_commits(config)
    models = load_model_info(config)
    decoder = config.decoder()
    load_decoder(decoder, models.acoustics)  # what is wrong with it is said here, and not by workers
    normalize("", config.normalizer)
    expected = fingerprint(config, commits, decoder)
    heads = {task: checkpoint_digest(uri) for task, uri in config.added_tasks.items()}
    on_step("planning")
    run = find_existing_run(config, expected)
    updates = config.existing == "update"
    if run is not None and not updates:
        if changes := corpus_changes(run, config):
            on_changes(changes)
        if _is_complete(run, config, heads) and not config.retry_errors:
            return run
    parts = plan_new_run(config) if run is None else None
    attempt = uuid.uuid4().hex[:12]
    with hold_lease(config.output, attempt):
        if config.existing == "overwrite":
            remove_run(config)
        # Once more, under the lease: another driver may have worked on the run until now.
        run = find_existing_run(config, expected)
        if run is None:
            kept = {"acoustics": models.acoustics} if config.keep_posteriors else {}
            run = create_run(config, expected, plan_new_run(config) if parts is None else parts, **kept)
        check_lease = functools.partial(require_lease, run.uri, attempt)
        run = follow_plan(complete_record(run, check_lease))
        if updates:
            run, updated = update_run(run, config, check_lease)
            if updated.has_changes:
                on_changes(CorpusChanges.of(updated))
        if config.retry_errors:
            run = retry_errors(run, config.retry_errors)
        if _is_complete(run, config, heads):
            return run
        addition = find_addition(run, config, heads, commits)
        if stop is not None and stop.is_set():
            return stopped(run, addition)
        if addition is not None:
            config = replace(config, classifiers=addition.specifications)
            models = load_model_info(config)
        report, stop = on_progress or (lambda _: None), stop or threading.Event()
        on_step("starting Ray")

        def stages(nodes: ClusterNodes) -> Pipeline:
            return configure_stages(run, config, models, decoder, allocate(nodes, config), attempt, addition)

        return process(run, config, stages, new_attempt(attempt, predicted), report, stop, addition)


def _is_complete(run: Run, config: RunConfig, heads: Mapping[str, str]) -> bool:
    """Whether the run is done, and has the classifiers that are to be added."""
    return run.status == RunStatus.DONE and find_addition(run, config, heads) is None


def process(
    run: Run,
    config: RunConfig,
    pipeline: Callable[[ClusterNodes], Pipeline],
    started: Attempt,
    report: Callable[[Progress], None],
    stop: threading.Event,
    addition: Addition | None = None,
) -> Run:
    """Process the parts that are not done, and finish the run or the addition; a failure is recorded in the run.

    Args:
        run: the run, whose lease the caller holds.
        config: of the run.
        pipeline: what processes the parts, on the nodes of a cluster.
        started: this start of the driver.
        report: called at the start and after each chunk.
        stop: once it is set, the run stops.
        addition: what is added to the run.

    Raises:
        UsageError, StorageError, RunFailedError: see `transcribe`.
    """
    attempt = str(started.values["id"])
    attempts = (*(addition or run.record).attempts, started)
    run = save_state(run, addition, status=RunStatus.RUNNING, reason=None, attempts=attempts)
    run.save_copy()
    check_lease = functools.partial(require_lease, run.uri, attempt)
    try:
        with connect(config.address):
            nodes = cluster_nodes(config.address)
            stages = pipeline(nodes)
            if stop.is_set():
                return stopped(run, addition)
            if addition is None:
                carry_over(run, functools.partial(_carry_on_ray, run, attempt))
            with stop_marker(stop_uri(run.uri, attempt), stop):
                work = Execution(run, config, stages, nodes, report, addition).run(stop)
            check_lease()
            attempts = (*attempts[:-1], attempts[-1].with_work(work))
            # A stop that came too late to leave anything undone does not count.
            if stop.is_set() and run.unfinished_parts(addition.folder if addition else ""):
                return stopped(run, addition, attempts=attempts)
            if addition is not None:
                return finish_addition(run, replace(addition, attempts=attempts), check_lease, _compact_on_ray)
            return finish_run(run.with_changes(attempts=attempts), check_lease, _compact_on_ray)
    except FileNotFoundError:
        check_lease()  # a driver that took over and finished has removed the small files
        raise
    except (RayError, UsageError, StorageError, RunFailedError) as error:
        if stop.is_set() and _is_loss_of_ray(error):  # what stops this driver may end Ray at the same time
            check_lease()
            return stopped(run, addition)
        if not isinstance(error, RayError):
            record_failure(run, str(error), check_lease, addition)
        raise


def _is_loss_of_ray(error: Exception) -> bool:
    """Whether Ray was lost or did not start: its own error, or a `RunFailedError` of this project in place of it."""
    return isinstance(error, RayError) or (type(error) is RunFailedError and error.__cause__ is not None)


def stopped(run: Run, addition: Addition | None = None, **changes: Any) -> Run:
    """Record a stop of the run, or of the addition to it."""
    if addition is None:
        changes["totals"] = Totals.from_ledger(run.ledger())
    return save_state(run, addition, status=RunStatus.STOPPED, **changes)


def new_attempt(attempt: str, predicted: Mapping[str, Any] | None = None) -> Attempt:
    """One start of the driver, now and here, with the versions of what computes."""
    versions = {name: importlib.metadata.version(name) for name in _RECORDED_PACKAGES}
    prediction = {} if predicted is None else {"predicted": dict(predicted)}
    this = {"id": attempt, "started": now(), "host": socket.gethostname(), "python": platform.python_version()}
    return Attempt(this | versions | prediction)


def _carry_on_ray(run: Run, attempt: str, batches: Sequence[Sequence[Carried]]) -> None:
    """Carry batches of parts over: in this process if there is one, else in a Ray task for each."""
    if len(batches) == 1:
        carry_batch(run, attempt, batches[0])
        return
    task: Any = ray.remote(carry_batch).options(num_cpus=COMPACT_CPUS, max_retries=MAX_DEATHS)
    with project_errors():
        ray.get([task.remote(run, attempt, batch) for batch in batches])


def _compact_on_ray(run: str, groups: Sequence[FileGroup]) -> list[DataFile]:
    """Write each group of files as one, in a Ray task for each."""
    task: Any = ray.remote(compact_group).options(num_cpus=COMPACT_CPUS, max_retries=MAX_DEATHS)
    with project_errors():
        return ray.get([task.remote(run, *group) for group in groups])
