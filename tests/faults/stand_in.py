"""A stand-in for the model, and stages that take their time: so that a kill hits work.

`install` puts them in the driver's place of the real ones. What the stand-in writes is a function of the samples alone.
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
from pipeline.stages.read import read_parts
from pipeline.stages.recognize import Recognizer, RecognizeSettings
from pipeline.stages.write import write_chunks
from pipeline.storage import objects

SECONDS = "SEWD_STAND_IN_SECONDS"  # environment: that a chunk takes in each stage
MARKS = "SEWD_STAND_IN_MARKS"  # environment: directory that tells which process is between data and commit


def install() -> None:
    """In this process, which is to become a driver."""
    dataset.read_parts = slow_read
    dataset.Recognizer = StandIn
    dataset.write_chunks = slow_write


def _pause() -> None:
    time.sleep(float(os.environ[SECONDS]))


def slow_read(parts: pa.Table, settings) -> Iterator[pa.Table]:
    for chunk in read_parts(parts, settings):
        _pause()
        yield chunk


class StandIn(Recognizer):
    """Loads nothing and computes next to nothing."""

    def __init__(self, settings: RecognizeSettings) -> None:
        self.settings = settings

    def _chunk(self, chunk: pa.Table) -> pa.Table | None:
        _pause()
        return super()._chunk(chunk)

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[dict]:
        return [_numbers_of(waveform) for waveform in waveforms]


def _numbers_of(waveform: np.ndarray) -> dict:
    digest = np.frombuffer(hashlib.sha256(waveform.tobytes()).digest(), np.uint8)
    starts = np.arange(len(digest))
    return {
        "num_frames": len(waveform) // 320,
        "token_ids": 4 + digest % 28,
        "start_frames": starts,
        "end_frames": starts + 1,
        "probabilities": (digest / 255).astype(np.float32),
        "label_scores": [],
    }


def slow_write(chunks: pa.Table, settings) -> pa.Table:
    """Leaves a mark with its process id while it is between data and commit."""
    put = objects.put
    mark = Path(os.environ[MARKS]) / str(os.getpid())

    def marked(uri: str, data: bytes) -> None:
        if f"/{commit.COMMITS}/" not in uri:
            put(uri, data)
            return
        mark.touch()
        _pause()
        put(uri, data)
        mark.unlink()

    with _replaced(objects, "put", marked):
        return write_chunks(chunks, settings)


@contextlib.contextmanager
def _replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
