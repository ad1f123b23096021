"""How throughput scales with the number of actors, and how idle they are, with a model of fixed cost.

    python -m benchmarks.scale [--actors 1,2,4,8] [--gpus-per-actor N] [--seconds N] [--output FILE]

The stand-in model sleeps for a two hundredth of the audio's duration. Everything else is real: WAV files are listed,
read and decoded, chunks pass through Ray, and Parquet is committed. The nodes are simulated on this machine: each has a
declared GPU for one actor or several, and one more node has only CPUs. For each actor, the committed audio and the idle
share of its time are measured, without its first and last chunks, so while there is work for it. Also measured: the
share of decoding on the node without a GPU, and how full the fullest object store was, since decoding could run far
ahead of the model. Needs the development dependencies.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import ray
import typer
from ray._private.state import available_resources_per_node  # no public function reports resources by node
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

import pipeline
from pipeline.cluster.ray_start import connect
from pipeline.driver import dataset
from pipeline.stages.heads import Recognition
from pipeline.stages.recognize import ChunkRecognizer, RecognizeSettings
from sewd_model import GreedyPath
from tests.support import checkpoints, corpora
from tests.support.s3 import free_port

ROOT = Path(__file__).parents[1]
SPEED = 200.0  # seconds of audio per second and actor
CLIP_S, CLIPS = 12.0, 50  # length and number of the files written; the others are links to them
CHUNK_S = 300.0
STORE_BYTES = 400 * 2**20
STORE_SAMPLE_S = 0.2
# Chunks of each actor that do not count: commits are late while the writers start, and at the end work runs out.
HEAD_CHUNKS, TAIL_CHUNKS = 8, 2
_NO_INTEGERS = np.empty(0, np.int64)
EMPTY_PATH = GreedyPath(_NO_INTEGERS, _NO_INTEGERS, _NO_INTEGERS, np.empty(0, np.float32), num_frames=1)


@dataclass(frozen=True)
class Figures:
    """The figures of one run.

    Attributes:
        actors: number of actors.
        chunks: number of chunks that count.
        times_real_time: seconds of audio per second, over all actors.
        idle: share of the actors' time in which they did not work.
        decoded_without_gpu: share of the chunks that were decoded on the node without a GPU.
        store_peak: largest share in use of the fullest object store.
        actors_by_node: number of actors on each node, the one without a GPU last.
    """

    actors: int
    chunks: int
    times_real_time: float
    idle: float
    decoded_without_gpu: float
    store_peak: float
    actors_by_node: list[int]


def main(
    actors: Annotated[str, typer.Option(help="Numbers of actors to measure, separated by commas.")] = "1,2,4,8",
    gpus_per_actor: Annotated[float, typer.Option(help="Number of GPUs, or share of one, for each actor.")] = 1.0,
    seconds: Annotated[float, typer.Option(help="Approximate duration of each run.")] = 60.0,
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("scale-benchmark.json"),
) -> None:
    """Measure how throughput scales with the number of actors; print a table and write JSON."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for count in map(int, actors.split(",")):
            gpus = [1] * math.ceil(count * gpus_per_actor)
            runs.append(measure(Path(folder) / str(count), count, gpus, seconds, gpus_per_actor))
    setup = {"cpus": os.cpu_count(), "ray": ray.__version__, "model_times_real_time": SPEED}
    output.write_text(json.dumps(setup | {"runs": list(map(asdict, runs))}, indent=1))
    table = Table(
        "actors", "times real time", "over one actor", "idle", "chunks", "decoded without a GPU", "fullest store"
    )
    one_actor = runs[0].times_real_time / runs[0].actors
    for run in runs:
        scale = run.times_real_time / one_actor
        shares = f"{run.idle:.1%}", str(run.chunks), f"{run.decoded_without_gpu:.0%}", f"{run.store_peak:.0%}"
        table.add_row(str(run.actors), f"{run.times_real_time:.0f}", f"{scale:.2f}", *shares)
    Console().print(table)


class Sleeper(ChunkRecognizer):
    """A model that loads nothing, computes nothing and takes a fixed time."""

    def __init__(self, settings: RecognizeSettings) -> None:
        self.settings = settings

    def _results(self, rows: pa.StructArray) -> list[Recognition]:
        time.sleep(sum(rows.field("duration_s").to_pylist()) / SPEED)
        return [Recognition(EMPTY_PATH, label_scores=[])] * len(rows)


@dataclass(eq=False)
class ChunkLog(logging.Handler):
    """Keeps the log records of committed chunks.

    Attributes:
        records: the log records.
        raylets: process id of the raylet of each worker that read or recognised a chunk, by the worker's name.
    """

    records: list[Any] = field(default_factory=list)
    raylets: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def emit(self, record: Any) -> None:
        """Keep a record, and look up the raylets of its workers while they live."""
        if record.getMessage() == "chunk committed":
            for worker in (record.reader, record.recognizer):
                with contextlib.suppress(psutil.Error):
                    self.raylets.setdefault(worker, psutil.Process(int(worker.rpartition(":")[2])).ppid())
            self.records.append(record)


@contextlib.contextmanager
def store_peaks() -> Iterator[dict[str, float]]:
    """Yield a dictionary that is filled meanwhile: the largest share in use of each node's object store, by node id."""
    peaks: dict[str, float] = {}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(STORE_SAMPLE_S):
            if not ray.is_initialized():
                continue
            sizes = {node["NodeID"]: node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes()}
            for node, free in available_resources_per_node().items():
                if size := sizes.get(node):
                    peaks[node] = max(peaks.get(node, 0.0), 1 - free.get("object_store_memory", size) / size)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peaks
    finally:
        ended.set()
        sampler.join()


def measure(folder: Path, actors: int, gpus: Sequence[int], seconds: float, gpus_per_actor: float = 1.0) -> Figures:
    """Measure one run on a simulated cluster.

    Args:
        folder: for the corpus, the model and the run.
        actors: number of actors.
        gpus: number of GPUs of each node that has some; one more node has none.
        seconds: approximate duration of the run.
        gpus_per_actor: number of GPUs, or share of one, for each actor.
    """
    chunks = max(4 * HEAD_CHUNKS * actors, round(actors * seconds * SPEED / CHUNK_S))
    corpus = write_corpus(folder / "in", round(chunks * CHUNK_S / CLIP_S))
    model = checkpoints.write_ctc(folder / "model", checkpoints.SMALL)
    log = logging.getLogger("sewd")
    log.setLevel(logging.INFO)
    log.addHandler(chunk_log := ChunkLog())
    with mock.patch.object(dataset, "RecognizerActor", Sleeper), cluster(gpus, actors) as (address, raylets):
        config = pipeline.RunConfig(
            inputs=(str(corpus),),
            output=str(folder / "run"),
            model=str(model),
            chunk_s=CHUNK_S,
            part_mib=2 * CHUNK_S * 32_000 / 2**20,
            address=address,
            gpus_per_actor=gpus_per_actor,
        )
        with connect(address), store_peaks() as peaks:
            pipeline.transcribe(config)
    log.removeHandler(chunk_log)
    return summarize(chunk_log, actors, raylets, max(peaks.values()))


def write_corpus(folder: Path, clips: int) -> Path:
    """Write some clips, and links to them."""
    folder.mkdir(parents=True)
    for index in range(clips):
        path = folder / f"{index:06d}.wav"
        if index < CLIPS:
            corpora.write_audio(path, CLIP_S, index)
        else:
            path.hardlink_to(folder / f"{index % CLIPS:06d}.wav")
    return folder


@contextlib.contextmanager
def cluster(gpus: Sequence[int], actors: int) -> Iterator[tuple[str, list[int]]]:
    """Start a head that runs no tasks, a node for each of `gpus`, and one with CPUs only.

    Yields:
        The address of the cluster, and the process ids of the raylets of the nodes.
    """
    os.environ.update(PYTHONPATH=str(ROOT), RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    os.environ.update(RAY_enable_worker_prestart="0", RAY_prestart_worker_first_driver="0")

    def node(cpus: int, gpus: int) -> dict[str, Any]:
        names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
        return {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            **{name: free_port() for name in names},
        }

    simulated = Cluster(initialize_head=True, head_node_args=node(0, 0))
    try:
        shapes = [*((max(1, count), count) for count in gpus), (2 + actors, 0)]
        raylets = [simulated.add_node(**node(*shape)).all_processes["raylet"][0].process.pid for shape in shapes]
        yield simulated.address, raylets
    finally:
        simulated.shutdown()


def summarize(chunk_log: ChunkLog, actors: int, raylets: list[int], store_peak: float) -> Figures:
    """The figures of the chunks, without the first and last ones of each actor."""
    by_actor: dict[str, list[Any]] = {}
    for record in chunk_log.records:
        by_actor.setdefault(record.recognizer, []).append(record)
    speed, working, counted = 0.0, [], 0
    for records in by_actor.values():
        first, *inner = records[HEAD_CHUNKS:-TAIL_CHUNKS]
        seconds = inner[-1].created - first.created
        speed += sum(record.audio_s for record in inner) / seconds
        working.append(sum(record.seconds["compute"] for record in inner) / seconds)
        counted += len(inner)
    readers = [chunk_log.raylets.get(record.reader) for record in chunk_log.records]
    recognizers = Counter(chunk_log.raylets.get(recognizer) for recognizer in by_actor)
    return Figures(
        actors=actors,
        chunks=counted,
        times_real_time=speed,
        idle=1 - sum(working) / actors,
        decoded_without_gpu=sum(reader == raylets[-1] for reader in readers) / len(readers),
        store_peak=store_peak,
        actors_by_node=[recognizers[raylet] for raylet in raylets],
    )


if __name__ == "__main__":
    typer.run(main)
