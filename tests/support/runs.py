"""Runs made of given rows, without audio or a model, for tests of evaluation, comparison and reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

import pipeline
from pipeline.corpus.parts import Part, plan_table
from pipeline.decoding.acoustics import Acoustics
from pipeline.runs.commit import Commit, write_chunk
from pipeline.runs.compact import compact_group, compaction_groups, write_compaction
from pipeline.runs.ledger import read_commits
from pipeline.runs.run import Run, write_plan
from pipeline.schemas import ERRORS, LABELS, SCHEMA_VERSION, TRANSCRIPTS
from pipeline.scoring.counts import score_columns

WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "zero",
    "coffee",
    "milk",
    "sugar",
    "please",
    "large",
    "small",
    "a",
    "an",
    "the",
    "and",
]


def transcripts(rows: Sequence[dict], normalizer: str = "basic") -> pa.Table:
    """A table of `TRANSCRIPTS` from rows with at least `text`; missing columns get default values."""
    filled = [
        {"utt_id": f"u{index:06d}", "uri": f"audio/u{index:06d}.wav", "start_s": 0.0, "duration_s": 2.0}
        | {"words": [], "confidence": 0.9 if row["text"] else None, "part_id": "0", "chunk": 0}
        | row
        for index, row in enumerate(rows)
    ]
    texts, references = [row["text"] for row in filled], [row.get("reference") for row in filled]
    scores = {name: column.to_pylist() for name, column in score_columns(texts, references, normalizer).items()}
    filled = [row | {name: values[index] for name, values in scores.items()} for index, row in enumerate(filled)]
    return pa.Table.from_pylist(filled, schema=TRANSCRIPTS)


def labels(rows: Sequence[dict]) -> pa.Table:
    """A table of `LABELS` from rows with `label` or `scores` by label; missing columns get default values."""
    filled = []
    for index, row in enumerate(rows):
        given = dict(row)
        scores = given.pop("scores", {given.get("label", "yes"): 1.0})
        top = sorted(({"label": k, "score": v} for k, v in scores.items()), key=lambda item: -item["score"])
        name = f"u{index:06d}"
        filled.append(
            {"utt_id": name, "uri": f"audio/{name}.wav", "start_s": 0.0, "duration_s": 1.0, "task": "keyword"}
            | {"label": top[0]["label"], "score": top[0]["score"], "top_k": top, "part_id": "0", "chunk": 0}
            | given
        )
    return pa.Table.from_pylist(filled, schema=LABELS)


def errors(rows: Sequence[dict]) -> pa.Table:
    """A table of `ERRORS`; missing columns get default values."""
    filled = [
        {"utt_id": f"broken{index}", "uri": f"audio/broken{index}.wav", "stage": "decode", "code": "UNDECODABLE"}
        | {"message": "no audio", "part_id": "0", "chunk": 0}
        | row
        for index, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(filled, schema=ERRORS)


def write_run(
    path: Path,
    transcripts: pa.Table,
    labels: pa.Table | None = None,
    errors: pa.Table | None = None,
    *,
    posteriors: pa.Table | None = None,
    acoustics: Acoustics | None = None,
    chunk_rows: int = 1000,
    normalizer: str = "basic",
    status: str = "done",
) -> Run:
    """Commit the rows chunk by chunk, as the last stage does, and write the record of a run with this status.

    Posteriors have a row for each of the transcripts.
    """
    path.mkdir(parents=True)
    part = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    chunks = range(max(1, -(-transcripts.num_rows // chunk_rows)))
    for chunk in chunks:
        rows = transcripts.slice(chunk * chunk_rows, chunk_rows)
        last = chunk == chunks[-1]
        tables = {"transcripts": rows}
        if posteriors is not None:
            tables["posteriors"] = posteriors.slice(chunk * chunk_rows, chunk_rows)
        if last:
            tables |= {name: table for name, table in (("labels", labels), ("errors", errors)) if table is not None}
        write_chunk(str(path), _commit(part, chunk, rows, errors if last else None, chunk * chunk_rows, last), tables)
    totals = {"chunks": len(chunks), "utterances": transcripts.num_rows, "errors": errors.num_rows if errors else 0}
    audio_s = sum(filter(None, transcripts["duration_s"].to_pylist()))
    record = {
        "status": status,
        "created": "2026-01-01T10:00:00.000+00:00",
        "finished": "2026-01-01T10:01:00.000+00:00",
        "fingerprint": {"schema": SCHEMA_VERSION, "model": "0" * 64, "classifiers": {}, "normalizer": normalizer},
        "config": {"normalizer": normalizer, "model": "models/tiny", "classifiers": [], "inputs": ["audio"]},
        "parts": 1,
        "input_bytes": 1,
        "attempts": [{"id": "0", "started": "2026-01-01T10:00:00.000+00:00", "host": "a", "python": "3.11"}],
        "totals": totals | {"audio_s": audio_s, "source_bytes": 1, "compute_s": audio_s / 50, "error_codes": {}},
        "reason": None,
        "acoustics": None if acoustics is None else acoustics.to_json(),
    }
    write_plan(str(path), plan_table([Part("files", 1, part_id=part)]))
    (path / "run.json").write_text(json.dumps(record))
    return pipeline.Run.open(path)


def _commit(part: str, chunk: int, rows: pa.Table, errors: pa.Table | None, first: int, last: bool) -> Commit:
    audio_s = sum(filter(None, rows["duration_s"].to_pylist()))
    failed = errors.num_rows if errors is not None else 0
    seconds = {"read": 0.1, "queue": 0.0, "compute": audio_s / 50, "rows": 0.1}
    part_rows = first + rows.num_rows + failed if last else None
    return Commit(part, chunk, first, last, part_rows, None, rows.num_rows, failed, {}, audio_s, 1, "0", {}, seconds)


def compact(run: Run) -> Run:
    """Compact the files of a run, as finishing it does."""
    files = [file for commit in read_commits(run.uri) for file in commit.files]
    write_compaction(run.uri, [compact_group(run.uri, *group) for group in compaction_groups(files)])
    return run


def random_rows(number: int, seed: int = 0, *, speakers: int = 20, wrong: float = 0.1, **fixed) -> list[dict]:
    """Utterances of a small vocabulary with word errors, of which some speakers have more than others."""
    rng = np.random.default_rng(seed)
    skill = wrong * rng.gamma(2, 0.5, speakers or 1)
    rows = []
    for _ in range(number):
        speaker = int(rng.integers(speakers or 1))
        words = [str(word) for word in rng.choice(WORDS, rng.integers(1, 15))]
        recognized: list[str] = []
        for word in words:
            kind = rng.random()
            recognized += (
                [] if kind < skill[speaker] / 3 else [word if kind > skill[speaker] else str(rng.choice(WORDS))]
            )
            recognized += ["um"] if rng.random() < skill[speaker] / 4 else []
        rows.append(
            {"text": " ".join(recognized), "reference": " ".join(words), "duration_s": float(rng.gamma(2, 3))}
            | {"confidence": float(np.clip(rng.normal(0.95 - skill[speaker], 0.05), 0, 1)) if recognized else None}
            | ({"speaker": f"s{speaker:02d}"} if speakers else {})
            | fixed
        )
    return rows
