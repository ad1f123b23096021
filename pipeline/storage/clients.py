"""The clients of the object stores: their options, and no retries of their own.

`pipeline.storage.retry` is the layer that retries. With the retries of a client inside it, a refused connection would
take minutes to report: botocore makes five attempts inside s3fs's five, gcsfs six in half a minute, and Azure's client
four in a minute.
"""

from __future__ import annotations

import os
from types import MethodType
from typing import Any

import fsspec

MAX_CONNECTIONS = 32  # to an object store, at the same time
IDLE_S = 30.0  # after which a request that receives nothing fails; s3fs has 15 s, and Azure's client 60 s
S3_SCHEMES = ("s3", "s3a")
GOOGLE_SCHEMES = ("gs", "gcs")
AZURE_SCHEMES = ("abfs", "abfss", "az")
HTTP_SCHEMES = ("http", "https")
HUB_SCHEME = "hf"
# Schemes by which one store has two names.
SAME_SCHEMES = {
    **dict.fromkeys(S3_SCHEMES, "s3"),
    **dict.fromkeys(GOOGLE_SCHEMES, "gs"),
    **dict.fromkeys(AZURE_SCHEMES, "abfs"),
    "https": "http",
}
_AZURE_HOST = "dfs.core.windows.net"

# gcsfs reads it when it is imported. By default it asks over gRPC, before its first request to a bucket, whether the
# bucket is zonal, and where gRPC does not get through it waits for a minute at each request. Users of zonal buckets set
# it to true.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def options(scheme: str) -> dict[str, Any]:
    """Return the options of the file system that serves `scheme`."""
    # No cache of listings: it would hide what other workers have written since, and it grows without bound.
    chosen: dict[str, Any] = {"use_listings_cache": False}
    if scheme in S3_SCHEMES:
        # botocore's ten connections are fewer than the threads that fetch small objects.
        defaults = {"retries": {"total_max_attempts": 2, "mode": "standard"}, "max_pool_connections": MAX_CONNECTIONS}
        chosen["config_kwargs"] = defaults | _configured("s3", "config_kwargs", {})
    elif scheme in GOOGLE_SCHEMES:
        chosen["requests_timeout"] = _configured(scheme, "requests_timeout", _idle_timeout())  # gcsfs has none
    elif scheme in HTTP_SCHEMES:
        # aiohttp has five minutes for a whole answer, however long it is.
        chosen["client_kwargs"] = {"timeout": _idle_timeout()} | _configured(scheme, "client_kwargs", {})
    return chosen


def _configured(scheme: str, option: str, default: Any) -> Any:
    """Return what the user's configuration of fsspec has for an option; an option that is given here hides it."""
    return fsspec.config.conf.get(scheme, {}).get(option, default)


def _idle_timeout() -> Any:
    import aiohttp  # noqa: PLC0415 - takes a while, and only some clients use it

    return aiohttp.ClientTimeout(total=None, sock_connect=IDLE_S, sock_read=IDLE_S)


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system of `uri`, which does not retry, and the path of `uri` in it."""
    scheme = uri.partition("://")[0]
    if scheme == HUB_SCHEME:
        from pipeline.storage.hub import HubFileSystem  # noqa: PLC0415 - only the hub needs it

        fs = HubFileSystem(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)
        return fs, fs._strip_protocol(uri)
    if scheme in GOOGLE_SCHEMES:
        # Not `url_to_fs`: it takes `#1` at the end of a name for the version of an object, and drops it.
        fs = fsspec.filesystem(scheme, **options(scheme))
        path = fs._strip_protocol(uri)
    else:
        fs, path = fsspec.core.url_to_fs(uri, **options(scheme))
    if scheme in S3_SCHEMES:
        fs.retries = 1
    elif scheme in GOOGLE_SCHEMES:
        fs._request = MethodType(getattr(type(fs)._request, "__wrapped__", type(fs)._request), fs)
    elif scheme in AZURE_SCHEMES:
        fs.service_client._config.retry_policy.total_retries = 0
    return fs, path


def account_of(fs: Any) -> str | None:
    """Return the host of the storage account that a URI of Azure named, as in `abfss://container@HOST/path`."""
    if "abfs" not in fs.protocol or "account_name" not in fs.storage_options:
        return None
    return f"{fs.storage_options['account_name']}.{_AZURE_HOST}"
