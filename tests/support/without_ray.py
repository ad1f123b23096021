"""The driver and its stages in this process, without Ray: everything else of a run is real. Seconds faster than Ray.

Workers that die are those of `tests/faults`; here the process itself dies, at any of its writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

import pyarrow as pa

from pipeline.cluster.resources import ClusterNodes, Node, Resources
from pipeline.driver import execution
from pipeline.driver import transcribe as driver
from pipeline.driver.dataset import CommittedChunk, Stages
from pipeline.driver.redecode import RedecodeStage
from pipeline.stages import read, recognize
from pipeline.stages.redecode import redecode_parts
from pipeline.stages.write import write_chunks
from pipeline.storage import objects

RESOURCES = Resources(1, 1, 1, 0, 0.25, 0.25, 1, 1)


class KilledError(BaseException):
    """In place of the death of the process."""


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """`pipeline.transcribe` and `pipeline.redecode` run their stages in this process, one part after the other."""
    with (
        mock.patch.object(driver, "connect", return_value=contextlib.nullcontext()),
        mock.patch.object(driver, "cluster_nodes", return_value=ClusterNodes((Node(1, 0),))),
        mock.patch.object(driver, "allocate", return_value=RESOURCES),
        mock.patch.object(execution, "Metrics", mock.Mock()),
        mock.patch.object(execution, "run_stages", _run_stages),
        mock.patch.object(recognize, "actor_was_restarted", return_value=False),
        mock.patch.object(read, "task_attempt", return_value=0),
    ):
        yield


def _run_stages(stages: Stages | RedecodeStage, nodes: object, parts: Sequence[pa.Table]) -> Iterator[CommittedChunk]:
    results = _redecoded if isinstance(stages, RedecodeStage) else _transcribed
    for table in results(stages, parts):
        for row in table.to_pylist():
            yield CommittedChunk(row["commit"], row["failed"])


def _transcribed(stages: Stages, parts: Sequence[pa.Table]) -> Iterator[pa.Table]:
    recognizer = recognize.ChunkRecognizer(stages.recognize)
    for part in parts:
        for chunk in read.read_parts(part, stages.read):
            yield write_chunks(recognizer(chunk), stages.write)


def _redecoded(stages: RedecodeStage, parts: Sequence[pa.Table]) -> Iterator[pa.Table]:
    for part in parts:
        yield from redecode_parts(part, stages.write)


@contextlib.contextmanager
def killed_at_write(number: int) -> Iterator[None]:
    """The process dies before it writes or removes something for the `number`-th time; see `KilledError`.

    What a dead process does not do any more is not done: it leaves its lease, and its `finally` blocks write nothing.
    """
    writes = 0

    def dying(call):
        def wrapped(*arguments):
            nonlocal writes
            if not any("lease.json" in str(argument) for argument in arguments):
                writes += 1
                if writes >= number:
                    raise KilledError
            return call(*arguments)

        return wrapped

    with (
        mock.patch.object(objects, "put", dying(objects.put)),
        mock.patch.object(objects, "delete", dying(objects.delete)),
        contextlib.suppress(KilledError),
    ):
        yield
