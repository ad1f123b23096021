"""Evaluation of millions of scored rows, in files as a run leaves them, before and after compaction.

    python -m benchmarks.evaluation --rows 10000000 --folder /somewhere/with/10/GB

Makes the run once (rows of every column, a file a chunk of 1,000 rows), then times `sewd evaluate --by
speaker,duration,confidence`, compaction, the same again, and `sewd report`, each in a process of its own; prints
seconds and peak memory, and writes them as JSON beside the run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from pipeline.runs.commit import Commit, read_commits, write_chunk
from pipeline.runs.compact import COMPACTION, compact_group, compaction_groups, write_compaction
from pipeline.schemas import SCHEMA_VERSION, TRANSCRIPTS
from tests.support import runs

CHUNK_ROWS = 1_000
SPEAKERS = 50_000


def main(
    folder: Annotated[Path, typer.Option(help="Where the run is made, and kept for the next time.")],
    rows: Annotated[int, typer.Option(help="Rows of transcripts.")] = 10_000_000,
) -> None:
    """Make the run if it is not there, then time each step."""
    run = folder / f"run-{rows}"
    if not (run / "run.json").exists():
        make(run, rows // CHUNK_ROWS)
    (run / COMPACTION).unlink(missing_ok=True)
    evaluate = ["-m", "jobs.main", "evaluate", str(run), "--by", "speaker,duration,confidence"]
    figures = {
        "rows": rows,
        "files": rows // CHUNK_ROWS,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "evaluate, before compaction": timed(evaluate),
        "compact": timed(["-m", "benchmarks.evaluation", "compact", str(run)]),
        "evaluate, after compaction": timed(evaluate),
        "report, after compaction": timed(["-m", "jobs.main", "report", str(run)]),
    }
    for name, value in figures.items():
        typer.echo(f"{name:32} {value}")
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=1))


def timed(arguments: list[str]) -> dict[str, float]:
    """Wall seconds and peak memory (GB) of a Python process."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments} failed")
    return {"seconds": round(time.perf_counter() - began, 1), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}


def make(run: Path, chunks: int) -> None:
    """A run of `chunks` chunks: each with the texts of one of ten tables, and ids, speakers and lengths of its own."""
    words = [{"word": "coffee", "start_s": 0.5, "end_s": 1.0, "confidence": 0.9}] * 8
    bases = [
        runs.transcripts(runs.random_rows(CHUNK_ROWS, seed, words=words, tags=json.dumps({"lang": "en"})))
        for seed in range(10)
    ]
    rng = np.random.default_rng(0)
    runs.write_run(run, bases[0].slice(0, 0))
    for commit in read_commits(str(run)):
        (run / commit.path).unlink()
    for chunk in range(chunks):
        part = f"{chunk // 100:016x}"
        table = bases[chunk % len(bases)]
        columns = {
            "utt_id": [
                f"shard-{chunk // 100:05d}/utterance-{chunk % 100 * CHUNK_ROWS + i:08d}" for i in range(CHUNK_ROWS)
            ],
            "speaker": [f"speaker-{s:05d}" for s in rng.integers(0, SPEAKERS, CHUNK_ROWS)],
            "duration_s": rng.gamma(2, 4, CHUNK_ROWS),
            "confidence": np.clip(rng.normal(0.9, 0.05, CHUNK_ROWS), 0, 1).astype(np.float32),
        }
        for name, values in columns.items():
            field = TRANSCRIPTS.field(name)
            table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
        last = chunk % 100 == 99 or chunk == chunks - 1
        audio_s = float(columns["duration_s"].sum())
        seconds = {"read": 1.0, "compute": 1.0, "rows": 0.1}
        commit = Commit(
            part,
            chunk % 100,
            chunk % 100 * CHUNK_ROWS,
            last,
            None,
            None,
            CHUNK_ROWS,
            0,
            {},
            audio_s,
            1,
            "0",
            {},
            seconds,
        )
        write_chunk(str(run), commit, {"transcripts": table})
    record = json.loads((run / "run.json").read_text())
    record["totals"] |= {"utterances": chunks * CHUNK_ROWS, "chunks": chunks}
    record["fingerprint"]["schema"] = SCHEMA_VERSION
    (run / "run.json").write_text(json.dumps(record))


def compact(run: str) -> None:
    """Write the files of the run together; leaves the small ones, for the next measurement."""
    files = [file for commit in read_commits(run) for file in commit.files]
    write_compaction(run, [compact_group(run, table, group) for table, group in compaction_groups(files)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["compact"]:
        compact(sys.argv[2])
    else:
        typer.run(main)
