"""An HTTP proxy that answers a share of the requests with faults, in front of a server of any kind of object storage.

The request goes on unchanged, `Host` included, so its signature stays valid. Which requests are disturbed follows from
the seed: the decision is a digest of the seed, the request, and how often it came before, so that it does not depend on
the order in which threads send them.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Final

from tests.support import s3

SLOW_DOWN, INTERNAL, TOO_MANY = "503 SlowDown", "500 InternalError", "429 TooManyRequests"
EXPIRED: Final = "403 ExpiredToken"
RESET, LOST, STALL, CUT, DELAY = "reset", "answer lost", "stall", "cut short", "delay"
KINDS: Final = (SLOW_DOWN, INTERNAL, TOO_MANY, RESET, LOST, STALL, CUT, DELAY)
_NO_LINGER = struct.pack("ii", 1, 0)  # closing then resets the connection


@dataclass
class FaultProxy:
    """What the proxy does, and what it has done; may be changed while it runs.

    Attributes:
        endpoint: its own address.
        choose: (method, path) -> a fault, or None.
        stall_s: how long a stalled answer stops, in seconds.
        delay_s: how long an answer is delayed, in seconds.
        requests: number of requests.
        faults: number of faults by kind.
        log: the requests, as "GET /bucket/key".
    """

    choose: Callable[[str, str], str | None] = lambda method, path: None
    endpoint: str = ""
    stall_s: float = 3.0
    delay_s: float = 0.3
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def next_fault(self, method: str, path: str) -> str | None:
        """Count a request, and choose its fault."""
        with self.lock:
            self.requests += 1
            self.log.append(f"{method} {path}")
            fault = self.choose(method, path)
            if fault is not None:
                self.faults[fault] += 1
            return fault


def seeded(seed: int, rate: float, kinds: Sequence[str] = KINDS) -> Callable[[str, str], str | None]:
    """Choose one of `kinds` for the share `rate` of all requests."""
    counts: Counter[tuple[str, str]] = Counter()

    def choose(method: str, path: str) -> str | None:
        counts[method, path] += 1
        text = f"{seed} {method} {path} {counts[method, path]}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        return kinds[int(number / rate * len(kinds))] if number < rate else None

    return choose


def with_expiry(choose: Callable[[str, str], str | None], after: int) -> Callable[[str, str], str | None]:
    """As `choose`, but the keys are accepted for the first `after` requests only."""
    numbers = iter(range(1 << 62))
    return lambda method, path: choose(method, path) if next(numbers) < after else EXPIRED


@contextlib.contextmanager
def fault_proxy(
    endpoint: str,
    choose: Callable[[str, str], str | None] | None = None,
    use: Callable[[str], contextlib.AbstractContextManager] = s3.use_endpoint,
) -> Iterator[FaultProxy]:
    """Run a proxy in front of the server at `endpoint`, and make this process use it, by default as its S3."""
    with s3.web_server(_Handler) as server:
        server.upstream = endpoint.removeprefix("http://")
        server.proxy = proxy = FaultProxy(endpoint=f"http://127.0.0.1:{server.server_port}")
        if choose is not None:
            proxy.choose = choose
        with use(proxy.endpoint):
            yield proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.next_fault(self.command, self.path)
        if fault is not None and fault[0].isdigit():
            status, code = fault.split()
            self.answer(int(status), {}, f"<Error><Code>{code}</Code><Message>a fault</Message></Error>".encode())
            return
        if fault == RESET:
            self.reset()
            return
        if fault == DELAY:
            time.sleep(proxy.delay_s)
        status, headers, data = self.upstream(body)
        if fault == LOST:  # the server has done what was asked
            self.reset()
        elif fault in (STALL, CUT) and len(data) > 1 and self.command != "HEAD":
            self.answer(status, headers, data, sent=len(data) // 2)
            if fault == STALL:
                time.sleep(proxy.stall_s)
            self.close_connection = True
        elif fault in (STALL, CUT):  # there is no body to stop in
            time.sleep(proxy.stall_s if fault == STALL else 0)
            self.reset()
        else:
            self.answer(status, headers, data)

    def upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, dict(response.getheaders()), data

    def answer(self, status: int, headers: dict[str, str], body: bytes, sent: int | None = None) -> None:
        """Answer with the first `sent` bytes of the body, whose whole length is announced."""
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        # The answer to HEAD has no body, but the length of the object.
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
            self.wfile.flush()

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.connection.close()
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

    def log_message(self, *_) -> None:
        pass
