"""The summary of a start is a sum over its chunks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.driver.telemetry import STAGES, Work
from pipeline.runs.commit import Commit

seconds = st.floats(0, 1e4)
commits = st.lists(
    st.builds(
        lambda utterances, errors, audio_s, stages, recognizer: Commit(
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
        ),
        st.integers(0, 99),
        st.integers(0, 99),
        seconds,
        st.tuples(*[seconds] * len(STAGES)),
        st.sampled_from(["h:1", "h:2", "g:1"]),
    ),
    max_size=6,
)


@given(commits, st.integers(1, 3), st.floats(0.1, 1e5))
def test_a_summary_is_a_sum_over_chunks(chunks, actors, elapsed_s):
    work = Work(actors)
    for commit in chunks:
        work = work.add(commit)
    told = work.summary(elapsed_s)
    assert told["chunks"] == len(chunks)
    assert told["utterances"] == sum(c.utterances for c in chunks)
    assert told["errors"] == sum(c.errors for c in chunks)
    assert told["rtfx"] == pytest.approx(math.fsum(c.audio_s for c in chunks) / elapsed_s)
    assert told["model_busy"] == pytest.approx(math.fsum(c.seconds["compute"] for c in chunks) / actors / elapsed_s)
    assert {s: told["stage_s"][s] for s in STAGES} == pytest.approx(
        {s: math.fsum(c.seconds[s] for c in chunks) for s in STAGES}
    )
    assert told["recognizers_replaced"] == max(0, len({c.workers["recognizer"] for c in chunks}) - actors)


def test_the_recognisers_of_another_wave_replace_nobody():
    def committed(work, *recognizers):
        for name in recognizers:
            work = work.add(made("h:1", name))
        return work

    work = committed(Work(2), "h:1", "h:2", "h:3").next_wave()
    work = committed(work, "h:4", "h:5").next_wave()
    assert committed(work, "h:6").summary(1.0)["recognizers_replaced"] == 1


def made(reader, recognizer):
    counts = {"utterances": 1, "errors": 0, "error_codes": {}, "audio_s": 1.0, "source_bytes": 1}
    place = {"part_id": "0", "chunk": 0, "first_row": 0, "last": True, "part_rows": None, "part_audio_s": None}
    workers = {"reader": reader, "recognizer": recognizer}
    return Commit(**place, **counts, attempt="a", workers=workers, seconds=dict.fromkeys(STAGES, 1.0))


def test_a_start_that_did_nothing_has_no_speed():
    assert Work(2).summary(0.0)["rtfx"] is None
