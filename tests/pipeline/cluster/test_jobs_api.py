"""Following a job's log through connections that break, without a cluster; with one, see tests/e2e/test_submit.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from pipeline.cluster import jobs_api
from pipeline.errors import RunFailedError, UsageError


class Cluster:
    """A job that writes `log`, over connections that end after so many characters each."""

    def __init__(self, log, breaks, piece=3):
        self.log, self.breaks, self.piece = log, list(breaks), piece

    def get_job_info(self, _job):
        over = not self.breaks
        return SimpleNamespace(status=JobStatus.SUCCEEDED if over else JobStatus.RUNNING, driver_exit_code=0)

    def get_job_logs(self, _job):
        return self.log

    async def tail_job_logs(self, _job):
        end = self.breaks.pop(0)
        for start in range(0, end, self.piece):
            yield self.log[start : min(end, start + self.piece)]
        if end % 2:
            raise RuntimeError("WebSocket connection closed unexpectedly")


@given(log=st.text(max_size=40), breaks=st.lists(st.integers(0, 40), max_size=5), piece=st.integers(1, 7))
def test_the_log_comes_once_whatever_breaks(log, breaks, piece):
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs_api, "_POLL_S", 0)
        found = jobs_api.follow(Cluster(log, breaks, piece), "job", jobs_api.Log(written.append))
    assert "".join(written) == log
    assert jobs_api.exit_code(found) == 0


def test_a_cluster_that_is_silent_for_long_is_lost(monkeypatch):
    class Silent:
        def get_job_info(self, _job):
            raise ConnectionRefusedError("nobody")

    monkeypatch.setattr(jobs_api, "_POLL_S", 0)
    monkeypatch.setattr(jobs_api, "_RECONNECT_S", 0.05)
    with pytest.raises(RunFailedError, match=r"stopped answering while job j ran: .*nobody"):
        jobs_api.follow(Silent(), "j", jobs_api.Log(print))


def test_a_job_that_is_not_there_is_no_lost_cluster():
    class Empty:
        def get_job_info(self, _job):
            raise RuntimeError("Request failed with status code 404: Job j does not exist.")

    with pytest.raises(UsageError, match="there is no job j"):
        jobs_api.follow(Empty(), "j", jobs_api.Log(print))


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.SUCCEEDED, None, 0),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, -15, 130),
        (JobStatus.STOPPED, None, 130),
        (JobStatus.FAILED, -9, 247),
    ],
)
def test_exit_codes(status, driver, code):
    assert jobs_api.exit_code(SimpleNamespace(status=status, driver_exit_code=driver)) == code


def test_an_address_that_is_none_of_the_jobs_api(monkeypatch):
    for address in ("ray://head:10001", "head:8265", "auto"):
        with pytest.raises(UsageError, match="http://HEAD:8265"):
            jobs_api.connect(address)
