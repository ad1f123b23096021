"""Which storage errors are transient, and retries with back-off for those."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from pipeline.errors import StorageError
from pipeline.storage.deadline import waiting

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 4  # where rights are missing: a key that has expired does not come back by itself
PATIENT_ATTEMPTS = 10  # through throttling, time-outs and dead networks: about half a minute
BACKOFF_S = 0.5  # the first wait is up to this long, and each one up to twice as long as the one before
MAX_BACKOFF_S = 8.0

_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Paths that no file can have: a manifest's nonsense, not the disk's trouble.
_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP)
_HTTP_GONE = (404, 410)


def _installed(*names: str) -> Iterator[type[BaseException]]:
    for name in names:
        module, _, attribute = name.rpartition(".")
        with contextlib.suppress(ImportError):
            yield getattr(importlib.import_module(module), attribute)


@functools.cache
def transient_types() -> tuple[type[BaseException], ...]:
    """What the object stores' clients raise beside OSError, as far as they are installed."""
    names = ["aiohttp.ClientError", "botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError"]
    names += ["google.auth.exceptions.GoogleAuthError", "azure.core.exceptions.AzureError"]
    return (OSError, *_installed(*names))


@functools.cache
def _invalid_uri_types() -> tuple[type[BaseException], ...]:
    """What they raise for a URI that no object can have, such as `s3://my bucket/`."""
    return tuple(_installed("botocore.exceptions.ParamValidationError"))


def is_transient(error: BaseException) -> bool:
    return isinstance(error, transient_types()) and not is_missing(error)


def is_missing(error: BaseException) -> bool:
    if isinstance(error, _invalid_uri_types()) or (isinstance(error, OSError) and error.errno in _IMPOSSIBLE):
        return True
    return isinstance(error, _NOT_THERE) and not _is_transient_reported_as_missing(error)


def _is_transient_reported_as_missing(error: BaseException) -> bool:
    """Is it FileNotFoundError in name only: fsspec's HTTP says so whatever went wrong, and its cause tells what did."""
    cause = error.__cause__
    if cause is None or not type(cause).__module__.startswith("aiohttp"):
        return isinstance(cause, ConnectionError | TimeoutError)
    return getattr(cause, "status", None) not in _HTTP_GONE


def _is_refusal(error: BaseException | None) -> bool:
    response = getattr(error, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    no_credentials = _installed("botocore.exceptions.NoCredentialsError")
    return isinstance(error, (PermissionError, *no_credentials)) or status in (401, 403)


def _give_up(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return state.attempt_number >= (ATTEMPTS if _is_refusal(error) else PATIENT_ATTEMPTS)


def with_retries(where: str, call: Callable[[], T]) -> T:
    """Retry `call` through weather with random exponential back-off; raise StorageError when it does not clear.

    Absence, in whatever words of a file system, becomes FileNotFoundError.
    """
    try:
        with waiting():
            try:
                return call()
            except transient_types() as error:
                failure = error
            return _retry(failure, call)
    except transient_types() as error:
        if is_transient(error):
            told = error.__cause__ if isinstance(error, _NOT_THERE) and error.__cause__ else error
            raise StorageError(f"{where}: {type(told).__name__}: {told}") from error
        if isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(f"{where}: {error}") from error


def _retry(failure: BaseException, call: Callable[[], T]) -> T:
    """Retry `call`, whose first attempt ended in `failure`. (The many that do not fail are spared tenacity's pains.)"""
    failures = [failure]

    def attempt() -> T:
        if failures:
            raise failures.pop()
        return call()

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=_give_up,
        wait=wait_random_exponential(multiplier=BACKOFF_S, max=MAX_BACKOFF_S),
        reraise=True,
    )
    return retrying(attempt)


def retried(call: Callable[P, T]) -> Callable[P, T]:
    """Make `call` with_retries through weather, as `with_retries` does."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        where = next((a for a in args if isinstance(a, str)), "storage")
        return with_retries(where, functools.partial(call, *args, **kwargs))

    return wrapper
