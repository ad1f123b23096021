"""Objects by URI: list, fetch, put; and the line between an absent object and storage that cannot be reached.

Every URI that fsspec knows works; a path without a scheme is a local file. An object's absence is the data's business
(`FileNotFoundError` passes through, and becomes a row); all else that storage raises is weather: tried again with
back-off, then `StorageError`, which fails the run. An expired key must never write a million error rows.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import io
import os
import posixpath
import stat as file_modes
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from pipeline.deadline import waiting
from pipeline.errors import StorageError, UsageError

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 4  # where rights are missing: a key that has expired does not come back by itself
PATIENT_ATTEMPTS = 10  # through throttling, time-outs and dead networks: about half a minute
BACKOFF_S = 0.5  # the first wait is up to this long, and each one up to twice as long as the one before
MAX_BACKOFF_S = 8.0
CONNECTIONS = 32  # to an object store, at a time
LINES_BLOCK_BYTES = 8 * 2**20

_DELETED_AT_ONCE = 1000  # what S3 takes in one request
_S3 = ("s3", "s3a")

_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Paths that no file can have: a manifest's nonsense, not the disk's trouble.
_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP)
_HTTP_GONE = (404, 410)
# Stores that list everything below a prefix in one sweep; elsewhere directories are walked.
_FLAT = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az"})


class UnknownSchemeError(UsageError):
    """No file system goes by the URI's scheme."""


@dataclass(frozen=True)
class Object:
    """One object as a listing shows it: where, its size in bytes, and its version (size with ETag, else with mtime)."""

    uri: str
    size: int
    version: str


def _installed(*names: str) -> Iterator[type[BaseException]]:
    for name in names:
        module, _, attribute = name.rpartition(".")
        with contextlib.suppress(ImportError):
            yield getattr(importlib.import_module(module), attribute)


@functools.cache
def _weather_types() -> tuple[type[BaseException], ...]:
    """What the object stores' clients raise beside OSError, as far as they are installed."""
    names = ["aiohttp.ClientError", "botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError"]
    names += ["google.auth.exceptions.GoogleAuthError", "azure.core.exceptions.AzureError"]
    return (OSError, *_installed(*names))


@functools.cache
def _nonsense_types() -> tuple[type[BaseException], ...]:
    """What they raise for a URI that no object can have, such as `s3://my bucket/`."""
    return tuple(_installed("botocore.exceptions.ParamValidationError"))


def _is_weather(error: BaseException) -> bool:
    return isinstance(error, _weather_types()) and not _is_absence(error)


def _is_absence(error: BaseException) -> bool:
    if isinstance(error, _nonsense_types()) or (isinstance(error, OSError) and error.errno in _IMPOSSIBLE):
        return True
    return isinstance(error, _NOT_THERE) and not _is_weather_called_absence(error)


def _is_weather_called_absence(error: BaseException) -> bool:
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


def persist(where: str, call: Callable[[], T]) -> T:
    """Retry `call` through weather with random exponential back-off; raise StorageError when it does not clear.

    Absence, in whatever words of a file system, becomes FileNotFoundError.
    """
    try:
        with waiting():
            try:
                return call()
            except _weather_types() as error:
                failure = error
            return _try_again(failure, call)
    except _weather_types() as error:
        if _is_weather(error):
            told = error.__cause__ if isinstance(error, _NOT_THERE) and error.__cause__ else error
            raise StorageError(f"{where}: {type(told).__name__}: {told}") from error
        if isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(f"{where}: {error}") from error


def _try_again(failure: BaseException, call: Callable[[], T]) -> T:
    """Retry `call`, whose first attempt ended in `failure`. (The many that do not fail are spared tenacity's pains.)"""
    failures = [failure]

    def attempt() -> T:
        if failures:
            raise failures.pop()
        return call()

    retrying = Retrying(
        retry=retry_if_exception(_is_weather),
        stop=_give_up,
        wait=wait_random_exponential(multiplier=BACKOFF_S, max=MAX_BACKOFF_S),
        reraise=True,
    )
    return retrying(attempt)


def storage_call(call: Callable[P, T]) -> Callable[P, T]:
    """Make `call` persist through weather, as `persist` does."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        where = next((a for a in args if isinstance(a, str)), "storage")
        return persist(where, functools.partial(call, *args, **kwargs))

    return wrapper


def absolute(uri: str) -> str:
    """`uri` in a form that means the same on every worker, and in which listings give the objects below it.

    Raises:
        UsageError: no such scheme, or the package that serves it is not installed.
    """
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if "://" in uri:
        fs, path = filesystem(uri)
        return _uri_of(fs, path).rstrip("/") if path.strip("/") else uri
    local = Path(os.path.expanduser(uri)).absolute()  # noqa: PTH111 - Path's own raises where there is no such user
    if ".." not in local.parts:
        return str(local)
    # A `..` after a link leads out of the link's target: only resolving up to the last of them keeps the meaning.
    last = len(local.parts) - local.parts[::-1].index("..")
    return str(Path(*local.parts[:last]).resolve().joinpath(*local.parts[last:]))


def join(base: str, *names: str) -> str:
    """A URI below `base`."""
    return posixpath.join(base, *names)


def _s3_options() -> dict[str, Any]:
    # Ours is the layer that retries: botocore's five inside s3fs's five inside it make minutes of a refused connection.
    # And botocore's ten connections are fewer than the threads that ask for small objects.
    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    ours = {"retries": {"total_max_attempts": 2, "mode": "standard"}, "max_pool_connections": CONNECTIONS}
    return {"config_kwargs": ours | configured}


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri`, and its path there.

    Raises:
        UnknownSchemeError: no such scheme.
        UsageError: the package that serves it is not installed, or the URI is a chain of several.
    """
    if "://" not in uri:
        return LocalFileSystem(), uri
    scheme = uri.partition("://")[0]
    if "::" in uri:
        raise UsageError(f"cannot open {uri}: chained URIs are not supported")
    # Listings are asked afresh: a cached one hides what other workers have written since, and grows without bound.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in _S3:
        options |= _s3_options()
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        raise UsageError(f"cannot open {uri}: {error}") from error
    except (ValueError, TypeError) as error:  # not known; or one that takes more than a URI to open
        raise UnknownSchemeError(f"cannot open {uri}: {error}") from error
    if scheme in _S3:
        fs.retries = 1
    return fs, path


def _uri_of(fs: Any, path: str) -> str:
    return cast(str, fs.unstrip_protocol(path))


def _object(fs: Any, info: dict[str, Any]) -> Object:
    size = int(info.get("size") or 0)
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if tag is None:
        tag = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or ""
    return Object(_uri_of(fs, info["name"]), size, f"{size}-{str(tag).strip(chr(34))}")


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


@storage_call
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


def _children(fs: Any, path: str) -> tuple[list[str], list[Object]]:
    """Paths of the directories right below `path`, and the objects beside them."""
    directories: list[str] = []
    objects: list[Object] = []
    if isinstance(fs, LocalFileSystem):
        for name in os.listdir(path):  # noqa: PTH208 - as above
            child = posixpath.join(path, name)
            try:
                found = _local_object(child)
            except OSError as error:
                if not _is_absence(error):
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


def _below(fs: Any, path: str, inside: frozenset[str] = frozenset()) -> Iterator[Object]:
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
    directories, objects = _children(fs, path)
    yield from objects
    for directory in directories:
        yield from _below(fs, directory, inside)


def _in_order(objects: Iterable[Object]) -> list[Object]:
    return sorted(objects, key=lambda found: found.uri)


def parent_exists(uri: str) -> bool:
    """Is the directory of a local file there. Object stores have none: true."""
    return "://" in uri or Path(uri).parent.is_dir()


@storage_call
def list_objects(uri: str) -> list[Object]:
    """Every object below the directory or prefix `uri`, in the order of its path. Nothing there: an empty list."""
    fs, path = filesystem(uri)
    try:
        return _in_order(_below(fs, path))
    except (FileNotFoundError, NotADirectoryError) as error:
        if _is_weather(error):
            raise
        return []


@storage_call
def list_directory(uri: str) -> list[Object]:
    """The objects right in the directory or prefix `uri`, in the order of their names. Nothing there: an empty list."""
    fs, path = filesystem(uri)
    try:
        return _in_order(_children(fs, path)[1])
    except (FileNotFoundError, NotADirectoryError) as error:
        if _is_weather(error):
            raise
        return []


def is_glob(uri: str) -> bool:
    """Has `uri` a pattern in it. In a web address `?` begins a query, and nothing can be listed."""
    return not uri.startswith(("http://", "https://")) and any(mark in uri for mark in "*?[")


def glob_root(pattern: str) -> str:
    """The directory down to which `pattern` has no marks."""
    return pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)].rpartition("/")[0] or "/"


def glob_objects(pattern: str) -> list[Object]:
    """Every object that `pattern` (`*`, `?`, `[...]`, `**`) names, in path order; a directory is all below it."""
    return glob_and_beside(pattern)[0]


@storage_call
def glob_and_beside(pattern: str) -> tuple[list[Object], list[Object]]:
    """What `glob_objects` gives, and the other objects in the same directories, which were listed on the way."""
    fs, path = filesystem(pattern)
    root = glob_root(path)
    segments = [segment for segment in path.removeprefix(root).split("/") if segment]
    named: list[Object] = []
    beside: list[Object] = []
    try:
        for found, fits in _matches(fs, root, segments):
            (named if fits else beside).append(found)
    except (FileNotFoundError, NotADirectoryError) as error:
        if _is_weather(error):
            raise
    return _in_order(named), _in_order(beside)


def _matches(fs: Any, directory: str, segments: list[str]) -> Iterator[tuple[Object, bool]]:
    """Objects where the pattern looks, and whether it names them."""
    first, rest = segments[0], segments[1:]
    if first == "**":
        above = directory if isinstance(fs, LocalFileSystem) else _uri_of(fs, directory)
        for found in _below(fs, directory):
            yield found, _fits(found.uri.removeprefix(above).strip("/").split("/"), segments)
        return
    directories, objects = _children(fs, directory)
    if not rest:
        yield from ((found, fnmatchcase(posixpath.basename(found.uri), first)) for found in objects)
    for child in directories:
        if fnmatchcase(posixpath.basename(child.rstrip("/")), first):
            if rest:
                yield from _matches(fs, child, rest)
            else:
                yield from ((found, True) for found in _below(fs, child))


def _fits(names: list[str], segments: list[str]) -> bool:
    """Do the first of `names` fit `segments`: then the last of them is, or lies below, what the pattern names."""
    if not segments:
        return True
    if segments[0] == "**":
        return _fits(names, segments[1:]) or (bool(names) and _fits(names[1:], segments))
    return bool(names) and fnmatchcase(names[0], segments[0]) and _fits(names[1:], segments[1:])


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
        except _weather_types() as error:
            if not _is_weather(error):
                raise StorageError(f"{self._uri}: {error}") from error
        try:
            return persist(self._uri, attempt)
        except FileNotFoundError as error:
            raise StorageError(f"{self._uri} went away while it was read") from error

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
    """Is there an object, directory or prefix at `uri`, asked afresh."""
    fs, path = filesystem(uri)
    # Not fsspec's `exists`: in most of its file systems that takes a refusal for absence.
    try:
        fs.info(path)
    except _weather_types() as error:
        if not _is_absence(error):
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


@storage_call
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
        if remote and remote[0].partition("://")[0] in _S3:
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


@storage_call
def _remove(uri: str) -> None:
    fs, path = filesystem(uri)
    fs.rm_file(path)


@storage_call
def _remove_many(first: str, uris: Sequence[str]) -> set[str]:
    # s3fs's own `rm` drops the answer's list of errors, with which S3 says 200 all the same.
    fs, path = filesystem(first)
    keys = [{"Key": fs.split_path(filesystem(uri)[1])[1]} for uri in uris]
    answer = fs.call_s3("delete_objects", Bucket=fs.split_path(path)[0], Delete={"Objects": keys, "Quiet": True})
    return {error["Key"] for error in answer.get("Errors", [])}
