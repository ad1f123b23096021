"""Which storage errors are transient, which mean that an object is missing, and retries with back-off.

A missing object is a fact about the data: `FileNotFoundError` passes through at once, and becomes an error row. Every
other error of storage (time-outs, throttling, refused access) is transient until proved otherwise: it is retried, and
then raised as `StorageError`, which fails the run. An expired key must never write a million error rows.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from pipeline.errors import StorageError
from pipeline.storage.deadline import deadline_paused

P = ParamSpec("P")
T = TypeVar("T")

REFUSED_ATTEMPTS = 4  # where access is refused: an expired key does not recover by waiting
MAX_ATTEMPTS = 10  # for everything else: throttling, time-outs and dead networks; about half a minute
BACKOFF_S = 0.5  # upper bound of the first wait; each bound is twice the one before
MAX_BACKOFF_S = 8.0

_MISSING_TYPES = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Paths that no file can have: an error in a manifest, not in the storage.
_IMPOSSIBLE_PATHS = (errno.ENAMETOOLONG, errno.ELOOP)
_HTTP_MISSING = (404, 410)
_REFUSED = (401, 403)
_CREDENTIALS = "access was refused: check the credentials, whether they have expired, and what they may read and write"


def _installed(*names: str) -> Iterator[type[BaseException]]:
    for name in names:
        module, _, attribute = name.rpartition(".")
        with contextlib.suppress(ImportError):
            yield getattr(importlib.import_module(module), attribute)


@functools.cache
def transient_types() -> tuple[type[BaseException], ...]:
    """Return the exception types of storage: OSError, and those of the object stores' clients that are installed.

    Some of their instances mean a missing object; `is_transient` tells which.
    """
    names = ["aiohttp.ClientError", "botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError"]
    names += ["google.auth.exceptions.GoogleAuthError", "azure.core.exceptions.AzureError"]
    return (OSError, *_installed(*names))


@functools.cache
def _invalid_uri_types() -> tuple[type[BaseException], ...]:
    """Return what the clients raise for a URI that no object can have, such as `s3://my bucket/`."""
    return tuple(_installed("botocore.exceptions.ParamValidationError"))


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may help: an error of storage that does not mean a missing object."""
    return isinstance(error, transient_types()) and not is_missing(error)


def is_missing(error: BaseException) -> bool:
    """Return whether the error means that there is no object of that name."""
    if isinstance(error, _invalid_uri_types()) or (isinstance(error, OSError) and error.errno in _IMPOSSIBLE_PATHS):
        return True
    return isinstance(error, _MISSING_TYPES) and not _is_transient_reported_as_missing(error)


def _is_transient_reported_as_missing(error: BaseException) -> bool:
    """Return whether a FileNotFoundError hides another failure.

    fsspec's HTTP file system raises FileNotFoundError for every failure; the real one is its cause.
    """
    cause = error.__cause__
    if cause is None or not type(cause).__module__.startswith("aiohttp"):
        return isinstance(cause, ConnectionError | TimeoutError)
    return getattr(cause, "status", None) not in _HTTP_MISSING


def is_refused(error: BaseException | None) -> bool:
    """Return whether the storage refused the caller: no credentials, or no permission."""
    response = getattr(error, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    # Of aiohttp, and of the clients of Google and Azure.
    statuses = (status, *(vars(error).get(name) for name in ("status", "code", "status_code") if error is not None))
    types = (*_installed("botocore.exceptions.NoCredentialsError", "google.auth.exceptions.GoogleAuthError"),)
    types += (
        *_installed("azure.core.exceptions.ClientAuthenticationError", "botocore.exceptions.PartialCredentialsError"),
    )
    return isinstance(error, (PermissionError, *types)) or any(value in (*_REFUSED, "401", "403") for value in statuses)


def _give_up(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return state.attempt_number >= (REFUSED_ATTEMPTS if is_refused(error) else MAX_ATTEMPTS)


def with_retries(where: str, call: Callable[[], T]) -> T:
    """Call `call`, and repeat it with random exponential back-off while its errors are transient.

    Args:
        where: the URI, for error messages.
        call: one attempt.

    Raises:
        FileNotFoundError: the object is missing, whatever type the file system raised for it.
        StorageError: the last attempt failed with a transient error.
    """
    try:
        with deadline_paused():
            try:
                return call()
            except transient_types() as error:
                failure = error
            return _retry(failure, call)
    except transient_types() as error:
        if is_transient(error):
            reported = error.__cause__ if isinstance(error, _MISSING_TYPES) and error.__cause__ else error
            hint = f" ({_CREDENTIALS})" if is_refused(reported) else ""
            raise StorageError(f"{where}: {type(reported).__name__}: {reported}{hint}") from error
        if isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(f"{where}: {error}") from error


def _retry(first_failure: BaseException, call: Callable[[], T]) -> T:
    """Retry `call`, whose first attempt raised `first_failure`. (Calls that succeed never pay for tenacity.)"""
    failures = [first_failure]

    def attempt() -> T:
        if failures:
            raise failures.pop()
        return call()

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=_give_up,
        wait=wait_random_exponential(multiplier=BACKOFF_S, max=MAX_BACKOFF_S),
        sleep=_sleep,
        reraise=True,
    )
    return retrying(attempt)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def retried(call: Callable[P, T]) -> Callable[P, T]:
    """Decorate `call` to run under `with_retries`; its first string argument names the place in error messages."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        where = next((a for a in args if isinstance(a, str)), "storage")
        return with_retries(where, functools.partial(call, *args, **kwargs))

    return wrapper
