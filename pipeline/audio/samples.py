"""Arrays of audio samples: int16, or float32 with full scale at 1."""

from __future__ import annotations

from typing import Any

import numpy as np

Samples = np.ndarray[Any, np.dtype[Any]]


def to_float32(samples: Samples) -> Samples:
    """Convert samples to float32 with full scale at 1; the shape stays.

    int16 becomes, bit for bit, what libsndfile would have read as float32; float32 is returned as it is, uncopied.

    Raises:
        TypeError: the dtype is neither int16 nor float32.
    """
    if samples.dtype == np.float32:
        return samples
    if samples.dtype != np.int16:
        raise TypeError(f"samples are int16 or float32, got {samples.dtype}")
    floats: Samples = samples.astype(np.float32)
    floats *= np.float32(1 / 32768)
    return floats


def to_float64(samples: Samples) -> Samples:
    """Convert samples to float64 with full scale at 1, exactly; the result is a copy."""
    floats: Samples = samples.astype(np.float64)
    if samples.dtype == np.int16:
        floats *= 1 / 32768
    return floats


def owned(samples: Samples) -> Samples:
    """Return `samples`, copied where they are a view of a larger array, which would live as long as they do."""
    return samples if samples.base is None or getattr(samples.base, "nbytes", -1) == samples.nbytes else samples.copy()
