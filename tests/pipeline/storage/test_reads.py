"""Reads of one version of an object: never a mixture of two, on every kind of storage."""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler

import pytest

from pipeline.errors import InputChangedError
from pipeline.storage import objects, reads, uris
from tests.pipeline.storage.test_objects import write_as_another_process
from tests.support import fault_proxy, s3

OLD, NEW = b"o" * 30_000, b"n" * 30_000


@pytest.fixture
def small_blocks(store, base, monkeypatch):
    """Open files fetch a thousand bytes more than was asked for."""
    if store != "local":
        monkeypatch.setattr(uris.filesystem(base)[0], "default_block_size", 1000, raising=False)


def test_a_version_is_read_whole_and_by_range_and_no_other_is(base):
    uri = f"{base}/a"
    objects.put(uri, OLD)
    (listed,) = objects.list_objects(base)
    assert objects.fetch(uri, version=listed.version) == OLD
    assert objects.fetch(uri, 5, 10, listed.version) == OLD[5:10]
    with objects.open_read(uri, listed.version) as file:
        assert file.read() == OLD
    write_as_another_process(uri, NEW)
    for read in (
        lambda: objects.fetch(uri, version=listed.version),
        lambda: objects.fetch(uri, 5, 10, listed.version),
        lambda: objects.open_read(uri, listed.version),
    ):
        with pytest.raises(InputChangedError, match=r"a has changed since it was listed"):
            read()
    assert objects.fetch(uri) == NEW


@pytest.mark.parametrize("change", ["replaced", "shorter", "deleted"])
def test_a_file_whose_object_changes_between_two_reads_is_no_mixture(small_blocks, base, change, waits):
    uri = f"{base}/a"
    objects.put(uri, OLD)
    with objects.open_read(uri) as file:
        assert file.read(100) == OLD[:100]
        if change != "deleted":
            write_as_another_process(uri, NEW if change == "replaced" else b"short")
        else:
            objects.delete([uri])
        if change == "deleted" and "://" not in base:
            assert file.read() == OLD[100:]  # an open local file stays what it was
            return
        with pytest.raises(InputChangedError, match=r"has changed|was deleted"):
            file.read()
    assert waits.retry == []


@pytest.mark.parametrize("server", ["rclone", "moto"])
def test_a_large_object_of_s3_is_fetched_in_one_request(servers, server, tmp_path):
    with fault_proxy.fault_proxy(servers[server]) as proxy:
        uri, data = f"s3://bucket/{tmp_path.name}/large", os.urandom(1 << 20) * 60  # s3fs divides it
        objects.put(uri, data)
        proxy.log.clear()
        assert objects.fetch(uri) == data
        assert [line.split()[0] for line in proxy.log] == ["GET"]


class Growing(BaseHTTPRequestHandler):
    """A web server that serves ranges of its server's `content`, whose ETag is its first letter."""

    def do_GET(self):
        content = self.server.content
        asked = self.headers.get("Range")
        start, end = (int(n) for n in asked.removeprefix("bytes=").split("-")) if asked else (0, len(content) - 1)
        part = content[start : end + 1]
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{content[:1].decode()}"')
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_an_object_on_the_web_that_changes_between_two_reads_is_no_mixture(waits):
    old, new = b"o" * 12_000_000, b"n" * 12_000_000  # blocks have five megabytes
    with s3.web_server(Growing) as server:
        server.content = old
        uri = f"http://127.0.0.1:{server.server_port}/a"
        planned = objects.stat(uri).version
        assert objects.fetch(uri, version=planned) == old
        with objects.open_read(uri, planned) as file:
            assert file.read(100) == old[:100]
            server.content = new
            with pytest.raises(InputChangedError):
                file.read()
        with pytest.raises(InputChangedError):
            objects.fetch(uri, version=planned)
        assert objects.fetch(uri) == new


def test_the_deadline_of_a_read_grows_with_its_bytes():
    assert reads.deadline_s(0) == reads.START_S
    assert reads.deadline_s(256 * 2**20) == reads.deadline_s(None) == reads.START_S + 1024
    assert reads.size_of("123-etag-4") == 123
    assert reads.size_of(objects.ABSENT) == 0
