"""A pool of worker threads with work sharing: each thread runs jobs of its own, and idle threads help the others."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class MapParts(Protocol):
    """How a job runs its parts: the type of `WorkSharingPool.map_parts`."""

    def __call__(self, function: Callable[[_In], _Out], parts: Sequence[_In]) -> list[_Out]:
        """Return the function of each part, in order."""


class WorkSharingPool:
    """Worker threads for jobs that compute with torch, each in inference mode and with one intra-op thread.

    A job passes the work that may run in parallel to `map_parts`. While there are at least as many jobs as threads,
    each thread runs its own job alone and waits for no other; a thread without a job takes parts of the others' jobs.
    The results do not depend on it.
    """

    def __init__(self, threads: int) -> None:
        """Start the pool.

        Args:
            threads: number of worker threads. With 1, jobs run in the calling thread, with torch's own threads as they
                are.
        """
        self._threads = threads
        # The number of intra-op threads is a setting of each thread.
        self._executor = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._lock = threading.Lock()
        self._unfinished_jobs = 0

    def map(self, function: Callable[[_In], _Out], jobs: Iterable[_In]) -> Iterator[_Out]:
        """Yield the function of each job, in order.

        Raises:
            Exception: what the function raised, in place of the result; the jobs that have not started are cancelled.
        """
        if self._threads == 1:
            yield from (_infer(function, job) for job in jobs)
            return
        futures: deque[Future[_Out]] = deque()
        try:
            for job in jobs:
                with self._lock:
                    self._unfinished_jobs += 1
                futures.append(self._executor.submit(_infer, function, job))
                futures[-1].add_done_callback(self._count_finished)
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()

    def _count_finished(self, _: object) -> None:
        with self._lock:
            self._unfinished_jobs -= 1

    def map_parts(self, function: Callable[[_In], _Out], parts: Sequence[_In]) -> list[_Out]:
        """Return the function of each part of a job, in order. Call it inside a job only.

        Idle threads take parts from the front, the job's own thread from the back.
        """
        if self._unfinished_jobs >= self._threads or self._threads == 1:
            return list(map(function, parts))
        futures = [self._executor.submit(_infer, function, part) for part in parts]
        last_first = zip(reversed(parts), reversed(futures), strict=True)
        try:
            return [function(part) if future.cancel() else future.result() for part, future in last_first][::-1]
        finally:
            for future in futures:  # after an error
                future.cancel()


@torch.inference_mode()  # a setting of each thread
def _infer(function: Callable[[_In], _Out], item: _In) -> _Out:
    return function(item)
