"""Cut a sequence into contiguous groups by size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def grouped(
    items: Iterable[T],
    size_of: Callable[[T], int],
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    max_items: int | None = None,
    padded: bool = False,
) -> Iterator[list[T]]:
    """Cut `items` into contiguous groups, greedily, holding one group at a time.

    Args:
        items: in order; read lazily.
        size_of: the size of an item, not negative.
        at_least: close a group as soon as its size reaches this. The last group may be smaller.
        at_most: close a group before an item that would make it larger than this. An item that is larger on its own
            still gets a group: no item is dropped or divided.
        max_items: close a group as soon as it holds this many items.
        padded: each item of a group counts as the largest of them: the size of a padded batch.

    Yields:
        Non-empty groups: joined, they are `items`.
    """
    group: list[T] = []
    group_size = largest = 0
    for item in items:
        size = size_of(item)
        size_with_item = max(largest, size) * (len(group) + 1) if padded else group_size + size
        if group and at_most is not None and size_with_item > at_most:
            yield group
            group, largest, size_with_item = [], 0, size
        group.append(item)
        group_size, largest = size_with_item, max(largest, size)
        if len(group) == max_items or (at_least is not None and group_size >= at_least):
            yield group
            group, group_size, largest = [], 0, 0
    if group:
        yield group
