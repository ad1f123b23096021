"""What has changed in the INPUTs of a run since it was planned: a run transcribes the corpus that its plan names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.corpus.update import UpdatedPlan
from pipeline.errors import StorageError, UsageError
from pipeline.runs.run import Run
from pipeline.runs.update import planned_again

NAMED: Final = 3  # objects that a line names


@dataclass(frozen=True)
class CorpusChanges:
    """The differences between the plan of a run and what its INPUTs hold now, each as URIs in path order.

    Attributes:
        added: audio files, shards and tables that the run does not know. A manifest with more rows is `changed`.
        removed: those that are no longer there.
        changed: those of another size or time of change, or with another reference, and manifests and tables with other
            rows.
        problem: why the INPUTs could not be compared; None if they were.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    problem: str | None = None

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.problem)

    @property
    def has_more(self) -> bool:
        """Whether there is something now that the run does not hold."""
        return bool(self.added or self.changed)

    @property
    def line(self) -> str:
        """The differences in a line, and what to do."""
        if self.problem is not None:
            return f"the inputs cannot be compared with those that the run was planned for: {self.problem}"
        return (
            f"the inputs have changed since this run was planned: {self.numbers}. The run holds them as they were; "
            "to transcribe what has changed, add --update"
        )

    @property
    def numbers(self) -> str:
        """How many objects there are of each kind, and the first of them."""
        kinds = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        return ", ".join(f"{len(uris):,} {kind} ({_names(uris)})" for kind, uris in kinds if uris)

    @staticmethod
    def of(updated: UpdatedPlan) -> CorpusChanges:
        """The differences between a plan and the one before it."""
        return CorpusChanges(updated.added, updated.removed, updated.changed)


def _names(uris: tuple[str, ...]) -> str:
    return ", ".join(uris[:NAMED]) + (", ..." if len(uris) > NAMED else "")


def corpus_changes(run: Run, config: RunConfig) -> CorpusChanges:
    """Plan the INPUTs again, and compare. Nothing is raised: what the run holds is there, whatever became of them."""
    try:
        return CorpusChanges.of(planned_again(run, config))
    except (UsageError, StorageError, FileNotFoundError, pa.ArrowException) as error:
        return CorpusChanges(problem=str(error))
