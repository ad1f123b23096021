"""A run that gets nothing done says what is stuck; one that does is silent."""

from __future__ import annotations

import functools
import time

import pipeline
from pipeline.driver import transcribe as driver
from pipeline.driver.watchdog import watching
from pipeline.stages.recognize import Recognizer
from tests.support import corpora


def test_silence_is_told_again_each_time_it_has_doubled(caplog):
    with watching("silent for {:.1f} s".format, 0.2) as alive:
        time.sleep(0.9)
        alive()
        time.sleep(0.3)
    said = [record.message for record in caplog.records]
    assert said == ["silent for 0.2 s", "silent for 0.4 s", "silent for 0.8 s", "silent for 0.2 s"]


def test_who_works_is_not_disturbed(caplog):
    with watching(str, 0.3) as alive:
        for _ in range(10):
            time.sleep(0.05)
            alive()
    assert not caplog.records


class Slow(Recognizer):
    """Takes its time."""

    def recognize(self, waveforms):
        time.sleep(4)
        return super().recognize(waveforms)


def test_a_run_that_is_stuck_names_its_parts_and_how_the_recognisers_are(
    tmp_path, local_ray, small_ctc, monkeypatch, caplog
):
    corpora.write_audio(tmp_path / "in" / "a.wav", 1.0)
    monkeypatch.setattr(driver, "Recognizer", Slow)
    monkeypatch.setattr(driver, "watching", functools.partial(watching, stall_s=1.0))
    config = pipeline.RunConfig(inputs=(str(tmp_path / "in"),), output=str(tmp_path / "run"), model=str(small_ctc))
    run = pipeline.transcribe(config)

    (part,) = run.plan()["part_id"].to_pylist()
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any(f"the oldest parts that are not done: {part};" in line and "recognisers: " in line for line in said), (
        said
    )
