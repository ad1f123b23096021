"""Reads of one version of an object, each within a deadline. One attempt: `pipeline.storage.objects` repeats them.

A version is the size with what the store says of the content: the ETag, or the time of change. An object that is
replaced while it is read never gives a mixture of its contents:

* S3 names the ETag in each answer, which is compared before the body is read. (Not `If-Match`: rclone's server ignores
  it, and others refuse it. The comparison needs nothing of the server.)
* A local file stays open, and its size and time are compared before and after each read.
* Elsewhere the version is looked up again after each read, whose content is that of one moment.

A read has `START_S` to begin and then the time that its bytes take at `MIN_BYTES_PER_S`. The clients end a read earlier
that receives nothing for a while (`pipeline.storage.clients.IDLE_S`). Local files and synchronous clients (SFTP, HDFS)
have no deadline: nothing can interrupt them.
"""

from __future__ import annotations

import asyncio
import os
import stat as file_modes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from pipeline.errors import InputChangedError
from pipeline.storage.clients import S3_SCHEMES
from pipeline.storage.retry import is_beyond_end, transient_types
from pipeline.storage.uris import escaped, uri_of

START_S = 60.0  # longer than the client's own two attempts at a connection that receives nothing
MIN_BYTES_PER_S = 2**18
UNKNOWN_BYTES = 2**28  # as which the deadline of an object of unknown size is computed

# Stores that list everything below a prefix in one sweep, and that read ranges.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "hf"})


@dataclass(frozen=True)
class Object:
    """One object as a listing shows it.

    Attributes:
        uri: where it is.
        size: in bytes.
        version: changes with the content: the size with the ETag, or with the modification time where there is none.
    """

    uri: str
    size: int
    version: str


def has_protocol(fs: Any, protocols: frozenset[str]) -> bool:
    """Return whether `fs` serves one of `protocols`."""
    return not protocols.isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def object_of(fs: Any, info: dict[str, Any]) -> Object:
    """Return the object that a client describes."""
    size = int(info.get("size") or 0)
    tag = next(filter(None, map(info.get, ("ETag", "etag", "md5Hash", "blob_id", "xet_hash"))), None)
    if tag is None:
        tag = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or ""
    return Object(uri_of(fs, info["name"]), size, f"{size}-{_bare(str(tag))}")


def _bare(tag: str) -> str:
    return tag.strip('"')


def local_object(path: str) -> Object | None:
    """Return the file at `path`, links followed; None where it is a directory."""
    status = os.stat(path)  # noqa: PTH116 - a Path for each file would slow down a listing of 100,000 files
    if file_modes.S_ISDIR(status.st_mode):
        return None
    if not file_modes.S_ISREG(status.st_mode):
        raise FileNotFoundError(f"{path} is not a regular file")  # opening a pipe would block forever
    return Object(escaped(path), status.st_size, _version_of(status))


def _version_of(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def size_of(version: str) -> int:
    """Return the size in bytes that a version states; 0 of an object that could not be read when it was listed."""
    size = version.partition("-")[0]
    return int(size) if size.isdecimal() else 0


def deadline_s(count: int | None) -> float:
    """Return the time that reading or writing `count` bytes may take, in seconds; None is an unknown number."""
    return START_S + (UNKNOWN_BYTES if count is None else count) / MIN_BYTES_PER_S


def within(fs: Any, count: int | None) -> dict[str, float]:
    """Return the arguments that give a call of `fs` its deadline; none for a client that has no deadlines."""
    return {"timeout": deadline_s(count)} if isinstance(fs, AsyncFileSystem) else {}


def read_range(fs: Any, path: str, start: int | None, end: int | None, version: str | None) -> bytes:
    """Read an object, or its half-open range `start`..`end`.

    Args:
        fs: an fsspec file system.
        path: the object.
        start: first byte; None is 0.
        end: one past the last byte; None is the end.
        version: which version to read; None is any, but bytes of one only.

    Raises:
        InputChangedError: the object is not of that version.
        FileNotFoundError: there is no such object.
        Exception: what the client raises.
    """
    if start is not None and end is not None and start >= end:
        return b""
    if isinstance(fs, LocalFileSystem):
        with open(path, "rb") as file:  # noqa: PTH123 - the path may have bytes that are not UTF-8
            check = partial(_check_open_file, file, path, version or _version_of(os.fstat(file.fileno())))
            check()
            if start:
                file.seek(start)
            data = file.read(-1 if end is None else end - (start or 0))
            check()
            return data
    try:
        return _read_remote(fs, path, start, end, version)
    except transient_types() as error:
        if is_beyond_end(error):  # of another version, which is shorter
            _check_version(fs, path, version)
        raise


def _read_remote(fs: Any, path: str, start: int | None, end: int | None, version: str | None) -> bytes:
    if has_protocol(fs, frozenset(S3_SCHEMES)):
        return cast(bytes, sync(fs.loop, _read_s3, fs, path, start, end, version))
    count = None if end is None else end - (start or 0)
    if count is None and version is not None:
        count = size_of(version) or None  # web servers need not say the size
    data = fs.cat_file(path, start=start, end=end, **within(fs, count))
    _check_version(fs, path, version)
    return cast(bytes, data)


async def _read_s3(fs: Any, path: str, start: int | None, end: int | None, version: str | None) -> bytes:
    # s3fs reads large objects by several requests, which may see several versions, and asks for their sizes before.
    bucket, key, version_id = fs.split_path(path)
    asked = {"VersionId": version_id} if version_id else {}
    if start is not None or end is not None:
        asked["Range"] = f"bytes={start or 0}-{'' if end is None else end - 1}"
    answer = await asyncio.wait_for(fs._call_s3("get_object", Bucket=bucket, Key=key, **asked), START_S)
    body = answer["Body"]
    try:
        found = _bare(answer.get("ETag") or "")
        if version is not None and found != version.partition("-")[2]:
            raise _changed(path, version, f"ETag {found}")
        return cast(bytes, await asyncio.wait_for(body.read(), deadline_s(answer.get("ContentLength"))))
    finally:
        body.close()


def _changed(path: str, version: str, found: str) -> InputChangedError:
    return InputChangedError(f"{escaped(path)} has changed since it was listed: {version} then, {found} now")


def _check_version(fs: Any, path: str, version: str | None) -> None:
    if version is not None:
        found = object_of(fs, fs.info(path)).version
        if found != version:
            raise _changed(path, version, found)


def _check_open_file(file: BinaryIO, path: str, version: str) -> None:
    if (found := _version_of(os.fstat(file.fileno()))) != version:
        raise _changed(path, version, found)


class _VersionedFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file over one version of an object of a store, read by ranges through fsspec's cache."""

    def __init__(self, fs: Any, path: str, found: Object, block_size: int) -> None:
        self._version = found.version
        super().__init__(fs, path, "rb", block_size=block_size, size=found.size)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.fs, self.path, start, end, self._version)


def open_version(
    fs: Any, path: str, found: Object, block_bytes: int | None = None
) -> tuple[BinaryIO, Callable[[], None]]:
    """Open the version of an object that `found` describes; for `block_bytes` see `pipeline.storage.objects.open_read`.

    Returns:
        A seekable file, and a function to call after each read, which raises InputChangedError.
    """
    if isinstance(fs, LocalFileSystem):
        file = cast(BinaryIO, open(path, "rb"))  # noqa: PTH123, SIM115 - the caller closes it
        return file, partial(_check_open_file, file, path, found.version)
    if has_protocol(fs, OBJECT_STORES):
        block = block_bytes or getattr(fs, "default_block_size", None) or fs.blocksize
        return cast(BinaryIO, _VersionedFile(fs, path, found, block)), lambda: None
    opened = fs.open(path, "rb")
    if isinstance(opened, AbstractBufferedFile):
        fetch = opened.cache.fetcher

        def fetch_and_check(start: int, end: int) -> bytes:
            data = cast(bytes, fetch(start, end))
            _check_version(fs, path, found.version)
            return data

        opened.cache.fetcher = fetch_and_check
    return cast(BinaryIO, opened), lambda: None
