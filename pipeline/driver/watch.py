"""Update a run again and again: one process that follows a corpus until it is stopped.

Each round is a `transcribe` with `existing="update"`, and holds the lease of the run while it works. Between rounds the
lease is free: the run can be repaired or updated by hand, and if this process is killed, another one goes on at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.config import RunConfig
from pipeline.driver.transcribe import transcribe
from pipeline.errors import InputsError, RunBusyError, StorageError
from pipeline.runs.changes import CorpusChanges
from pipeline.runs.run import Run

FIRST_RETRY_S: Final = 10.0  # doubled at each further failure, up to the time between rounds


@dataclass(frozen=True)
class Round:
    """What a round did.

    Attributes:
        number: from 1.
        run: the run as the round left it; None if the round failed.
        changes: what has changed in the inputs; nothing in the round that creates the run.
        problem: why it failed; None if it did not.
        retry_s: seconds until the next try, if it failed.
    """

    number: int
    run: Run | None = None
    changes: CorpusChanges = field(default_factory=CorpusChanges)
    problem: str | None = None
    retry_s: float = 0.0


def watch(
    config: RunConfig,
    every_s: float,
    stop: threading.Event,
    on_round: Callable[[Round], None],
    first_retry_s: float = FIRST_RETRY_S,
) -> None:
    """Update a run every `every_s` seconds until `stop` is set. The first round creates the run, if there is none.

    The first round raises what `transcribe` raises: it shows whether the command is right. A later round that fails
    because storage cannot be reached, the inputs cannot be planned, or another driver works on the run, is tried again.

    Args:
        config: see `transcribe`; its `existing` is not used.
        every_s: from the start of one round to that of the next, in seconds; a longer round is followed at once.
        stop: ends it; the chunks that are in the model are finished and committed.
        on_round: called after each round.
        first_retry_s: wait after the first failure in succession, in seconds.

    Raises:
        UsageError: the request cannot be carried out.
        StorageError: in the first round, an input or the run could not be reached.
        RunFailedError: too many rows failed, a worker died at every try, or another driver took the run over.
    """
    config = replace(config, existing="update")
    number = failures = 0
    while not stop.is_set():
        number += 1
        started = time.monotonic()
        found: list[CorpusChanges] = []
        try:
            run = transcribe(config, stop=stop, on_changes=found.append)
        except (StorageError, InputsError, RunBusyError) as error:
            if number == 1:
                raise
            wait_s = min(every_s, first_retry_s * 2 ** min(failures, 30))
            failures += 1
            on_round(Round(number, problem=str(error), retry_s=wait_s))
        else:
            failures = 0
            on_round(Round(number, run, found[0] if found else CorpusChanges()))
            wait_s = every_s - (time.monotonic() - started)
        stop.wait(max(wait_s, 0.0))
