"""An S3 server of small objects for benchmarks: it serves a folder from memory, with a latency for each request.

rclone and moto take milliseconds of CPU for a request, which is what a benchmark on the same machine would measure.
Only what readers use: GET and HEAD of objects, with ranges, and lists of a bucket. Nothing is authenticated.

    python -m tests.support.quick_s3 PORT LATENCY_MS FOLDER

`FOLDER` holds a folder for each bucket.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.servers import free_port, server_process

LIST_KEYS = 1000
MODIFIED = "2026-01-01T00:00:00.000Z"


@contextlib.contextmanager
def quick_server(folder: Path, latency_ms: float = 0.0) -> Iterator[str]:
    """Serve the buckets below `folder`, as they are now. Yields the endpoint, which this process then uses."""
    from tests.support.s3 import use_endpoint  # loads the client, which the server's own process does not need

    port = free_port()
    command = [sys.executable, "-m", "tests.support.quick_s3", str(port), str(latency_ms), str(folder)]
    with server_process(command, port), use_endpoint(f"http://127.0.0.1:{port}") as endpoint:
        yield endpoint


class Bucket:
    """The objects of a bucket, and their keys in order."""

    def __init__(self, folder: Path) -> None:
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=str)
        contents: dict[int, bytes] = {}  # by inode: links to one file are read once
        for path in files:
            if path.stat().st_ino not in contents:
                contents[path.stat().st_ino] = path.read_bytes()
        self.objects = {str(path.relative_to(folder)): contents[path.stat().st_ino] for path in files}
        self.keys = sorted(self.objects)
        self.tags = {key: hashlib.md5(data).hexdigest() for key, data in self.objects.items()}

    def list_page(self, query: dict[str, str]) -> str:
        """A page of `ListObjectsV2`."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token", query.get("start-after", ""))
        most = min(int(query.get("max-keys", LIST_KEYS)), LIST_KEYS)
        index = max(bisect.bisect_left(self.keys, prefix), bisect.bisect_right(self.keys, after) if after else 0)
        items: list[str] = []
        last = ""
        while index < len(self.keys) and self.keys[index].startswith(prefix) and len(items) < most:
            last = key = self.keys[index]
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                common = key[: cut + 1]
                items.append(f"<CommonPrefixes><Prefix>{escape(common)}</Prefix></CommonPrefixes>")
                index = bisect.bisect_left(self.keys, common + "\U0010ffff")
                last = self.keys[index - 1]
                continue
            items.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{MODIFIED}</LastModified>"
                f"<ETag>&quot;{self.tags[key]}&quot;</ETag><Size>{len(self.objects[key])}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
            index += 1
        more = index < len(self.keys) and self.keys[index].startswith(prefix)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(items)}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}{''.join(items)}</ListBucketResult>"
        )


class Connection(asyncio.Protocol):
    """One connection of a client: requests one after the other, each answered after the latency."""

    def __init__(self, buckets: dict[str, Bucket], latency_s: float) -> None:
        self._buckets, self._latency_s = buckets, latency_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            answer = self._answer(head.decode("latin-1"))
            asyncio.get_running_loop().call_later(self._latency_s, self._send, answer)

    def _send(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)

    def _answer(self, head: str) -> bytes:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        url = urlsplit(target)
        name, _, key = unquote(url.path).lstrip("/").partition("/")
        bucket = self._buckets.get(name)
        if bucket is None or method not in ("GET", "HEAD"):
            return _answer("404 Not Found", b"<Error><Code>NoSuchBucket</Code></Error>", method)
        if not key:
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            return _answer("200 OK", bucket.list_page(query).encode(), method, "Content-Type: application/xml")
        data = bucket.objects.get(key)
        if data is None:
            return _answer("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>", method)
        tags = (f'ETag: "{bucket.tags[key]}"', "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT", "Accept-Ranges: bytes")
        if "range" not in headers:
            return _answer("200 OK", data, method, *tags)
        start, _, end = headers["range"].removeprefix("bytes=").partition("-")
        first_byte = int(start) if start else max(0, len(data) - int(end))
        last_byte = min(int(end), len(data) - 1) if start and end else len(data) - 1
        if first_byte > last_byte:
            return _answer("416 Range Not Satisfiable", b"<Error><Code>InvalidRange</Code></Error>", method)
        content_range = f"Content-Range: bytes {first_byte}-{last_byte}/{len(data)}"
        return _answer("206 Partial Content", data[first_byte : last_byte + 1], method, content_range, *tags)


def _answer(status: str, body: bytes, method: str, *headers: str) -> bytes:
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers))
    return head.encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else body)


async def _serve(port: int, latency_s: float, folder: Path) -> None:
    buckets = {path.name: Bucket(path) for path in folder.iterdir() if path.is_dir()}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(buckets, latency_s), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1000, Path(sys.argv[3])))
