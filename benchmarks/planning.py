"""Time and memory of planning: a manifest of millions of rows, a listing, and a start from a plan of a million parts.

    python -m benchmarks.planning [--rows N] [--shards N] [--parts N] [--folder DIR] [--output FILE]

Measured, each in a separate process: `plan` on a manifest (JSON lines with NeMo's keys and one more); `plan` on a
listing of shards, one part each; and `transcribe` on a run whose stored plan has a million unfinished parts, from the
call until the first reading task begins, which then ends the run. Memory is the driver's peak, and the memory of the
process before the call (the libraries). Needs the development dependencies.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import pyarrow as pa
import ray
import typer
from rich.console import Console
from rich.table import Table

import pipeline
from benchmarks.resume import PART_BYTES, fake_plan, peak_memory
from pipeline.corpus.plan import plan
from pipeline.driver import dataset
from pipeline.errors import RunFailedError
from pipeline.runs.fingerprint import fingerprint
from pipeline.runs.record import RunRecord
from pipeline.runs.run import Run, now, write_plan
from pipeline.stages.read import ReadSettings
from pipeline.storage import objects
from pipeline.storage.reads import Object

ROWS_PER_WRITE = 100_000
WORDS = ["the", "of", "and", "to", "in", "he", "that", "was", "his", "it", "with", "is", "for", "as", "had", "you"]
WORDS_PER_ROW = 20
STARTED_FILE = "first-task"  # in the run: when the first task began


def main(
    rows: Annotated[int, typer.Option(help="Rows of the manifest.")] = 10_000_000,
    shards: Annotated[int, typer.Option(help="Shards in the listing.")] = 1_000_000,
    parts: Annotated[int, typer.Option(help="Parts in the stored plan.")] = 1_000_000,
    folder: Annotated[
        Path | None, typer.Option(help="Directory for the manifest, which is kept and reused; default: temporary.")
    ] = None,
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("planning-benchmark.json"),
) -> None:
    """Measure time and memory of planning; print a table and write JSON."""
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        manifest = root / f"{rows}.jsonl"
        if not manifest.exists():
            write_manifest(manifest, rows)
        run = stack.enter_context(tempfile.TemporaryDirectory())
        figures = {
            f"manifest of {rows:,} rows": measure("manifest", manifest),
            f"listing of {shards:,} shards": measure("listing", shards),
            f"first task of {parts:,} parts": measure("start", parts, run),
        }
    setup = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "ray": ray.__version__,
    }
    output.write_text(json.dumps(setup | {"measured": figures}, indent=1))
    table = Table("", "seconds", "peak memory", "memory before", "parts")
    for name, of_case in figures.items():
        memory = (f"{of_case[key] / 2**20:,.0f} MiB" for key in ("peak", "before"))
        table.add_row(name, f"{of_case['seconds']:.1f}", *memory, f"{of_case['parts']:,}")
    Console().print(setup, table)


def write_manifest(path: Path, rows: int) -> None:
    """Write rows of about 230 bytes each, for clips of ten seconds on average."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, ROWS_PER_WRITE):
            numbers = range(start, min(start + ROWS_PER_WRITE, rows))
            seconds = rng.gamma(4.0, 2.5, len(numbers))
            words = rng.choice(WORDS, (len(numbers), WORDS_PER_ROW)).tolist()
            file.writelines(
                f'{{"audio_filepath": "audio/{number // 1000:05d}/utterance-{number:08d}.flac", '
                f'"duration": {duration:.2f}, "text": "{" ".join(text)}", "lang": "en"}}\n'
                for number, duration, text in zip(numbers, seconds, words, strict=True)
            )


def measure(case: str, *arguments: object) -> dict[str, float]:
    """The figures of one of `CASES`, measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.planning", case, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def plan_manifest(uri: str) -> dict[str, float]:
    """Plan a manifest."""
    return timed(lambda: len(plan([uri], PART_BYTES)))


def plan_listing(shards: str) -> dict[str, float]:
    """Plan a prefix of shards from a listing."""
    listed = [Object(f"/corpus/shards/{n:07d}.tar", PART_BYTES, f"{PART_BYTES}-{n}") for n in range(int(shards))]
    with (
        mock.patch.object(objects, "stat", return_value=None),
        mock.patch.object(objects, "list_objects", return_value=listed),
    ):
        return timed(lambda: len(plan(["/corpus"], PART_BYTES)))


def start_run(parts: str, folder: str) -> dict[str, float]:
    """Resume a run of so many unfinished parts until the first of them is read."""
    # In a separate process, so that making the run does not count as the driver's memory.
    subprocess.run([sys.executable, "-m", "benchmarks.planning", "make", parts, folder], check=True)
    config = config_in(folder)
    before, started = peak_memory(), time.time()
    with mock.patch.object(dataset, "read_parts", end_run), contextlib.suppress(RunFailedError):
        pipeline.transcribe(config)
    first = float((Path(config.output) / STARTED_FILE).read_text(encoding="utf-8"))
    return {"seconds": first - started, "peak": peak_memory(), "before": before, "parts": int(parts)}


def config_in(folder: str) -> pipeline.RunConfig:
    """The configuration of a run in a directory."""
    return pipeline.RunConfig(inputs=("/corpus",), output=f"{folder}/run", model=f"{folder}/model")


def make_run(parts: str, folder: str) -> None:
    """Write a model, and a run that was stopped before its first part."""
    from tests.support import checkpoints  # noqa: PLC0415 - loads transformers, which the driver does not

    checkpoints.write_ctc(Path(folder) / "model", checkpoints.SMALL)
    config = config_in(folder)
    digests = [np.random.default_rng(number).bytes(10).hex() for number in range(int(parts))]
    write_plan(config.output, fake_plan(digests))
    record: dict[str, Any] = {
        "status": "stopped",
        "created": now(),
        "fingerprint": fingerprint(config),
        "parts": int(parts),
        "input_bytes": int(parts) * PART_BYTES,
        "attempts": [],
    }
    Run(config.output, RunRecord(record)).save()


def end_run(batch: pa.Table, settings: ReadSettings) -> pa.Table:
    """Replaces the reading task: write the time at which it began, and end the run."""
    with contextlib.suppress(FileExistsError), (Path(settings.run) / STARTED_FILE).open("x", encoding="utf-8") as file:
        file.write(str(time.time()))
    raise RunFailedError("the first task has begun")


def timed(function: Callable[[], int]) -> dict[str, float]:
    """Seconds and memory of a call that returns a number of parts."""
    before, started = peak_memory(), time.monotonic()
    parts = function()
    return {"seconds": time.monotonic() - started, "peak": peak_memory(), "before": before, "parts": parts}


CASES: dict[str, Callable[..., dict[str, float]]] = {
    "manifest": plan_manifest,
    "listing": plan_listing,
    "start": start_run,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make_run(*sys.argv[2:])
    elif sys.argv[1:2] and sys.argv[1] in CASES:
        typer.echo(json.dumps(CASES[sys.argv[1]](*sys.argv[2:])))
    else:
        typer.run(main)
