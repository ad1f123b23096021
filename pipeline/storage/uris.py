"""URIs: absolute forms, joins, and the fsspec file system behind each. A path without a scheme is a local file."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any, cast

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UsageError
from pipeline.storage import clients
from pipeline.storage.retry import with_retries

_ESCAPED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


# File systems of fsspec that need another, or the data itself, where a URI has a name.
_WRAPPERS = frozenset(
    {
        *("async_wrapper", "asyncwrapper", "asynclocal", "blockcache", "cached", "data", "dir", "filecache", "generic"),
        *("libarchive", "reference", "simplecache", "tar", "zip"),
    }
)
_NO_JAVA = re.compile(r"libjvm|libhdfs")  # how Arrow reports that it did not find these libraries


class UnknownSchemeError(UsageError):
    """No file system serves the URI's scheme."""


class ImpossibleNameError(UsageError):
    """No file or object can have the name."""


def absolute(uri: str) -> str:
    """Return `uri` in a form that means the same on every worker, and that prefixes the URIs of a listing below it.

    Raises:
        UnknownSchemeError: the scheme is unknown.
        ImpossibleNameError: it has a zero byte.
        UsageError: the package that serves it is not installed.
    """
    if "\0" in uri:
        raise ImpossibleNameError(f"cannot open {uri!r}: a name with a zero byte")
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    uri = escaped(uri)
    if "://" in uri:
        fs, path = filesystem(uri)
        return uri_of(fs, path).rstrip("/") if path.strip("/") else uri
    local = Path(os.path.expanduser(uri)).absolute()  # noqa: PTH111 - Path.expanduser raises for an unknown user
    if ".." not in local.parts:
        return str(local)
    # `..` after a link is the parent of the link's target: only resolving up to the last `..` keeps the meaning.
    last = len(local.parts) - local.parts[::-1].index("..")
    return str(Path(*local.parts[:last]).resolve().joinpath(*local.parts[last:]))


def join(base: str, *names: str) -> str:
    """Return the URI of `names` below `base`."""
    return posixpath.join(base, *names)


def escaped(path: str) -> str:
    """Return `path` with each byte that is not UTF-8 as `\\xhh`: Arrow and JSON hold UTF-8 only.

    `filesystem` finds the file again, and members of tar archives are escaped in the same way.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode(errors="surrogateescape" if _is_file_name(path) else "backslashreplace").decode(
            errors="backslashreplace"
        )
    return path


def _is_file_name(path: str) -> bool:
    """Return whether every surrogate of `path` stands for a byte, as `os.fsdecode` writes them."""
    return all(not 0xD800 <= ord(c) <= 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF for c in path)


def _unescaped(path: str) -> str:
    """Return the name of the local file whose escaped name is `path`."""
    if "\\x" not in path or os.path.lexists(path):
        return path
    raw = _ESCAPED_BYTE.sub(lambda match: bytes([int(match[1], 16)]), path.encode())
    return os.fsdecode(raw)


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system of `uri`, and the path of `uri` in it.

    Raises:
        FileNotFoundError: it has a zero byte, which no name can have.
        UnknownSchemeError: no file system serves the scheme, or the URI is a chain of several.
        UsageError: the package that serves it is not installed.
    """
    if "\0" in uri:
        raise FileNotFoundError(f"a name with a zero byte: {uri!r}")
    if "://" not in uri:
        return LocalFileSystem(), _unescaped(uri)
    if "::" in uri:
        raise UnknownSchemeError(f"cannot open {uri}: chained URIs are not supported")
    if (scheme := uri.partition("://")[0].lower()) in _WRAPPERS:
        raise UnknownSchemeError(f"cannot open {uri}: {scheme}:// names no storage")
    try:
        # Some file systems connect to their server here.
        return with_retries(uri, lambda: _open(uri))
    except FileNotFoundError as error:
        raise UsageError(f"cannot open {uri}: {error}") from error
    except ImportError as error:
        raise UsageError(f"cannot open {uri}: {error}") from error
    # An unknown scheme; one that needs more than a URI to open; or one that adlfs has given up.
    except (ValueError, TypeError, AttributeError) as error:
        raise UnknownSchemeError(f"cannot open {uri}: {error}") from error


def _open(uri: str) -> tuple[Any, str]:
    try:
        return clients.open_filesystem(uri)
    except OSError as error:
        if _NO_JAVA.search(str(error)):
            raise UsageError(
                f"cannot open {uri}: Hadoop's client needs Java and Hadoop's libraries: set JAVA_HOME, HADOOP_HOME and "
                "CLASSPATH, or use WebHDFS (webhdfs://)"
            ) from error
        raise


def uri_of(fs: Any, path: str) -> str:
    """Return the URI of a path in an fsspec file system."""
    uri = cast(str, fs.unstrip_protocol(path))
    if (account := clients.account_of(fs)) is None:
        return uri
    scheme, _, rest = uri.partition("://")
    container, slash, name = rest.partition("/")
    return f"{scheme}://{container}@{account}{slash}{name}"


def store_of(uri: str) -> str:
    """Return what holds an object: `s3://bucket`, a host, the repository of a hub; empty for a local file.

    Two names of one scheme, as `s3a` and `s3`, and the two of the web, are one.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return ""
    names = rest.split("/")
    if scheme == "hf":  # hf://datasets/OWNER/NAME@REVISION/path
        return f"hf://{'/'.join(names[:3]).partition('@')[0]}"
    scheme = clients.SAME_SCHEMES.get(scheme.lower(), scheme.lower())
    container, at, host = names[0].lower().partition("@")
    if scheme == "abfs":
        account = host.partition(".")[0] or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "").lower()
        return f"abfs://{container}@{account}" if account else f"abfs://{container}"
    return f"{scheme}://{container}{at}{host}"


def parent_exists(uri: str) -> bool:
    """Return whether the directory of a local file exists. Object stores have no directories: always True there."""
    return "://" in uri or Path(_unescaped(uri)).parent.is_dir()


def local_size(uri: str) -> int:
    """Return the size of a local file in bytes; 0 where there is none."""
    path = Path(_unescaped(uri))
    return path.stat().st_size if path.exists() else 0


def is_irregular(uri: str) -> bool:
    """Return whether a local file has this name that cannot be read: a dangling link, a pipe, a device, a socket."""
    return "://" not in uri and os.path.lexists(path := _unescaped(uri)) and not Path(path).is_file()
