"""The summary of one start of the driver is a sum over its chunks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.driver.telemetry import STAGES, AttemptTotals
from pipeline.runs.commit import Commit

ONE_SECOND_EACH = (1.0,) * len(STAGES)


def commit(recognizer="h:1", utterances=1, errors=0, audio_s=1.0, stages=ONE_SECOND_EACH):
    return Commit(
        part_id="0",
        chunk=0,
        first_row=0,
        last=True,
        part_rows=None,
        part_audio_s=None,
        utterances=utterances,
        errors=errors,
        error_codes={},
        audio_s=audio_s,
        source_bytes=1,
        attempt="a",
        workers={"reader": "h:1", "recognizer": recognizer},
        seconds=dict(zip(STAGES, stages, strict=True)),
    )


SECONDS = st.floats(0, 1e4)
COMMITS = st.lists(
    st.builds(
        commit,
        recognizer=st.sampled_from(["h:1", "h:2", "g:1"]),
        utterances=st.integers(0, 99),
        errors=st.integers(0, 99),
        audio_s=SECONDS,
        stages=st.tuples(*[SECONDS] * len(STAGES)),
    ),
    max_size=6,
)


@given(COMMITS, st.integers(1, 3), st.floats(0.1, 1e5))
def test_a_summary_is_a_sum_over_chunks(chunks, actors, elapsed_s):
    work = AttemptTotals(actors)
    for chunk in chunks:
        work = work.add(chunk)
    summary = work.summary(elapsed_s)
    assert summary.chunks == len(chunks)
    assert summary.utterances == sum(c.utterances for c in chunks)
    assert summary.errors == sum(c.errors for c in chunks)
    assert summary.rtfx == pytest.approx(math.fsum(c.audio_s for c in chunks) / elapsed_s)
    assert summary.model_busy == pytest.approx(math.fsum(c.seconds["compute"] for c in chunks) / actors / elapsed_s)
    assert {s: summary.stage_s[s] for s in STAGES} == pytest.approx(
        {s: math.fsum(c.seconds[s] for c in chunks) for s in STAGES}
    )
    assert summary.recognizers_replaced == max(0, len({c.workers["recognizer"] for c in chunks}) - actors)


def test_the_recognisers_of_another_wave_are_not_replacements():
    def with_chunks(work, *recognizers):
        for name in recognizers:
            work = work.add(commit(name))
        return work

    work = with_chunks(AttemptTotals(2), "h:1", "h:2", "h:3").next_wave()
    work = with_chunks(work, "h:4", "h:5").next_wave()
    assert with_chunks(work, "h:6").summary(1.0).recognizers_replaced == 1


def test_a_start_without_work_has_no_speed():
    assert AttemptTotals(2).summary(0.0).rtfx is None
