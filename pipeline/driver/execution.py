"""One start of the driver over the parts that are not done: waves of parts, and what is counted as chunks commit."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ray.exceptions import RayError

from pipeline.cluster.resources import ClusterNodes
from pipeline.config import RunConfig
from pipeline.driver.dataset import CommittedChunk, Pipeline, recognizer_states, run_stages
from pipeline.driver.progress import Progress
from pipeline.driver.remaining import find_remaining
from pipeline.driver.telemetry import AttemptTotals, Metrics
from pipeline.driver.watchdog import warn_when_stalled
from pipeline.errors import RunFailedError
from pipeline.runs.commit import Commit, parse_commit
from pipeline.runs.lease import require_lease
from pipeline.runs.ledger import ROLL_UP_COMMITS, roll_up
from pipeline.runs.record import Addition, WorkSummary
from pipeline.runs.run import Run
from pipeline.runs.totals import Totals
from pipeline.storage import uris

# Parts of one Ray Data execution: a block per part costs the driver about 1.5 ms and 5 kB.
WAVE_PARTS: Final = 10_000
MIN_ROWS_FOR_RATE: Final = 1_000
PARTS_NAMED: Final = 4

log = logging.getLogger("sewd")


class Execution:
    """One start of the driver over the parts of a run, or of an addition to it, that are not done."""

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        stages: Pipeline,
        nodes: ClusterNodes,
        report: Callable[[Progress], None],
        addition: Addition | None = None,
    ) -> None:
        self._addition = addition
        self._run, self._config, self._stages, self._nodes, self._report = run, config, stages, nodes, report
        resources = stages.resources
        self._totals = Totals()
        self._work = AttemptTotals(resources.actors, fixed_pool=resources.min_actors == resources.actors)
        self._metrics = Metrics(run.uri, config.chunk_s, config.chunk_rows)
        self._commit_objects: list[bytes] = []  # content of the commits that are not rolled up yet
        self._started = time.monotonic()

    def run(self, stop: threading.Event) -> WorkSummary:
        """Process the remaining parts until all are done or, once `stop` is set, the current wave has ended.

        Returns:
            What this start did.

        Raises:
            RunFailedError: too many rows failed, or the first one under `strict`.
        """
        self._totals, parts, self._commit_objects = find_remaining(self._run, self._addition)
        self._roll_up()
        self._started = time.monotonic()
        self._report(Progress(self._totals, self._run.record.input_bytes, 0.0, 0.0))
        self._check_failures(())
        recognizers = self._stages.resources.actors
        log.info("started", extra={"run": self._run.uri, "parts_left": len(parts), "recognizers": recognizers})
        for start in range(0, len(parts), WAVE_PARTS):
            end = min(start + WAVE_PARTS, len(parts))
            wave = [parts.slice(index, 1) for index in range(start, end)]  # a table per part, so a block per part
            unfinished = dict.fromkeys(part["part_id"][0].as_py() for part in wave)
            with warn_when_stalled(functools.partial(_describe_stall, unfinished)) as progressed:
                for chunk in run_stages(self._stages, self._nodes, wave):
                    progressed()
                    commit = parse_commit(chunk.commit)
                    if commit.last:
                        unfinished.pop(commit.part_id, None)
                    self._add(chunk, commit)
            self._work = self._work.next_wave()
            if stop.is_set():
                break
        return self._work.summary(time.monotonic() - self._started)

    def _add(self, chunk: CommittedChunk, commit: Commit) -> None:
        self._totals += Totals.from_commit(commit)
        self._metrics.add(commit)
        self._work = self._work.add(commit)
        self._commit_objects.append(chunk.commit)
        self._roll_up()
        _log_chunk(commit, chunk.failed)
        elapsed_s = time.monotonic() - self._started
        self._report(Progress(self._totals, self._run.record.input_bytes, self._work.audio_s, elapsed_s))
        self._check_failures(chunk.failed)

    def _roll_up(self) -> None:
        """Roll up the commit objects once there are enough of them."""
        if len(self._commit_objects) >= ROLL_UP_COMMITS:
            require_lease(self._run.uri, self._stages.write.attempt)
            roll_up(uris.join(self._run.uri, self._stages.write.folder), self._commit_objects)
            self._commit_objects.clear()

    def _check_failures(self, failed: Sequence[dict[str, str]]) -> None:
        if self._config.strict and self._totals.errors:
            first = "{code} {uri}: {message}".format(**failed[0]) if failed else "a row failed in an earlier start"
            raise RunFailedError(f"strict: {first}")
        rows = self._totals.utterances + self._totals.errors
        if rows >= MIN_ROWS_FOR_RATE and self._totals.error_rate > self._config.max_error_rate:
            raise RunFailedError(
                f"{self._totals.errors} of {rows} rows failed, more than --max-error-rate "
                f"{self._config.max_error_rate:g}; by code: {self._totals.error_codes}"
            )


def _log_chunk(commit: Commit, failed: Sequence[dict[str, str]]) -> None:
    """Log the chunk, and each of its first failed rows."""
    part = {"part_id": commit.part_id, "chunk": commit.chunk}
    counts = {"utterances": commit.utterances, "errors": commit.errors, "audio_s": commit.audio_s, "last": commit.last}
    engine = {"engine": commit.engine, "fallback": commit.fallback, "splits": commit.splits}
    log.info("chunk committed", extra=part | counts | {"seconds": commit.seconds} | engine | commit.workers)
    for row in failed:
        # `message` is taken: a LogRecord has an attribute of that name.
        log.info("row failed", extra=part | {"reason" if name == "message" else name: row[name] for name in row})


def _describe_stall(unfinished: Iterable[str], seconds: float) -> str:
    """The warning for a run without progress. Parts start in the order of the plan, so the oldest ones are named."""
    oldest = ", ".join(list(unfinished)[:PARTS_NAMED])  # copied at once: another thread removes finished parts
    try:
        state = recognizer_states()
    except (RayError, OSError, RuntimeError) as error:
        state = f"unknown, Ray does not answer: {error}"
    return f"no chunk was committed for {seconds:.0f} s; oldest unfinished parts: {oldest}; recognisers: {state}"
