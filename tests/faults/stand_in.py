"""Stand-ins for the three stages: a model that computes a digest of the samples, and pauses, so that a kill hits work.

`install` replaces the real stages in the driver. The output depends on the samples alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.driver import dataset
from pipeline.runs import commit
from pipeline.stages.heads import Recognition
from pipeline.stages.read import ReadSettings, read_parts
from pipeline.stages.recognize import ChunkRecognizer, RecognizeSettings
from pipeline.stages.write import WriteSettings, write_chunks
from pipeline.storage import objects
from sewd_model import GreedyPath

SECONDS = "SEWD_STAND_IN_SECONDS"  # environment variable: time that a chunk takes in each stage
MARKS = "SEWD_STAND_IN_MARKS"  # environment variable: directory where processes that are about to commit leave files


def install() -> None:
    """Replace the stages in this process, which will be a driver."""
    dataset.read_parts = slow_read
    dataset.RecognizerActor = StandIn
    dataset.write_chunks = slow_write


def _pause() -> None:
    time.sleep(float(os.environ[SECONDS]))


def slow_read(parts: pa.Table, settings: ReadSettings) -> Iterator[pa.Table]:
    """`read_parts` with a pause before each chunk."""
    for chunk in read_parts(parts, settings):
        _pause()
        yield chunk


class StandIn(ChunkRecognizer):
    """A recogniser that loads no model and computes almost nothing."""

    def __init__(self, settings: RecognizeSettings) -> None:
        self.settings = settings

    def _chunk(self, chunk: pa.Table) -> pa.Table | None:
        _pause()
        return super()._chunk(chunk)

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[Recognition]:
        return [_digest_as_result(waveform) for waveform in waveforms]


def _digest_as_result(waveform: np.ndarray) -> Recognition:
    digest = np.frombuffer(hashlib.sha256(waveform.tobytes()).digest(), np.uint8)
    starts = np.arange(len(digest))
    probabilities = (digest / 255).astype(np.float32)
    return Recognition(GreedyPath(4 + digest % 28, starts, starts + 1, probabilities, len(waveform) // 320), [])


def slow_write(chunks: pa.Table, settings: WriteSettings) -> pa.Table:
    """`write_chunks` with a pause between data and commit; a file named by its process id exists during the pause."""
    put = objects.put
    mark = Path(os.environ[MARKS]) / str(os.getpid())

    def marked_put(uri: str, data: bytes) -> None:
        if f"/{commit.COMMITS}/" not in uri:
            put(uri, data)
            return
        mark.touch()
        _pause()
        put(uri, data)
        mark.unlink()

    with _replaced(objects, "put", marked_put):
        return write_chunks(chunks, settings)


@contextlib.contextmanager
def _replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
