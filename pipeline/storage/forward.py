"""Reading an object forwards by ranged requests: what is skipped is not fetched, what is read is fetched ahead."""

from __future__ import annotations

import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from pipeline.storage import objects

FIRST_BYTES = 64 * 2**10
BLOCK_BYTES = 8 * 2**20
SKIP_BYTES = 2 * BLOCK_BYTES  # from here on a request is worth more than the bytes that it saves
BLOCKS_AHEAD = 8


class _Block(NamedTuple):
    start: int
    end: int
    data: Future[bytes]


class ForwardReader(io.RawIOBase):
    """The bytes of an object as a file that is read forwards.

    Requests grow from `FIRST_BYTES` to `BLOCK_BYTES` while there are only small gaps in what is read, and then several
    are in flight. After a gap of `SKIP_BYTES` they begin small again. At most `BLOCKS_AHEAD` blocks are in memory.

    Reads raise StorageError, InputChangedError where the object is of another version, and FileNotFoundError where
    there is none.
    """

    def __init__(self, uri: str, size: int, version: str | None = None) -> None:
        """`size` and `version` are those of the object; without a version, any is read."""
        self._uri, self._size, self._version = uri, size, version
        self._position = self._read_end = 0
        self._request_bytes = FIRST_BYTES
        self._blocks: deque[_Block] = deque()
        self._pool = ThreadPoolExecutor(BLOCKS_AHEAD)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True; but what lies before the block that was read last cannot be read again."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, and return it, in bytes from the start."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`, and return the number of bytes; 0 at the end of the object."""
        if self._position >= self._size:
            return 0
        block = self._block()
        offset = self._position - block.start
        data = block.data.result()[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        self._read_end = self._position
        return len(data)

    def _block(self) -> _Block:
        """The block that holds the position; those before it are dropped, and the next ones requested."""
        if self._position - self._read_end >= SKIP_BYTES:
            self._request_bytes = FIRST_BYTES
            self._drop(len(self._blocks))
        while self._blocks and self._blocks[0].end <= self._position:
            self._drop(1)
        if self._blocks and self._position < self._blocks[0].start:
            raise io.UnsupportedOperation(f"{self._uri} is read forwards: byte {self._position} has been passed")
        if not self._blocks:
            self._request(self._position)
        while self._request_bytes == BLOCK_BYTES and len(self._blocks) < BLOCKS_AHEAD:
            if self._blocks[-1].end == self._size:
                break
            self._request(self._blocks[-1].end)
        return self._blocks[0]

    def _request(self, start: int) -> None:
        end = min(start + self._request_bytes, self._size)
        data = self._pool.submit(objects.fetch, self._uri, start, end, self._version)
        self._blocks.append(_Block(start, end, data))
        self._request_bytes = min(2 * self._request_bytes, BLOCK_BYTES)

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._blocks.popleft().data.cancel()

    def close(self) -> None:
        """End the requests."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()
