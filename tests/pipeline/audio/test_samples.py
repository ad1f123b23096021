"""Conversion of samples to floats."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from pipeline.audio.samples import owned, to_float32, to_float64
from tests.support.signals import encode


def test_every_int16_becomes_the_float32_that_libsndfile_reads():
    x = np.arange(-32768, 32768).astype(np.int16)
    expected, _ = soundfile.read(io.BytesIO(encode(x, 16_000)), dtype="float32")
    np.testing.assert_array_equal(to_float32(x), expected)
    assert to_float32(x).dtype == np.float32


def test_float64_has_the_values_of_float32():
    x = np.arange(-32768, 32768).astype(np.int16)
    for samples in (x, to_float32(x)):
        floats = to_float64(samples)
        assert floats.dtype == np.float64
        np.testing.assert_array_equal(floats, to_float32(x))
    floats *= 2
    assert samples[0] == -1  # what is returned is a copy


def test_float32_is_returned_uncopied_and_other_types_are_refused():
    x = np.zeros(3, np.float32)
    assert to_float32(x) is x
    with pytest.raises(TypeError, match="float64"):
        to_float32(np.zeros(3))


def test_a_view_of_a_larger_array_is_copied_and_an_array_is_not():
    x = np.zeros(10, np.float32)
    assert owned(x) is x
    assert owned(x[:3]).base is None
