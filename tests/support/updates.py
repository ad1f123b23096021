"""Runs whose plans change, without audio or a model: what the driver does is replaced by rows that name their part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.corpus.parts import Part, plan_table
from pipeline.runs.commit import Commit, write_chunk
from pipeline.runs.compact import compact_group
from pipeline.runs.lifecycle import finish_run
from pipeline.runs.record import PlanUpdate, RunRecord
from pipeline.runs.run import Run, open_files, write_plan
from pipeline.runs.update import follow_plan, next_update, replace_plan
from tests.support import runs

ROWS, CHUNK = 5, 2  # rows of a part, and of a chunk
_RECORD = {
    "status": "running",
    "created": "2026-01-01T10:00:00.000+00:00",
    "fingerprint": {"schema": 2, "model": "0" * 64, "classifiers": {}, "normalizer": "basic"},
    "config": {"normalizer": "basic", "model": "m", "classifiers": [], "inputs": ["audio"], "part_mib": 1},
    "attempts": [],
}


def part(name: str) -> Part:
    """The part of an object."""
    return Part("tar", bytes=ROWS, uri=f"audio/{name}.tar", name=name, version=name)


def create(path: Path, names: Iterable[str]) -> Run:
    """A run with a part for each name, nothing of which is done."""
    parts = [part(name) for name in names]
    write_plan(str(path), plan_table(parts))
    record = _RECORD | {"parts": len(parts), "input_bytes": ROWS * len(parts)}
    return Run(str(path), RunRecord(record)).save()


def update(run: Run, names: Sequence[str], again: Iterable[str] = ()) -> Run:
    """Give the run a plan of the parts of `names`; those in `again` are done again."""
    stored = {row["name"]: Part.from_row(row) for row in run.plan().to_pylist()}
    number = next_update(run)
    parts = [stored[name] if name in stored and name not in again else part(name).planned_by(number) for name in names]
    counts = {"added": len(set(names) - stored.keys()), "removed": len(stored.keys() - set(names))}
    return replace_plan(run, plan_table(parts), PlanUpdate(number, "", changed=len(set(again)), **counts))


def expected(run: Run) -> list[str]:
    """The texts of all rows of the plan."""
    return sorted(
        text for row in run.plan(["part_id", "name"]).to_pylist() for text in texts(row["name"], row["part_id"])
    )


def texts(name: str, part_id: str) -> list[str]:
    """The texts of a part; a part that is done again has others."""
    return [f"{name} {part_id} {row}" for row in range(ROWS)]


def found(run: Run) -> list[str]:
    """The texts that a reader sees."""
    return sorted(Run.open(run.uri).read(lambda files: _texts(run, files["transcripts"])))


def _texts(run: Run, files: Sequence) -> list[str]:
    table: pa.Table = open_files(run.uri, "transcripts", [file.path for file in files]).to_table(columns=["text"])
    return table["text"].to_pylist()


def work(run: Run, chunks: int | None = None) -> None:
    """Do what is missing of a run, as a driver does; at most `chunks` chunks."""
    run = follow_plan(Run.open(run.uri))
    committed = {(commit.part_id, commit.chunk) for commit in run.commits()}
    for row in run.plan(["part_id", "name"]).to_pylist():
        for chunk in range(-(-ROWS // CHUNK)):
            if (row["part_id"], chunk) in committed:
                continue
            if chunks is not None and chunks <= 0:
                return
            write(run, row["name"], row["part_id"], chunk)
            chunks = None if chunks is None else chunks - 1


def write(run: Run, name: str, part_id: str, chunk: int) -> None:
    """Commit one chunk."""
    rows = texts(name, part_id)[chunk * CHUNK : (chunk + 1) * CHUNK]
    first, last = chunk * CHUNK, (chunk + 1) * CHUNK >= ROWS
    ids = [{"utt_id": f"{name}/{first + row}", "part_id": part_id, "chunk": chunk} for row in range(len(rows))]
    table = runs.transcripts([{"text": text} | values for text, values in zip(rows, ids, strict=True)])
    seconds = {"read": 0.1, "queue": 0.0, "compute": 0.1, "rows": 0.1}
    whole = (ROWS, 2.0 * ROWS) if last else (None, None)
    commit = Commit(part_id, chunk, first, last, *whole, len(rows), 0, {}, 2.0 * len(rows), len(rows), "0", {}, seconds)
    write_chunk(run.uri, commit, {"transcripts": table})


def finish(run: Run, check_lease: Callable[[], None] = lambda: None) -> Run:
    """Finish a run whose parts are done."""
    run = follow_plan(Run.open(run.uri))
    return finish_run(run, check_lease, lambda uri, groups: [compact_group(uri, *group) for group in groups])
