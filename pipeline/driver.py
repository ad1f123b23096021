"""The main job: a corpus and checkpoints in, a committed run out.

    list -> plan -> [read+decode+segment -> recognise -> words, counts, Parquet, commit]

The bracket is one Ray Data pipeline: CPU tasks, an actor pool, CPU tasks. Nothing is gathered here; the driver sees ids
and counters of chunks only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from pipeline import storage
from pipeline.audio import AudioSettings
from pipeline.cluster import Resources, connect, data_context, share_out
from pipeline.commit import Committed, list_committed, remove_orphans
from pipeline.config import RunConfig, differences, fingerprint, make_config
from pipeline.errors import RunFailedError, StorageError, UsageError
from pipeline.plan import plan
from pipeline.read import ReadSettings, read_chunks
from pipeline.recognize import Recognizer, RecognizeSettings
from pipeline.run import PLAN_FILE, RECORD, Run, Totals, now, write_plan
from pipeline.sink import SinkSettings, write_chunks
from sewd_model import (
    CheckpointError,
    CTCTokenizer,
    FeatureExtractor,
    SEWDConfig,
    SEWDForCTC,
    SEWDForSequenceClassification,
)

# One Ray Data execution takes so many parts: a block a part costs the driver about 1 ms and 5.5 kB each.
WAVE_PARTS = 10_000
MIN_ROWS_FOR_RATE = 1_000
RUNNING, STOPPED, FAILED, DONE = "running", "stopped", "failed", "done"


@dataclass(frozen=True)
class Progress:
    """How far a run is; given to the caller at the start and after each chunk."""

    totals: Totals
    total_bytes: int
    audio_s: float  # transcribed since this start
    elapsed_s: float  # since this start's first chunk could flow
    status: str = RUNNING

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

    sample_rate: int
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
        UsageError: it cannot be done as asked: no input, no model, not enough CPUs, or another run lies at `output`.
        StorageError: an input or the run could not be reached; what is committed stays.
        RunFailedError: too many rows failed, or the first under `strict`.
    """
    config = make_config(**{name: getattr(config, name) for name in config.__dataclass_fields__})
    models = _load_models(config)
    run = _open(config)
    if run.status == DONE:
        return run
    attempt = uuid.uuid4().hex[:12]
    run = run.save(status=RUNNING, attempts=[*run.record["attempts"], _attempt(attempt)])
    try:
        with connect(config.address):
            cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            resources = share_out(cluster.get("CPU", 0), cluster.get("GPU", 0), config)
            execution = _Execution(run, config, models, resources, attempt, on_progress or (lambda _: None))
            with _stop_marker(execution.stop_uri, stop):
                totals = execution.run_waves(stop or threading.Event())
    except (UsageError, StorageError, RunFailedError) as error:
        _save_failure(run, str(error))
        raise
    if stop is not None and stop.is_set() and not _missing(run):
        stop = None  # it came too late: everything is committed
    if stop is not None and stop.is_set():
        return run.save(status=STOPPED, totals=asdict(totals))
    return _finish(run)


def _save_failure(run: Run, reason: str) -> None:
    # The reason is already on its way to the user; where RUN itself cannot be written, that is no news.
    with contextlib.suppress(StorageError):
        run.save(status=FAILED, reason=reason)


def _load_models(config: RunConfig) -> _Models:
    """Load every checkpoint once here: one that is broken is then a line of text, not a cluster of dead actors."""
    try:
        ctc = SEWDForCTC.from_pretrained(config.model).config
        heads: dict[str, SEWDConfig] = {
            task: SEWDForSequenceClassification.from_pretrained(uri).config for task, uri in config.tasks.items()
        }
        rates = {
            uri: FeatureExtractor.from_pretrained(uri).sampling_rate for uri in (config.model, *config.tasks.values())
        }
        tokenizer = CTCTokenizer.from_pretrained(config.model)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        raise UsageError(f"cannot load the model: {error}") from error
    if len(set(rates.values())) > 1:
        raise UsageError(f"the models want different sampling rates: {rates}")
    rate = rates[config.model]
    return _Models(
        sample_rate=rate,
        min_samples=max(c.min_samples for c in (ctc, *heads.values())),
        frame_s=ctc.hop_length / rate,
        tokenizer=tokenizer,
        classifiers=tuple((task, tuple(c.id2label[i] for i in range(c.num_labels))) for task, c in heads.items()),
    )


def _open(config: RunConfig) -> Run:
    """The run at `output`: the one that is there, if it is this one, else a new one with its plan."""
    wanted = fingerprint(config)
    if storage.exists(storage.join(config.output, RECORD)):
        run = Run.open(config.output)
        if different := differences(run.record["fingerprint"], wanted):
            raise UsageError(
                f"{run.uri} holds another run; choose another --output. It differs in " + "; ".join(different)
            )
        return run
    others = [o.uri for o in storage.list_objects(config.output)]
    if any(uri.rpartition("/")[2] != PLAN_FILE and not uri.endswith(".tmp") for uri in others):
        raise UsageError(f"{config.output} is not empty and holds no run")
    parts = plan(config.inputs, int(config.part_mib * 2**20), config.limit)
    write_plan(config.output, parts)
    record = {
        "status": RUNNING,
        "created": now(),
        "fingerprint": wanted,
        "config": asdict(config),
        "parts": parts.num_rows,
        "input_bytes": sum(parts["bytes"].to_pylist()),
        "attempts": [],
    }
    return Run(config.output, record).save()


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
                storage.put(uri, b"")
                return

    watcher = threading.Thread(target=watch, name="sewd-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        if stop.is_set():
            storage.delete([uri])


@dataclass(frozen=True)
class _Execution:
    """One start of the driver over the parts that are not done."""

    run: Run
    config: RunConfig
    models: _Models
    resources: Resources
    attempt: str
    report: Callable[[Progress], None]

    @property
    def stop_uri(self) -> str:
        return storage.join(self.run.uri, "control", f"stop-{self.attempt}")

    def run_waves(self, stop: threading.Event) -> Totals:
        totals = sum((Totals.of(commit) for commit in self.run.commits()), start=Totals())
        total_bytes = self.run.record["input_bytes"]
        began, audio_s = time.monotonic(), 0.0
        self.report(Progress(totals, total_bytes, audio_s, 0.0))
        self._check(totals, None)
        for wave in self._waves():
            for chunk in self._chunks(wave):
                added = _totals_of(chunk)
                totals += added
                audio_s += added.audio_s
                self.report(Progress(totals, total_bytes, audio_s, time.monotonic() - began))
                self._check(totals, chunk["first_error"])
            if stop.is_set():
                break
        return totals

    def _waves(self) -> Iterator[list[pa.Table]]:
        """Tables of one part and its committed chunks each, for Ray to take as blocks; parts that are done left out."""
        committed = list_committed(self.run.uri)
        wave: list[pa.Table] = []
        parts = self.run.plan()
        for index in range(parts.num_rows):
            known = committed.get(parts["part_id"][index].as_py(), Committed())
            if known.done:
                continue
            chunks = pa.array([sorted(known.chunks)], pa.list_(pa.int32()))
            wave.append(parts.slice(index, 1).append_column("committed", chunks))
            if len(wave) == WAVE_PARTS:
                yield wave
                wave = []
        if wave:
            yield wave

    def _chunks(self, wave: list[pa.Table]) -> Iterator[dict[str, Any]]:
        """Run one Ray Data execution; gives a row of `CHUNK_STATS` as each chunk is committed."""
        with DataContext.current(data_context()):
            try:
                batches = self.dataset(wave).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
                for batch in cast(Iterable[pa.Table], batches):
                    yield from batch.to_pylist()
            except RayError as error:
                if (ours := _ours(error)) is not None:
                    raise ours from error
                raise

    def dataset(self, wave: list[pa.Table]) -> Dataset:
        """The three stages over the parts of a wave."""
        r = self.resources
        read = ReadSettings(
            audio=AudioSettings(
                sample_rate=self.models.sample_rate,
                channels=self.config.channels,
                max_segment_s=self.config.max_segment_s,
            ),
            min_samples=self.models.min_samples,
            chunk_s=self.config.chunk_s,
            chunk_rows=self.config.chunk_rows,
            stop_uri=self.stop_uri,
        )
        recognize = RecognizeSettings(
            model=self.config.model,
            classifiers=tuple(self.config.tasks.values()),
            device="cuda" if r.actor_gpus else "cpu",
            threads=r.threads,
            stop_uri=self.stop_uri,
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
        return (
            ray.data.from_arrow(wave)
            .map_batches(functools.partial(_read_stage, settings=read), num_cpus=r.read_cpus, **whole)
            .map_batches(
                Recognizer,
                fn_constructor_args=(recognize,),
                num_cpus=r.actor_cpus,
                num_gpus=r.actor_gpus,
                compute=ActorPoolStrategy(size=r.actors),
                **whole,
            )
            .map_batches(functools.partial(write_chunks, settings=sink), num_cpus=r.sink_cpus, **whole)
        )

    def _check(self, totals: Totals, first_error: str | None) -> None:
        if self.config.strict and totals.errors:
            raise RunFailedError(f"strict: {first_error or 'a row failed in an earlier start'}")
        rows = totals.utterances + totals.errors
        if rows >= MIN_ROWS_FOR_RATE and totals.error_rate > self.config.max_error_rate:
            raise RunFailedError(
                f"{totals.errors} of {rows} rows failed, more than --max-error-rate {self.config.max_error_rate:g}; "
                f"by code: {totals.error_codes}"
            )


def _read_stage(parts: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    for part in parts.to_pylist():
        yield from read_chunks(part, frozenset(part.pop("committed")), settings)


def _totals_of(chunk: dict[str, Any]) -> Totals:
    names = ("utterances", "errors", "audio_s", "source_bytes", "compute_s", "error_codes")
    values = {name: chunk[name] for name in names}
    return Totals(chunks=1, **(values | {"error_codes": dict(values["error_codes"])}))


def _ours(error: BaseException) -> StorageError | UsageError | None:
    """The error of ours that a stage raised, out of the wrappers that Ray put around it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, StorageError | UsageError):
            message = str(inner).partition("\nFailed to apply UDF")[0]  # Ray's advice follows, on how to retry
            return StorageError(message) if isinstance(inner, StorageError) else UsageError(message)
        inner = getattr(inner, "cause", None) or inner.__cause__
    return None


def _missing(run: Run) -> int:
    """Parts of the plan that are not done."""
    done = run.parts_done()
    return sum(part not in done for part in run.plan(["part_id"])["part_id"].to_pylist())


def _finish(run: Run) -> Run:
    """Check that the plan is committed whole, remove what no commit names, and call the run done."""
    if missing := _missing(run):
        raise RuntimeError(f"{run.uri}: {missing} parts of the plan have no complete commit after the last wave")
    commits = list(run.commits())
    rows: dict[str, int] = {}
    for commit in commits:
        rows[commit.part_id] = rows.get(commit.part_id, 0) + commit.utterances + commit.errors
    for commit in commits:
        if commit.last and rows[commit.part_id] != commit.part_rows:
            raise RuntimeError(f"part {commit.part_id} has {rows[commit.part_id]} rows committed of {commit.part_rows}")
    remove_orphans(run.uri, commits)
    totals = sum((Totals.of(commit) for commit in commits), start=Totals())
    return run.save(status=DONE, finished=now(), totals=asdict(totals), reason=None)
