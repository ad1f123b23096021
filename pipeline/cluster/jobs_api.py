"""Ray's Jobs API: runs a verb of this project as a job on a cluster, with the code that is installed here.

The three packages are sent as Ray's `py_modules`, without the demo corpus, so that the cluster runs the code of the
submitter and not what happens to be installed there. Secrets are never sent, see `pipeline.cluster.job_environment`.
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
EXCLUDED_FILES: Final = ("**/__pycache__", "demo_corpus")
# -P: without it Python would import `jobs` from the directory in which Ray was started, if there is one.
ENTRYPOINT: Final = ("python", "-P", "-m", "jobs.main")
FINAL_STATUSES: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED})
STOPPED_EXIT_CODE: Final = 130
_POLL_S: Final = 0.5
_RECONNECT_S: Final = 60.0


def connect(address: str) -> JobSubmissionClient:
    """A client of the Jobs API at `address`, `http://HEAD:8265`.

    Raises:
        UsageError: there is no Jobs API at `address`.
    """
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"address {address}: the Jobs API is at http://HEAD:8265 (Ray's dashboard), or https://")
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)  # else it logs each closed connection
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray jobs at {address}: {error}") from error


def runtime_env(variables: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment of a job: the code of this project and `variables`."""
    folders = [str(Path(importlib.import_module(package).__path__[0])) for package in PACKAGES]
    return {"py_modules": folders, "excludes": list(EXCLUDED_FILES), "env_vars": dict(variables)}


def entrypoint(command: Sequence[str]) -> str:
    """The shell command of a job that runs `sewd COMMAND`."""
    return shlex.join([*ENTRYPOINT, *command])


def displayed_command(job: JobDetails) -> str:
    """The command of a job, as a user would type it: `sewd COMMAND`."""
    return job.entrypoint.replace(shlex.join(ENTRYPOINT), "sewd", 1)


def submit(
    client: JobSubmissionClient, command: Sequence[str], variables: Mapping[str, str], job: str | None = None
) -> str:
    """Submit `sewd COMMAND` to the cluster; returns the name of the job.

    Args:
        client: of the cluster.
        command: the verb and its arguments.
        variables: environment variables of the job.
        job: name of the job; None: Ray chooses one.

    Raises:
        RunFailedError: the cluster refused the job.
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
    """The status of a job, with its times and exit code.

    Raises:
        UsageError: there is no such job.
        RunFailedError: the cluster does not answer.
    """
    return _request(job, lambda: client.get_job_info(job))


def jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """The jobs that were submitted to the cluster, newest first.

    Raises:
        RunFailedError: the cluster does not answer.
    """
    submitted = [job for job in _request("", client.list_jobs) if job.submission_id]
    return sorted(submitted, key=lambda job: -(job.start_time or 0))


def logs(client: JobSubmissionClient, job: str) -> str:
    """The log of a job so far.

    Raises:
        UsageError: there is no such job.
        RunFailedError: the cluster does not answer.
    """
    return _request(job, lambda: client.get_job_logs(job))


def stop(client: JobSubmissionClient, job: str) -> bool:
    """Ask a job to stop; returns False if it had ended. The same command resumes the run that it leaves.

    Raises:
        UsageError: there is no such job.
        RunFailedError: the cluster does not answer.
    """
    return _request(job, lambda: client.stop_job(job))


def _request(job: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        if "does not exist" in str(error):
            raise UsageError(f"there is no job {job}") from error
        raise RunFailedError(f"the cluster does not answer: {error}") from error


class Log:
    """Passes a job's log on to `write`, each character once, however often the cluster sends it."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0

    def add(self, text: str, start: int) -> int:
        """Add a piece of the log; returns the position at which it ends.

        Args:
            text: the piece.
            start: the position of its first character in the log.
        """
        end = start + len(text)
        if end > self._written:
            self._write(text[max(0, self._written - start) :])
            self._written = end
        return end


def follow(client: JobSubmissionClient, job: str, log: Log) -> JobDetails:
    """Pass what a job writes on to `log` until the job has ended; returns its final status.

    If the connection breaks, it is made again for up to a minute, and the log continues where it broke off.

    Raises:
        RunFailedError: the cluster stopped answering.
        UsageError: there is no such job.
    """
    lost_at: float | None = None
    while True:
        try:
            current = details(client, job)
            if current.status in FINAL_STATUSES:
                log.add(logs(client, job), 0)  # with what was written after the stream had ended
                return details(client, job)
            if current.status is not JobStatus.PENDING:
                asyncio.run(_read(client.tail_job_logs(job), log))
            lost_at = None
        except (RunFailedError, OSError, RuntimeError, aiohttp.ClientError) as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > _RECONNECT_S:
                raise RunFailedError(f"the cluster stopped answering while job {job} ran: {error}") from error
        time.sleep(_POLL_S)


async def _read(stream: AsyncIterator[str], log: Log) -> None:
    position = 0
    async for text in stream:
        position = log.add(text, position)


def exit_code(job: JobDetails) -> int:
    """The exit code of the verb that ran in a job; 1 if the job failed without one, 130 if it was stopped."""
    if job.status is JobStatus.STOPPED:
        return STOPPED_EXIT_CODE
    if job.driver_exit_code is not None:
        return int(job.driver_exit_code) & 0xFF
    return int(job.status is not JobStatus.SUCCEEDED)
