"""What planning costs: a manifest of millions of rows, and a plan of a million parts until its first task.

    python -m benchmarks.planning [--rows N] [--shards N] [--parts N] [--folder DIR] [--output FILE]

Measured, each in a process of its own: `plan` on a manifest (JSON lines, NeMo's keys and one more); `plan` on a listing
of shards, a part each; and `transcribe` on a run whose stored plan is a million parts, none of them done, from the call
until the first task that reads has begun, which then ends the run. Memory is the driver's at its most, and what of it
there was before the call (the libraries). Needs the development dependencies.
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
from benchmarks.resume import peak, plan_of
from pipeline.corpus.plan import plan
from pipeline.driver import dataset
from pipeline.errors import RunFailedError
from pipeline.runs.fingerprint import fingerprint
from pipeline.runs.record import RunRecord
from pipeline.runs.run import Run, now, write_plan
from pipeline.stages.read import ReadSettings
from pipeline.storage import objects
from pipeline.storage.objects import Object

PART_BYTES = 32 << 20  # the default
ROWS_AT_ONCE = 100_000
WORDS = ["the", "of", "and", "to", "in", "he", "that", "was", "his", "it", "with", "is", "for", "as", "had", "you"]
WORDS_A_ROW = 20
STARTED = "first-task"


def main(
    rows: Annotated[int, typer.Option(help="Of the manifest.")] = 10_000_000,
    shards: Annotated[int, typer.Option(help="Of the listing.")] = 1_000_000,
    parts: Annotated[int, typer.Option(help="Of the stored plan.")] = 1_000_000,
    folder: Annotated[Path | None, typer.Option(help="Where the manifest is made; kept, and used again.")] = None,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("planning-benchmark.json"),
) -> None:
    """Measure, print a table, write JSON."""
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        manifest = root / f"{rows}.jsonl"
        if not manifest.exists():
            write_manifest(manifest, rows)
        run = stack.enter_context(tempfile.TemporaryDirectory())
        found = {
            f"manifest of {rows:,} rows": measured("manifest", manifest),
            f"listing of {shards:,} shards": measured("listing", shards),
            f"first task of {parts:,} parts": measured("start", parts, run),
        }
    about = {
        "machine": f"{os.cpu_count()} processors, {platform.machine()}",
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "ray": ray.__version__,
    }
    output.write_text(json.dumps(about | {"measured": found}, indent=1))
    table = Table("", "seconds", "peak memory", "of it before", "parts")
    for name, figures in found.items():
        memory = (f"{figures[key] / 2**20:,.0f} MiB" for key in ("peak", "before"))
        table.add_row(name, f"{figures['seconds']:.1f}", *memory, f"{figures['parts']:,}")
    Console().print(about, table)


def write_manifest(path: Path, rows: int) -> None:
    """Rows of about 230 bytes, of clips of ten seconds on average."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, rows))
            seconds = rng.gamma(4.0, 2.5, len(numbers))
            words = rng.choice(WORDS, (len(numbers), WORDS_A_ROW)).tolist()
            file.writelines(
                f'{{"audio_filepath": "audio/{number // 1000:05d}/utterance-{number:08d}.flac", '
                f'"duration": {duration:.2f}, "text": "{" ".join(text)}", "lang": "en"}}\n'
                for number, duration, text in zip(numbers, seconds, words, strict=True)
            )


def measured(what: str, *arguments: object) -> dict[str, float]:
    """What one of `WAYS` finds, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.planning", what, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def plan_manifest(uri: str) -> dict[str, float]:
    """Plan a manifest."""
    return timed(lambda: len(plan([uri], PART_BYTES)))


def plan_listing(shards: str) -> dict[str, float]:
    """Plan a prefix of shards, as a listing shows it."""
    listed = [Object(f"/corpus/shards/{n:07d}.tar", PART_BYTES, f"{PART_BYTES}-{n}") for n in range(int(shards))]
    with (
        mock.patch.object(objects, "stat", return_value=None),
        mock.patch.object(objects, "list_objects", return_value=listed),
    ):
        return timed(lambda: len(plan(["/corpus"], PART_BYTES)))


def start_run(parts: str, folder: str) -> dict[str, float]:
    """Go on with a run of so many parts, none done, until the first is read."""
    # In a process of its own: what made the run is no part of the driver.
    subprocess.run([sys.executable, "-m", "benchmarks.planning", "make", parts, folder], check=True)
    config = config_in(folder)
    before, began = peak(), time.time()
    with mock.patch.object(dataset, "read_parts", begin), contextlib.suppress(RunFailedError):
        pipeline.transcribe(config)
    first = float((Path(config.output) / STARTED).read_text(encoding="utf-8"))
    return {"seconds": first - began, "peak": peak(), "before": before, "parts": int(parts)}


def config_in(folder: str) -> pipeline.RunConfig:
    """The run below a folder."""
    return pipeline.RunConfig(inputs=("/corpus",), output=f"{folder}/run", model=f"{folder}/model")


def make_run(parts: str, folder: str) -> None:
    """A model, and a run that was stopped before its first part."""
    from tests.support import checkpoints  # noqa: PLC0415 - it loads transformers, which is no part of the driver

    checkpoints.write_ctc(Path(folder) / "model", checkpoints.SMALL)
    config = config_in(folder)
    write_plan(config.output, plan_of([np.random.default_rng(number).bytes(10).hex() for number in range(int(parts))]))
    record: dict[str, Any] = {
        "status": "stopped",
        "created": now(),
        "fingerprint": fingerprint(config),
        "parts": int(parts),
        "input_bytes": int(parts) * PART_BYTES,
        "attempts": [],
    }
    Run(config.output, RunRecord(record)).save()


def begin(batch: pa.Table, settings: ReadSettings) -> pa.Table:
    """In place of the task that reads: say when it began, and end the run."""
    with contextlib.suppress(FileExistsError), (Path(settings.run) / STARTED).open("x", encoding="utf-8") as file:
        file.write(str(time.time()))
    raise RunFailedError("begun")


def timed(function: Callable[[], int]) -> dict[str, float]:
    """Seconds and memory of a call that gives the number of its parts."""
    before, began = peak(), time.monotonic()
    parts = function()
    return {"seconds": time.monotonic() - began, "peak": peak(), "before": before, "parts": parts}


WAYS: dict[str, Callable[..., dict[str, float]]] = {
    "manifest": plan_manifest,
    "listing": plan_listing,
    "start": start_run,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make_run(*sys.argv[2:])
    elif sys.argv[1:2] and sys.argv[1] in WAYS:
        typer.echo(json.dumps(WAYS[sys.argv[1]](*sys.argv[2:])))
    else:
        typer.run(main)
