"""Who works where, on a cluster of machines with and without GPUs on paper."""

from __future__ import annotations

import pytest

from benchmarks.scale import SPEED, measure


@pytest.mark.slow
def test_actors_hardly_wait_while_there_is_work_and_decoding_keeps_off_their_machines(tmp_path):
    found = measure(tmp_path / "scale", actors=2, seconds=60)
    assert found.actors == 2
    assert found.idle <= 0.05
    assert found.times_real_time >= 2 * 0.9 * SPEED
    assert found.decoded_without_gpu >= 0.9
