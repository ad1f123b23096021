"""Facts about all rows of a run that must be known before the first row can be assigned to a group or a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.compute as pc

from pipeline.evaluation.group_keys import WHOLE_RANGE
from pipeline.evaluation.reading import scan_batches
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.runs.commit import DataFile
from pipeline.runs.run import Run

_DECILES: Final = 10


@dataclass(frozen=True)
class RunContext:
    """What the group and unit of a row depend on besides the row itself.

    Attributes:
        confidence_edges: ends of the bins of `confidence`, see `confidence_deciles`.
        objects_are_recordings: some utterance starts inside the object that stores it, so objects are recordings
            (`pipeline.evaluation.units.row_units`).
    """

    confidence_edges: tuple[float, ...] = WHOLE_RANGE
    objects_are_recordings: bool = False


DEFAULT_CONTEXT: Final = RunContext()
"""Used where nothing is known about the run."""


def run_context(run: Run, files: Sequence[DataFile], settings: EvaluationSettings) -> RunContext:
    """The context that `settings` needs, from the files of `transcripts` or `labels`; reads one column per fact."""
    objects_are_recordings = False
    if settings.unit in ("auto", "recording"):
        table = files[0].table if files else "transcripts"
        batches = scan_batches(run.uri, table, [file.path for file in files], ["start_s"])
        objects_are_recordings = any((pc.max(batch["start_s"]).as_py() or 0.0) > 0 for batch in batches)
    edges = confidence_deciles(run, files) if "confidence" in settings.by else WHOLE_RANGE
    return RunContext(edges, objects_are_recordings)


def confidence_deciles(run: Run, files: Sequence[DataFile]) -> tuple[float, ...]:
    """Ends of the deciles of the confidences of a run, ascending; fewer than 11 where many values are equal.

    Reads only that column and keeps it in memory: four bytes per utterance.
    """
    batches = scan_batches(run.uri, "transcripts", [file.path for file in files], ["confidence"])
    columns = [batch["confidence"].drop_null().to_numpy() for batch in batches]
    values = np.concatenate([np.zeros(0, np.float32), *columns])
    if not len(values):
        return WHOLE_RANGE
    edges: list[float] = np.unique(np.quantile(values, np.linspace(0, 1, _DECILES + 1), overwrite_input=True)).tolist()
    return tuple(edges if len(edges) > 1 else edges * 2)
