"""Conditional writes: an object is written only if it is absent, or still as it was read.

Two writers at the same time: exactly one succeeds on local disks, on S3 where the server honours `If-None-Match` and
`If-Match` (AWS, MinIO, moto), on Azure, and on Google where the object was absent. Servers that ignore the conditions
answer both writers that they succeeded (rclone); so do Google where the object was there, and other file systems, if
both look before either writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputChangedError, StorageError
from pipeline.storage import objects
from pipeline.storage.clients import AZURE_SCHEMES, GOOGLE_SCHEMES, S3_SCHEMES
from pipeline.storage.reads import has_protocol, within
from pipeline.storage.retry import has_failed_condition, is_transient, retried, transient_types
from pipeline.storage.uris import filesystem

_LOCK_ATTEMPTS, _LOCK_WAIT_S = 500, 0.01


class Stored(NamedTuple):
    """An object as it was read: its content, and its version (`pipeline.storage.reads.Object`)."""

    data: bytes
    version: str


def read(uri: str) -> Stored | None:
    """Read a small object with its version; None if there is none.

    Raises:
        StorageError: storage could not be reached.
    """
    while True:
        with contextlib.suppress(InputChangedError):  # it was replaced in between: once more
            try:
                found = objects.stat(uri)
                return None if found is None else Stored(objects.fetch(uri, version=found.version), found.version)
            except FileNotFoundError:
                return None


def replace(uri: str, data: bytes, old: Stored | None) -> bool:
    """Write an object if it is still `old`, or still absent where that is None; return whether it was written.

    Args:
        uri: the object.
        data: the new content, which no other writer writes.
        old: what is to be replaced.

    Raises:
        StorageError: storage could not be reached, or there is no such bucket.
    """
    try:
        if _replace(uri, data, old):
            return True
    except FileNotFoundError as error:
        if old is None:
            raise StorageError(f"cannot write {uri}: {error}") from error
    # An attempt may have written it although its answer was lost.
    now = read(uri)
    return now is not None and now.data == data


def has_conditions(uri: str) -> bool:
    """Return whether the file system of `uri` can write a new object on condition that it is absent.

    A server may still ignore the condition.
    """
    fs, _ = filesystem(uri)
    return isinstance(fs, LocalFileSystem) or _condition(fs, None) is not None


@retried
def _replace(uri: str, data: bytes, old: Stored | None) -> bool:
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        with _locked_directory(Path(path).parent):
            if not _is_still(uri, old):
                return False
            objects.put(uri, data)
            return True
    condition = _condition(fs, old)
    if condition is None and not _is_still(uri, old):
        return False
    try:
        fs.pipe_file(path, data, **(condition or {}), **within(fs, len(data)))
    except FileExistsError:
        return False
    except transient_types() as error:
        if is_transient(error) and has_failed_condition(error):
            return False
        raise
    return True


def _is_still(uri: str, old: Stored | None) -> bool:
    now = read(uri)
    return (now and now.data) == (old and old.data)


def _condition(fs: Any, old: Stored | None) -> dict[str, Any] | None:
    """The arguments that make `pipe_file` conditional; None where it cannot be."""
    tag = None if old is None else '"' + old.version.partition("-")[2] + '"'
    if has_protocol(fs, frozenset(S3_SCHEMES)):
        return {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    if has_protocol(fs, frozenset(AZURE_SCHEMES)):
        if tag is None:
            return {"overwrite": False}
        from azure.core import MatchConditions  # noqa: PLC0415 - installed with the client only

        return {"etag": tag, "match_condition": MatchConditions.IfNotModified}
    if has_protocol(fs, frozenset(GOOGLE_SCHEMES)) and tag is None:
        return {"mode": "create"}
    return None


@contextlib.contextmanager
def _locked_directory(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, on file systems that have locks; not if a process that holds it is suspended."""
    objects.make_directory(directory)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        for _ in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_WAIT_S)
            except OSError:  # NFS does not lock directories
                break
        yield
    finally:
        os.close(descriptor)
