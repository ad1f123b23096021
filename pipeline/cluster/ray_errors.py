"""Translates what Ray raises into the error of this project that caused it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from pipeline.errors import LeaseLostError, RunFailedError, StorageError, UsageError

# How often Ray retries a task whose process dies. Ray's own default is without limit, so a file that kills its decoder
# would be retried for ever.
MAX_DEATHS: Final = 4

_WORKER_DEATHS = (WorkerCrashedError, RayActorError, OutOfMemoryError, NodeDiedError)


@contextlib.contextmanager
def project_errors() -> Iterator[None]:
    """Raise the error of this project in place of the Ray error that wraps it; other errors pass unchanged."""
    try:
        yield
    except RayError as error:
        if (project_error := unwrap_project_error(error)) is not None:
            raise project_error from error
        raise


def unwrap_project_error(error: BaseException) -> Exception | None:
    """The error of this project that a stage raised, without Ray's wrappers; None if it was not such an error.

    The innermost error counts: Ray's own wrapper is an instance of the type that it wraps, with a traceback as its
    text. A worker that died at every try becomes a `RunFailedError`.
    """
    project_error: Exception | None = None
    inner: BaseException | None = error
    while inner is not None:
        message = str(inner).partition("\nFailed to apply UDF")[0]  # Ray's advice on retries follows it
        if isinstance(inner, LeaseLostError):
            project_error = LeaseLostError(message)
        elif isinstance(inner, StorageError):
            project_error = StorageError(message)
        elif isinstance(inner, RunFailedError):
            project_error = RunFailedError(message)
        elif isinstance(inner, UsageError):
            project_error = UsageError(message)
        elif isinstance(inner, _WORKER_DEATHS) and project_error is None and "creation task" not in message:
            project_error = RunFailedError(f"workers died at every try: {_without_ids(message)}")
        inner = getattr(inner, "cause", None) or inner.__cause__
    return project_error


def _without_ids(message: str) -> str:
    """Ray's message on a dead worker in one line: what happened and why, without its lines `<tab>name: id`."""
    return " ".join(line.strip() for line in message.splitlines() if not line.startswith("\t"))
