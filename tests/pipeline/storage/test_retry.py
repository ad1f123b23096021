"""Which errors are retried and for how long; what is reported at once. Waits are recorded and not waited."""

from __future__ import annotations

import io
import socket
from http.server import BaseHTTPRequestHandler

import pytest
from gcsfs.retry import HttpError

from pipeline.errors import StorageError
from pipeline.storage import globs, objects, retry
from tests.support import clouds, s3

READS = {
    "stat": objects.stat,
    "list_objects": objects.list_objects,
    "list_directory": objects.list_directory,
    "expand_glob": lambda uri: globs.expand_glob(f"{uri}/*/x.wav"),
    "expand_glob, deep": lambda uri: globs.expand_glob(f"{uri}/**/x.wav"),
    "fetch": objects.fetch,
    "open_read": objects.open_read,
    "lines": lambda uri: list(objects.lines(uri)),
    "exists": objects.exists,
}
WRITES = {
    "put": lambda uri: objects.put(uri, b"data"),
    "delete": lambda uri: objects.delete([uri]),
}


def assert_waits(waits, attempts, calls=1):
    """Check the waits of calls that failed `attempts` times: random, up to a bound that doubles after each attempt."""
    bounds = calls * [min(retry.MAX_BACKOFF_S, retry.BACKOFF_S * 2**n) for n in range(attempts - 1)]
    assert len(waits.retry) == len(bounds)
    assert all(0 <= wait <= bound for wait, bound in zip(waits.retry, bounds, strict=True))


def test_a_missing_object_is_reported_without_a_retry(base, waits):
    for name in ("stat", "fetch", "open_read", "lines"):
        with pytest.raises(FileNotFoundError):
            READS[name](f"{base}/none.wav")
    assert waits == ([], [])


def test_an_object_missing_over_http_is_reported_without_a_retry(waits):
    class NotFoundHandler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with s3.web_server(NotFoundHandler) as server:
        uri = f"http://127.0.0.1:{server.server_port}/a.wav"
        for name in ("stat", "fetch", "open_read"):
            with pytest.raises(FileNotFoundError):
                READS[name](uri)
        assert not objects.exists(uri)
    assert waits == ([], [])


@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_refused_access_is_a_storage_error_after_few_attempts(name, waits):
    with s3.forbidden_server() as requests:
        with pytest.raises(StorageError, match=r"s3://bucket/dir.*PermissionError"):
            (READS | WRITES)[name]("s3://bucket/dir")
        assert retry.REFUSED_ATTEMPTS <= len(requests) <= 2 * retry.REFUSED_ATTEMPTS
    assert_waits(waits, retry.REFUSED_ATTEMPTS, calls=2 if name == "delete" else 1)  # in a batch, then singly
    assert waits.client == []


@pytest.mark.parametrize("name", ["stat", "fetch", "open_read", "exists"])
def test_refused_access_over_http_is_a_storage_error(name, waits):
    with s3.web_server(s3.ForbiddenHandler) as server, pytest.raises(StorageError, match="403") as error:
        READS[name](f"http://127.0.0.1:{server.server_port}/a.wav")
    assert retry.is_refused(error.value.__cause__)
    assert 0 < len(waits.retry) < retry.REFUSED_ATTEMPTS


class SlowDownHandler(s3.ForbiddenHandler):
    status, code = 503, "SlowDown"


@pytest.mark.parametrize("name", ["stat", "list_objects", "put"])
def test_throttling_is_retried_by_one_layer_and_not_by_nested_ones(name, waits):
    with s3.web_server(SlowDownHandler) as server, s3.use_endpoint(f"http://127.0.0.1:{server.server_port}"):
        with pytest.raises(StorageError, match="s3://bucket/dir"):
            (READS | WRITES)[name]("s3://bucket/dir")
        assert retry.MAX_ATTEMPTS <= len(server.requests) <= 2 * retry.MAX_ATTEMPTS
    assert_waits(waits, retry.MAX_ATTEMPTS)
    assert len(waits.client) <= retry.MAX_ATTEMPTS
    assert all(wait <= 1 for wait in waits.client)


@pytest.fixture(params=[clouds.GOOGLE, clouds.AZURE])
def scheme(request):
    return request.param


@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_access_that_a_cloud_refuses_is_a_storage_error_after_few_attempts(name, scheme, waits):
    with s3.web_server(s3.ForbiddenHandler) as server:
        with (
            clouds.use_endpoint(scheme, f"http://127.0.0.1:{server.server_port}"),
            pytest.raises(StorageError, match=rf"{scheme}://bucket/dir.*check the credentials") as error,
        ):
            (READS | WRITES)[name](f"{scheme}://bucket/dir")
        # gcsfs looks for an object and then, in two requests, for a directory of this name.
        assert retry.REFUSED_ATTEMPTS <= len(server.requests) <= 3 * retry.REFUSED_ATTEMPTS
    assert clouds.KEY not in str(error.value)
    assert_waits(waits, retry.REFUSED_ATTEMPTS)


@pytest.mark.parametrize("name", ["stat", "list_objects", "put"])
def test_throttling_by_a_cloud_is_retried_by_one_layer(name, scheme, waits):
    with s3.web_server(SlowDownHandler) as server:
        with (
            clouds.use_endpoint(scheme, f"http://127.0.0.1:{server.server_port}"),
            pytest.raises(StorageError, match=f"{scheme}://bucket/dir"),
        ):
            (READS | WRITES)[name](f"{scheme}://bucket/dir")
        assert retry.MAX_ATTEMPTS <= len(server.requests) <= 3 * retry.MAX_ATTEMPTS
    assert_waits(waits, retry.MAX_ATTEMPTS)


def test_a_cloud_that_refuses_connections_is_a_storage_error_after_bounded_waits(scheme, waits):
    with (
        clouds.use_endpoint(scheme, f"http://127.0.0.1:{s3.free_port()}"),
        pytest.raises(StorageError, match=rf"{scheme}://bucket/a\.wav: "),
    ):
        objects.stat(f"{scheme}://bucket/a.wav")
    assert_waits(waits, retry.MAX_ATTEMPTS)


def test_a_cloud_whose_name_is_unknown_is_a_storage_error(scheme, waits, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with (
        clouds.use_endpoint(scheme, "http://nowhere.invalid"),
        pytest.raises(StorageError, match=r"nowhere\.invalid.*not known"),
    ):
        objects.stat(f"{scheme}://bucket/a.wav")
    assert_waits(waits, retry.MAX_ATTEMPTS)


def test_a_name_that_no_bucket_of_google_can_have_is_missing():
    assert retry.is_missing(HttpError({"code": 400, "message": "Invalid bucket name: 'my bucket!'"}))
    assert retry.is_transient(HttpError({"code": 400, "message": "Bad request"}))


@pytest.mark.parametrize("uri", ["s3://bucket/a.wav", "http://127.0.0.1:{port}/a.wav"])
def test_a_refused_connection_is_a_storage_error_after_bounded_waits(uri, waits):
    port = s3.free_port()
    with s3.use_endpoint(f"http://127.0.0.1:{port}"), pytest.raises(StorageError, match=r"a\.wav"):
        objects.stat(uri.format(port=port))
    assert_waits(waits, retry.MAX_ATTEMPTS)
    assert len(waits.client) <= retry.MAX_ATTEMPTS
    assert all(wait <= 1 for wait in waits.client)


@pytest.mark.parametrize(
    ("error", "attempts", "longest_s"),
    [(PermissionError("key expired"), retry.REFUSED_ATTEMPTS, 5), (TimeoutError("slow"), retry.MAX_ATTEMPTS, 60)],
)
def test_the_waits_between_all_attempts_are_bounded(error, attempts, longest_s, waits):
    calls = []

    @retry.retried
    def always_fails(uri):
        calls.append(uri)
        raise error

    with pytest.raises(StorageError, match="s3://x/y"):
        always_fails("s3://x/y")
    assert len(calls) == attempts
    assert_waits(waits, attempts)
    assert sum(min(retry.MAX_BACKOFF_S, retry.BACKOFF_S * 2**n) for n in range(attempts - 1)) <= longest_s


def test_a_transient_error_is_retried_until_the_call_succeeds(waits):
    calls = []

    @retry.retried
    def third_attempt_succeeds(uri):
        calls.append(uri)
        if len(calls) < 3:
            raise ConnectionResetError("reset")
        return "content"

    assert third_attempt_succeeds("s3://x/y") == "content"
    assert len(calls) == 3
    assert_waits(waits, 3)


def test_a_programming_error_is_raised_unchanged_and_not_retried(waits):
    calls = []

    @retry.retried
    def buggy(uri):
        calls.append(uri)
        raise KeyError("bug")

    with pytest.raises(KeyError):
        buggy("s3://x/y")
    assert len(calls) == 1
    assert waits == ([], [])


class FlakyFile(io.BytesIO):
    """Raises `error` at the reads whose numbers, from 1, are in `fail_at`."""

    def __init__(self, data, fail_at, error):
        super().__init__(data)
        self.reads, self.fail_at, self.error = 0, fail_at, error

    def read(self, size=-1):
        self.reads += 1
        if self.reads in self.fail_at:
            super().read(size)  # part of it was consumed
            raise self.error
        return super().read(size)


def test_a_failed_read_is_retried_from_the_position_where_it_began(waits):
    file = objects.RetryingFile(FlakyFile(b"0123456789", {2, 3}, TimeoutError("time-out")), "s3://b/k")
    assert file.read(4) + file.read(4) + file.read(4) == b"0123456789"


@pytest.mark.parametrize("error", [TimeoutError("time-out"), FileNotFoundError("deleted"), PermissionError("expired")])
def test_a_read_that_keeps_failing_is_a_storage_error_and_not_the_end_of_the_file(error, waits):
    file = objects.RetryingFile(FlakyFile(b"0123456789", range(2, 100), error), "s3://b/k")
    assert file.read(4) == b"0123"
    with pytest.raises(StorageError, match="s3://b/k"):
        file.read(4)


def test_errors_are_one_line_without_secrets(waits):
    @retry.retried
    def refused(uri):
        raise PermissionError("no /tokeninfo?access_token=ya29.secret&x=1\nAttempted credentials:\n\tnone of 8")

    with pytest.raises(StorageError) as error:
        refused("gs://bucket/a")
    assert str(error.value).startswith("gs://bucket/a: PermissionError: no /tokeninfo?access_token=...&x=1 (access")
