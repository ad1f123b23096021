"""A run without progress is reported, with what it waits for; a run with progress is not."""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path

import pipeline
from pipeline.driver import dataset, execution
from pipeline.driver.watchdog import warn_when_stalled, watch
from pipeline.stages.recognize import ChunkRecognizer
from tests.support import corpora

WAIT_S = 60.0  # for what happens in milliseconds, on a machine that is busy


class Clock:
    """The watchdog's two events on a clock of its own: progress is made at `times`, and the run ends at the last."""

    def __init__(self, *times: float) -> None:
        self.times, self.now_s = list(times), 0.0

    def is_set(self) -> bool:  # of `ended`
        return not self.times

    def wait(self, timeout: float) -> bool:  # of `progressed`
        self.now_s += timeout
        if self.now_s < self.times[0]:
            return False
        self.now_s = self.times[0]
        return True

    def clear(self) -> None:
        self.times.pop(0)


def warnings_of(clock: Clock, stall_s: float) -> list[str]:
    seen: list[str] = []

    def describe(seconds: float) -> str:
        seen.append(f"{seconds:g} s at {clock.now_s:g} s")
        return seen[-1]

    watch(clock, clock, describe, stall_s)
    return seen


def test_a_stall_is_reported_again_each_time_it_has_doubled(caplog):
    expected = ["2 s at 2 s", "4 s at 4 s", "8 s at 8 s", "2 s at 11 s"]
    assert warnings_of(Clock(9, 12), stall_s=2) == expected
    assert [record.message for record in caplog.records] == expected


def test_a_run_with_progress_is_not_reported(caplog):
    assert warnings_of(Clock(*range(1, 11)), stall_s=1.5) == []
    assert not caplog.records


def test_the_thread_reports_a_stall_and_ends_with_the_run():
    reported = threading.Event()
    with warn_when_stalled(lambda seconds: reported.set() or f"{seconds:g} s", stall_s=0.01) as progressed:
        assert reported.wait(WAIT_S)
        progressed()
    assert "sewd-watchdog" not in {thread.name for thread in threading.enumerate()}


class Waiting(ChunkRecognizer):
    """Waits until the stall was reported."""

    def recognize(self, waveforms):
        deadline = time.monotonic() + WAIT_S
        while not report_file(self.settings.run).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return super().recognize(waveforms)


def report_file(run) -> Path:
    return Path(run).with_name("reported")


def test_a_stalled_run_names_its_unfinished_parts_and_the_state_of_the_recognisers(
    tmp_path, local_ray, small_ctc, monkeypatch, caplog
):
    corpora.write_audio(tmp_path / "in" / "a.wav", 1.0)
    config = pipeline.RunConfig(inputs=(str(tmp_path / "in"),), output=str(tmp_path / "run"), model=str(small_ctc))

    def watched(describe, stall_s):
        def describe_and_release(seconds):
            warning = describe(seconds)
            if "1 ALIVE" in warning:
                report_file(config.output).touch()
            return warning

        return warn_when_stalled(describe_and_release, stall_s)

    monkeypatch.setattr(dataset, "RecognizerActor", Waiting)
    monkeypatch.setattr(execution, "warn_when_stalled", functools.partial(watched, stall_s=0.2))
    run = pipeline.transcribe(config)

    (part,) = run.plan()["part_id"].to_pylist()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any(f"oldest unfinished parts: {part}; recognisers: 1 ALIVE; " in line for line in warnings), warnings
