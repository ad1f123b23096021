"""Evaluating a run: error rates from sums of counts, with coverage and confidence intervals.

Rows are read by columns and tallied batch by batch (`pipeline.evaluation.tallies`), in this process or by Ray tasks
over the files of the run, and the tallies are added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.evaluation.context import RunContext, run_context
from pipeline.evaluation.examples import sampled_rows
from pipeline.evaluation.group_keys import COLUMNS, is_own_key
from pipeline.evaluation.reading import scan_batches
from pipeline.evaluation.recordings import ScoredRecordings, recording_figures, without_recordings
from pipeline.evaluation.references import RunReferences, text_references
from pipeline.evaluation.results import Evaluation, IdSummary, ReferenceProblems
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.summary import evaluation_from_tallies
from pipeline.evaluation.tallies import Tallies, match_references, required_columns, tally_batches
from pipeline.runs.commit import DataFile
from pipeline.runs.recordings import IDENTITY
from pipeline.runs.run import Run, open_files
from pipeline.scoring.references import MAX_EXAMPLES, References
from pipeline.scoring.rules import Scoring
from sewd_model.grouping import grouped

_SAMPLED: Final = 10_000  # rows that a message names keys of
TASK_ROWS: Final = 1_000_000
"""The most rows of one Ray task, unless a single file has more."""


def evaluate_run(run: Run, settings: EvaluationSettings | None = None, address: str | None = None) -> Evaluation:
    """Evaluate the committed rows of a run, whether or not it is done.

    Args:
        run: the run.
        settings: rules and groupings; None: the run's own rules, no groupings.
        address: Ray cluster (`local`, `auto`, HOST:PORT) whose tasks read the files of the run; None: this process.

    Raises:
        UsageError: a file of references does not exist or cannot be read, or no utterance has the key of a grouping.
        ValueError: stored counts contradict each other.
    """
    settings = settings or EvaluationSettings()
    scoring = settings.scoring or Scoring(run.record.normalizer)
    references = text_references(run, scoring)
    evaluation = run.read(lambda files: _evaluate_files(run, files, settings, references, address))
    for grouping in evaluation.groupings:
        if is_own_key(grouping.by) and grouping.groups and all(group.key is None for group in grouping.groups):
            raise UsageError(_unknown_key(run, grouping.by))
    return evaluation


def _unknown_key(run: Run, by: str) -> str:
    rows, _ = sampled_rows(run, "transcripts", ["tags"], _SAMPLED)
    keys = sorted({key for tags in pc.unique(rows["tags"]).drop_null().to_pylist() for key in json.loads(tags)})
    own = f"a key of the source ({', '.join(keys[:MAX_EXAMPLES])}), " if keys else ""
    columns = ", ".join(COLUMNS)
    return f"cannot group by {by!r}: no utterance has it. Choose {own}duration, confidence or a column ({columns})"


@dataclass(frozen=True)
class _TallyJob:
    """What is the same for every file of a run."""

    run_uri: str
    settings: EvaluationSettings
    scoring: Scoring
    stored_normalizer: str
    context: RunContext
    recordings: pa.Array | None


def _evaluate_files(
    run: Run,
    files: Mapping[str, Sequence[DataFile]],
    settings: EvaluationSettings,
    references: RunReferences,
    address: str | None,
) -> Evaluation:
    transcripts = files["transcripts"]
    context = run_context(run, transcripts, settings)
    scoring, recordings = references.scoring, references.recordings
    keys = recordings.keys if recordings else None
    job = _TallyJob(run.uri, settings, scoring, run.record.normalizer, context, keys)
    if address is None:
        tallies = _tally_files(job, [file.path for file in transcripts], references.files)
    else:
        tallies = _tally_on_cluster(job, transcripts, references.files, address)
    if recordings:
        tallies += _tally_recordings(recordings, settings, scoring, context)
    failed = sum(file.rows for file in files["errors"])
    problems = _reference_problems(run, tallies, references) if references.files else None
    evaluation = evaluation_from_tallies(tallies, failed, settings, scoring, problems, context)
    figures = recording_figures(recordings, scoring, settings) if recordings else None
    return replace(evaluation, recordings=figures)


def _tally_files(job: _TallyJob, paths: Sequence[str], references: Sequence[References]) -> Tallies:
    columns = required_columns(job.settings, job.scoring, job.stored_normalizer, job.context)
    if job.recordings is not None:
        columns = list(dict.fromkeys([*columns, *IDENTITY]))
    batches = without_recordings(scan_batches(job.run_uri, "transcripts", paths, columns), job.recordings)
    return tally_batches(batches, job.settings, job.scoring, job.stored_normalizer, references, job.context)


def _tally_recordings(
    recordings: ScoredRecordings, settings: EvaluationSettings, scoring: Scoring, context: RunContext
) -> Tallies:
    counted = Scoring(scoring.normalizer)  # the rows have their counts
    batches = recordings.batches(required_columns(settings, counted, scoring.normalizer, context))
    return tally_batches(batches, settings, counted, scoring.normalizer, (), context)


def _tally_on_cluster(
    job: _TallyJob, files: Sequence[DataFile], references: Sequence[References], address: str
) -> Tallies:
    """Tally by Ray tasks over some files each. Only tallies are returned; they are added in the order of the files."""
    import ray  # noqa: PLC0415  # takes seconds to import, which an evaluation in one process need not wait for

    from pipeline.cluster.ray_start import connect  # noqa: PLC0415

    with connect(address):
        task = ray.remote(_tally_files)
        shared_references = ray.put(references)
        groups = grouped(files, lambda file: file.rows, at_most=TASK_ROWS)
        futures = [task.remote(job, [file.path for file in group], shared_references) for group in groups]
        return sum((ray.get(future) for future in futures), start=Tallies())


def _reference_problems(run: Run, tallies: Tallies, run_references: RunReferences) -> ReferenceProblems:
    references, recordings = run_references.files, run_references.recordings
    named = recordings.named if recordings else (frozenset[str](),) * len(references)
    failed = run.read(
        lambda files: open_files(run.uri, "errors", [file.path for file in files["errors"]]).to_table(["utt_id"])
    )
    failed_masks, _ = match_references(failed, references)
    no_masks = tuple(np.zeros(len(file.texts), bool) for file in references)
    masks = zip(references, named, tallies.used_references or no_masks, failed_masks, strict=True)
    unknown: dict[str, None] = {}
    for file, names, transcribed, failed in masks:
        unused_rows = np.flatnonzero(~(transcribed | failed))
        if unused_rows.size:
            utt_ids = {row: utt_id for utt_id, row in file.index.items()}
            unknown |= dict.fromkeys(utt_ids[row] for row in unused_rows.tolist() if utt_ids[row] not in names)
        unknown |= dict.fromkeys(name for name in file.recordings if name not in names)
    duplicate = dict.fromkeys(utt_id for file in references for utt_id in file.duplicates)
    return ReferenceProblems(tallies.missing, IdSummary.of(unknown), IdSummary.of(duplicate))
