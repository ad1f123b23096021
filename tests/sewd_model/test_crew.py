"""Threads with a job each, and with fewer jobs than threads."""

import threading

import pytest
import torch

from sewd_model.crew import Crew


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_of_jobs_and_parts_come_in_order(threads):
    crew = Crew(threads)
    found = list(crew.map(lambda job: crew.share(lambda part: (job, part), range(5)), range(7)))
    assert found == [[(job, part) for part in range(5)] for job in range(7)]


def test_a_thread_without_a_job_takes_parts_of_anothers():
    crew, both = Crew(2), threading.Barrier(2, timeout=30)
    (names,) = crew.map(lambda _: crew.share(lambda _: (both.wait(), threading.get_ident())[1], range(2)), [None])
    assert len(set(names)) == 2


def test_jobs_that_fill_the_threads_keep_their_parts():
    crew, both = Crew(2), threading.Barrier(2, timeout=30)

    def job(_):
        both.wait()
        threads = crew.share(lambda _: threading.get_ident(), range(20))
        both.wait()
        return set(threads) == {threading.get_ident()}

    assert list(crew.map(job, range(2))) == [True, True]


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
