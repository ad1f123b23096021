"""No audio is lost in silence: what is decoded lasts as long as what was written, or there is an error."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio.containers import check_container
from pipeline.audio.decode import read_segments
from pipeline.audio.source import Source
from pipeline.errors import AudioError
from tests.support.containers import SECONDS, kinds, written
from tests.support.decoding import SETTINGS
from tests.support.mutations import Mutated, mutate


def decoded_seconds(data: bytes) -> float:
    return sum(segment.duration_s for segment in read_segments(data, SETTINGS))


def walked_seconds(data: bytes) -> float | None:
    contents = check_container(Source(data)).contents
    return contents.frames / contents.rate if contents.frames is not None else None


def check(mutated: Mutated) -> None:
    """The decoded duration is that of the walk and that of what was written, or there is an error."""
    try:
        decoded = decoded_seconds(mutated.data)
    except AudioError as error:
        if mutated.must_read:
            raise AssertionError(mutated.name) from error
        return
    walked = walked_seconds(mutated.data)
    if walked is not None:
        assert decoded == pytest.approx(walked, abs=mutated.tolerance_s), mutated.name
    if mutated.has_length:
        assert min(abs(decoded - right) for right in mutated.seconds) <= mutated.tolerance_s, (mutated.name, decoded)


@pytest.mark.parametrize("kind", [kind.name for kind in kinds()])
def test_every_container_is_decoded_as_long_as_it_was_written(kind):
    padding = next(k.padding_s for k in kinds() if k.name == kind)
    assert decoded_seconds(written(kind)) == pytest.approx(SECONDS, abs=padding + 0.002)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32))
def test_a_mutated_file_is_decoded_as_long_as_it_is_or_is_an_error(seed):
    check(mutate(random.Random(seed)))


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(st.integers(0, 2**32))
def test_many_mutated_files_are_decoded_as_long_as_they_are_or_are_errors(seed):
    check(mutate(random.Random(seed)))
