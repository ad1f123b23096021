"""Many small objects: how fast they are read, listed and planned.

    python -m benchmarks.small_objects [--objects N] [--latency-ms MS] [--seconds S] [--rounds N] [--output FILE]

The objects are FLAC files in a server of S3's protocol on this machine, which answers each request after the latency.
Rounds of three cases take turns, over other objects each time:

* encoder: the bundled model on decoded clips from memory, with a thread for each CPU;
* reader: one decode task, from the plan to decoded rows, in a process of its own;
* both: that process feeds the encoder. They share the CPUs with the server.

Figures are clips per second, and medians of their ratio to the encoder's within a round. Then a process lists and plans
as many objects as `--listed` says; its time and its peak memory are printed. Needs the development dependencies.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.workload import RATE
from pipeline.audio.decode import AudioSettings
from pipeline.corpus.ahead import READ_AHEAD
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan
from pipeline.stages.recognize import ChunkRecognizer, RecognizeSettings
from pipeline.stages.rows import RowSettings, part_steps
from pipeline.stages.steps import START
from pipeline.storage.checkpoints import checkpoint_digest
from tests.support.corpora import noise_bursts
from tests.support.quick_s3 import quick_server

PART_BYTES = 32 * 2**20
DISTINCT = 200  # clips; the others are links to the same files
CHUNK_CLIPS = 200  # that the encoder gets at a time


def main(
    objects: Annotated[int, typer.Option(help="Objects to read, over all rounds.")] = 20_000,
    listed: Annotated[int, typer.Option(help="Objects to list and plan.")] = 100_000,
    latency_ms: Annotated[float, typer.Option(help="Of each request, in milliseconds.")] = 50.0,
    seconds: Annotated[float, typer.Option(help="Length of the clips.")] = 2.0,
    rounds: Annotated[int, typer.Option()] = 5,
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("small-objects-benchmark.json"),
) -> None:
    """Measure reading, listing and planning; print a table and write JSON."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clips = write_corpus(root / "read", objects, seconds)
        write_corpus(root / "listed", listed, 0.1)
        with quick_server(root, latency_ms):
            encode = encoder(root)
            encode(clips)  # warms up
            parts = plan(["s3://read"], PART_BYTES).to_pylist()
            sizes = [share_of(parts, index, rounds) for index in range(rounds)]
            records = [measure(encode, clips, own) for own in sizes if own]
            for name in ("encoder", "reader", "both"):
                ratios = [record[name] / record["encoder"] for record in records]
                rates = [record[name] for record in records]
                figures[name] = {"clips_per_s": statistics.median(rates), "of_encoder": statistics.median(ratios)}
            figures["planning"] = plan_listing("s3://listed")
    output.write_text(json.dumps({"cpus": os.cpu_count(), "figures": figures, "rounds": records}, indent=1))
    table = Table("", "clips per second", "of the encoder")
    for name in ("encoder", "reader", "both"):
        table.add_row(name, f"{figures[name]['clips_per_s']:.0f}", f"{figures[name]['of_encoder']:.0%}")
    Console().print(table, f"{listed:,} objects listed and planned:", figures["planning"])


def write_corpus(folder: Path, number: int, seconds: float) -> list[np.ndarray]:
    """Write `number` clips as FLAC files; returns the distinct ones."""
    clips = [noise_bursts(seconds, seed) for seed in range(min(DISTINCT, number))]
    folder.mkdir()
    for index in range(number):
        path = folder / f"{index // 1000:04d}" / f"{index:07d}.flac"
        path.parent.mkdir(exist_ok=True)
        if index < DISTINCT:
            soundfile.write(path, clips[index], RATE)
        else:
            twin = index % DISTINCT
            path.hardlink_to(folder / f"{twin // 1000:04d}" / f"{twin:07d}.flac")
    return clips


def share_of(parts: list[dict[str, Any]], index: int, count: int) -> list[dict[str, Any]]:
    """One of `count` shares of the parts."""
    return parts[index * len(parts) // count : (index + 1) * len(parts) // count]


def encoder(root: Path) -> Any:
    """A function that runs the bundled model over clips."""
    settings = RecognizeSettings(
        model="bundled",
        classifiers=(),
        digests=(checkpoint_digest("bundled"),),
        device="cpu",
        dtype="float32",
        threads=os.cpu_count() or 1,
        stop_uri=str(root / "stop"),
        run=str(root / "run"),
        deadline_s=600.0,
    )
    return ChunkRecognizer(settings).recognize


def measure(encode: Any, clips: list[np.ndarray], parts: list[dict[str, Any]]) -> dict[str, float]:
    """Clips per second of each case over some parts."""
    number = sum(part["rows"] for part in parts)
    started = time.perf_counter()
    for _ in range(0, number, len(clips)):
        encode(clips)
    encoder_s = (time.perf_counter() - started) * number / (-(-number // len(clips)) * len(clips))
    reader_s = timed_reading(parts, None)
    both_s = timed_reading(parts, encode)
    return {"encoder": number / encoder_s, "reader": number / reader_s, "both": number / both_s}


def timed_reading(parts: list[dict[str, Any]], encode: Any) -> float:
    """Seconds in which a process reads the parts, and `encode` takes its clips if it is given."""
    context = get_context("spawn")
    queue = context.Queue(maxsize=8)
    process = context.Process(target=read_into, args=(queue, parts, encode is not None), daemon=True)
    process.start()
    queue.get()  # its libraries are loaded
    started = time.perf_counter()
    for chunk in iter(queue.get, None):
        if encode is not None:
            encode([samples.astype(np.float32) / 2**15 for samples in chunk])
    seconds = time.perf_counter() - started
    process.join()
    return seconds


def read_into(queue: Any, parts: list[dict[str, Any]], with_samples: bool) -> None:
    """Read parts as a decode task does, and put the waveforms into a queue."""
    settings = RowSettings(audio=AudioSettings(sample_rate=RATE, max_segment_s=60.0), min_samples=400)
    with contextlib.suppress(FileNotFoundError):
        next(rows_of(parts[:1], settings))  # connects
    queue.put("ready")
    chunk: list[np.ndarray] = []
    for samples in rows_of(parts, settings):
        chunk.append(samples if with_samples else samples[:1])
        if len(chunk) == CHUNK_CLIPS:
            queue.put(chunk)
            chunk = []
    if chunk:
        queue.put(chunk)
    queue.put(None)


def rows_of(parts: list[dict[str, Any]], settings: RowSettings) -> Iterator[np.ndarray]:
    """The decoded rows of parts, read ahead as at the first attempt."""
    for planned in parts:
        part = Part.from_row(planned, ahead=READ_AHEAD)
        for step in part_steps(part, settings, START, {}):
            if step.row is not None:
                if step.row.samples is None:
                    raise RuntimeError(str(step.row.error))
                yield step.row.samples


def plan_listing(uri: str) -> dict[str, float]:
    """List and plan in a process that loads nothing else; its seconds, and its peak memory in MiB."""
    program = (
        "import json, resource, sys, time\n"
        "from pipeline.corpus.plan import plan\n"
        "started = time.perf_counter()\n"
        f"rows = sum(plan([sys.argv[1]], {PART_BYTES})['rows'].to_pylist())\n"
        "seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10\n"
        "print(json.dumps({'objects': rows, 'seconds': seconds, 'peak_mib': peak}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, uri], check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    sys.exit(typer.run(main))
