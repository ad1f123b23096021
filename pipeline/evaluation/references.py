"""The references of a run under a scoring: of utterances, also those named by their audio only, and of recordings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.evaluation.reading import scan_batches
from pipeline.evaluation.recordings import ScoredRecordings, scored_recordings
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


class RunReferences(NamedTuple):
    """What the transcripts of a run are scored with.

    Attributes:
        files: the files of references, loaded; empty where the references that are stored with the run are used.
        scoring: the rules to score with.
        recordings: recordings that are scored as wholes; their rows replace those of the run.
    """

    files: list[References]
    scoring: Scoring
    recordings: ScoredRecordings | None


def text_references(run: Run, scoring: Scoring) -> RunReferences:
    """The references of a run under `scoring`.

    Files that hold labels only replace no text: the stored references are then scored.

    Raises:
        UsageError: a file does not exist or cannot be read.
    """
    files = run_references(run, scoring.references)
    if not any(file.has_texts for file in files):
        files, scoring = [], replace(scoring, references=())
    return RunReferences(files, scoring, scored_recordings(run, scoring, files))


def _utterances(run: Run, paths: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The utt_id of each transcript, and the path of its audio where the source stored it beside an id without it."""
    for batch in scan_batches(run.uri, "transcripts", paths, ["utt_id", "tags"]):
        for utt_id, tags in zip(batch["utt_id"].to_pylist(), batch["tags"].to_pylist(), strict=True):
            # What `pipeline.corpus.layouts.parquet` keeps of a base name beside bytes.
            path = json.loads(tags).get("path") if tags and '"path"' in tags else None
            yield utt_id, path if isinstance(path, str) else None
