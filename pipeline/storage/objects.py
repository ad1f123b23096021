"""Objects by URI: look up, list, read, write and delete.

Every URI that fsspec can open works; a path without a scheme is a local file. Sizes and offsets are in bytes. All
functions that take a URI retry transient errors (`pipeline.storage.retry`), and raise FileNotFoundError for a missing
object and StorageError for everything else.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import shutil
import stat as file_modes
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputChangedError, StorageError
from pipeline.storage.clients import MAX_CONNECTIONS, S3_SCHEMES
from pipeline.storage.reads import (
    OBJECT_STORES,
    Object,
    has_protocol,
    local_object,
    object_of,
    open_version,
    read_range,
    within,
)
from pipeline.storage.retry import is_missing, is_transient, retried, transient_types, with_retries
from pipeline.storage.uris import escaped, filesystem

LINES_BLOCK_BYTES = 8 * 2**20
ABSENT = "absent"  # the version of a local name that is listed and cannot be read

_DELETE_BATCH = 1000  # the most keys that S3 takes in one request


@retried
def stat(uri: str) -> Object | None:
    """Return the object at `uri`, or None where `uri` names a directory or prefix.

    Raises:
        FileNotFoundError: there is nothing at `uri`.
        StorageError: storage could not be reached.
    """
    fs, path = filesystem(uri)
    return local_object(path) if isinstance(fs, LocalFileSystem) else _remote_object(fs, path)


def _remote_object(fs: Any, path: str) -> Object | None:
    info = fs.info(path)
    return None if info["type"] == "directory" else object_of(fs, info)


def list_children(fs: Any, path: str) -> tuple[list[str], list[Object]]:
    """List one directory of an fsspec file system.

    Not retried, unlike the functions that take a URI.

    Returns:
        The paths of the directories directly below `path`, and the objects directly below it, in no order.
    """
    directories: list[str] = []
    objects: list[Object] = []
    if isinstance(fs, LocalFileSystem):
        for name in os.listdir(path):  # noqa: PTH208 - as in `local_object`
            child = posixpath.join(path, name)
            try:
                item = local_object(child)
            except OSError as error:
                if not is_missing(error):
                    raise
                # A dangling link, a pipe or a device is listed; reading it becomes an error row.
                item = Object(escaped(child), 0, ABSENT)
            if item is None:
                directories.append(child)
            else:
                objects.append(item)
        return directories, objects
    for info in fs.ls(path, detail=True):
        if info["name"].strip("/") == path.strip("/"):
            continue  # the empty object `directory/` with which web consoles mark a directory
        if info["type"] == "directory":
            directories.append(info["name"])
        else:
            objects.append(object_of(fs, info))
    return directories, objects


def walk(fs: Any, path: str, ancestors: frozenset[str] = frozenset()) -> Iterator[Object]:
    """Yield every object below `path`, in no order. (fsspec's own walk silently skips what it may not list.)

    Not retried, unlike the functions that take a URI. `ancestors` are the real paths of the local directories above.
    """
    if has_protocol(fs, OBJECT_STORES):  # elsewhere directories are walked
        found = fs.find(path, detail=True)
        infos = found.values() if isinstance(found, dict) else map(fs.info, found)  # adlfs, where `path` is an object
        yield from (object_of(fs, info) for info in infos if info["type"] == "file" and not info["name"].endswith("/"))
        return
    if isinstance(fs, LocalFileSystem):
        real = os.path.realpath(path)
        if real in ancestors:
            return  # a link to a directory above it
        ancestors |= {real}
    directories, objects = list_children(fs, path)
    yield from objects
    for directory in directories:
        yield from walk(fs, directory, ancestors)


def in_path_order(objects: Iterable[Object]) -> list[Object]:
    """Return `objects` sorted by URI."""
    return sorted(objects, key=lambda item: item.uri)


@retried
def list_objects(uri: str) -> list[Object]:
    """Return every object below the directory or prefix `uri`, in path order; an empty list if there is none.

    Raises:
        StorageError: storage could not be reached, or a directory could not be listed.
    """
    fs, path = filesystem(uri)
    try:
        return in_path_order(walk(fs, path))
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_transient(error):
            raise
        return []


@retried
def list_directory(uri: str) -> list[Object]:
    """Return the objects directly in the directory or prefix `uri`, in path order; an empty list if there is none.

    Raises:
        StorageError: storage could not be reached, or the directory could not be listed.
    """
    fs, path = filesystem(uri)
    try:
        return in_path_order(list_children(fs, path)[1])
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_transient(error):
            raise
        return []


def _check_regular(fs: Any, path: str) -> None:
    """Raise FileNotFoundError for a local pipe or device: opening a pipe blocks, and /dev/zero never ends."""
    # What a shell substitutes for `<(command)` is a pipe with a writer, and may be read.
    if isinstance(fs, LocalFileSystem) and not path.startswith("/dev/fd/"):
        mode = os.stat(path).st_mode  # noqa: PTH116 - as in `local_object`
        if not (file_modes.S_ISREG(mode) or file_modes.S_ISDIR(mode)):
            raise FileNotFoundError(f"{escaped(path)} is not a regular file")


@retried
def fetch(uri: str, start: int | None = None, end: int | None = None, version: str | None = None) -> bytes:
    """Return the bytes of an object, or of its half-open range `start`..`end`.

    Args:
        uri: the object.
        start: first byte; None is 0.
        end: one past the last byte; None is the end.
        version: which version to read, as `Object.version`; None accepts any.

    Raises:
        FileNotFoundError: there is no such object.
        InputChangedError: the object is not of that version.
        StorageError: storage could not be reached.
    """
    fs, path = filesystem(uri)
    _check_regular(fs, path)
    return read_range(fs, path, start, end, version)


class RetryingFile(io.RawIOBase):
    """A binary file whose reads are retried and then raise StorageError.

    A plain OSError would not do: tarfile, Arrow and libsndfile take it for broken data.
    """

    def __init__(self, file: BinaryIO, uri: str, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called after each read."""
        self._file = file
        self._uri = uri
        self._check = check

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, and return it, in bytes from the start."""
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; all that remain where it is negative.

        Raises:
            InputChangedError: the object was replaced or deleted after it was opened.
            StorageError: the bytes could not be read.
        """
        position = self._file.tell()

        def attempt() -> bytes:
            self._file.seek(position)
            data = self._file.read(size)
            self._check()
            return data

        try:
            return with_retries(self._uri, attempt)
        except FileNotFoundError as error:
            raise InputChangedError(f"{self._uri} was deleted while it was being read") from error

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` as `read` does, and return the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the underlying file."""
        self._file.close()
        super().close()


@retried
def open_read(uri: str, version: str | None = None, block_bytes: int | None = None) -> BinaryIO:
    """Open an object as a seekable binary file that is read by ranges; its `read` raises StorageError.

    Args:
        uri: the object.
        version: which version to open, as `Object.version`; None is the one that is there now.
        block_bytes: least that is read of an object of a store at once; None: megabytes, for what is read as a whole.

    Raises:
        FileNotFoundError: there is no such object.
        InputChangedError: the object is not of that version; from `read`, that it is no longer.
        StorageError: storage could not be reached.
    """
    fs, path = filesystem(uri)
    found = local_object(path) if isinstance(fs, LocalFileSystem) else _remote_object(fs, path)
    if found is None:
        raise FileNotFoundError(f"{uri} is a directory")
    if version is not None and found.version != version:
        raise InputChangedError(f"{uri} has changed since it was listed: {version} then, {found.version} now")
    file, check = open_version(fs, path, found, block_bytes)
    return cast(BinaryIO, RetryingFile(file, uri, check))


def lines(uri: str) -> Iterator[tuple[int, bytes]]:
    """Yield each line of a text object, line ending included, with its byte offset.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: reading failed. (A manifest that silently ended early would be a smaller corpus.)
    """
    offset = 0
    rest = b""
    with open_read(uri) as file:
        while block := file.read(LINES_BLOCK_BYTES):
            *complete, rest = (rest + block).split(b"\n")
            for line in complete:
                yield offset, line + b"\n"
                offset += len(line) + 1
    if rest:
        yield offset, rest


@retried
def exists(uri: str) -> bool:
    """Return whether there is an object, directory or prefix at `uri` now; nothing is cached.

    Raises:
        StorageError: storage could not be reached.
    """
    try:
        fs, path = filesystem(uri)
        # Not fsspec's `exists`: most of its file systems report refused access as a missing object.
        fs.info(path)
    except transient_types() as error:
        if not is_missing(error):
            raise
        return False
    return True


def is_object(uri: str) -> bool:
    """Return whether there is an object at `uri` now, and not only a directory or prefix.

    Raises:
        StorageError: storage could not be reached.
    """
    try:
        return stat(uri) is not None
    except FileNotFoundError:
        return False


def put(uri: str, data: bytes) -> None:
    """Write an object atomically: locally under a temporary name, synced and renamed; elsewhere by one upload.

    A reader sees the old object or the new one, never a part: POSIX rename is atomic, and so is the end of an upload on
    every object store. The directory, and those that had to be created for it, are synced too. So a commit that is
    written after this function returns cannot outlive, in a power cut, the data that it names.

    Raises:
        StorageError: the object could not be written; also where there is no such bucket.
    """
    try:
        _put(uri, data)
    except FileNotFoundError as error:
        reason = str(error).removeprefix(f"{uri}: ")
        if "://" in uri:
            reason = f"no such bucket ({reason})"
        raise StorageError(f"cannot write {uri}: {reason}") from error


def put_file(uri: str, path: Path) -> None:
    """Write the content of a local file as an object, as `put` does; it is never whole in memory.

    Raises:
        StorageError: as `put`.
    """
    try:
        _put_file(uri, path)
    except FileNotFoundError as error:
        raise StorageError(f"cannot write {uri}: {error}") from error


@retried
def _put(uri: str, data: bytes) -> None:
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        _put_local(Path(path), io.BytesIO(data))
    else:
        fs.pipe_file(path, data, **within(fs, len(data)))


@retried
def _put_file(uri: str, path: Path) -> None:
    fs, target = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        with path.open("rb") as file:
            _put_local(Path(target), file)
    else:
        fs.put_file(str(path), target, **within(fs, path.stat().st_size))


def _put_local(target: Path, source: BinaryIO) -> None:
    make_directory(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # attempts must not fill a full disk further
    _sync_directory(target.parent)


def is_temporary(uri: str) -> bool:
    """Return whether `uri` is a temporary name of `put`, left behind where a writer was killed."""
    name = posixpath.basename(uri)
    return name.startswith(".") and name.endswith(".tmp")


def make_directory(directory: Path) -> None:
    """Create a local directory and those above it, each synced."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(uris: Sequence[str]) -> None:
    """Delete objects; objects that do not exist are ignored.

    S3 takes a thousand in one request, other stores get many requests in parallel: a run of a million chunks has
    millions of objects.

    Raises:
        StorageError: an object could not be deleted.
    """
    for uri in uris:
        if "://" not in uri:
            _delete_one(uri)
    remote = [uri for uri in uris if "://" in uri]
    with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
        if remote and remote[0].partition("://")[0] in S3_SCHEMES:
            batches = [remote[start : start + _DELETE_BATCH] for start in range(0, len(remote), _DELETE_BATCH)]
            remote = [uri for undeleted in pool.map(_delete_batch, batches) for uri in undeleted]
        list(pool.map(_delete_one, remote))


def _delete_batch(uris: Sequence[str]) -> Sequence[str]:
    """Delete up to a thousand S3 objects in one request, and return the URIs that were not deleted."""
    try:
        failed_keys = _request_batch_deletion(uris[0], uris)
    except StorageError:  # not every server of the S3 protocol implements this request
        return uris
    return [uri for uri in uris if filesystem(uri)[0].split_path(uri)[1] in failed_keys]


def _delete_one(uri: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        _delete(uri)


@retried
def _delete(uri: str) -> None:
    fs, path = filesystem(uri)
    fs.rm_file(path)


@retried
def _request_batch_deletion(first: str, uris: Sequence[str]) -> set[str]:
    """Return the keys that S3 did not delete. (`first` is the URI that error messages name.)"""
    # Not s3fs's `rm`: it drops the list of errors, which S3 returns with status 200.
    fs, path = filesystem(first)
    keys = [{"Key": fs.split_path(filesystem(uri)[1])[1]} for uri in uris]
    response = fs.call_s3("delete_objects", Bucket=fs.split_path(path)[0], Delete={"Objects": keys, "Quiet": True})
    return {error["Key"] for error in response.get("Errors", [])}
