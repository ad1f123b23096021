"""What a resume of a very large run costs before its first task: time and memory to find what is left.

    python -m benchmarks.resume [--parts N] [--left N] [--folder DIR]

A plan of a million parts of which a thousand are left, with the commits as the driver leaves them: rolled up
some thousands at a time, and the last ones still objects. Measured in a process of its own: to open the run, add up its
commits, and give the first wave of parts that are left, as the driver does. On local disk, and on S3 (rclone on
loopback) with 50 ms added to every request. Needs the development dependencies.
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
from pipeline.runs.commit import Commit, encode_commit
from pipeline.runs.ledger import ROLL_UP_COMMITS, roll_up
from pipeline.runs.run import Run, now, write_plan
from pipeline.storage.objects import put
from pipeline.storage.uris import join
from sewd_model.engine_status import EngineStatus
from tests.support import s3

DELAY_S = 0.05


def main(
    parts: Annotated[int, typer.Option(help="Parts of the plan.")] = 1_000_000,
    left: Annotated[int, typer.Option(help="Of these, not committed.")] = 1_000,
    objects: Annotated[int, typer.Option(help="Commits that are not rolled up yet.")] = ROLL_UP_COMMITS - 1,
    folder: Annotated[Path | None, typer.Option(help="Where to make the run; kept, and used again.")] = None,
) -> None:
    """Make the run, then measure."""
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = root / "bucket" / "run"
        if not (run / "run.json").exists():
            began = time.monotonic()
            make(str(run), parts, left, objects)
            typer.echo(f"made in {time.monotonic() - began:.0f} s")
        table = Table("storage", "to the first wave", "peak memory", "of it before", "parts left")
        for storage, uri in (("local disk", str(run)), (f"S3, {DELAY_S * 1000:.0f} ms a request", "s3://bucket/run")):
            with contextlib.ExitStack() as servers:
                if uri.startswith("s3://"):
                    endpoint = servers.enter_context(s3.rclone_server(root))
                    servers.enter_context(s3.use_endpoint(servers.enter_context(slowed(endpoint))))
                found = measured(uri)
            memory = (f"{found[name] / 2**20:,.0f} MiB" for name in ("peak", "before"))
            table.add_row(storage, f"{found['seconds']:.1f} s", *memory, str(found["left"]))
        Console().print(table)


def make(run: str, parts: int, left: int, objects: int) -> None:
    """A plan, the commits of all parts but `left`, and a record."""
    digests = [np.random.default_rng(number).bytes(10).hex() for number in range(parts)]
    write_plan(run, plan_of(digests))
    done = parts - left
    for start in range(0, done - objects, ROLL_UP_COMMITS):
        numbers = range(start, min(start + ROLL_UP_COMMITS, done - objects))
        roll_up(run, (encode_commit(commit(digests[number])) for number in numbers))
    for number in range(done - objects, done):
        made = commit(digests[number])
        path = Path(run) / made.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_commit(made))
    record = {"status": "running", "created": now(), "parts": parts, "input_bytes": parts << 25, "attempts": []}
    put(join(run, "run.json"), json.dumps(record).encode())


def plan_of(digests: list[str]) -> pa.Table:
    """A plan of shards, by the ids of its parts."""
    parts = len(digests)
    empty = pa.array([[]] * parts, PLAN.field("items").type)
    columns = {
        "part_id": pa.array(digests),
        "ordinal": pa.array(range(parts), pa.int32()),
        "kind": pa.array(["tar"] * parts),
        "uri": pa.array([f"s3://corpus/shards/shard-{number:07d}.tar" for number in range(parts)]),
        "items": empty,
        "bytes": pa.array([32 << 20] * parts, pa.int64()),
        "duplicates": pa.array([[]] * parts, PLAN.field("duplicates").type),
    }
    arrays = [columns.get(field.name, pa.nulls(parts, field.type)) for field in PLAN]
    return pa.Table.from_arrays(arrays, schema=PLAN)


def commit(part: str) -> Commit:
    """Of a part of one chunk."""
    files = [
        {"table": "transcripts", "path": f"transcripts/{part}-00000-{part[:16]}.parquet", "rows": 120, "size": 60_000}
    ]
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
        source_bytes=32 << 20,
        attempt="0123456789ab",
        workers={"reader": "worker-17:12345", "recognizer": "worker-17:12346"},
        seconds={"read": 1.0, "compute": 2.0, "rows": 0.1},
        engines=(EngineStatus("packed", "bfloat16", "NVIDIA L4", 300.0, None),),
        splits=0,
        files=tuple(file | {"sha256": part * 3} for file in files),  # type: ignore[misc]
    )


@contextlib.contextmanager
def slowed(endpoint: str) -> Iterator[str]:
    """The server at `endpoint`, each request to it `DELAY_S` later; gives where."""
    host, port = endpoint.removeprefix("http://").split(":")
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(host, int(port))
        answered = True  # what the client says after an answer is a request

        async def requests() -> None:
            nonlocal answered
            while data := await reader.read(1 << 16):
                if answered:
                    answered = False
                    await asyncio.sleep(DELAY_S)
                forth.write(data)
                await forth.drain()
            forth.close()

        async def answers() -> None:
            nonlocal answered
            while data := await back.read(1 << 16):
                answered = True
                writer.write(data)
                await writer.drain()
            writer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(requests(), answers())

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def measured(uri: str) -> dict[str, float]:
    """What `look` finds, in a process of its own."""
    arguments = [sys.executable, "-m", "benchmarks.resume", "look", uri]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def look(uri: str) -> None:
    """Find what is left of a run, and print how long it took."""
    from pipeline.driver.remaining import find_remaining  # noqa: PLC0415 - Ray's size is not the run's

    before = peak()
    began = time.monotonic()
    run = Run.open(uri)
    left = find_remaining(run).parts
    seconds = time.monotonic() - began
    typer.echo(json.dumps({"seconds": seconds, "peak": peak(), "before": before, "left": len(left)}))


def peak() -> int:
    """Most memory that this process has held, in bytes."""
    # Not `ru_maxrss`: that of a child begins at its parent's.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024  # type: ignore[union-attr]


if __name__ == "__main__":
    if sys.argv[1:2] == ["look"]:
        look(sys.argv[2])
    else:
        typer.run(main)
