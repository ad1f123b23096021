"""Child processes that read a part, or run the model over a chunk, step by step; see `pipeline.stages.quarantine`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from pipeline.cluster.ray_private import current_node, node_is_alive
from pipeline.errors import ErrorCode, RunFailedError
from pipeline.runs.run import QUARANTINE
from pipeline.stages.child_process import ChildDiedError, child_steps
from pipeline.stages.quarantine import DEATHS, Record
from pipeline.stages.steps import START, Row, Step, StepsFrom
from pipeline.storage import objects, uris

MAX_FAILED_STARTS: Final = 5  # children that die before their first step


def run_in_child(run: str, name: str, steps_from: StepsFrom[Row], seconds: float) -> Iterator[Step[Row]]:
    """Compute the steps of a part, or of a chunk in the model, that killed a process before, in child processes.

    Args:
        run: URI of the run; its quarantine holds the record.
        name: name of the part or chunk.
        steps_from: computes the steps in the child; is pickled.
        seconds: deadline of a step.

    Yields:
        The steps, in order, each once: a child that dies is replaced by one that continues after the last step.

    Raises:
        StorageError: from `steps_from`, or for the record.
        RunFailedError: children die before their first step, or of an utterance that is skipped.
    """
    uri = uris.join(run, QUARANTINE, f"{name}.json")
    record = _fetch_record(uri)
    if record.working_at is not None:
        if node_is_alive(record.node):
            how = "with its worker, perhaps for lack of memory"
            record = record.after_death(record.working_at, ErrorCode.CRASHED, how)
        else:
            record = replace(record, working_at=None, node="")
        objects.put(uri, record.content())
    position, failed_starts = START, 0
    while True:
        started = marked = False
        try:
            with child_steps(steps_from, position, record.skipped, seconds) as steps:
                for step in steps:
                    if step is None:
                        if started and not marked:
                            objects.put(uri, replace(record, working_at=position, node=current_node()).content())
                            marked = True
                        continue
                    if marked:
                        objects.put(uri, record.content())
                        marked = False
                    started, position = True, step.next
                    yield step
            return
        except ChildDiedError as death:
            if started:
                if record.deaths.get(position, 0) >= DEATHS:
                    raise RunFailedError(f"{name}: processes die at {position}, although it is skipped") from death
                record = record.after_death(position, death.code, death.how)
                objects.put(uri, record.content())
            elif (failed_starts := failed_starts + 1) >= MAX_FAILED_STARTS:
                raise RunFailedError(f"{name}: child processes die when they start, the last one {death}") from death


def _fetch_record(uri: str) -> Record:
    try:
        return Record.parse(objects.fetch(uri))
    except FileNotFoundError:
        return Record()
