"""The bytes of one recording, as decoders written in C may read them."""

from __future__ import annotations

import io
from typing import Any, BinaryIO


class Source:
    """A seekable binary file over a recording's bytes that never raises while a decoder reads it.

    Decoders call `read` and `seek` from C, which an exception cannot cross: cffi prints it and continues, and the
    decoder mistakes a failed network for the end of the file. Therefore the first exception is stored, the decoder
    sees the end of the file, and `reraise`, called after each call of the decoder, raises the exception unchanged.

    Attributes:
        size: in bytes.
        ran_out: whether a decoder asked for bytes beyond the end since this was last set to False.
    """

    def __init__(self, source: bytes | BinaryIO) -> None:
        # Decoders ask for a few kilobytes at a time: bytes in memory are sliced with as little overhead as possible.
        self._memory: memoryview | None = None
        if isinstance(source, bytes):
            self._memory = memoryview(source)
            self.size = len(source)
        else:
            self._file = source
            source.seek(0, io.SEEK_END)
            self.size = source.tell()
        self.ran_out = False
        self._position = 0
        self._error: BaseException | None = None
        self._patch_position, self._patch = 0, b""

    def read_at(self, position: int, count: int) -> bytes:
        """Return `count` bytes from byte `position` on, fewer only at the end of the file.

        Raises:
            BaseException: whatever the underlying file raises.
        """
        # Positions and counts come from headers: those of a damaged file exceed what seek() and read() accept.
        pieces, missing = [], min(count, self.size - position)
        if self._memory is not None:
            return bytes(self._memory[position : position + missing]) if missing > 0 else b""
        if missing > 0:
            self._file.seek(position)
        while missing > 0 and (piece := self._file.read(missing)):  # an unbuffered file may return less
            pieces.append(piece)
            missing -= len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        low = max(position, self._patch_position)
        high = min(position + len(data), self._patch_position + len(self._patch))
        if low < high:
            patch = self._patch[low - self._patch_position : high - self._patch_position]
            data = data[: low - position] + patch + data[high - position :]
        return data

    def patch(self, position: int, data: bytes) -> None:
        """Let all later reads see `data` at `position`; the underlying file stays as it is. One patch at a time."""
        if self._memory is not None:
            patched = bytearray(self._memory)
            patched[position : position + len(data)] = data
            self._memory = memoryview(patched)
        self._patch_position, self._patch = position, data

    def reraise(self) -> None:
        """Raise the first exception of the underlying file, if there was one."""
        if self._error is not None:
            raise self._error

    def read(self, count: int = -1) -> bytes:
        """Read like a file, without raising; nothing once the underlying file has raised."""
        if self._error is not None:
            return b""
        try:
            data = self.read_at(self._position, self.size - self._position if count < 0 else count)
        except BaseException as error:  # noqa: BLE001 - called from C; `reraise` raises it
            self._error = error
            return b""
        self.ran_out |= len(data) < count
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` as `read` does; return the number of bytes."""
        data: bytes | memoryview
        if self._memory is None:
            data = self.read(len(buffer))
        else:
            data = self._memory[self._position : self._position + len(buffer)]
            self.ran_out |= len(data) < len(buffer)
            self._position += len(data)
        buffer[0 : len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek like a file, but never before its start; return the new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._position
