"""Walk over the frames of a FLAC file (RFC 9639)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.audio.contents import Contents, joined, truncated
from pipeline.audio.mpeg import end_without_tags
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode

_MAX_BLOCKS = 100_000  # of metadata, read at most
_WINDOW = 1 << 20
_LONGEST_HEADER = 16
# Two patterns: each begins with one byte, by which `re` searches eight times as fast as for a choice of two.
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_FILE = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_ROW = 64  # bytes whose checksums are computed together


def _crc8_table() -> bytes:
    table = bytearray(256)
    for value in range(256):
        remainder = value
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x07 if remainder & 0x80 else 0)) & 0xFF
        table[value] = remainder
    return bytes(table)


def _crc16_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        remainder = value << 8
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x8005 if remainder & 0x8000 else 0)) & 0xFFFF
        table.append(remainder)
    return tuple(table)


def _crc16_of_row(table: tuple[int, ...]) -> np.ndarray:
    """What each byte at each place of a row adds to the checksum of the row: uint16 (_ROW, 256)."""
    last = np.array(table, np.uint16)
    places = [last]
    for _ in range(_ROW - 1):
        places.append(places[-1] << 8 ^ last[places[-1] >> 8])
    return np.array(places[::-1])


_CRC8 = _crc8_table()
_CRC16 = _crc16_table()
_CRC16_OF_ROW = _crc16_of_row(_CRC16)
_FIRST, _SECOND = _CRC16_OF_ROW[:2].tolist()  # the checksum so far counts as the first two bytes of the next row
_RATES = dict(
    enumerate((88_200, 176_400, 192_000, 8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000), start=1)
)
_BLOCK_SIZES = {1: 192, **{code: 576 << code - 2 for code in range(2, 6)}, **{c: 256 << c - 8 for c in range(8, 16)}}


class StreamInfo(NamedTuple):
    """The first block of metadata. `frames` is 0 where the writer did not know it, `md5` zeros likewise."""

    block_size: int
    rate: int
    channels: int
    bits: int
    frames: int
    md5: bytes


def stream_info(source: Source) -> StreamInfo | None:
    """Parse the STREAMINFO of a file that begins with `fLaC`; None where it is cut or not there."""
    block = source.read_at(4, 4 + 34)
    if len(block) < 38 or block[0] & 0x7F:
        return None
    fields = int.from_bytes(block[14:22], "big")
    return StreamInfo(
        int.from_bytes(block[6:8], "big"),
        fields >> 44,
        (fields >> 41 & 7) + 1,
        (fields >> 36 & 31) + 1,
        fields & (1 << 36) - 1,
        block[22:38],
    )


def walk_flac(source: Source) -> Contents:
    """Count the samples of a FLAC file by the headers of its frames.

    A header counts if its checksum is right and its number is the next one. Where fewer frames are found than the file
    declares, the declared number counts: a decoder then fails at the damaged frame.

    Raises:
        AudioError: TRUNCATED where the metadata are cut; UNSUPPORTED where another FLAC follows, or a frame has another
            rate or other channels than the header.
    """
    info = stream_info(source)
    start = _metadata_end(source)
    if info is None or start is None:
        return Contents()
    found, base, last, last_size = 0, None, 0, 0
    for position, header in _candidates(source, start):
        if header[:4] == b"fLaC":
            joined("frames", position, "another FLAC")
        if (frame := _parse_frame(header, info)) is None:
            continue
        number, size, rate, channels = frame
        if base is None:
            base = number if position == start else 0
        if number == base + found:
            if (rate, channels) != (info.rate, info.channels):
                message = (
                    f"the FLAC frame at byte {position} has {rate} Hz x {channels} channels, "
                    f"and the header {info.rate} Hz x {info.channels}"
                )
                raise AudioError(ErrorCode.UNSUPPORTED, message)
            found += size
            last, last_size = position, size
    warning = avoids = ""
    if info.frames and found > info.frames:
        avoids = warning = f"the header counts {info.frames} samples, but the frames hold {found}"
    end = _frame_end(source, last, last_size, info) if last and found >= info.frames else None
    return Contents(end, max(found, info.frames) or None, info.rate, 0, info.channels, avoids, warning=warning)


def _frame_end(source: Source, start: int, size: int, info: StreamInfo) -> int | None:
    """Return the byte after the last frame, by its checksum; None where no byte has the right one."""
    longest = 64 + size * info.channels * (info.bits + 1) // 8
    data = source.read_at(start, longest)
    whole = end_without_tags(source) - start
    if 5 < whole <= len(data) and _crc16(data[:whole]) == 0:
        return start + whole
    crc, ends = 0, []
    for position, byte in enumerate(data):
        crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
        if crc == 0 and position > 4:
            ends.append(position + 1)
    return start + ends[-1] if ends and not data[ends[-1] :].strip(b"\0") else start + ends[0] if ends else None


def _crc16(data: bytes) -> int:
    """The checksum of bytes, row by row: by linearity it is the exclusive or of what each byte adds."""
    rows = np.frombuffer(bytes(-len(data) % _ROW) + data, np.uint8).reshape(-1, _ROW)  # zeros in front add nothing
    crc = 0
    for of_row in np.bitwise_xor.reduce(_CRC16_OF_ROW[np.arange(_ROW), rows], axis=1).tolist():
        crc = _FIRST[crc >> 8] ^ _SECOND[crc & 0xFF] ^ of_row
    return crc


def _metadata_end(source: Source) -> int | None:
    position = 4
    for _ in range(_MAX_BLOCKS):
        header = source.read_at(position, 4)
        position += 4 + int.from_bytes(header[1:4], "big")
        if len(header) < 4 or position > source.size:
            truncated(f"the metadata extend to byte {position}, but the file ends at byte {source.size}")
        if header[0] & 0x80:  # the last block
            return position
    return None


def _candidates(source: Source, start: int) -> Iterator[tuple[int, bytes]]:
    """Positions at which a frame or a second file may begin, with the bytes there."""
    while start < source.size:
        window = source.read_at(start, _WINDOW + _LONGEST_HEADER)
        found = sorted(match.start() for pattern in (_SYNC, _FILE) for match in pattern.finditer(window))
        for position in found:
            if position < _WINDOW:
                yield start + position, window[position : position + _LONGEST_HEADER]
        start += _WINDOW


def _parse_frame(header: bytes, info: StreamInfo) -> tuple[int, int, int, int] | None:
    """Parse a frame's header: number of its first sample, its samples, rate and channels; None where it is not one."""
    if len(header) < 6:
        return None
    block_code, rate_code = header[2] >> 4, header[2] & 15
    if block_code == 0 or rate_code == 15 or header[3] & 1 or header[3] >> 4 > 10:
        return None
    length = 1 if header[4] < 0x80 else 8 - (header[4] ^ 0xFF).bit_length()  # of the number, coded like UTF-8
    if not (1 <= length <= 7) or (header[4] & 0xC0) == 0x80:
        return None
    coded = header[4 : 4 + length]
    number = coded[0] if length == 1 else coded[0] & (0x7F >> length)
    for byte in coded[1:]:
        number = number << 6 | byte & 0x3F
    end = 4 + length
    size = _BLOCK_SIZES.get(block_code, 0)
    if block_code in (6, 7):
        width = block_code - 5
        size = int.from_bytes(header[end : end + width], "big") + 1
        end += width
    width = {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    rate = int.from_bytes(header[end : end + width], "big") * {12: 1000, 14: 10}.get(rate_code, 1)
    rate = rate if width else _RATES.get(rate_code, info.rate)
    channels = 2 if header[3] >> 4 >= 8 else (header[3] >> 4) + 1
    end += width
    if len(header) <= end:
        return None
    crc = 0
    for byte in header[:end]:
        crc = _CRC8[crc ^ byte]
    if crc != header[end]:
        return None
    return (number if header[1] & 1 else number * info.block_size), size, rate, channels
