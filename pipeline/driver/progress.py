"""How far a run is, as its caller sees it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals


@dataclass(frozen=True)
class Progress:
    """How far a run is; the driver reports it at the start and after each chunk.

    Attributes:
        totals: sums over all committed chunks of the run.
        total_bytes: size of the run's input, in bytes.
        audio_s: audio transcribed since this start of the driver, in seconds.
        elapsed_s: time since the first part of this start could begin, in seconds.
        status: of the run.
    """

    totals: Totals
    total_bytes: int
    audio_s: float
    elapsed_s: float
    status: str = RunStatus.RUNNING

    @property
    def share(self) -> float:
        """Share of the input's bytes that is done, 0..1."""
        return min(self.totals.source_bytes / self.total_bytes, 1.0) if self.total_bytes else 0.0

    @property
    def speed(self) -> float:
        """Audio seconds per second."""
        return self.audio_s / self.elapsed_s if self.elapsed_s else 0.0
