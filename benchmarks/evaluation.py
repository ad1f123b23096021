"""Time and memory of evaluating millions of scored rows, before and after compaction.

    python -m benchmarks.evaluation --folder DIR [--rows N]

Makes a run once, in DIR: every column is filled, and each chunk of 1,000 rows is a file. Ten million rows need 10 GB.
Then it times `sewd evaluate --by speaker,duration,confidence`, compaction, the evaluation again and `sewd report`, each
in a separate process. Prints seconds and peak memory, and writes them as JSON next to the run.
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

from pipeline.runs.commit import Commit, write_chunk
from pipeline.runs.compact import COMPACTION, compact_group, compaction_groups, write_compaction
from pipeline.runs.ledger import read_commits
from pipeline.schemas import SCHEMA_VERSION, TRANSCRIPTS
from tests.support import runs

CHUNK_ROWS = 1_000
PART_CHUNKS = 100
SPEAKERS = 50_000


def main(
    folder: Annotated[Path, typer.Option(help="Directory for the run, which is kept and reused.")],
    rows: Annotated[int, typer.Option(help="Number of transcripts.")] = 10_000_000,
) -> None:
    """Measure time and memory of evaluating a run of millions of rows; print them and write JSON."""
    run = folder / f"run-{rows}"
    if not (run / "run.json").exists():
        make_run(run, rows // CHUNK_ROWS)
    (run / COMPACTION).unlink(missing_ok=True)
    evaluate = ["-m", "jobs.main", "evaluate", str(run), "--by", "speaker,duration,confidence"]
    figures = {
        "rows": rows,
        "files": rows // CHUNK_ROWS,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "evaluate, before compaction": timed(evaluate),
        "compact": timed(["-m", "benchmarks.evaluation", "compact", str(run)]),
        "evaluate, after compaction": timed(evaluate),
        "report, after compaction": timed(["-m", "jobs.main", "report", str(run)]),
    }
    for name, value in figures.items():
        typer.echo(f"{name:32} {value}")
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=1))


def timed(arguments: list[str]) -> dict[str, float]:
    """Wall seconds and peak memory in GB of a Python process."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments} failed")
    return {"seconds": round(time.perf_counter() - started, 1), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}


def make_run(run: Path, chunks: int) -> None:
    """Write a run. Each chunk has the texts of one of ten tables, and different ids, speakers and lengths."""
    words = [{"word": "coffee", "start_s": 0.5, "end_s": 1.0, "confidence": 0.9}] * 8
    tables = [
        runs.transcripts(runs.random_rows(CHUNK_ROWS, seed, words=words, tags=json.dumps({"lang": "en"})))
        for seed in range(10)
    ]
    rng = np.random.default_rng(0)
    runs.write_run(run, tables[0].slice(0, 0))
    for commit in read_commits(str(run)):
        (run / commit.path).unlink()
    for chunk in range(chunks):
        shard, ordinal = divmod(chunk, PART_CHUNKS)
        table = tables[chunk % len(tables)]
        columns = {
            "utt_id": [f"shard-{shard:05d}/utterance-{ordinal * CHUNK_ROWS + i:08d}" for i in range(CHUNK_ROWS)],
            "speaker": [f"speaker-{number:05d}" for number in rng.integers(0, SPEAKERS, CHUNK_ROWS)],
            "duration_s": rng.gamma(2, 4, CHUNK_ROWS),
            "confidence": np.clip(rng.normal(0.9, 0.05, CHUNK_ROWS), 0, 1).astype(np.float32),
        }
        for name, values in columns.items():
            field = TRANSCRIPTS.field(name)
            table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
        commit = Commit(
            part_id=f"{shard:016x}",
            chunk=ordinal,
            first_row=ordinal * CHUNK_ROWS,
            last=ordinal == PART_CHUNKS - 1 or chunk == chunks - 1,
            part_rows=None,
            part_audio_s=None,
            utterances=CHUNK_ROWS,
            errors=0,
            error_codes={},
            audio_s=float(columns["duration_s"].sum()),
            source_bytes=1,
            attempt="0",
            workers={},
            seconds={"read": 1.0, "compute": 1.0, "rows": 0.1},
        )
        write_chunk(str(run), commit, {"transcripts": table})
    record = json.loads((run / "run.json").read_text())
    record["totals"] |= {"utterances": chunks * CHUNK_ROWS, "chunks": chunks}
    record["fingerprint"]["schema"] = SCHEMA_VERSION
    (run / "run.json").write_text(json.dumps(record))


def compact(run: str) -> None:
    """Compact the run, but keep the small files for the next measurement."""
    files = [file for commit in read_commits(run) for file in commit.files]
    write_compaction(run, [compact_group(run, *group) for group in compaction_groups(files)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["compact"]:
        compact(sys.argv[2])
    else:
        typer.run(main)
