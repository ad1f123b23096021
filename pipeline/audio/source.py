"""The bytes of one recording, as decoders written in C may read them."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable
from typing import Any, BinaryIO


class Source:
    """A seekable binary file over a recording's bytes, or a part of them, that never raises while a decoder reads it.

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
        self._start = 0  # of this view, in the underlying file
        self._position = 0
        self._errors: list[BaseException] = []  # shared by all views
        self._patches: list[tuple[int, bytes]] = []

    def view(self, start: int, stop: int | None = None, patches: Iterable[tuple[int, bytes]] = ()) -> Source:
        """Return the bytes [start, stop) as a source of their own, in which `patches` replace what is in the file.

        Args:
            start: first byte.
            stop: the byte after the last; None is the end.
            patches: positions, in the new view, and bytes.
        """
        view = copy.copy(self)
        view._start, view.size = self._start + start, max(0, (self.size if stop is None else stop) - start)
        view._position, view.ran_out = 0, False
        view._patches = [(position - start, data) for position, data in self._patches] + list(patches)
        if self._memory is not None:
            view._memory, view._start = self._memory[start : start + view.size], 0
        return view

    def read_at(self, position: int, count: int) -> bytes:
        """Return `count` bytes from byte `position` on, fewer only at the end of the file.

        Raises:
            BaseException: whatever the underlying file raises.
        """
        # Positions and counts come from headers: those of a damaged file exceed what seek() and read() accept.
        count = min(count, self.size - position)
        if count <= 0:
            return b""
        data = self._from_file(position, count) if self._memory is None else bytes(self._memory[position:][:count])
        for start, patch in self._patches:
            low, high = max(position, start), min(position + len(data), start + len(patch))
            if low < high:
                data = data[: low - position] + patch[low - start : high - start] + data[high - position :]
        return data

    def _from_file(self, position: int, count: int) -> bytes:
        pieces, missing = [], count
        try:
            self._file.seek(self._start + position)
            while missing > 0 and (piece := self._file.read(missing)):  # an unbuffered file may return less
                pieces.append(piece)
                missing -= len(piece)
        except BaseException as error:
            self._errors.append(error)
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def raised(self, error: BaseException) -> bool:
        """Return whether `error` is one that the underlying file has raised."""
        return any(error is own for own in self._errors)

    def reraise(self) -> None:
        """Raise the first exception of the underlying file, if there was one."""
        if self._errors:
            raise self._errors[0]

    def read(self, count: int = -1) -> bytes:
        """Read like a file, without raising; nothing once the underlying file has raised."""
        if self._errors:
            return b""
        try:
            data = self.read_at(self._position, self.size - self._position if count < 0 else count)
        except BaseException:  # noqa: BLE001 - called from C; `reraise` raises it
            return b""
        self.ran_out |= len(data) < count
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` as `read` does; return the number of bytes."""
        data: bytes | memoryview
        if self._memory is None or self._patches:
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
