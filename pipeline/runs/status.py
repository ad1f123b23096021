"""The status of a run, as `run.json` records it."""

from __future__ import annotations

from enum import StrEnum


class RunStatus(StrEnum):
    """Where a run is in its life. Closed: a reader may switch over it."""

    RUNNING = "running"  # a driver works on it, or ended without saying so
    STOPPED = "stopped"  # the user stopped it; the same command resumes it
    FAILED = "failed"  # the record's `reason` says why; the same command resumes it
    DONE = "done"  # every part is committed, and the data is compacted
    OVERWRITTEN = "overwritten"  # is being removed for a new run
