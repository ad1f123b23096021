"""Groups of neighbouring clips: in order, complete, and within the limit."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from sewd_model.packed.inputs import group_neighbours


@given(sizes=st.lists(st.integers(1, 30), max_size=20), limit=st.integers(0, 60))
def test_groups_keep_the_order_and_hold_as_many_neighbours_as_fit(sizes, limit):
    clips = [torch.full((size,), float(index)) for index, size in enumerate(sizes)]
    groups = list(group_neighbours(clips, sizes, limit))
    assert [clip[0].item() for group in groups for clip in group] == list(range(len(sizes)))
    lengths = [[len(clip) for clip in group] for group in groups]
    assert all(len(group) == 1 or sum(group) <= limit for group in lengths)
    assert all(sum(group) + following[0] > limit for group, following in itertools.pairwise(lengths))
