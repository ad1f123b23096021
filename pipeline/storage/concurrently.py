"""Calls in threads whose results come in order: many small requests to storage take the time of a few."""

from __future__ import annotations

import functools
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.storage.deadline import deadline_paused

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], width: int) -> Iterator[R]:
    """Yield `function(item)` for each item, in order, with up to `width` calls at a time or waiting to be yielded.

    An exception of a call is raised at its place. With a width of 0 each call is made when its result is asked for, in
    this thread.
    """
    if not width:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(width)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= width:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[R]) -> R:
    with deadline_paused():
        return future.result()


def once_each(function: Callable[[str], R]) -> Callable[[str], R]:
    """Return `function` with a memory: it is called once for each argument, whichever threads ask for it.

    An exception is not remembered.
    """
    remembered = functools.cache(function)
    locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
    lock = threading.Lock()

    def call(argument: str) -> R:
        with lock:
            own = locks[argument]
        with own:
            return remembered(argument)

    return call
