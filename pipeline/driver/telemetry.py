"""What one start of the driver reports of its work: metrics for Prometheus, and a summary for the run's record.

Both count committed chunks, and are updated in the one place where the driver learns of a commit. Ray exports the
metrics at its nodes' endpoints, under the names below with the prefix `ray_`, beside its own metrics of the stages
between (`ray_data_*`: running tasks, waiting blocks, bytes in the object store).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from ray.util.metrics import Counter, Histogram

from pipeline.runs.commit import Commit
from pipeline.runs.record import WorkSummary

# Decoding, the wait for the model, the model, words and counts; keys of `Commit.seconds`.
STAGES: Final = ("read", "queue", "compute", "rows")
_BOUNDARIES_S: Final = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
_BOUNDARIES_SHARE: Final = [0.1, 0.25, 0.5, 0.75, 0.9, 1]


class Metrics:
    """The metrics of this process; made when Ray is connected.

    Counters: `sewd_audio_seconds_total`, `sewd_utterances_total`, `sewd_chunks_total`; `sewd_errors_total` by `code`.
    Histograms over chunks: `sewd_stage_seconds` by `stage`, and `sewd_batch_fill`, the share of the audio, or of the
    rows, that a chunk may hold; packed batches are made of one chunk. All of them by `run`.
    """

    def __init__(self, run: str, chunk_s: float, chunk_rows: int) -> None:
        self._run = {"run": run}
        self._chunk_s, self._chunk_rows = chunk_s, chunk_rows
        self._audio = Counter("sewd_audio_seconds_total", "Audio in committed chunks, s.", ("run",))
        self._utterances = Counter("sewd_utterances_total", "Rows with a transcript.", ("run",))
        self._chunks = Counter("sewd_chunks_total", "Committed chunks.", ("run",))
        self._errors = Counter("sewd_errors_total", "Rows without a transcript.", ("run", "code"))
        self._stages = Histogram(
            "sewd_stage_seconds", "Time of a chunk in a stage, s.", _BOUNDARIES_S, ("run", "stage")
        )
        self._fill = Histogram(
            "sewd_batch_fill", "Size of a chunk as a share of its maximum.", _BOUNDARIES_SHARE, ("run",)
        )

    def add(self, commit: Commit) -> None:
        """Count a committed chunk."""
        for counter, value in ((self._audio, commit.audio_s), (self._utterances, commit.utterances), (self._chunks, 1)):
            if value:  # Ray's counters refuse 0
                counter.inc(value, self._run)
        for code, count in commit.error_codes.items():
            self._errors.inc(count, self._run | {"code": code})
        rows = commit.utterances + commit.errors
        self._fill.observe(max(commit.audio_s / self._chunk_s, rows / self._chunk_rows), self._run)
        for stage in STAGES:
            self._stages.observe(commit.seconds[stage], self._run | {"stage": stage})


@dataclass(frozen=True)
class AttemptTotals:
    """Sums over the chunks that one start of the driver committed.

    Attributes:
        actors: recogniser actors, at most.
        fixed_pool: whether there were as many all the time.
        chunks: committed chunks.
        utterances: their rows with a transcript.
        errors: their rows without one.
        audio_s: their audio, in seconds.
        seconds: time in each stage, summed over its processes, in seconds.
        recognizers: processes that recognised the chunks of this wave: more than `actors` if some died.
        replaced: recognisers that died in earlier waves.
    """

    actors: int
    fixed_pool: bool = True
    chunks: int = 0
    utterances: int = 0
    errors: int = 0
    audio_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    recognizers: frozenset[str] = frozenset()
    replaced: int = 0

    def add(self, commit: Commit) -> AttemptTotals:
        """The sums with one more chunk."""
        return replace(
            self,
            chunks=self.chunks + 1,
            utterances=self.utterances + commit.utterances,
            errors=self.errors + commit.errors,
            audio_s=self.audio_s + commit.audio_s,
            seconds={stage: self.seconds[stage] + commit.seconds[stage] for stage in STAGES},
            recognizers=self.recognizers | {commit.workers["recognizer"]},
        )

    def next_wave(self) -> AttemptTotals:
        """The sums at the start of another wave, which has recognisers of its own."""
        died = max(0, len(self.recognizers) - self.actors)
        return replace(self, recognizers=frozenset(), replaced=self.replaced + died)

    def summary(self, elapsed_s: float) -> WorkSummary:
        """The sums for the record, with the speed and the share of the time in which the recognisers computed.

        Args:
            elapsed_s: seconds from the moment that the first part could start to the last commit; this includes the
                start of the actors.
        """
        fixed_pool_s = self.actors * elapsed_s if self.fixed_pool else 0.0
        return WorkSummary(
            chunks=self.chunks,
            utterances=self.utterances,
            errors=self.errors,
            audio_s=self.audio_s,
            elapsed_s=elapsed_s,
            stage_s=self.seconds,
            rtfx=self.audio_s / elapsed_s if elapsed_s else None,
            model_busy=self.seconds["compute"] / fixed_pool_s if fixed_pool_s else None,
            recognizers=self.actors,
            recognizers_replaced=self.next_wave().replaced,
        )
