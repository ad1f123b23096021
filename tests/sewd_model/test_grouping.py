"""Contiguous groups, closed by size and by number."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sewd_model.grouping import grouped

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


@given(SIZES, st.integers(1, 100), st.none() | st.integers(1, 7))
def test_groups_stay_below_a_maximum_unless_one_item_is_larger_and_no_two_neighbours_would_fit(
    sizes, at_most, max_items
):
    groups = list(grouped(sizes, int, at_most=at_most, max_items=max_items))
    assert [size for group in groups for size in group] == sizes
    for group in groups:
        assert sum(group) <= at_most or len(group) == 1
        assert max_items is None or len(group) <= max_items
    for group, following in itertools.pairwise(groups):
        assert sum(group) + following[0] > at_most or len(group) == max_items


@given(SIZES, st.integers(1, 100), st.none() | st.integers(1, 7))
def test_padded_groups_stay_below_a_maximum_unless_one_item_is_larger_and_the_next_would_not_fit(
    sizes, at_most, max_items
):
    groups = list(grouped(sizes, int, at_most=at_most, max_items=max_items, padded=True))
    assert [size for group in groups for size in group] == sizes
    for group in groups:
        assert max(group) * len(group) <= at_most or len(group) == 1
    for group, following in itertools.pairwise(groups):
        assert max([*group, following[0]]) * (len(group) + 1) > at_most or len(group) == max_items


@given(SIZES)
def test_without_limits_all_items_are_one_group(sizes):
    assert list(grouped(sizes, int)) == ([sizes] if sizes else [])


def test_items_are_read_one_group_at_a_time():
    items = iter(range(100))
    first = next(grouped(items, int, max_items=3))
    assert first == [0, 1, 2]
    assert next(items) == 3
