"""What Ray raises, turned back into the error of this project that caused it."""

from __future__ import annotations

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

from pipeline.errors import LeaseLostError, RunFailedError, StorageError, UsageError

# A task whose process dies is tried again this often. Ray's own default is without end, which a file that kills its
# decoder would take at its word.
MAX_DEATHS = 4

_WORKER_DEATHS = (WorkerCrashedError, RayActorError, OutOfMemoryError, NodeDiedError)


def unwrap_project_error(error: BaseException) -> Exception | None:
    """The error of ours that a stage raised, out of the wrappers that Ray put around it; None where there is none.

    The innermost: Ray's own wrapper is an instance of the type that it wraps, with a traceback for its text.
    """
    found: Exception | None = None
    inner: BaseException | None = error
    while inner is not None:
        message = str(inner).partition("\nFailed to apply UDF")[0]  # Ray's advice follows, on how to retry
        if isinstance(inner, LeaseLostError):
            found = LeaseLostError(message)
        elif isinstance(inner, StorageError):
            found = StorageError(message)
        elif isinstance(inner, RunFailedError):
            found = RunFailedError(message)
        elif isinstance(inner, UsageError):
            found = UsageError(message)
        elif isinstance(inner, _WORKER_DEATHS) and found is None and "creation task" not in message:
            found = RunFailedError(f"workers died again and again: {message.splitlines()[0]}")
        inner = getattr(inner, "cause", None) or inner.__cause__
    return found
