"""What the headers of rare formats say, which only libsndfile reads: MAT4, XI, WVE, SDS, Akai MPC 2000."""

from __future__ import annotations

import struct
from typing import Final

from pipeline.audio.contents import Contents, truncated
from pipeline.audio.source import Source

_MAT4_BYTES: Final = {0: 8, 10: 4, 20: 4, 30: 2, 40: 2, 50: 1}


def is_mat4(head: bytes) -> bool:
    """Whether a file begins with the matrix `samplerate` of MATLAB 4."""
    return head[20:31] == b"samplerate\0"


def mat4(source: Source) -> Contents:
    """MATLAB 4: a matrix with the sample rate, and one with the samples, a row for each channel."""
    position, rate = 0, 0
    for _ in range(8):
        header = source.read_at(position, 20)
        if len(header) < 20:
            truncated(f"a matrix is cut at byte {source.size}")
        order = "<" if header[18:20] == b"\0\0" else ">"  # the length of a name is small
        kind, rows, columns, _, length = struct.unpack(f"{order}5I", header)
        size = _MAT4_BYTES.get(kind % 1000, 0)
        name = source.read_at(position + 20, min(length, 64)).rstrip(b"\0")
        body = position + 20 + length
        position = body + rows * columns * size
        if name == b"samplerate" and rows * columns == 1 and size == 8:
            value = source.read_at(body, 8)
            rate = round(struct.unpack(f"{order}d", value)[0]) if len(value) == 8 else 0
        elif name == b"wavedata":
            if position > source.size:
                truncated(f"the samples extend to byte {position}, but the file ends at byte {source.size}")
            return Contents(position, columns if rate else None, max(0, rate))
        elif not size:
            break
    return Contents()


def _counted(source: Source, start: int, size: int, frames: int | None, rate: int) -> Contents:
    if start + size > source.size:
        truncated(f"the container declares {start + size} bytes, but the file has {source.size}")
    return Contents(start + size, frames if rate else None, rate)


def wve(source: Source) -> Contents:
    """Psion: A-law at 8 kHz."""
    size = int.from_bytes(source.read_at(18, 4), "big")
    return _counted(source, 32, size, size, 8000)


def mpc2k(source: Source) -> Contents:
    """Akai MPC 2000: 16 bits."""
    header = source.read_at(0, 42)
    if len(header) < 42:
        return Contents()
    channels, frames, rate = 2 if header[21] else 1, *struct.unpack_from("<I", header, 30), header[40] | header[41] << 8
    return _counted(source, 42, 2 * channels * frames, frames, rate)


def sds(source: Source) -> Contents:
    """MIDI sample dump: packets of 127 bytes, 120 of which hold 7 bits of samples each."""
    header = source.read_at(0, 21)
    if len(header) < 21:
        return Contents()
    frames = header[10] | header[11] << 7 | header[12] << 14
    bits, period = header[6], header[7] | header[8] << 7 | header[9] << 14
    if not 8 <= bits <= 28 or not period:
        return Contents()
    in_packet = 120 // -(-bits // 7)
    packets = -(-frames // in_packet)
    rate = 1_000_000_000 // period
    contents = _counted(source, 21, 127 * packets, packets * in_packet, rate)
    return Contents(contents.end, contents.frames, rate, in_packet)


def xi(source: Source) -> Contents:
    """FastTracker 2: one sample of an instrument, at 44,100 Hz."""
    header = source.read_at(0, 0x152)
    if len(header) < 0x152:
        return Contents()
    size, is_wide = struct.unpack_from("<I", header, 0x12A)[0], bool(header[0x138] & 0x10)
    if header[0x128:0x12A] != b"\1\0" or not size:  # libsndfile leaves it at 0
        return Contents()
    return _counted(source, 0x152, size, size // (2 if is_wide else 1), 44_100)
