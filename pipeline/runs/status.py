"""The status of a run, as `run.json` records it."""

from __future__ import annotations

from enum import StrEnum


class RunStatus(StrEnum):
    """Where a run is in its life. Closed: a reader may switch over it."""

    RUNNING = "running"  # a driver works on it, or was killed before it could record how it ended
    STOPPED = "stopped"  # the user stopped it; the same command resumes it
    FAILED = "failed"  # the record's `reason` says why; the same command resumes it
    DONE = "done"  # every part is committed, and the data is compacted
    OVERWRITTEN = "overwritten"  # is being removed for a new run
    UNKNOWN = "unknown"  # never written: the record has no status, or one that this version does not know

    @classmethod
    def _missing_(cls, value: object) -> RunStatus:
        """Read a status of another version as `UNKNOWN`: such a run can still be opened and evaluated."""
        return cls.UNKNOWN
