"""URIs: absolute forms, joins, and the fsspec file system behind each."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UsageError

CONNECTIONS = 32  # to an object store, at a time
S3_SCHEMES = ("s3", "s3a")


class UnknownSchemeError(UsageError):
    """No file system goes by the URI's scheme."""


def absolute(uri: str) -> str:
    """`uri` in a form that means the same on every worker, and in which listings give the objects below it.

    Raises:
        UsageError: no such scheme, or the package that serves it is not installed.
    """
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if "://" in uri:
        fs, path = filesystem(uri)
        return uri_of(fs, path).rstrip("/") if path.strip("/") else uri
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
    if scheme in S3_SCHEMES:
        options |= _s3_options()
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        raise UsageError(f"cannot open {uri}: {error}") from error
    except (ValueError, TypeError) as error:  # not known; or one that takes more than a URI to open
        raise UnknownSchemeError(f"cannot open {uri}: {error}") from error
    if scheme in S3_SCHEMES:
        fs.retries = 1
    return fs, path


def uri_of(fs: Any, path: str) -> str:
    return cast(str, fs.unstrip_protocol(path))


def parent_exists(uri: str) -> bool:
    """Is the directory of a local file there. Object stores have none: true."""
    return "://" in uri or Path(uri).parent.is_dir()
