"""What has changed in the INPUTs of a run since it was planned: a run transcribes the corpus that its plan names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from pipeline.config import RunConfig, column_names
from pipeline.corpus.layouts.tar_rows import TAR_ROWS
from pipeline.corpus.plan import plan
from pipeline.errors import StorageError, UsageError
from pipeline.runs.run import Run

NAMED: Final = 3  # objects that a line names
_COLUMNS: Final = ("kind", "uri", "version", "items", "part_id")


@dataclass(frozen=True)
class CorpusChanges:
    """The differences between the plan of a run and what its INPUTs hold now, each as URIs in path order.

    Attributes:
        added: audio files, shards and tables that the run does not know. A manifest with more rows is `changed`.
        removed: those that are no longer there.
        changed: those of another size or time of change, and manifests with other rows.
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
        kinds = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        numbers = ", ".join(f"{len(uris):,} {kind} ({_names(uris)})" for kind, uris in kinds if uris)
        return (
            f"the inputs have changed since this run was planned: {numbers}. The run holds them as they were; "
            "to transcribe them as they are now, choose another --output, or add --overwrite"
        )


def _names(uris: tuple[str, ...]) -> str:
    return ", ".join(uris[:NAMED]) + (", ..." if len(uris) > NAMED else "")


def corpus_changes(run: Run, config: RunConfig) -> CorpusChanges:
    """Plan the INPUTs again, and compare. Nothing is raised: what the run holds is there, whatever became of them."""
    try:
        stored = _contents(run.plan(list(_COLUMNS)))
        now = _contents(plan(config.inputs, int(config.part_mib * 2**20), config.limit, column_names(config.columns)))
    except (UsageError, StorageError, FileNotFoundError, pa.ArrowException) as error:
        return CorpusChanges(problem=str(error))
    return CorpusChanges(
        added=tuple(sorted(now.keys() - stored.keys())),
        removed=tuple(sorted(stored.keys() - now.keys())),
        changed=tuple(sorted(uri for uri in now.keys() & stored.keys() if now[uri] != stored[uri])),
    )


def _contents(parts: pa.Table) -> Mapping[str, str]:
    """What each object of a plan was when it was planned, by URI."""
    contents: dict[str, str] = {}
    for batch in parts.to_batches():
        for part in batch.to_pylist():
            if part["uri"] is None:
                contents.update((item["uri"], item["version"]) for item in part["items"])
            elif part["version"] is not None and part["kind"] != TAR_ROWS.kind:
                contents[part["uri"]] = part["version"]
            else:  # the ids of these parts are digests of the rows of a manifest
                contents[part["uri"]] = contents.get(part["uri"], "") + part["part_id"]
    return contents
