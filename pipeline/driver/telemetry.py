"""What a start of the driver tells of its work: metrics that Prometheus can scrape, and a summary for the record.

Both are fed in one place, where the driver hears of a chunk that is committed; what is told is what counts. Ray exports
the metrics at its nodes' endpoints, by the names below with `ray_` before them, beside its own of the stages between
(`ray_data_*`: tasks that run, blocks that wait, bytes in the object store).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from ray.util.metrics import Counter, Histogram

from pipeline.runs.commit import Commit

# Decoding, the wait for the model, the model, words and counts; keys of `Commit.seconds`.
STAGES: Final = ("read", "queue", "compute", "rows")
_BOUNDARIES_S: Final = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
_SHARES: Final = [0.1, 0.25, 0.5, 0.75, 0.9, 1]


class Metrics:
    """The counters of this process; made once Ray is there.

    `sewd_audio_seconds_total`, `sewd_utterances_total`, `sewd_chunks_total`, `sewd_errors_total` by `code`, and as
    histograms over chunks `sewd_stage_seconds` by `stage`, and `sewd_batch_fill`: of the audio, or the rows, that may
    be in a chunk, out of which batches are packed; each by `run`.
    """

    def __init__(self, run: str, chunk_s: float, chunk_rows: int) -> None:
        self._run = {"run": run}
        self._chunk_s, self._chunk_rows = chunk_s, chunk_rows
        self._audio = Counter("sewd_audio_seconds_total", "Audio in committed chunks, s.", ("run",))
        self._utterances = Counter("sewd_utterances_total", "Rows with a transcript.", ("run",))
        self._chunks = Counter("sewd_chunks_total", "Committed chunks.", ("run",))
        self._errors = Counter("sewd_errors_total", "Rows without a transcript.", ("run", "code"))
        self._stages = Histogram("sewd_stage_seconds", "Of a chunk in a stage, s.", _BOUNDARIES_S, ("run", "stage"))
        self._fill = Histogram("sewd_batch_fill", "Of what a chunk may hold.", _SHARES, ("run",))

    def add(self, commit: Commit) -> None:
        """Count a chunk."""
        for counter, value in ((self._audio, commit.audio_s), (self._utterances, commit.utterances), (self._chunks, 1)):
            if value:  # a counter takes no zero
                counter.inc(value, self._run)
        for code, count in commit.error_codes.items():
            self._errors.inc(count, self._run | {"code": code})
        rows = commit.utterances + commit.errors
        self._fill.observe(max(commit.audio_s / self._chunk_s, rows / self._chunk_rows), self._run)
        for stage in STAGES:
            self._stages.observe(commit.seconds[stage], self._run | {"stage": stage})


@dataclass(frozen=True)
class Work:
    """What one start of the driver got done.

    Attributes:
        actors: recognisers at a time, at most.
        fixed: as many all the time.
        chunks: that it committed, with so many `utterances`, `errors` and `audio_s`.
        seconds: of each stage, summed over its processes.
        recognizers: the processes that recognised those of this wave: more than `actors` where some died.
        replaced: how many did in the waves before.
    """

    actors: int
    fixed: bool = True
    chunks: int = 0
    utterances: int = 0
    errors: int = 0
    audio_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    recognizers: frozenset[str] = frozenset()
    replaced: int = 0

    def add(self, commit: Commit) -> Work:
        """The same and a chunk more."""
        return replace(
            self,
            chunks=self.chunks + 1,
            utterances=self.utterances + commit.utterances,
            errors=self.errors + commit.errors,
            audio_s=self.audio_s + commit.audio_s,
            seconds={stage: self.seconds[stage] + commit.seconds[stage] for stage in STAGES},
            recognizers=self.recognizers | {commit.workers["recognizer"]},
        )

    def next_wave(self) -> Work:
        """The same, before the recognisers of another wave begin."""
        died = max(0, len(self.recognizers) - self.actors)
        return replace(self, recognizers=frozenset(), replaced=self.replaced + died)

    def summary(self, elapsed_s: float) -> dict[str, Any]:
        """For the record: sums, the speed, and the share of the time in which the recognisers had work.

        Args:
            elapsed_s: from the moment the first part could flow to the last commit; the actors' start is in it.
        """
        return {
            "chunks": self.chunks,
            "utterances": self.utterances,
            "errors": self.errors,
            "audio_s": self.audio_s,
            "elapsed_s": elapsed_s,
            "stage_s": self.seconds,
            "rtfx": self.audio_s / elapsed_s if elapsed_s else None,
            "model_busy": self.seconds["compute"] / (self.actors * elapsed_s) if elapsed_s and self.fixed else None,
            "recognizers": self.actors,
            "recognizers_replaced": self.next_wave().replaced,
        }
