"""S3 servers on loopback: rclone, moto, and one that refuses access. Each is a context that sets the environment."""

from __future__ import annotations

import contextlib
import logging
import os
import sysconfig
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import s3fs

from tests.support.servers import free_port, server_process

KEY = "AKIATESTTESTTESTTEST"  # rclone refuses keys that do not have AWS's length
SECRET = "secretsecretsecretsecretsecretsecretsecr"


def environment(endpoint: str) -> dict[str, str]:
    """Return the environment variables that make a process use the server at `endpoint`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "NO_PROXY": "127.0.0.1",
    }


@contextlib.contextmanager
def use_endpoint(endpoint: str) -> Iterator[str]:
    """Make this process use the server at `endpoint` as its S3. Yields the endpoint."""
    # fsspec caches file systems by their arguments, which do not include the environment: without clearing the cache
    # the previous server would stay in use.
    s3fs.S3FileSystem.clear_instance_cache()
    with mock.patch.dict(os.environ, environment(endpoint)):
        yield endpoint
    s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def rclone_server(directory: Path) -> Iterator[str]:
    """Run `rclone serve s3`: each folder of `directory` is a bucket. Yields the endpoint.

    It caches listings for minutes and sees only its own changes: put files into `directory` before it starts. (With
    `--dir-cache-time=0s` uploads take seconds each, and some hang.)
    """
    port = free_port()
    command = [
        str(Path(sysconfig.get_path("scripts")) / "rclone"),
        "serve",
        "s3",
        str(directory),
        f"--addr=127.0.0.1:{port}",
        f"--auth-key={KEY},{SECRET}",
        "--config=/dev/null",
    ]
    with server_process(command, port), use_endpoint(f"http://127.0.0.1:{port}") as endpoint:
        yield endpoint


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Run moto's S3 server, without any buckets. Yields the endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with use_endpoint(f"http://{host}:{port}") as endpoint:
            # moto's buckets belong to the process: a new server still has those of the last one.
            urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b"").close()
            yield endpoint
    finally:
        server.stop()


def make_bucket(name: str) -> str:
    """Create a bucket on the server in use; return its URI."""
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


def client() -> Any:
    """Return a boto3 client of the server in use, for operations that the project itself does not have."""
    import boto3

    return boto3.client("s3")


class ForbiddenHandler(BaseHTTPRequestHandler):
    """Answers every request with 403, as S3 does to an expired key, and appends it to its server's `requests`."""

    status, code = 403, "AccessDenied"
    protocol_version = "HTTP/1.1"  # 1.0 sends no `100 Continue`, for which S3 clients wait before they upload

    def refuse(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        body = f"<Error><Code>{self.code}</Code><Message>Access Denied</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def forbidden_server() -> Iterator[list[str]]:
    """Run a server that answers every request with 403. Yields the list of requests received so far."""
    with web_server(ForbiddenHandler) as server, use_endpoint(f"http://127.0.0.1:{server.server_port}"):
        yield server.requests


@contextlib.contextmanager
def web_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """Run an HTTP server on a free port. Yields it; its `requests` is an empty list for the handler's use."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # of clients that hang up
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
