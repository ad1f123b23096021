"""Recordings with long pauses, and ends of words, with the bundled model: `benchmarks.pauses` on a part of its data."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import pauses
from tests.conftest import SHARED


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data, which does not exist")
def test_orders_with_pauses_and_the_ends_of_digits(local_ray, tmp_path):
    orders, ends = pauses.measure(SHARED, tmp_path, orders=16, digits=20, seed=5)
    assert orders.keys() == pauses.NOISES_DBFS.keys()
    for figures in orders.values():
        assert figures.wer <= 0.05  # of about 170 words; the hour is below 0.03
        assert figures.longest_word_s <= 2.0
        assert 0.5 < figures.skipped / figures.minutes < 0.9
    assert len(ends) >= 60
    assert np.median(np.abs(ends)) <= 0.02
    assert np.percentile(np.abs(ends), 95) <= 0.08
