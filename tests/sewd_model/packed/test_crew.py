"""Threads with a job each, and with fewer jobs than threads."""

import threading

import pytest
import torch

from sewd_model.packed.crew import Crew


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_of_jobs_and_parts_come_in_order(threads):
    crew = Crew(threads)
    found = list(crew.map(lambda job: crew.share(lambda part: (job, part), range(5)), range(7)))
    assert found == [[(job, part) for part in range(5)] for job in range(7)]


def test_a_thread_without_a_job_takes_parts_of_anothers():
    crew, both = Crew(2), threading.Barrier(2, timeout=30)
    (names,) = crew.map(lambda _: crew.share(lambda _: (both.wait(), threading.get_ident())[1], range(2)), [None])
    assert len(set(names)) == 2


def test_jobs_that_fill_the_threads_keep_their_parts(monkeypatch):
    crew, both = Crew(2), threading.Barrier(2, timeout=30)
    submit, given = crew._pool.submit, []
    monkeypatch.setattr(crew._pool, "submit", lambda *what: given.append(what) or submit(*what))

    def job(_):
        both.wait()
        crew.share(str, range(20))
        both.wait()

    list(crew.map(job, range(2)))
    assert len(given) == 2  # the jobs


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_run_in_inference_mode(threads):
    crew = Crew(threads)
    (modes,) = crew.map(lambda _: crew.share(lambda _: torch.is_inference_mode_enabled(), range(9)), [None])
    assert all(modes)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_part_ends_the_job_and_the_next_works(threads):
    crew = Crew(threads)
    with pytest.raises(ZeroDivisionError):
        list(crew.map(lambda _: crew.share(lambda part: 1 / (part - 4), range(9)), [None]))
    assert list(crew.map(lambda _: crew.share(str, range(3)), [None])) == [["0", "1", "2"]]


def test_after_an_error_no_part_is_begun():
    crew, begun, go_on = Crew(2), [], threading.Event()

    def part(number):
        begun.append(number)
        if number == 8:
            raise ZeroDivisionError
        go_on.wait(30)

    def job(_):
        try:
            return crew.share(part, range(9))
        finally:
            go_on.set()

    with pytest.raises(ZeroDivisionError):
        list(crew.map(job, [None]))
    list(crew.map(str, range(4)))
    assert len(begun) <= 3
