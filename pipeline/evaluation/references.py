"""The files of references of a scoring, with the utterances of a run that they name by their audio only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.evaluation.reading import scan_batches
from pipeline.runs.run import Run
from pipeline.scoring.references import References, load_references
from pipeline.scoring.rules import Scoring


def run_references(run: Run, uris: Sequence[str]) -> list[References]:
    """Load files of references for a run.

    Raises:
        UsageError: a file does not exist or cannot be read.
    """
    references = [load_references(uri) for uri in uris]
    if not any(file.paths for file in references):
        return references
    utterances = list(run.read(lambda files: list(_utterances(run, [f.path for f in files["transcripts"]]))))
    return [file.with_names(utterances) for file in references]


def text_references(run: Run, scoring: Scoring) -> tuple[list[References], Scoring]:
    """The files of references of `scoring` for a run, and the rules to score with.

    Files that hold labels only replace no text: the stored references are then scored.

    Raises:
        UsageError: a file does not exist or cannot be read.
    """
    references = run_references(run, scoring.references)
    if any(text is not None for file in references for text in file.texts):
        return references, scoring
    return [], replace(scoring, references=())


def _utterances(run: Run, paths: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The utt_id of each transcript, and the path of its audio where the source stored it beside an id without it."""
    for batch in scan_batches(run.uri, "transcripts", paths, ["utt_id", "tags"]):
        for utt_id, tags in zip(batch["utt_id"].to_pylist(), batch["tags"].to_pylist(), strict=True):
            # What `pipeline.corpus.layouts.parquet` keeps of a base name beside bytes.
            path = json.loads(tags).get("path") if tags and '"path"' in tags else None
            yield utt_id, path if isinstance(path, str) else None
