"""Ray's Jobs API: a verb of this project as a job on a cluster, with the code that is installed here.

The code travels as Ray's `py_modules`, three packages without the demo's corpus, so that the cluster runs what was
submitted and not what it happened to have installed. Secrets must not travel, see `pipeline.cluster.job_environment`.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import shlex
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.errors import RunFailedError, UsageError

T = TypeVar("T")
PACKAGES: Final = ("sewd_model", "pipeline", "jobs")
LEFT_AT_HOME: Final = ("**/__pycache__", "demo_corpus")
ENTRYPOINT: Final = ("python", "-m", "jobs.main")
FINAL: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED})
_POLL_S: Final = 0.5
_RECONNECT_S: Final = 60.0


def connect(address: str) -> JobSubmissionClient:
    """The Jobs API at `address`, `http://HEAD:8265`.

    Raises:
        UsageError: nobody answers there, or no Ray.
    """
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"address {address}: the Jobs API is at http://HEAD:8265 (Ray's dashboard), or https://")
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)  # it tells of each closed connection
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray jobs at {address}: {error}") from error


def runtime_env(variables: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment of a job: this code, these variables."""
    folders = [str(Path(importlib.import_module(package).__path__[0])) for package in PACKAGES]
    return {"py_modules": folders, "excludes": list(LEFT_AT_HOME), "env_vars": dict(variables)}


def entrypoint(command: Sequence[str]) -> str:
    """The shell command of a job that runs `sewd COMMAND`."""
    return shlex.join([*ENTRYPOINT, *command])


def submit(
    client: JobSubmissionClient, command: Sequence[str], variables: Mapping[str, str], job: str | None = None
) -> str:
    """Hand `sewd COMMAND` to the cluster; returns the job's name.

    Raises:
        RunFailedError: the cluster refused it.
    """
    try:
        name: str = client.submit_job(
            entrypoint=entrypoint(command),
            runtime_env=runtime_env(variables),
            submission_id=job,
            metadata={"tool": "sewd-pipeline", "verb": command[0]},
        )
    except (OSError, RuntimeError) as error:
        raise RunFailedError(f"the job was not accepted: {error}") from error
    return name


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the cluster says of a job.

    Raises:
        UsageError: there is no such job.
        RunFailedError: the cluster does not answer.
    """
    return _asked(job, lambda: client.get_job_info(job))


def jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """The jobs that were submitted to the cluster, the last first.

    Raises:
        RunFailedError: the cluster does not answer.
    """
    submitted = [job for job in _asked("", client.list_jobs) if job.submission_id]
    return sorted(submitted, key=lambda job: -(job.start_time or 0))


def logs(client: JobSubmissionClient, job: str) -> str:
    """All that a job has written so far.

    Raises:
        UsageError: there is no such job.
        RunFailedError: the cluster does not answer.
    """
    return _asked(job, lambda: client.get_job_logs(job))


def stop(client: JobSubmissionClient, job: str) -> bool:
    """Ask a job to stop; False: it had ended. A run that it leaves goes on with the same command.

    Raises:
        UsageError: there is no such job.
        RunFailedError: the cluster does not answer.
    """
    return _asked(job, lambda: client.stop_job(job))


def _asked(job: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        if "does not exist" in str(error):
            raise UsageError(f"there is no job {job}") from error
        raise RunFailedError(f"the cluster does not answer: {error}") from error


class Log:
    """A job's log on its way to `write`: whatever of it is given again, each character is written once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0

    def add(self, text: str, at: int) -> int:
        """`text`, which stands at character `at` of the log; gives where it ends."""
        end = at + len(text)
        if end > self._written:
            self._write(text[max(0, self._written - at) :])
            self._written = end
        return end


def follow(client: JobSubmissionClient, job: str, log: Log) -> JobDetails:
    """Give `log` what the job writes, until the job has ended; returns how.

    A connection that breaks is made again for a minute, and the log goes on where it broke.

    Raises:
        RunFailedError: the cluster stopped answering.
        UsageError: there is no such job.
    """
    lost_at: float | None = None
    while True:
        try:
            found = details(client, job)
            if found.status in FINAL:
                log.add(logs(client, job), 0)  # what came after the stream had ended
                return details(client, job)
            if found.status is not JobStatus.PENDING:
                asyncio.run(_read(client.tail_job_logs(job), log))
            lost_at = None
        except (RunFailedError, OSError, RuntimeError, aiohttp.ClientError) as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > _RECONNECT_S:
                raise RunFailedError(f"the cluster stopped answering while job {job} ran: {error}") from error
        time.sleep(_POLL_S)


async def _read(stream: AsyncIterator[str], log: Log) -> None:
    at = 0
    async for text in stream:
        at = log.add(text, at)


def exit_code(found: JobDetails) -> int:
    """Of the verb that ran in the job; 1 where there is none, 130 for a job that was stopped."""
    if found.status is JobStatus.STOPPED:
        return 130
    if found.driver_exit_code is not None:
        return int(found.driver_exit_code) & 0xFF
    return int(found.status is not JobStatus.SUCCEEDED)
