"""Following a job's log over connections that break, without a cluster; with one, see tests/e2e/test_submit.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from pipeline.cluster import jobs_api
from pipeline.errors import RunFailedError, UsageError


class Cluster:
    """A job that writes `log`; each connection ends after the next number of characters in `breaks`."""

    def __init__(self, log, breaks, piece=3):
        self.log, self.breaks, self.piece = log, list(breaks), piece

    def get_job_info(self, _job):
        status = JobStatus.RUNNING if self.breaks else JobStatus.SUCCEEDED
        return SimpleNamespace(status=status, driver_exit_code=0)

    def get_job_logs(self, _job):
        return self.log

    async def tail_job_logs(self, _job):
        end = self.breaks.pop(0)
        for start in range(0, end, self.piece):
            yield self.log[start : min(end, start + self.piece)]
        if end % 2:
            raise RuntimeError("WebSocket connection closed unexpectedly")


@given(log=st.text(max_size=40), breaks=st.lists(st.integers(0, 40), max_size=5), piece=st.integers(1, 7))
def test_each_character_of_the_log_is_written_once_however_connections_break(log, breaks, piece):
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs_api, "_POLL_S", 0)
        final = jobs_api.follow(Cluster(log, breaks, piece), "job", jobs_api.Log(written.append))
    assert "".join(written) == log
    assert jobs_api.exit_code(final) == 0


def test_a_cluster_that_stops_answering_is_reported_as_lost(monkeypatch):
    class Silent:
        def get_job_info(self, _job):
            raise ConnectionRefusedError("no answer")

    monkeypatch.setattr(jobs_api, "_POLL_S", 0)
    monkeypatch.setattr(jobs_api, "_RECONNECT_S", 0.05)
    with pytest.raises(RunFailedError, match=r"stopped answering while job j ran: .*no answer"):
        jobs_api.follow(Silent(), "j", jobs_api.Log(print))


def test_an_unknown_job_is_a_usage_error_and_not_a_lost_cluster():
    class NoJobs:
        def get_job_info(self, _job):
            raise RuntimeError("Request failed with status code 404: Job j does not exist.")

    with pytest.raises(UsageError, match="there is no job j"):
        jobs_api.follow(NoJobs(), "j", jobs_api.Log(print))


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
def test_exit_code_of_a_job(status, driver, code):
    assert jobs_api.exit_code(SimpleNamespace(status=status, driver_exit_code=driver)) == code


def test_an_address_that_is_not_of_the_jobs_api_is_refused():
    for address in ("ray://head:10001", "head:8265", "auto"):
        with pytest.raises(UsageError, match="http://HEAD:8265"):
            jobs_api.connect(address)
