"""Objects by URI: list, fetch, put; and the line between an object that is not there and storage that cannot be reached.

Every URI that fsspec knows works; a path without a scheme is a local file. An object's absence is the data's business
(`FileNotFoundError` passes through, and becomes a row); all else that storage raises is weather: tried again with
back-off, then `StorageError`, which fails the run. An expired key must never write a million error rows.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.errors import StorageError, UsageError

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 4
MAX_BACKOFF_S = 8.0
LINES_BLOCK_BYTES = 8 * 2**20

_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Object:
    """One object as a listing shows it: where, how large (bytes), and which version of it (ETag, else size and mtime)."""

    uri: str
    size: int
    version: str


@functools.cache
def _weather_types() -> tuple[type[BaseException], ...]:
    """What the object stores' clients raise beside OSError, as far as they are installed."""
    names = ["aiohttp.ClientError", "botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError"]
    names += ["google.auth.exceptions.GoogleAuthError", "azure.core.exceptions.AzureError"]
    types: list[type[BaseException]] = [OSError]
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            types.append(getattr(importlib.import_module(module), attribute))
        except ImportError:
            continue
    return tuple(types)


def _is_weather(error: BaseException) -> bool:
    return isinstance(error, _weather_types()) and not isinstance(error, _NOT_THERE)


def storage_call(call: Callable[P, T]) -> Callable[P, T]:
    """Retry `call` through weather with random exponential back-off; raise StorageError when it does not clear."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        retrying = Retrying(
            retry=retry_if_exception(_is_weather),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.2, max=MAX_BACKOFF_S),
            reraise=True,
        )
        try:
            return retrying(call, *args, **kwargs)
        except (*_weather_types(),) as error:
            if not _is_weather(error):
                raise
            where = next((str(a) for a in args if isinstance(a, str)), "storage")
            raise StorageError(f"{where}: {type(error).__name__}: {error}") from error

    return wrapper


def absolute(uri: str) -> str:
    """`uri` in a form that means the same on every worker: a local path made absolute, `file://` taken off."""
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if "://" in uri:
        return uri.rstrip("/")
    return str(Path(uri).expanduser().absolute())


def join(base: str, *names: str) -> str:
    """A URI below `base`."""
    return posixpath.join(base, *names)


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri`, and its path there.

    Raises:
        UsageError: no such scheme, or the package that serves it is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise UsageError(f"cannot open {uri}: {error}") from error
    return fs, path


def _uri_of(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)


def _object(fs: Any, info: dict[str, Any]) -> Object:
    size = int(info.get("size") or 0)
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if tag is None:
        tag = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or ""
    return Object(_uri_of(fs, info["name"]), size, f"{size}-{str(tag).strip(chr(34))}")


@storage_call
def stat(uri: str) -> Object | None:
    """The object at `uri`, or None where it names a directory or prefix.

    Raises:
        FileNotFoundError: there is nothing at `uri`.
    """
    fs, path = filesystem(uri)
    info = fs.info(path, refresh=True) if "s3" in fs.protocol else fs.info(path)
    return None if info["type"] == "directory" else _object(fs, info)


@storage_call
def list_objects(uri: str) -> list[Object]:
    """Every object below the directory or prefix `uri`, in the order of its path. Nothing there: an empty list."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    found = fs.find(path, detail=True)
    return [_object(fs, found[name]) for name in sorted(found)]


@storage_call
def glob_objects(pattern: str) -> list[Object]:
    """Every object that `pattern` (`*`, `?`, `[...]`, `**`) names, in the order of its path; directories stand for what is below."""
    fs, path = filesystem(pattern)
    fs.invalidate_cache()
    found: dict[str, dict[str, Any]] = {}
    for name, info in fs.glob(path, detail=True).items():
        if info["type"] == "directory":
            found.update(fs.find(name, detail=True))
        else:
            found[name] = info
    return [_object(fs, found[name]) for name in sorted(found)]


@storage_call
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
    """A file whose weather reaches us as StorageError: tarfile, Arrow and libsndfile take an OSError for broken data."""

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
        try:
            return self._file.read(size)
        except _weather_types() as error:
            raise StorageError(f"{self._uri}: {type(error).__name__}: {error}") from error

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@storage_call
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


@storage_call
def exists(uri: str) -> bool:
    """Is there an object at `uri`, asked afresh."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


@storage_call
def put(uri: str, data: bytes) -> None:
    """Write an object whole or not at all: under a temporary name, synced and renamed; or by one PUT.

    A reader sees the old object or the new one, never a part: POSIX rename is atomic, and so is a PUT on every object store.
    The directory is synced too, so that a commit which is written after this returns cannot outlive, in a power cut, the
    data that it names.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@storage_call
def delete(uris: list[str]) -> None:
    """Remove objects; one that is gone already is no error."""
    for uri in uris:
        fs, path = filesystem(uri)
        if fs.exists(path):
            fs.rm_file(path)
