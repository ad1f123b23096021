"""Time and memory that resuming a very large run takes before its first task: finding the remaining parts.

    python -m benchmarks.resume [--parts N] [--left N] [--objects N] [--folder DIR]

The run has a plan of a million parts, of which a thousand remain. Its commits are as the driver leaves them: rolled up
some thousands at a time, and the last ones still separate objects. Measured, in a separate process: opening the run,
adding up its commits and finding the remaining parts, as the driver does. On local disk, and on S3 (rclone on loopback)
with 50 ms added to every request. Needs the development dependencies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from pipeline.corpus.parts import PLAN
from pipeline.runs.commit import Commit, DataFile, encode_commit
from pipeline.runs.ledger import ROLL_UP_COMMITS, roll_up
from pipeline.runs.run import Run, now, write_plan
from pipeline.storage.objects import put
from pipeline.storage.uris import join
from sewd_model.engine_status import EngineStatus
from tests.support import s3

DELAY_S = 0.05  # added to every request
PART_BYTES = 32 << 20


def main(
    parts: Annotated[int, typer.Option(help="Number of parts in the plan.")] = 1_000_000,
    left: Annotated[int, typer.Option(help="Parts that are not committed.")] = 1_000,
    objects: Annotated[
        int, typer.Option(help="Commits that are not rolled up yet, and separate objects.")
    ] = ROLL_UP_COMMITS - 1,
    folder: Annotated[
        Path | None, typer.Option(help="Directory for the run, which is kept and reused; default: temporary.")
    ] = None,
) -> None:
    """Measure how long finding the remaining parts of a very large run takes, on local disk and on S3."""
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = root / "bucket" / "run"
        if not (run / "run.json").exists():
            started = time.monotonic()
            make_run(str(run), parts, left, objects)
            typer.echo(f"run made in {time.monotonic() - started:.0f} s")
        table = Table("storage", "time", "peak memory", "memory before", "remaining parts")
        for storage, uri in (("local disk", str(run)), (f"S3, {DELAY_S * 1000:.0f} ms per request", "s3://bucket/run")):
            with contextlib.ExitStack() as servers:
                if uri.startswith("s3://"):
                    endpoint = servers.enter_context(s3.rclone_server(root))
                    servers.enter_context(s3.use_endpoint(servers.enter_context(delayed(endpoint))))
                figures = measure(uri)
            memory = (f"{figures[name] / 2**20:,.0f} MiB" for name in ("peak", "before"))
            table.add_row(storage, f"{figures['seconds']:.1f} s", *memory, str(figures["left"]))
        Console().print(table)


def make_run(run: str, parts: int, left: int, objects: int) -> None:
    """Write the plan, the commits and the record of an unfinished run.

    Args:
        run: URI of the run.
        parts: number of parts in the plan.
        left: number of parts without a commit.
        objects: number of commits that stay separate objects; the others are rolled up.
    """
    digests = [np.random.default_rng(number).bytes(10).hex() for number in range(parts)]
    write_plan(run, fake_plan(digests))
    done = parts - left
    for start in range(0, done - objects, ROLL_UP_COMMITS):
        numbers = range(start, min(start + ROLL_UP_COMMITS, done - objects))
        roll_up(run, (encode_commit(fake_commit(digests[number])) for number in numbers))
    for number in range(done - objects, done):
        commit = fake_commit(digests[number])
        path = Path(run) / commit.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_commit(commit))
    record = {"status": "running", "created": now(), "parts": parts, "input_bytes": parts * PART_BYTES, "attempts": []}
    put(join(run, "run.json"), json.dumps(record).encode())


def fake_plan(digests: list[str]) -> pa.Table:
    """A plan of tar shards whose parts have these ids."""
    parts = len(digests)
    empty = pa.array([[]] * parts, PLAN.field("items").type)
    columns = {
        "part_id": pa.array(digests),
        "ordinal": pa.array(range(parts), pa.int32()),
        "kind": pa.array(["tar"] * parts),
        "uri": pa.array([f"s3://corpus/shards/shard-{number:07d}.tar" for number in range(parts)]),
        "items": empty,
        "bytes": pa.array([PART_BYTES] * parts, pa.int64()),
        "duplicates": pa.array([[]] * parts, PLAN.field("duplicates").type),
    }
    arrays = [columns.get(field.name, pa.nulls(parts, field.type)) for field in PLAN]
    return pa.Table.from_arrays(arrays, schema=PLAN)


def fake_commit(part: str) -> Commit:
    """The commit of a part that has one chunk."""
    file = DataFile("transcripts", f"transcripts/{part}-00000-{part[:16]}.parquet", 120, 60_000, sha256=part * 3)
    return Commit(
        part_id=part,
        chunk=0,
        first_row=0,
        last=True,
        part_rows=121,
        part_audio_s=600.0,
        utterances=120,
        errors=1,
        error_codes={"UNDECODABLE": 1},
        audio_s=600.0,
        source_bytes=PART_BYTES,
        attempt="0123456789ab",
        workers={"reader": "worker-17:12345", "recognizer": "worker-17:12346"},
        seconds={"read": 1.0, "compute": 2.0, "rows": 0.1},
        engines=(EngineStatus("packed", "bfloat16", "NVIDIA L4", 300.0, None),),
        splits=0,
        files=(file,),
    )


@contextlib.contextmanager
def delayed(endpoint: str) -> Iterator[str]:
    """A proxy in front of the server at `endpoint` that delays each request by `DELAY_S`; yields its own endpoint."""
    host, port = endpoint.removeprefix("http://").split(":")
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(host, int(port))
        answered = True  # data from the client after an answer begins a request

        async def forward_requests() -> None:
            nonlocal answered
            while data := await reader.read(1 << 16):
                if answered:
                    answered = False
                    await asyncio.sleep(DELAY_S)
                to_server.write(data)
                await to_server.drain()
            to_server.close()

        async def forward_answers() -> None:
            nonlocal answered
            while data := await from_server.read(1 << 16):
                answered = True
                writer.write(data)
                await writer.drain()
            writer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(forward_requests(), forward_answers())

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def measure(uri: str) -> dict[str, float]:
    """The figures that `print_figures` prints, in a separate process."""
    arguments = [sys.executable, "-m", "benchmarks.resume", "measure", uri]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def print_figures(uri: str) -> None:
    """Find the remaining parts of a run in this process; print seconds and memory as JSON."""
    from pipeline.driver.remaining import find_remaining  # noqa: PLC0415 - the memory of Ray must count as before

    before = peak_memory()
    started = time.monotonic()
    run = Run.open(uri)
    left = find_remaining(run).parts
    seconds = time.monotonic() - started
    typer.echo(json.dumps({"seconds": seconds, "peak": peak_memory(), "before": before, "left": len(left)}))


def peak_memory() -> int:
    """Peak memory of this process, in bytes."""
    # Not `ru_maxrss`: a child's value starts at its parent's.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024  # type: ignore[union-attr]


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print_figures(sys.argv[2])
    else:
        typer.run(main)
