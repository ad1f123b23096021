"""Which storage errors are transient, which mean that an object is missing, and retries with back-off.

A missing object is a fact about the data: `FileNotFoundError` passes through at once, and becomes an error row. Every
other error of storage (time-outs, throttling, refused access) is transient until proved otherwise: it is retried, and
then raised as `StorageError`, which fails the run. An expired key must never write a million error rows.
"""

from __future__ import annotations

import errno
import functools
import re
import sys
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from pipeline.errors import StorageError
from pipeline.secrets import without_secrets
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
_AZURE_NAME = "InvalidResourceName"  # how Azure calls a name that no container can have
_GOOGLE_NAME = "Invalid bucket name"
_GOOGLE_REFUSED = "Forbidden: "  # gcsfs drops the status
_AZURE_DETAILS = re.compile(r"\n(RequestId|Content|Attempted credentials):.*", re.DOTALL)  # a page of them
_REFUSED = (401, 403)
_BEYOND_END = (416,)
_FAILED_CONDITION = (412,)
_NO_TEXT = "no answer in time"  # asyncio's time-outs have no message
_CREDENTIALS = "access was refused: check the credentials, whether they have expired, and what they may read and write"


def _loaded(*names: str) -> tuple[type[BaseException], ...]:
    """Return the exception types of clients that are in use: only these can have been raised."""
    paths = [name.rpartition(".") for name in names]
    return tuple(getattr(sys.modules[module], name) for module, _, name in paths if module in sys.modules)


def transient_types() -> tuple[type[BaseException], ...]:
    """Return the exception types of storage: OSError, and those of the object stores' clients that are in use.

    Some of their instances mean a missing object; `is_transient` tells which.
    """
    names = ["aiohttp.ClientError", "botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError"]
    names += ["google.auth.exceptions.GoogleAuthError", "azure.core.exceptions.AzureError"]
    names += ["gcsfs.retry.HttpError", "gcsfs.retry.ChecksumError", "gcsfs.retry.NonRetryableError"]
    names += ["httpx2.HTTPError", "httpx.HTTPError"]  # of the Hub's client, the second of its versions up to 1
    return (OSError, *_loaded(*names))


def _names_nothing(error: BaseException) -> bool:
    """Return whether a client raised `error` for a URI that no object can have, such as `s3://my bucket/`."""
    if isinstance(error, _loaded("gcsfs.retry.HttpError")):
        return str(error).startswith(_GOOGLE_NAME)
    is_invalid = isinstance(error, _loaded("botocore.exceptions.ParamValidationError", "aiohttp.InvalidURL"))
    return is_invalid or getattr(error, "error_code", None) == _AZURE_NAME


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may help: an error of storage that does not mean a missing object."""
    return isinstance(error, transient_types()) and not is_missing(error)


def is_missing(error: BaseException) -> bool:
    """Return whether the error means that there is no object of that name."""
    if _names_nothing(error) or (isinstance(error, OSError) and error.errno in _IMPOSSIBLE_PATHS):
        return True
    missing: tuple[type[BaseException], ...] = (
        *_MISSING_TYPES,
        *_loaded("azure.core.exceptions.ResourceNotFoundError", "huggingface_hub.errors.RemoteEntryNotFoundError"),
    )
    return isinstance(error, missing) and not _is_transient_reported_as_missing(error)


def _is_transient_reported_as_missing(error: BaseException) -> bool:
    """Return whether a FileNotFoundError hides another failure.

    fsspec's HTTP file system raises FileNotFoundError for every failure; the real one is its cause.
    """
    cause = error.__cause__
    if cause is not None and _names_nothing(cause):
        return False
    if cause is None or not type(cause).__module__.startswith("aiohttp"):
        return isinstance(cause, ConnectionError | TimeoutError)
    return getattr(cause, "status", None) not in _HTTP_MISSING


def is_refused(error: BaseException | None) -> bool:
    """Return whether the storage refused the caller: no credentials, or no permission."""
    if isinstance(error, _MISSING_TYPES) and error.__cause__ is not None:  # as fsspec's HTTP file system reports it
        error = error.__cause__
    types = _loaded(
        *("botocore.exceptions.NoCredentialsError", "botocore.exceptions.PartialCredentialsError"),
        *("google.auth.exceptions.GoogleAuthError", "gcsfs.retry.NonRetryableError"),
        "azure.core.exceptions.ClientAuthenticationError",
    )
    if isinstance(error, (PermissionError, *types)) or _has_status(error, _REFUSED):
        return True
    return type(error) is OSError and str(error).startswith(_GOOGLE_REFUSED)


def is_beyond_end(error: BaseException) -> bool:
    """Return whether the storage has no byte of the range that was asked for."""
    return _has_status(error, _BEYOND_END) or _has_status(error.__cause__, _BEYOND_END)


def has_failed_condition(error: BaseException) -> bool:
    """Return whether the storage refused a conditional write because its condition does not hold."""
    return _has_status(error, _FAILED_CONDITION) or _has_status(error.__cause__, _FAILED_CONDITION)


def _has_status(error: BaseException | None, wanted: tuple[int, ...]) -> bool:
    """Return whether a client raised `error` for an answer of one of these statuses."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        answered = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        answered = getattr(response, "status_code", None)  # of the Hub's client
    # Of aiohttp, and of the clients of Google and Azure.
    statuses = (answered, *(vars(error).get(name) for name in ("status", "code", "status_code") if error is not None))
    return any(str(value) == str(number) for value in statuses for number in wanted)


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
        where = without_secrets(where)
        if is_transient(error):
            reported = error.__cause__ if isinstance(error, _MISSING_TYPES) and error.__cause__ else error
            hint = f" ({_CREDENTIALS})" if is_refused(reported) else ""
            raise StorageError(f"{where}: {type(reported).__name__}: {_text(reported) or _NO_TEXT}{hint}") from error
        if isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(f"{where}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    """Return the message of `error` as one line, without secrets."""
    return " ".join(without_secrets(_AZURE_DETAILS.sub("", str(error))).split())


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
