"""Rows a second and memory of `sewd export`, for two sizes of a run that is made of random words.

    python -m benchmarks.export WORK [--rows 100000 400000] [--formats ctm,srt,...]

Each row is a segment of 10 s with 15 words, 20 of them a recording. Each export is a process of its own. Prints CPU
seconds, rows a CPU second (without those that an export of no row takes), and the peak of the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import typer

from pipeline.corpus.parts import Part, plan_table
from pipeline.runs.commit import Commit, write_chunk
from pipeline.runs.run import write_plan
from pipeline.schemas import SCHEMA_VERSION, TRANSCRIPTS, WORD

FORMATS = "ctm,stm,trn,rttm,jsonl,srt,vtt,textgrid,nemo,kaldi"
WORDS, SEGMENTS, SEGMENT_S, CHUNK_ROWS = 15, 20, 10.0, 20_000


def main() -> None:
    """Make the runs, export them and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--formats", default=FORMATS)
    arguments = parser.parse_args()
    runs = {0: make_run(arguments.work / "run-0", 0)}
    runs |= {rows: make_run(arguments.work / f"run-{rows}", rows) for rows in arguments.rows}
    for name in arguments.formats.split(","):
        empty_s, _ = measure(name, runs[0], arguments.work)
        for rows in arguments.rows:
            cpu_s, peak = measure(name, runs[rows], arguments.work)
            speed = rows / max(cpu_s - empty_s, 1e-9)
            typer.echo(f"{name:9s} {rows:9,} rows: {cpu_s:6.1f} s CPU, {speed:8,.0f} rows/s, {peak / 2**20:5.0f} MiB")


def measure(name: str, run: Path, work: Path) -> tuple[float, int]:
    """CPU seconds and the peak of the memory, in bytes, of one export."""
    target = work / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.export", run, "--format", name, "--output", target], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the export failed: {status}")
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def make_run(path: Path, rows: int) -> Path:
    """A finished run of so many rows."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    part = Part("files", 1)
    starts = range(0, max(rows, 1), CHUNK_ROWS)
    for chunk, start in enumerate(starts):
        table = make_rows(start, min(CHUNK_ROWS, rows - start), part.part_id)
        is_last = chunk == len(starts) - 1
        audio_s = SEGMENT_S * table.num_rows
        part_rows = rows if is_last else None
        seconds = {"read": 0.1, "queue": 0.0, "compute": 1.0, "rows": 0.1}
        commit = Commit(
            *(part.part_id, chunk, start, is_last, part_rows, None, table.num_rows, 0, {}, audio_s, 1, "0", {}, seconds)
        )
        write_chunk(str(path), commit, {"transcripts": table})
    created = time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", time.gmtime())
    record = {
        "status": "running",
        "created": created,
        "fingerprint": {"schema": SCHEMA_VERSION, "model": "0" * 64, "classifiers": {}, "normalizer": "basic"},
        "config": {"normalizer": "basic", "model": "m", "classifiers": [], "inputs": ["audio"]},
        "parts": 1,
        "input_bytes": 1,
        "attempts": [],
        "totals": None,
        "reason": None,
    }
    write_plan(str(path), plan_table([part]))
    (path / "run.json").write_text(json.dumps(record))
    return path


def make_rows(first: int, rows: int, part_id: str) -> pa.Table:
    """Rows of `TRANSCRIPTS`."""
    rng = np.random.default_rng(first)
    vocabulary = np.array([f"word{index}" for index in range(1000)])
    numbers = np.arange(first, first + rows)
    starts = SEGMENT_S * (numbers % SEGMENTS)
    recordings = [f"rec{number // SEGMENTS:07d}" for number in numbers]
    spoken = vocabulary[rng.integers(len(vocabulary), size=(rows, WORDS))]
    edges = np.sort(rng.uniform(0, SEGMENT_S, (rows, 2 * WORDS)), axis=1) + starts[:, None]
    words = pa.StructArray.from_arrays(
        [spoken.ravel(), edges[:, ::2].ravel(), edges[:, 1::2].ravel(), rng.uniform(0, 1, rows * WORDS)],
        names=[field.name for field in WORD],
    )
    columns = {
        "utt_id": [
            f"{name}#{int(s * 1000)}-{int((s + SEGMENT_S) * 1000)}" for name, s in zip(recordings, starts, strict=True)
        ],
        "uri": [f"/data/{name}.wav" for name in recordings],
        "start_s": starts,
        "duration_s": np.full(rows, SEGMENT_S),
        "text": [" ".join(row) for row in spoken],
        "words": pa.ListArray.from_arrays(pa.array(np.arange(0, rows * WORDS + 1, WORDS), pa.int32()), words),
        "confidence": rng.uniform(0, 1, rows),
        "part_id": [part_id] * rows,
        "chunk": np.zeros(rows),
    }
    arrays = [
        pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in TRANSCRIPTS
    ]
    return pa.Table.from_arrays(arrays, schema=TRANSCRIPTS)


if __name__ == "__main__":
    main()
