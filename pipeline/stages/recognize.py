"""The model stage, a Ray actor: waveforms in, numbers out.

It returns token ids, frames, probabilities and label scores, as Arrow. The CPU tasks after it make words, error counts
and Parquet, so that Python text work never delays the next encoder pass.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from pipeline.cluster.ray_private import actor_was_restarted
from pipeline.errors import StorageError
from pipeline.schemas import RECOGNIZED_CHUNK, one_chunk
from pipeline.stages.child import run_in_child
from pipeline.stages.heads import Heads, Recognition, recognized_rows, set_torch_threads
from pipeline.stages.quarantine import attempt_marker
from pipeline.stages.read import worker_name
from pipeline.stages.rows import RowError
from pipeline.stages.settings import RecognizeSettings
from pipeline.stages.steps import Position, Skipped, Step
from pipeline.storage import objects, retry
from sewd_model.packed.gpu_memory import device_failed

log = logging.getLogger(__name__)

# A restarted actor first gets the chunks of the actor before it, and one of them may have killed that actor: Ray sends
# each actor two to four chunks in advance.
CHUNKS_AFTER_RESTART = 16

DEVICE_FAILED_STATUS = 70  # exit status of a process whose GPU does not work any more: EX_SOFTWARE of sysexits.h


class ChunkRecognizer(Heads):
    """The heads as an actor that takes chunks.

    What is packed together depends on the chunk alone: the same chunk on the same kind of machine gives the same bits,
    unless it killed processes and was recognised one by one.
    """

    settings: RecognizeSettings
    chunks = 0  # recognised so far
    splits = 0  # reported so far
    load_error: StorageError | None = None  # why the weights could not be loaded

    def __init__(self, settings: RecognizeSettings) -> None:
        # Ray passes the settings, never the weights: a restarted actor loads them again.
        if settings.device == "cpu":
            set_torch_threads(1)  # each pack has its own thread
        try:
            with _end_if_device_fails():
                retry.with_retries(
                    settings.model or settings.classifiers[0], lambda: super(ChunkRecognizer, self).__init__(settings)
                )
        except StorageError as error:  # raised with the first chunk: Ray keeps only the text of what is raised here
            self.load_error = error

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Recognise chunks: rows of `READ_CHUNK` in, rows of `RECOGNIZED_CHUNK` out, none once the run stops.

        Raises:
            StorageError: the weights could not be loaded.
            RunFailedError: no child process can work on a chunk that killed processes.
        """
        if self.load_error is not None:
            raise self.load_error
        results = [self._chunk(chunks.slice(index, 1)) for index in range(chunks.num_rows)]
        done = [table for table in results if table is not None]
        return pa.concat_tables(done) if done else RECOGNIZED_CHUNK.empty_table()

    def _chunk(self, chunk: pa.Table) -> pa.Table | None:
        if objects.exists(self.settings.stop_uri):
            return None
        started, started_at = time.perf_counter(), time.time()
        rows = chunk.to_batches()[0].column("rows").flatten()  # the samples stay where Ray keeps them
        head = chunk.drop_columns("rows").to_pylist()[0]
        head["queue_s"] = max(0.0, started_at - head["read_at"])  # clocks of two machines may differ
        one_by_one = False
        if self.chunks < CHUNKS_AFTER_RESTART and actor_was_restarted():
            name = f"{head['part_id']}-{head['chunk']}"
            with attempt_marker(self.settings.run, name) as one_by_one:
                results = self._results_by_children(name, rows) if one_by_one else self.results(rows)
        else:
            results = self.results(rows)
        self.chunks += 1
        head |= self._engine_columns(one_by_one)
        return _table(head, rows, results, time.perf_counter() - started)

    def results(self, rows: pa.StructArray) -> list[Recognition]:
        """The result of each row, see `Heads.results`. A device that fails ends the process."""
        with _end_if_device_fails():
            return super().results(rows)

    def _engine_columns(self, one_by_one: bool) -> dict[str, Any]:
        """The columns `engines` and `splits`: what computes, and the batches halved since the last call.

        Args:
            one_by_one: child processes with the same engines recognised the utterances one by one.
        """
        before, self.splits = self.splits, sum(encoder.engine.splits for encoder in self.encoders)
        engines = [encoder.engine.status() for encoder in self.encoders]
        if one_by_one:
            engines = [replace(engine, budget_s=None) for engine in engines]
        return {"engines": [asdict(engine) for engine in engines], "splits": self.splits - before}

    def _results_by_children(self, name: str, rows: pa.StructArray) -> list[Recognition]:
        """The same results by child processes, row by row, since one of the rows kills processes."""
        table = pa.Table.from_struct_array(rows)
        # Ray subclasses this class, and another process cannot find that subclass by its name.
        kind = next(k for k in type(self).__mro__ if getattr(sys.modules[k.__module__], k.__name__, None) is k)
        recognize_rows = functools.partial(_recognize_rows, kind, self.settings, table)
        steps = run_in_child(self.settings.run, name, recognize_rows, self.settings.deadline_s)
        return [step.row for step in steps if step.row is not None]


@contextlib.contextmanager
def _end_if_device_fails() -> Iterator[None]:
    """End this process if its GPU does not work any more.

    No later call to the GPU from this process can succeed. Ray starts another actor, on this node or elsewhere, and
    gives it the chunks of this one. What happens to a chunk that ends actors again and again is in
    `pipeline.stages.quarantine`.
    """
    try:
        yield
    except RuntimeError as error:
        if not device_failed(error):
            raise
        log.exception("the GPU of this process failed: the process ends, and its chunks go to another")
        logging.shutdown()
        sys.stderr.flush()
        os._exit(DEVICE_FAILED_STATUS)  # not sys.exit, which waits for threads that may wait for the GPU


def _recognize_rows(
    kind: type[ChunkRecognizer],
    settings: RecognizeSettings,
    table: pa.Table,
    start: Position,
    skipped: Mapping[int, Skipped],
) -> Iterator[Step[Recognition]]:
    """The results of rows of `READ_ROW` from `start` on, one per step; a skipped row gives its error.

    The model is loaded before the first step: a process that dies while it loads is not attributed to a row.
    """
    rows = table.to_struct_array().combine_chunks()
    recognizer = kind(settings)

    def steps() -> Iterator[Step[Recognition]]:
        for index in range(start.utterance, len(rows)):
            if (skip := skipped.get(index)) is not None:
                result = Recognition(error=RowError.of("model", skip.error))
            else:
                (result,) = recognizer.results(rows[index : index + 1])
            yield Step(Position(index + 1, -1), row=result)

    return steps()


def _table(head: dict[str, Any], rows: pa.StructArray, results: list[Recognition], compute_s: float) -> pa.Table:
    """The chunk with its rows, their results, and the errors of rows without a result."""
    recognized = recognized_rows(rows, results)
    durations = rows.field("duration_s").to_pylist()
    lost_s = sum(duration for duration, result in zip(durations, results, strict=True) if result.error is not None)
    skipped_s = sum(result.skipped_s or 0.0 for result in results)
    head |= {"skipped_s": skipped_s}
    head |= {"recognizer": worker_name(), "compute_s": compute_s, "audio_s": head["audio_s"] - lost_s}
    return one_chunk(RECOGNIZED_CHUNK, head, recognized)
