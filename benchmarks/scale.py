"""How the pipeline scales over actors, and how busy it keeps them, with a model of a fixed cost.

    python -m benchmarks.scale [--actors 1,2,4,8] [--gpus-per-actor N] [--seconds N] [--output FILE]

The stand-in model sleeps a two hundredth of the audio that it is given; all else is real: WAV files listed, read and
decoded, chunks through Ray, Parquet committed. Machines are simulated on this one: each has a GPU on paper, for one
actor or several, and one more has processors alone. Measured of each actor but for its first chunks and its last, so
while rows wait: audio committed, and the share of its time in which it did not work. And how much of the decoding was
done on the machine without a GPU, and how full the fullest object store came to be: decoding could run far ahead of the
model. Needs the development dependencies.
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
from ray._private.state import available_resources_per_node  # nothing public tells it machine by machine
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

import pipeline
from pipeline.cluster.ray_start import connect
from pipeline.driver import dataset
from pipeline.stages.recognize import Recognition, Recognizer, RecognizeSettings
from sewd_model import GreedyPath
from tests.support import checkpoints, corpora
from tests.support.s3 import free_port

ROOT = Path(__file__).parents[1]
SPEED = 200.0  # seconds of audio that an actor gets through in a second
CLIP_S, CLIPS = 12.0, 50  # so many files are written; the others are links to them
CHUNK_S = 300.0
STORE_BYTES = 400 * 2**20
STORE_SAMPLE_S = 0.2
# Of each actor, not counted: while the last stage's processes start, commits come late; at the end the rows run out.
HEAD_CHUNKS, TAIL_CHUNKS = 8, 2
_NO_INTEGERS = np.empty(0, np.int64)
EMPTY = Recognition(GreedyPath(_NO_INTEGERS, _NO_INTEGERS, _NO_INTEGERS, np.empty(0, np.float32), 1), [])


@dataclass(frozen=True)
class Found:
    """Of one run: see the module."""

    actors: int
    chunks: int
    times_real_time: float
    idle: float
    decoded_without_gpu: float
    store_peak: float
    actors_by_machine: list[int]


def main(
    actors: Annotated[str, typer.Option(help="How many, separated by commas.")] = "1,2,4,8",
    gpus_per_actor: Annotated[float, typer.Option(help="GPUs, or a share of one, for an actor.")] = 1.0,
    seconds: Annotated[float, typer.Option(help="That each run takes, about.")] = 60.0,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("scale-benchmark.json"),
) -> None:
    """Measure, print a table, write JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for count in map(int, actors.split(",")):
            gpus = [1] * math.ceil(count * gpus_per_actor)
            found.append(measure(Path(folder) / str(count), count, gpus, seconds, gpus_per_actor))
    about = {"processors": os.cpu_count(), "ray": ray.__version__, "model_times_real_time": SPEED}
    output.write_text(json.dumps(about | {"runs": list(map(asdict, found))}, indent=1))
    table = Table(
        "actors", "times real time", "of one actor", "idle", "chunks", "decoded without a GPU", "fullest store"
    )
    for one in found:
        scale = one.times_real_time / (found[0].times_real_time / found[0].actors)
        shares = f"{one.idle:.1%}", str(one.chunks), f"{one.decoded_without_gpu:.0%}", f"{one.store_peak:.0%}"
        table.add_row(str(one.actors), f"{one.times_real_time:.0f}", f"{scale:.2f}", *shares)
    Console().print(table)


class Sleeper(Recognizer):
    """Loads nothing, and takes a fixed time."""

    def __init__(self, settings: RecognizeSettings) -> None:
        self.settings = settings

    def _results(self, rows: pa.StructArray) -> list[Recognition]:
        time.sleep(sum(rows.field("duration_s").to_pylist()) / SPEED)
        return [EMPTY] * len(rows)


@dataclass(eq=False)
class Watch(logging.Handler):
    """Keeps the log's records of chunks, with the raylets below which each was read and recognised."""

    records: list[Any] = field(default_factory=list)
    raylets: dict[str, int] = field(default_factory=dict)  # of a worker's name

    def __post_init__(self) -> None:
        super().__init__()

    def emit(self, record: Any) -> None:
        """Take a record."""
        if record.getMessage() == "chunk committed":
            for worker in (record.reader, record.recognizer):
                with contextlib.suppress(psutil.Error):
                    self.raylets.setdefault(worker, psutil.Process(int(worker.rpartition(":")[2])).ppid())
            self.records.append(record)


@contextlib.contextmanager
def watch_stores(peaks: dict[str, float]) -> Iterator[None]:
    """Keep of each machine of the Ray that is connected the largest share of its object store that was in use."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(STORE_SAMPLE_S):
            if not ray.is_initialized():
                continue
            sizes = {node["NodeID"]: node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes()}
            for node, free in available_resources_per_node().items():
                if size := sizes.get(node):
                    peaks[node] = max(peaks.get(node, 0.0), 1 - free.get("object_store_memory", size) / size)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def measure(folder: Path, actors: int, gpus: Sequence[int], seconds: float, gpus_per_actor: float = 1.0) -> Found:
    """One run on a cluster of its own, that has a machine for each of `gpus` and one without."""
    chunks = max(4 * HEAD_CHUNKS * actors, round(actors * seconds * SPEED / CHUNK_S))
    corpus = write_corpus(folder / "in", round(chunks * CHUNK_S / CLIP_S))
    model = checkpoints.write_ctc(folder / "model", checkpoints.SMALL)
    log = logging.getLogger("sewd")
    log.setLevel(logging.INFO)
    log.addHandler(watch := Watch())
    peaks: dict[str, float] = {}
    with mock.patch.object(dataset, "Recognizer", Sleeper), cluster(gpus, actors) as (address, raylets):
        config = pipeline.RunConfig(
            inputs=(str(corpus),),
            output=str(folder / "run"),
            model=str(model),
            chunk_s=CHUNK_S,
            part_mib=2 * CHUNK_S * 32_000 / 2**20,
            address=address,
            gpus_per_actor=gpus_per_actor,
        )
        with connect(address), watch_stores(peaks):
            pipeline.transcribe(config)
    log.removeHandler(watch)
    return figures(watch, actors, raylets, max(peaks.values()))


def write_corpus(folder: Path, clips: int) -> Path:
    """Some clips, and links to them."""
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
    """A head without work, machines with so many GPUs, and one of processors; its address, and their raylets."""
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

    made = Cluster(initialize_head=True, head_node_args=node(0, 0))
    try:
        shapes = [*((max(1, count), count) for count in gpus), (2 + actors, 0)]
        raylets = [made.add_node(**node(*shape)).all_processes["raylet"][0].process.pid for shape in shapes]
        yield made.address, raylets
    finally:
        made.shutdown()


def figures(watch: Watch, actors: int, raylets: list[int], store_peak: float) -> Found:
    """What the chunks say, but for the first ones and the last ones of each actor."""
    by_actor: dict[str, list[Any]] = {}
    for record in watch.records:
        by_actor.setdefault(record.recognizer, []).append(record)
    speed, working, counted = 0.0, [], 0
    for records in by_actor.values():
        first, *inner = records[HEAD_CHUNKS:-TAIL_CHUNKS]
        took = inner[-1].created - first.created
        speed += sum(record.audio_s for record in inner) / took
        working.append(sum(record.seconds["compute"] for record in inner) / took)
        counted += len(inner)
    readers = [watch.raylets.get(record.reader) for record in watch.records]
    recognizers = Counter(watch.raylets.get(recognizer) for recognizer in by_actor)
    return Found(
        actors=actors,
        chunks=counted,
        times_real_time=speed,
        idle=1 - sum(working) / actors,
        decoded_without_gpu=sum(reader == raylets[-1] for reader in readers) / len(readers),
        store_peak=store_peak,
        actors_by_machine=[recognizers[raylet] for raylet in raylets],
    )


if __name__ == "__main__":
    typer.run(main)
