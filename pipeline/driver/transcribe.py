"""The main job: a corpus and checkpoints in, a committed run out.

    list -> plan -> [read+decode+segment -> recognise -> words, counts, Parquet, commit]

The bracket is one Ray Data pipeline: CPU tasks, an actor pool, CPU tasks. Nothing is gathered here; the driver sees ids
and counters of chunks only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import platform
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from pipeline.audio.decode import AudioSettings
from pipeline.cluster.object_store import data_context
from pipeline.cluster.ray_errors import MAX_DEATHS, unwrap_project_error
from pipeline.cluster.ray_private import recognizers
from pipeline.cluster.ray_start import connect
from pipeline.cluster.resources import Machines, Resources, allocate, check_dtype, machines
from pipeline.config import RunConfig, make_config
from pipeline.driver.telemetry import Metrics, Work
from pipeline.driver.watchdog import watching
from pipeline.errors import RunFailedError, StorageError, UsageError
from pipeline.runs.commit import Commit, DataFile, commit_of
from pipeline.runs.compact import compact_group
from pipeline.runs.fingerprint import fingerprint
from pipeline.runs.lease import check, hold
from pipeline.runs.ledger import (
    ROLL_UP_COMMITS,
    chunks_of,
    ledger,
    parts_done,
    roll_up,
)
from pipeline.runs.lifecycle import clear, create, existing_run, finish, missing_parts, plan_run, save_failure
from pipeline.runs.run import Run, Totals, now
from pipeline.runs.status import RunStatus
from pipeline.stages.quarantine import records
from pipeline.stages.read import ReadSettings, read_parts
from pipeline.stages.recognize import Recognizer, RecognizeSettings
from pipeline.stages.write import SinkSettings, write_chunks
from pipeline.storage import objects, retry, uris
from sewd_model import (
    CheckpointError,
    CTCTokenizer,
    FeatureExtractor,
    SEWDConfig,
    SEWDForCTC,
    SEWDForSequenceClassification,
)

# One Ray Data execution takes so many parts: a block a part costs the driver about 1.5 ms and 5 kB each.
WAVE_PARTS = 10_000
MIN_ROWS_FOR_RATE = 1_000
# An actor whose machine is gone is "unavailable" until the head has missed enough heartbeats, and each call to it until
# then counts as a try: more than any bound that is meant for deaths. What ends a run here is the number of restarts.
ACTOR_TASK_RETRIES = -1
MAX_ACTOR_RESTARTS = 50
PARTS_NAMED = 4

log = logging.getLogger("sewd")


@dataclass(frozen=True)
class Progress:
    """How far a run is; given to the caller at the start and after each chunk."""

    totals: Totals
    total_bytes: int
    audio_s: float  # transcribed since this start
    elapsed_s: float  # since this start's first chunk could flow
    status: str = RunStatus.RUNNING

    @property
    def share(self) -> float:
        """0..1 of the input's bytes."""
        return min(self.totals.source_bytes / self.total_bytes, 1.0) if self.total_bytes else 0.0

    @property
    def speed(self) -> float:
        """Audio seconds a second."""
        return self.audio_s / self.elapsed_s if self.elapsed_s else 0.0


@dataclass(frozen=True)
class _Models:
    """What the driver needs to know of the checkpoints."""

    audio: AudioSettings
    min_samples: int
    frame_s: float
    tokenizer: CTCTokenizer
    classifiers: tuple[tuple[str, tuple[str, ...]], ...]


def transcribe(
    config: RunConfig,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Run:
    """Transcribe a corpus, or go on with a run that was interrupted.

    Args:
        config: what to do.
        on_progress: told how far it is, from the calling thread.
        stop: once set, the chunks in the model are finished and committed, and the run stops.

    Returns:
        The run, its status `done` or `stopped`.

    Raises:
        UsageError: it cannot be done as asked: no input, no model, not enough CPUs, another run lies at `output`, or
            another driver is at work on it.
        StorageError: an input or the run could not be reached; what is committed stays.
        RunFailedError: too many rows failed, or the first under `strict`; a LeaseLostError: another driver took over.
    """
    config = make_config(**{name: getattr(config, name) for name in config.__dataclass_fields__})
    check_dtype(config)
    models = _load_models(config)
    wanted = fingerprint(config)
    run = existing_run(config, wanted)
    if run is not None and run.status == RunStatus.DONE:
        return run
    parts = plan_run(config) if run is None else None
    attempt = uuid.uuid4().hex[:12]
    with hold(config.output, attempt):
        if config.existing == "overwrite":
            clear(config)
        # Looked for again: another driver may have worked on it until now.
        run = existing_run(config, wanted) or create(config, wanted, plan_run(config) if parts is None else parts)
        if run.status == RunStatus.DONE:
            return run
        if stop is not None and stop.is_set():
            return run.save(status=RunStatus.STOPPED, totals=asdict(Totals.of(ledger(run.uri))))
        return _transcribe(run, config, models, attempt, on_progress or (lambda _: None), stop)


def _transcribe(
    run: Run,
    config: RunConfig,
    models: _Models,
    attempt: str,
    report: Callable[[Progress], None],
    stop: threading.Event | None,
) -> Run:
    run = run.save(status=RunStatus.RUNNING, attempts=[*run.record["attempts"], _attempt(attempt)])
    check_lease = functools.partial(check, run.uri, attempt)
    try:
        with connect(config.address):
            found = machines(config.address)
            execution = _Execution(run, config, models, found, allocate(found, config), attempt, report)
            with _stop_marker(execution.stop_uri, stop):
                totals, work = execution.run_waves(stop or threading.Event())
            check_lease()
            *earlier, this = run.record["attempts"]
            run = Run(run.uri, run.record | {"attempts": [*earlier, this | work]})  # written with the status
            # A stop that came too late to leave anything undone is none.
            if stop is not None and stop.is_set() and missing_parts(run):
                return run.save(status=RunStatus.STOPPED, totals=asdict(totals))
            return finish(run, check_lease, _compact_on_ray)
    except FileNotFoundError:
        check_lease()  # a driver that took over and finished has removed the small files
        raise
    except (UsageError, StorageError, RunFailedError) as error:
        save_failure(run, str(error), check_lease)
        raise


def _load_models(config: RunConfig) -> _Models:
    """Load every checkpoint once here: one that is broken is then a line of text, not a cluster of dead actors."""
    uris = (config.model, *config.tasks.values())
    try:
        ctc = retry.with_retries(config.model, lambda: SEWDForCTC.from_pretrained(config.model).config)
        heads = {
            task: retry.with_retries(uri, functools.partial(_head_config, uri)) for task, uri in config.tasks.items()
        }
        rates = {uri: retry.with_retries(uri, functools.partial(_sampling_rate, uri)) for uri in uris}
        tokenizer = retry.with_retries(config.model, lambda: CTCTokenizer.from_pretrained(config.model))
        rate = rates[config.model]
        audio = AudioSettings(sample_rate=rate, channels=config.channels, max_segment_s=config.max_segment_s)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        raise UsageError(f"cannot load the model: {error}") from error
    if len(set(rates.values())) > 1:
        raise UsageError(f"the models want different sampling rates: {rates}")
    return _Models(
        audio=audio,
        min_samples=max(c.min_samples for c in (ctc, *heads.values())),
        frame_s=ctc.hop_length / rate,
        tokenizer=tokenizer,
        classifiers=tuple((task, tuple(c.id2label[i] for i in range(c.num_labels))) for task, c in heads.items()),
    )


def _head_config(uri: str) -> SEWDConfig:
    return SEWDForSequenceClassification.from_pretrained(uri).config


def _sampling_rate(uri: str) -> int:
    return FeatureExtractor.from_pretrained(uri).sampling_rate


def _attempt(attempt: str) -> dict[str, Any]:
    packages = ("sewd-pipeline", "ray", "torch", "pyarrow", "soundfile", "soxr", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "id": attempt,
        "started": now(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
    } | versions


@contextlib.contextmanager
def _stop_marker(uri: str, stop: threading.Event | None) -> Iterator[None]:
    """Puts an object at `uri` once `stop` is set; the stages look for it before each chunk. Taken away at the end."""
    if stop is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if stop.wait(0.2):
                with contextlib.suppress(StorageError):  # in bad weather, again
                    objects.put(uri, b"")
                    return

    watcher = threading.Thread(target=watch, name="sewd-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        if stop.is_set():
            objects.delete([uri])


@dataclass(frozen=True)
class _Execution:
    """One start of the driver over the parts that are not done."""

    run: Run
    config: RunConfig
    models: _Models
    machines: Machines
    resources: Resources
    attempt: str
    report: Callable[[Progress], None]

    @property
    def stop_uri(self) -> str:
        return uris.join(self.run.uri, "control", f"stop-{self.attempt}")

    def run_waves(self, stop: threading.Event) -> tuple[Totals, dict[str, Any]]:
        """Do what is left; gives the run's totals and what this start did of them, see `Work.summary`."""
        waiting: list[bytes] = []  # commits that are still objects: to be rolled up
        totals, left = find_left(self.run, waiting)
        self._roll_up(waiting)
        total_bytes = self.run.record["input_bytes"]
        r = self.resources
        metrics, work = (
            Metrics(self.run.uri, self.config.chunk_s, self.config.chunk_rows),
            Work(r.actors, fixed=r.min_actors == r.actors),
        )
        began = time.monotonic()
        self.report(Progress(totals, total_bytes, 0.0, 0.0))
        self._check(totals, ())
        log.info("started", extra={"run": self.run.uri, "parts_left": len(left), "recognizers": r.actors})
        for start in range(0, len(left), WAVE_PARTS):
            # A table a part: each is a block to Ray.
            wave = [left.slice(index, 1) for index in range(start, min(start + WAVE_PARTS, len(left)))]
            unfinished = dict.fromkeys(part["part_id"][0].as_py() for part in wave)
            with watching(functools.partial(_stuck, unfinished)) as alive:
                for chunk in self._chunks(wave):
                    alive()
                    commit = commit_of(chunk["commit"])
                    totals += Totals.of_chunk(commit)
                    metrics.add(commit)
                    work = work.add(commit)
                    waiting.append(chunk["commit"])
                    self._roll_up(waiting)
                    if commit.last:
                        unfinished.pop(commit.part_id, None)
                    _log_chunk(commit, chunk["failed"])
                    self.report(Progress(totals, total_bytes, work.audio_s, time.monotonic() - began))
                    self._check(totals, chunk["failed"])
            work = work.next_wave()
            if stop.is_set():
                break
        return totals, work.summary(time.monotonic() - began)

    def _roll_up(self, waiting: list[bytes]) -> None:
        """Roll up the commits that wait, once they are enough to be worth it."""
        if len(waiting) >= ROLL_UP_COMMITS:
            check(self.run.uri, self.attempt)
            roll_up(self.run.uri, waiting)
            waiting.clear()

    def _chunks(self, wave: list[pa.Table]) -> Iterator[dict[str, Any]]:
        """Run one Ray Data execution; gives a row of `CHUNK_STATS` as each chunk is committed."""
        chunk_bytes = self.config.chunk_s * self.models.audio.sample_rate * np.dtype(np.float32).itemsize
        with DataContext.current(data_context(self.machines, self.resources, chunk_bytes)):
            try:
                batches = self.dataset(wave).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
                for batch in cast(Iterable[pa.Table], batches):
                    yield from batch.to_pylist()
            except RayError as error:
                if (ours := unwrap_project_error(error)) is not None:
                    raise ours from error
                raise

    def dataset(self, wave: list[pa.Table]) -> Dataset:
        """The three stages over the parts of a wave."""
        r, digests = self.resources, self.run.record["fingerprint"]
        read = ReadSettings(
            audio=self.models.audio,
            min_samples=self.models.min_samples,
            chunk_s=self.config.chunk_s,
            chunk_rows=self.config.chunk_rows,
            stop_uri=self.stop_uri,
            run=self.run.uri,
            deadline_s=self.config.deadline_s,
        )
        recognize = RecognizeSettings(
            model=self.config.model,
            classifiers=tuple(self.config.tasks.values()),
            digests=(digests["model"], *(digests["classifiers"][task] for task in self.config.tasks)),
            device="cuda" if r.actor_gpus else "cpu",
            dtype=self.config.dtype,
            threads=r.threads,
            stop_uri=self.stop_uri,
            run=self.run.uri,
            deadline_s=self.config.deadline_s,
        )
        sink = SinkSettings(
            run=self.run.uri,
            attempt=self.attempt,
            tokenizer=self.models.tokenizer,
            frame_s=self.models.frame_s,
            normalizer=self.config.normalizer,
            classifiers=self.models.classifiers,
        )
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
        retries: dict[str, Any] = {"max_retries": MAX_DEATHS}
        with warnings.catch_warnings():
            # Ray will name these arguments otherwise from 2.64 on, and has no other names before: pyproject bounds it.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            # Not `from_arrow`: that has a task look at each block, and keeps 40 kB for what it found.
            parts: Dataset = ray.data.from_blocks(wave)
            return (
                parts.map_batches(
                    functools.partial(read_parts, settings=read), num_cpus=r.read_cpus, **retries, **whole
                )
                .map_batches(
                    Recognizer,
                    fn_constructor_args=(recognize,),
                    num_cpus=r.actor_cpus,
                    num_gpus=r.actor_gpus,
                    compute=ActorPoolStrategy(min_size=r.min_actors, max_size=r.actors),
                    max_restarts=MAX_ACTOR_RESTARTS,
                    max_task_retries=ACTOR_TASK_RETRIES,
                    **(whole | {"batch_size": 1}),  # a chunk; Ray wants a number for whoever asks for GPUs
                )
                .map_batches(
                    functools.partial(write_chunks, settings=sink),
                    num_cpus=r.sink_cpus,
                    compute=TaskPoolStrategy(size=r.sinks),
                    **retries,
                    **whole,
                )
            )

    def _check(self, totals: Totals, failed: Sequence[dict[str, str]]) -> None:
        if self.config.strict and totals.errors:
            first = "{code} {uri}: {message}".format(**failed[0]) if failed else "a row failed in an earlier start"
            raise RunFailedError(f"strict: {first}")
        rows = totals.utterances + totals.errors
        if rows >= MIN_ROWS_FOR_RATE and totals.error_rate > self.config.max_error_rate:
            raise RunFailedError(
                f"{totals.errors} of {rows} rows failed, more than --max-error-rate {self.config.max_error_rate:g}; "
                f"by code: {totals.error_codes}"
            )


def _log_chunk(commit: Commit, failed: Sequence[dict[str, str]]) -> None:
    """A record of the log for the chunk, and one for each of the first rows that failed."""
    part = {"part_id": commit.part_id, "chunk": commit.chunk}
    sums = {"utterances": commit.utterances, "errors": commit.errors, "audio_s": commit.audio_s}
    how = {"seconds": commit.seconds, "engine": commit.engine, "fallback": commit.fallback, "splits": commit.splits}
    log.info("chunk committed", extra=part | sums | {"last": commit.last} | how | commit.workers)
    for row in failed:
        # A record of Python's has a `message` of its own.
        log.info("row failed", extra=part | {"reason" if name == "message" else name: row[name] for name in row})


def _stuck(unfinished: Iterable[str], seconds: float) -> str:
    """What is known of a run that has been silent: parts are begun in the order of the plan."""
    oldest = ", ".join(list(unfinished)[:PARTS_NAMED])  # a copy at once: chunks come in meanwhile
    try:
        state = recognizers(Recognizer.__name__)
    except (RayError, OSError, RuntimeError) as error:
        state = f"Ray does not answer: {error}"
    return f"nothing was committed for {seconds:.0f} s; the oldest parts that are not done: {oldest}; {state}"


def _compact_on_ray(run: str, groups: Sequence[tuple[str, list[DataFile]]]) -> list[DataFile]:
    """A Ray task for each group of files."""
    task = ray.remote(compact_group).options(num_cpus=0.5, max_retries=MAX_DEATHS)
    try:
        return ray.get([task.remote(run, table, group) for table, group in groups])
    except RayError as error:
        if (ours := unwrap_project_error(error)) is not None:
            raise ours from error
        raise


def find_left(run: Run, waiting: list[bytes] | None = None) -> tuple[Totals, pa.Table]:
    """What is committed, and the rows of the plan that are not done, each with its `committed` chunks and its `record`.

    The record is the content of what `pipeline.stages.quarantine` knows of the part; null where that is nothing.

    `waiting` is given the commits that are still objects.
    """
    table = ledger(run.uri, waiting)
    plan = run.plan_without(parts_done(table))
    ids = plan["part_id"].combine_chunks()
    plan = plan.append_column("committed", _of_parts(ids, chunks_of(table, ids), pa.list_(pa.int32()), []))
    return Totals.of(table), plan.append_column("record", _of_parts(ids, records(run.uri), pa.string(), None))


def _of_parts(ids: pa.Array, known: Mapping[str, Any], kind: pa.DataType, other: Any) -> pa.Array:
    """What is known of each part, `other` where that is nothing; millions of ids are never Python's."""
    place = pc.index_in(ids, pa.array(known, pa.string())).fill_null(len(known))
    return pa.array([*known.values(), other], kind).take(place)
