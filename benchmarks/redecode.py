"""Time and memory to plan and to resume the decoding of the posteriors of a large run, and bytes that it reads.

    python -m benchmarks.redecode [--hours 1000] [--folder DIR]

The run keeps posteriors of utterances of ten seconds in parts of about 17 minutes, with a label for each utterance and
an error in each part; it is compacted as any run. Measured in a separate process, before its first task: planning a run
made of these posteriors, and finding what is left when half of its chunks are committed. On local disk, and on S3
(rclone on loopback) with 50 ms added to every request. Needs the development dependencies.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.resume import DELAY_S, delayed, fake_commit, fake_plan, peak_memory
from pipeline.config import RunConfig
from pipeline.decoding.acoustics import Acoustics
from pipeline.decoding.rows import packed_levels
from pipeline.runs.commit import Commit, encode_commit, write_chunk
from pipeline.runs.compact import compact_files, compact_group, write_compaction
from pipeline.runs.ledger import ROLL_UP_COMMITS, read_commits, roll_up
from pipeline.runs.redecoding import plan_redecoding, read_part
from pipeline.runs.run import Run, now, write_plan
from pipeline.schemas import ERRORS, LABELS, POSTERIORS, SCHEMA_VERSION
from pipeline.storage.objects import put
from pipeline.storage.uris import join
from sewd_model import CTCTokenizer
from sewd_model.files import BUNDLED
from sewd_model.posteriors import keep
from tests.support import s3

ROWS, SECONDS = 105, 10.0  # of a part
FRAME_S = 0.02


def main(
    hours: Annotated[int, typer.Option(help="Hours of audio whose posteriors the run keeps.")] = 1000,
    folder: Annotated[
        Path | None, typer.Option(help="Directory for the run, which is kept and reused; default: temporary.")
    ] = None,
) -> None:
    """Measure planning and resuming on local disk and on S3."""
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = root / "bucket" / "run"
        if not (run / "run.json").exists():
            started = time.monotonic()
            make_run(str(run), round(hours * 3600 / ROWS / SECONDS))
            typer.echo(f"run made in {time.monotonic() - started:.0f} s")
        table = Table("storage", "planned in", "plan", "resumed in", "peak memory", "memory before", "a part read in")
        for storage, uri in (("local disk", str(run)), (f"S3, {DELAY_S * 1000:.0f} ms per request", "s3://bucket/run")):
            with contextlib.ExitStack() as servers:
                if uri.startswith("s3://"):
                    endpoint = servers.enter_context(s3.rclone_server(root))
                    servers.enter_context(s3.use_endpoint(servers.enter_context(delayed(endpoint))))
                command = [sys.executable, "-m", "benchmarks.redecode", "measure", uri]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
            figures = json.loads(done.stdout.splitlines()[-1])
            seconds = {name: f"{figures[name]:.1f} s" for name in ("plan_s", "resume_s")}
            memory = {name: f"{figures[name] / 2**20:,.0f} MiB" for name in ("peak", "before")}
            plan = f"{figures['parts']:,} parts, {figures['bytes'] / 2**20:.1f} MiB"
            read = f"{figures['read_s'] * 1000:.0f} ms"
            table.add_row(storage, seconds["plan_s"], plan, seconds["resume_s"], memory["peak"], memory["before"], read)
        Console().print(table)


def make_run(run: str, parts: int) -> None:
    """Write a finished run with kept posteriors.

    Args:
        run: its URI.
        parts: number of its parts, of one chunk each.
    """
    rng = np.random.default_rng(0)
    digests = [rng.bytes(10).hex() for _ in range(parts)]
    tables = {"posteriors": posteriors(rng), "labels": labels(), "errors": errors()}
    commits: list[bytes] = []
    for digest in digests:
        of_part = {name: table.set_column(*_part_column(table, digest)) for name, table in tables.items()}
        commits.append(encode_commit(write_chunk(run, synthetic_commit(digest), of_part)))
        if len(commits) == ROLL_UP_COMMITS:
            roll_up(run, commits)
            commits.clear()
    write_plan(run, fake_plan(digests))
    files = [file for commit in read_commits(run) for file in commit.files]
    write_compaction(run, compact_files(run, files, lambda run, groups: [compact_group(run, *each) for each in groups]))
    tokenizer = CTCTokenizer.from_pretrained(BUNDLED)
    record = {
        "status": "done",
        "created": now(),
        "parts": parts,
        "input_bytes": parts * (32 << 20),
        "attempts": [],
        "config": asdict(RunConfig(inputs=("corpus",), output=run)),
        "fingerprint": {"schema": SCHEMA_VERSION, "model": "0" * 64, "classifiers": {"keyword": "1" * 64}},
        "acoustics": Acoustics(tokenizer, 0, 32, 320, 16_000).to_json(),
    }
    put(join(run, "run.json"), json.dumps(record).encode())


def synthetic_commit(part: str) -> Commit:
    """The commit of a part, without files."""
    commit = replace(fake_commit(part), utterances=ROWS, part_rows=ROWS + 1, audio_s=ROWS * SECONDS)
    return replace(commit, classifiers=("keyword",), part_audio_s=ROWS * SECONDS, files=())


def _part_column(table: pa.Table, part: str) -> tuple[int, pa.Field, pa.Array]:
    index = table.schema.get_field_index("part_id")
    return index, table.schema.field(index), pa.array([part] * len(table))


def _identity() -> list[dict[str, object]]:
    ids = [{"utt_id": f"speaker-{row:06d}", "uri": f"s3://corpus/{row:06d}.flac"} for row in range(ROWS)]
    return [row | {"start_s": 0.0, "duration_s": SECONDS, "part_id": "", "chunk": 0} for row in ids]


def posteriors(rng: np.random.Generator) -> pa.Table:
    """Rows of a part: two tokens and a half in each frame, as the bundled model gives for read English."""
    rows = []
    for row in _identity():
        logits = rng.normal(0, 3.0, (round(SECONDS / FRAME_S), 32))
        kept = keep(logits, 0)
        levels = np.clip(rng.normal(-40, 8, round(SECONDS * 100)), -128, 0).astype(np.int8).tobytes()
        numbers = {name: getattr(kept, name) for name in ("num_frames", "counts", "tokens", "costs")}
        rows.append(row | numbers | {"levels": levels, "skipped_s": 0.0})
    table = pa.Table.from_pylist(rows, schema=POSTERIORS)
    return table.set_column(
        table.schema.get_field_index("levels"), POSTERIORS.field("levels"), packed_levels(table["levels"])
    )


def labels() -> pa.Table:
    """A label for each row of a part."""
    label = {"task": "keyword", "label": "yes", "score": 1.0, "top_k": [{"label": "yes", "score": 1.0}]}
    return pa.Table.from_pylist([row | label for row in _identity()], schema=LABELS)


def errors() -> pa.Table:
    """An error of a part."""
    return pa.Table.from_pylist(
        [_identity()[0] | {"stage": "decode", "code": "UNDECODABLE", "message": "no audio"}], schema=ERRORS
    )


def print_figures(uri: str) -> None:
    """Plan and resume in this process; print seconds and memory as JSON."""
    from pipeline.driver.remaining import find_remaining  # noqa: PLC0415 - the memory of Ray must count as before

    before = peak_memory()
    source = Run.open(uri)
    started = time.monotonic()
    plan = plan_redecoding(source)
    plan_s = time.monotonic() - started
    peak = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_plan(folder, plan)
        put(join(folder, "run.json"), json.dumps({"status": "stopped", "attempts": []}).encode())
        done = [synthetic_commit(part) for part in plan["part_id"].to_pylist()[: len(plan) // 2]]
        for start in range(0, len(done), ROLL_UP_COMMITS):
            roll_up(folder, map(encode_commit, done[start : start + ROLL_UP_COMMITS]))
        started = time.monotonic()
        remaining = find_remaining(Run.open(folder))
        resume_s = time.monotonic() - started
        assert len(remaining.parts) == len(plan) - len(done)
        size = (Path(folder) / "plan.parquet").stat().st_size
    started = time.monotonic()
    (chunk,) = read_part(uri, plan["state"][len(plan) // 2].as_py(), frozenset())
    read_s = time.monotonic() - started
    assert {name: rows.num_rows for name, rows in chunk.rows.items()} == {
        "posteriors": ROWS,
        "labels": ROWS,
        "errors": 1,
    }
    figures = {"plan_s": plan_s, "resume_s": resume_s, "read_s": read_s, "parts": len(plan), "bytes": size}
    typer.echo(json.dumps(figures | {"peak": peak, "before": before}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print_figures(sys.argv[2])
    else:
        typer.run(main)
