"""Calls in threads whose results come in order: many small requests to storage take the time of a few."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], width: int) -> Iterator[R]:
    """Yield `function(item)` for each item, in order, with up to `width` calls at a time or waiting to be yielded.

    An exception of a call is raised at its place. With a width of 1 each call is made when its result is asked for, in
    this thread.
    """
    if width <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(width) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= width:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
