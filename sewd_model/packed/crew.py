"""Threads that each work off a job of their own, and help each other when there are fewer jobs than threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Share(Protocol):
    """How the parts of a job are done: `Crew.share`."""

    def __call__(self, function: Callable[[_In], _Out], parts: Sequence[_In]) -> list[_Out]:
        """The function of each part, in order."""


class Crew:
    """A number of threads for jobs of torch's, each in inference mode and with one thread of torch's own.

    A job says by `share` what of it may be done at a time. As long as every thread has a job, each does its own alone
    and waits for nobody; a thread without one takes from the others'. What is computed does not depend on it.
    """

    def __init__(self, threads: int) -> None:
        """Make the threads; with one, jobs run in the caller's, with torch's own threads as they are."""
        self._threads = threads
        # How many threads an operation may use is a thread's own setting.
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._lock = threading.Lock()
        self._unfinished = 0  # jobs

    def map(self, function: Callable[[_In], _Out], jobs: Iterable[_In]) -> Iterator[_Out]:
        """Yield the function of each job, in order; an error is raised in its place and ends it."""
        if self._threads == 1:
            yield from (_infer(function, job) for job in jobs)
            return
        futures: deque[Future[_Out]] = deque()
        try:
            for job in jobs:
                with self._lock:
                    self._unfinished += 1
                futures.append(self._pool.submit(_infer, function, job))
                futures[-1].add_done_callback(self._finished)
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()

    def _finished(self, _: object) -> None:
        with self._lock:
            self._unfinished -= 1

    def share(self, function: Callable[[_In], _Out], parts: Sequence[_In]) -> list[_Out]:
        """The function of each part, for use inside of a job; idle threads take parts from the front."""
        if self._unfinished >= self._threads or self._threads == 1:
            return list(map(function, parts))
        futures = [self._pool.submit(_infer, function, part) for part in parts]
        backwards = zip(reversed(parts), reversed(futures), strict=True)
        try:
            return [function(part) if future.cancel() else future.result() for part, future in backwards][::-1]
        finally:
            for future in futures:  # after an error
                future.cancel()


@torch.inference_mode()  # a setting of the thread
def _infer(function: Callable[[_In], _Out], item: _In) -> _Out:
    return function(item)
