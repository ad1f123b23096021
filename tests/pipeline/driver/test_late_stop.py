"""A stop from outside may end Ray before it reaches this project: the run is stopped then, and not failed."""

from __future__ import annotations

import contextlib
import threading

import pytest
from ray.exceptions import RayError

import pipeline
from pipeline.driver import transcribe as driver
from pipeline.errors import RunFailedError, StorageError
from tests.support import corpora

LOST = RunFailedError("Ray did not start")
LOST.__cause__ = RayError("no raylet")


@pytest.mark.parametrize(
    ("error", "stops", "status"),
    [
        (RayError("the head is lost"), True, "stopped"),
        (LOST, True, "stopped"),
        (LOST, False, "failed"),
        (RunFailedError("too many rows failed"), True, "failed"),
        (StorageError("no network"), True, "failed"),
    ],
)
def test_the_loss_of_ray_after_a_stop_is_a_stop(error, stops, status, tmp_path, small_ctc, monkeypatch):
    stop = threading.Event()

    @contextlib.contextmanager
    def connect(address):
        if stops:
            stop.set()
        raise error
        yield

    monkeypatch.setattr(driver, "connect", connect)
    corpora.write_audio(tmp_path / "in" / "a.wav", seconds=1)
    config = pipeline.RunConfig(inputs=(str(tmp_path / "in"),), output=str(tmp_path / "run"), model=str(small_ctc))
    with contextlib.nullcontext() if status == "stopped" else pytest.raises(type(error)):
        pipeline.transcribe(config, stop=stop)
    assert pipeline.Run.open(tmp_path / "run").status == status
