"""The columns of `posteriors`: numbers in, the same numbers out, also of slices and of rows that have none."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decoding.acoustics import Acoustics
from pipeline.decoding.rows import packed_levels, posteriors_of, unpacked_levels
from sewd_model import CTCTokenizer
from sewd_model.files import BUNDLED
from sewd_model.posteriors import Posteriors, keep

ROWS = st.lists(st.none() | st.binary(max_size=20), max_size=8)


@given(ROWS, st.integers(0, 8), st.integers(0, 8))
def test_levels_are_unpacked_to_what_was_packed(rows: list[bytes | None], start: int, count: int) -> None:
    column = pa.array(rows, pa.binary()).slice(start, count)
    steps = packed_levels(column)
    for level, step in zip(column.to_pylist(), steps.to_pylist(), strict=True):
        expected = None if level is None else np.diff(np.frombuffer(level, np.uint8), prepend=np.uint8(0)).tobytes()
        assert step == expected
    assert unpacked_levels(steps).to_pylist() == column.to_pylist()
    chunked = pa.chunked_array([steps, steps])
    assert unpacked_levels(chunked).to_pylist() == 2 * column.to_pylist()


@given(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 3), st.integers(0, 3))
def test_each_row_gives_its_posteriors(frames: list[int], start: int, count: int) -> None:
    rng = np.random.default_rng(sum(frames))
    kept = [keep(rng.standard_normal((number, 7)) * 6, 0) for number in frames]
    names = ("counts", "tokens", "costs")
    types = {"counts": pa.uint8(), "tokens": pa.uint16(), "costs": pa.uint8()}
    table = pa.table({name: pa.array([getattr(each, name) for each in kept], pa.list_(types[name])) for name in names})
    found = posteriors_of(table.slice(start, count))
    assert list(map(as_lists, found)) == list(map(as_lists, kept[start : start + count]))


def as_lists(posteriors: Posteriors) -> tuple[list[int], ...]:
    return posteriors.counts.tolist(), posteriors.tokens.tolist(), posteriors.costs.tolist()


def test_acoustics_are_read_back_from_json() -> None:
    acoustics = Acoustics(CTCTokenizer.from_pretrained(BUNDLED), 0, 32, 320, 16_000)
    assert Acoustics.from_json(json.loads(json.dumps(acoustics.to_json()))) == acoustics
    assert acoustics.frame_s == 0.02
