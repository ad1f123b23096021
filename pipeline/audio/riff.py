"""RIFF (WAV) and the formats built like it, in named and sized chunks: RF64, BW64, RIFX, Wave64, AIFF, CAF."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pipeline.audio.source import Source

MAX_CHUNKS = 100_000  # read at most: a gigabyte of zeros is a hundred million chunks of length 0


class _Layout(NamedTuple):
    """How a format lays out its chunks.

    Attributes:
        start: the first chunk, in bytes from the start of the file.
        header: `struct` format of a chunk's header: name, size.
        align: chunks start at multiples of so many bytes.
        size_includes_header: whether a chunk's size counts its header.
        audio_names: the names of the chunk that holds the audio.
    """

    start: int
    header: str
    align: int
    size_includes_header: bool
    audio_names: tuple[bytes, ...]


_LITTLE_ENDIAN: Final = _Layout(12, "<4sI", 2, size_includes_header=False, audio_names=(b"data",))
_LAYOUTS: Final = {
    b"RIFF": _LITTLE_ENDIAN,
    b"RF64": _LITTLE_ENDIAN,
    b"BW64": _LITTLE_ENDIAN,
    b"RIFX": _Layout(12, ">4sI", 2, size_includes_header=False, audio_names=(b"data",)),
    b"FORM": _Layout(12, ">4sI", 2, size_includes_header=False, audio_names=(b"SSND", b"BODY")),
    b"caff": _Layout(8, ">4sq", 1, size_includes_header=False, audio_names=(b"data",)),
    b"riff": _Layout(
        40,
        "<16sQ",
        8,
        size_includes_header=True,
        audio_names=(b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0O\x8e\xdb\x8a",),
    ),
}


def is_chunked(head: bytes) -> bool:
    """Return whether a file that begins with `head` is laid out in chunks that `chunked_end` can follow."""
    return head[:4] in _LAYOUTS


def is_placeholder(size: int) -> bool:
    """Return whether `size` is what a writer to a pipe puts: all ones (FFmpeg), or about 2 GiB (sox, arecord)."""
    return size >= 0xFFFFF000 or 0x7FFFF000 <= size <= 0x80000000


def chunked_end(source: Source, head: bytes) -> int | None:
    """Return the byte after the audio, by its chunk's header; None where the headers do not determine it.

    A RIFF file whose audio chunk has the placeholder size 0 is patched in `source`, so that libsndfile reads it.

    Args:
        source: the recording.
        head: its first bytes; `is_chunked` holds.
    """
    layout = _LAYOUTS[head[:4]]
    header_size = struct.calcsize(layout.header)
    position, data_size_64 = layout.start, None
    for _ in range(MAX_CHUNKS):
        header = source.read_at(position, header_size)
        if len(header) < header_size:
            return position + header_size  # the file ends before any audio
        name, size = struct.unpack(layout.header, header)
        body = position + header_size
        if layout.size_includes_header:
            size -= header_size
        if name == b"ds64":
            fields = source.read_at(body, 16)
            data_size_64 = struct.unpack("<Q", fields[8:])[0] if len(fields) == 16 else None
        if name in layout.audio_names:
            if size == 0xFFFFFFFF and data_size_64 is not None:
                size = data_size_64
            return _audio_end(source, head, body, size)
        # The file is damaged, or not aligned, or has CAF's "to the end of the file" where that is not allowed.
        if size < 0 or not name[:4].isascii() or not name[:4].decode().isprintable():
            return None
        position = body + size + -size % layout.align
    return None


def _audio_end(source: Source, head: bytes, body: int, size: int) -> int | None:
    if head[:4] == b"RIFF" and size == 0 and source.size > body:
        # 0 is the real size where other chunks follow (the RIFF size counts them), and a placeholder where the RIFF
        # ends here. libsndfile treats it as the real size in both cases; with all ones it reads to the end of the file.
        riff_end = struct.unpack("<I", head[4:8])[0] + 8
        if riff_end <= body or is_placeholder(riff_end - 8):
            source.patch(body - 4, b"\xff\xff\xff\xff")
        return None
    if size <= 0 or (head[:4] in (b"RIFF", b"RIFX", b"FORM", b"RF64", b"BW64") and is_placeholder(size)):
        return None
    return body + size
