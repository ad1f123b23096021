"""Contiguous groups, closed by size and by number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.grouping import grouped

SIZES = st.lists(st.integers(0, 50), max_size=40)


@given(SIZES, st.integers(1, 100), st.none() | st.integers(1, 7))
def test_groups_tile_their_items_and_close_as_soon_as_they_are_full(sizes, at_least, max_items):
    groups = list(grouped(sizes, int, at_least=at_least, max_items=max_items))
    assert [size for group in groups for size in group] == sizes
    for group in groups:
        assert group
        assert sum(group[:-1]) < at_least
        assert max_items is None or len(group) <= max_items
    for group in groups[:-1]:
        assert sum(group) >= at_least or len(group) == max_items
