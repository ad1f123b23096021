"""Google's and Azure's stores on loopback, gcp-storage-emulator and Azurite: contexts that set the environment.

Azurite comes from npm: `npm install --global azurite`. Tests that need it are skipped where it is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from unittest import mock

import fsspec
import pytest

from pipeline.storage import clients, uris
from tests.support.servers import free_port, server_process

# Azurite's own account, which is the same everywhere.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
GOOGLE, AZURE = "gs", "abfs"


def environment(scheme: str, endpoint: str, key: str = KEY) -> dict[str, str]:
    """Return the environment variables that make a process use the server at `endpoint` for the URIs of `scheme`."""
    if scheme == GOOGLE:
        return {"STORAGE_EMULATOR_HOST": endpoint, "FSSPEC_GS_TOKEN": "anon", "NO_PROXY": "127.0.0.1"}
    connection = f"AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint}/{ACCOUNT};"
    connection = f"DefaultEndpointsProtocol=http;{connection}"
    return {"AZURE_STORAGE_CONNECTION_STRING": connection, "NO_PROXY": "127.0.0.1"}


@contextlib.contextmanager
def use_endpoint(scheme: str, endpoint: str, key: str = KEY) -> Iterator[str]:
    """Make this process use the server at `endpoint` for the URIs of `scheme`. Yields the endpoint."""
    file_systems = fsspec.get_filesystem_class(scheme)
    file_systems.clear_instance_cache()  # see s3.use_endpoint
    # fsspec reads FSSPEC_GS_TOKEN when it is imported.
    token = {GOOGLE: fsspec.config.conf.get(GOOGLE, {}) | {"token": "anon"}}
    with mock.patch.dict(os.environ, environment(scheme, endpoint, key)), mock.patch.dict(fsspec.config.conf, token):
        yield endpoint
    file_systems.clear_instance_cache()


@contextlib.contextmanager
def google_server() -> Iterator[str]:
    """Run gcp-storage-emulator, without any buckets. Yields the endpoint."""
    port = free_port()
    options = ("start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--quiet")
    with (
        server_process([sys.executable, "-m", "gcp_storage_emulator", *options], port),
        use_endpoint(GOOGLE, f"http://127.0.0.1:{port}") as endpoint,
    ):
        yield endpoint


@contextlib.contextmanager
def azure_server() -> Iterator[str]:
    """Run Azurite, without any containers; skip the test where it is not installed. Yields the endpoint."""
    if (program := shutil.which("azurite-blob")) is None:
        pytest.skip("needs Azurite: npm install --global azurite")
    port = free_port()
    # The client may be newer than Azurite, and ask for a version of the protocol that it does not know by name.
    options = ("--disableTelemetry", "--silent", "--inMemoryPersistence", "--skipApiVersionCheck")
    with (
        server_process([program, *options, "--blobPort", str(port)], port),
        use_endpoint(AZURE, f"http://127.0.0.1:{port}") as endpoint,
    ):
        yield endpoint


SERVERS = {GOOGLE: google_server, AZURE: azure_server}


def make_bucket(scheme: str, name: str) -> str:
    """Create a bucket or container on the server in use; return its URI."""
    uris.filesystem(f"{scheme}://{name}")[0].mkdir(name)
    return f"{scheme}://{name}"


def put_as_another_process(uri: str, data: bytes) -> None:
    """Write an object by another instance of the file system: caches of the one in use do not learn of it."""
    fs = fsspec.filesystem(uri.partition("://")[0], skip_instance_cache=True, **clients.options(""))
    fs.pipe_file(uri, data)
