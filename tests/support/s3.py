"""S3 on loopback: two real servers, and one that refuses everything. Each is a context that sets the environment."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import s3fs

KEY = "AKIATESTTESTTESTTEST"  # rclone answers INVALID_ACCESS_KEY_ID to one that is not of AWS's length
SECRET = "secretsecretsecretsecretsecretsecretsecr"
START_DEADLINE_S = 20


def environment(endpoint: str) -> dict[str, str]:
    """What a process needs to find the server at `endpoint`; also for processes of your own."""
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
def at(endpoint: str) -> Iterator[str]:
    """This process's S3 is the server at `endpoint`."""
    # fsspec keeps file systems by their arguments, and the environment is none of them: it would keep the last server.
    s3fs.S3FileSystem.clear_instance_cache()
    with mock.patch.dict(os.environ, environment(endpoint)):
        yield endpoint
    s3fs.S3FileSystem.clear_instance_cache()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def rclone_server(directory: Path) -> Iterator[str]:
    """`rclone serve s3`: a folder of `directory` is a bucket. Gives the endpoint.

    It keeps listings for minutes, and sees only its own changes: put files into `directory` before it starts. (With
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
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        with at(f"http://127.0.0.1:{port}") as endpoint:
            yield endpoint
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"no server on port {port}: exit status {process.poll()}")


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Moto's S3, empty. Gives the endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with at(f"http://{host}:{port}") as endpoint:
            # moto keeps its buckets in the process, for every server that comes and goes.
            urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b"").close()
            yield endpoint
    finally:
        server.stop()


def make_bucket(name: str) -> str:
    """A new bucket on the server at hand; gives its URI."""
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


def client() -> Any:
    """boto3's client of the server at hand, for what the project itself does not do."""
    import boto3

    return boto3.client("s3")


class ForbiddenHandler(BaseHTTPRequestHandler):
    """403 to everything, as S3 answers an expired key; counts the requests on its server."""

    status, code = 403, "AccessDenied"
    protocol_version = "HTTP/1.1"  # else it sends no `100 Continue`, for which S3 clients wait before they upload

    def refuse(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        body = f"<Error><Code>{self.code}</Code><Message>Access Denied</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def forbidden_server() -> Iterator[list[str]]:
    """A server that answers 403 to everything. Gives the list of the requests that it has had."""
    with web_server(ForbiddenHandler) as server, at(f"http://127.0.0.1:{server.server_port}"):
        yield server.requests


@contextlib.contextmanager
def web_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """An HTTP server on a free port; `requests` is a list for the handler's use."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # clients that hang up
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
