"""Objects by URI: list, fetch, put; and the line between an absent object and storage that cannot be reached.

Every URI that fsspec knows works; a path without a scheme is a local file. An object's absence is the data's business
(`FileNotFoundError` passes through, and becomes a row); all else that storage raises is weather: tried again with
back-off, then `StorageError`, which fails the run. An expired key must never write a million error rows.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import stat as file_modes
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StorageError
from pipeline.storage.deadline import waiting
from pipeline.storage.retry import is_missing, is_transient, retried, transient_types, with_retries
from pipeline.storage.uris import CONNECTIONS, S3_SCHEMES, filesystem, uri_of

LINES_BLOCK_BYTES = 8 * 2**20

_DELETED_AT_ONCE = 1000  # what S3 takes in one request
# Stores that list everything below a prefix in one sweep; elsewhere directories are walked.
_FLAT = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az"})


@dataclass(frozen=True)
class Object:
    """One object as a listing shows it: where, its size in bytes, and its version (size with ETag, else with mtime)."""

    uri: str
    size: int
    version: str


def _object(fs: Any, info: dict[str, Any]) -> Object:
    size = int(info.get("size") or 0)
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if tag is None:
        tag = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or ""
    return Object(uri_of(fs, info["name"]), size, f"{size}-{str(tag).strip(chr(34))}")


def _local_object(path: str) -> Object | None:
    """The file at `path`, links followed; None where it is a directory."""
    status = os.stat(path)  # noqa: PTH116 - a listing of 100,000 files feels a Path each
    if file_modes.S_ISDIR(status.st_mode):
        return None
    if not file_modes.S_ISREG(status.st_mode):
        raise FileNotFoundError(f"{path} is no regular file")  # to open a pipe would wait for ever
    # Arrow holds no name that is not UTF-8. One that is not is written so that it can be read, and is not found then.
    return Object(_utf8(path), status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _utf8(path: str) -> str:
    return path.encode(errors="backslashreplace").decode()


@retried
def stat(uri: str) -> Object | None:
    """The object at `uri`, or None where it names a directory or prefix.

    Raises:
        FileNotFoundError: there is nothing at `uri`.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return _local_object(path)
    info = fs.info(path)
    return None if info["type"] == "directory" else _object(fs, info)


def list_children(fs: Any, path: str) -> tuple[list[str], list[Object]]:
    """Paths of the directories right below `path`, and the objects beside them."""
    directories: list[str] = []
    objects: list[Object] = []
    if isinstance(fs, LocalFileSystem):
        for name in os.listdir(path):  # noqa: PTH208 - as above
            child = posixpath.join(path, name)
            try:
                found = _local_object(child)
            except OSError as error:
                if not is_missing(error):
                    raise
                found = Object(
                    _utf8(child), 0, "absent"
                )  # a link to nothing is listed: reading it will say so in a row
            if found is None:
                directories.append(child)
            else:
                objects.append(found)
        return directories, objects
    for info in fs.ls(path, detail=True):
        if info["name"].strip("/") == path.strip("/"):
            continue  # a console's empty marker object `directory/`
        if info["type"] == "directory":
            directories.append(info["name"])
        else:
            objects.append(_object(fs, info))
    return directories, objects


def walk(fs: Any, path: str, inside: frozenset[str] = frozenset()) -> Iterator[Object]:
    """Every object below `path`, in no order. (fsspec's walk leaves out, in silence, what it may not list.)"""
    if not _FLAT.isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
        found = fs.find(path, detail=True).values()
        yield from (_object(fs, info) for info in found if info["type"] == "file" and not info["name"].endswith("/"))
        return
    if isinstance(fs, LocalFileSystem):
        real = os.path.realpath(path)
        if real in inside:
            return  # a link to a directory around it
        inside |= {real}
    directories, objects = list_children(fs, path)
    yield from objects
    for directory in directories:
        yield from walk(fs, directory, inside)


def in_path_order(objects: Iterable[Object]) -> list[Object]:
    return sorted(objects, key=lambda found: found.uri)


@retried
def list_objects(uri: str) -> list[Object]:
    """Every object below the directory or prefix `uri`, in the order of its path. Nothing there: an empty list."""
    fs, path = filesystem(uri)
    try:
        return in_path_order(walk(fs, path))
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_transient(error):
            raise
        return []


@retried
def list_directory(uri: str) -> list[Object]:
    """The objects right in the directory or prefix `uri`, in the order of their names. Nothing there: an empty list."""
    fs, path = filesystem(uri)
    try:
        return in_path_order(list_children(fs, path)[1])
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_transient(error):
            raise
        return []


@retried
def fetch(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of an object, or its half-open range `start`..`end`.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: it could not be reached.
    """
    fs, path = filesystem(uri)
    data: bytes = fs.cat_file(path, start=start, end=end)
    return data


class _GuardedFile(io.RawIOBase):
    """A file whose weather is StorageError: tarfile, Arrow and libsndfile take an OSError for broken data."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file = file
        self._uri = uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        position = self._file.tell()

        def attempt() -> bytes:
            self._file.seek(position)
            return self._file.read(size)

        try:
            with waiting():
                return self._file.read(size)
        except transient_types() as error:
            if not is_transient(error):
                raise StorageError(f"{self._uri}: {error}") from error
        try:
            return with_retries(self._uri, attempt)
        except FileNotFoundError as error:
            raise StorageError(f"{self._uri} went away while it was read") from error

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@retried
def open_read(uri: str) -> BinaryIO:
    """A seekable binary file over the object, read by ranges; its `read` raises StorageError, as `fetch` does."""
    fs, path = filesystem(uri)
    return cast(BinaryIO, _GuardedFile(fs.open(path, "rb"), uri))


def lines(uri: str) -> Iterator[tuple[int, bytes]]:
    """Each line of a text object with its byte offset, line ending kept.

    Raises:
        StorageError: reading broke off. (A listing that ends early would be a corpus that is silently smaller.)
    """
    offset = 0
    rest = b""
    with open_read(uri) as file:
        while block := file.read(LINES_BLOCK_BYTES):
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                yield offset, line + b"\n"
                offset += len(line) + 1
    if rest:
        yield offset, rest


@retried
def exists(uri: str) -> bool:
    """Is there an object, directory or prefix at `uri`, asked afresh."""
    fs, path = filesystem(uri)
    # Not fsspec's `exists`: in most of its file systems that takes a refusal for absence.
    try:
        fs.info(path)
    except transient_types() as error:
        if not is_missing(error):
            raise
        return False
    return True


def put(uri: str, data: bytes) -> None:
    """Write an object whole or not at all: under a temporary name, synced and renamed; or by one upload.

    A reader sees the old object or the new one, never a part: POSIX rename is atomic, and so is the end of an upload on
    every object store. The directory, and those that had to be made for it, are synced too, so that a commit which is
    written after this returns cannot outlive, in a power cut, the data that it names.

    Raises:
        StorageError: it could not be written; also where there is no such bucket.
    """
    try:
        _put(uri, data)
    except FileNotFoundError as error:
        raise StorageError(f"cannot write {uri}: {error}") from error


@retried
def _put(uri: str, data: bytes) -> None:
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        _put_local(Path(path), data)
    else:
        fs.pipe_file(path, data)


def _put_local(target: Path, data: bytes) -> None:
    _make_directory(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # a full disk is not made fuller by each attempt
    _sync_directory(target.parent)


def is_temporary(uri: str) -> bool:
    """Is it the temporary name of a writer, left where that was killed."""
    name = posixpath.basename(uri)
    return name.startswith(".") and name.endswith(".tmp")


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(uris: Sequence[str]) -> None:
    """Remove objects; one that is gone already is no error.

    S3 is asked for a thousand in one request, other stores for many at a time: a run of a million chunks has millions.

    Raises:
        StorageError: one could not be removed.
    """
    for uri in uris:
        if "://" not in uri:
            _remove_one(uri)
    remote = [uri for uri in uris if "://" in uri]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        if remote and remote[0].partition("://")[0] in S3_SCHEMES:
            groups = [remote[start : start + _DELETED_AT_ONCE] for start in range(0, len(remote), _DELETED_AT_ONCE)]
            remote = [uri for refused in pool.map(_refused_of, groups) for uri in refused]
        list(pool.map(_remove_one, remote))


def _refused_of(uris: Sequence[str]) -> Sequence[str]:
    """Those of a thousand objects that S3 did not remove when it was asked for all of them at once."""
    try:
        refused = _remove_many(uris[0], uris)
    except StorageError:  # of those that speak S3, not all know the request
        return uris
    return [uri for uri in uris if filesystem(uri)[0].split_path(uri)[1] in refused]


def _remove_one(uri: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        _remove(uri)


@retried
def _remove(uri: str) -> None:
    fs, path = filesystem(uri)
    fs.rm_file(path)


@retried
def _remove_many(first: str, uris: Sequence[str]) -> set[str]:
    # s3fs's own `rm` drops the answer's list of errors, with which S3 says 200 all the same.
    fs, path = filesystem(first)
    keys = [{"Key": fs.split_path(filesystem(uri)[1])[1]} for uri in uris]
    answer = fs.call_s3("delete_objects", Bucket=fs.split_path(path)[0], Delete={"Objects": keys, "Quiet": True})
    return {error["Key"] for error in answer.get("Errors", [])}
