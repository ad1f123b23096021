"""The pool of worker threads: with a job for each thread, and with fewer jobs than threads."""

import threading

import pytest
import torch

from sewd_model.packed.thread_pool import WorkSharingPool


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_of_jobs_and_parts_are_in_order(threads):
    pool = WorkSharingPool(threads)
    actual = list(pool.map(lambda job: pool.map_parts(lambda part: (job, part), range(5)), range(7)))
    assert actual == [[(job, part) for part in range(5)] for job in range(7)]


def test_a_thread_without_a_job_takes_parts_of_another_job():
    pool, both = WorkSharingPool(2), threading.Barrier(2, timeout=30)
    (names,) = pool.map(lambda _: pool.map_parts(lambda _: (both.wait(), threading.get_ident())[1], range(2)), [None])
    assert len(set(names)) == 2


def test_with_a_job_per_thread_no_parts_are_shared(monkeypatch):
    pool, both = WorkSharingPool(2), threading.Barrier(2, timeout=30)
    submit, submitted = pool._executor.submit, []
    monkeypatch.setattr(pool._executor, "submit", lambda *call: submitted.append(call) or submit(*call))

    def job(_):
        both.wait()
        pool.map_parts(str, range(20))
        both.wait()

    list(pool.map(job, range(2)))
    assert len(submitted) == 2  # the jobs


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_run_in_inference_mode(threads):
    pool = WorkSharingPool(threads)
    (modes,) = pool.map(lambda _: pool.map_parts(lambda _: torch.is_inference_mode_enabled(), range(9)), [None])
    assert all(modes)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_part_fails_the_job_and_the_next_job_works(threads):
    pool = WorkSharingPool(threads)
    with pytest.raises(ZeroDivisionError):
        list(pool.map(lambda _: pool.map_parts(lambda part: 1 / (part - 4), range(9)), [None]))
    assert list(pool.map(lambda _: pool.map_parts(str, range(3)), [None])) == [["0", "1", "2"]]


def test_after_an_error_no_further_part_starts():
    pool, started, failed = WorkSharingPool(2), [], threading.Event()

    def part(number):
        started.append(number)
        if number == 8:
            raise ZeroDivisionError
        failed.wait(30)

    def job(_):
        try:
            return pool.map_parts(part, range(9))
        finally:
            failed.set()

    with pytest.raises(ZeroDivisionError):
        list(pool.map(job, [None]))
    list(pool.map(str, range(4)))
    assert len(started) <= 3
