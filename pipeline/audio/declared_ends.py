"""Where the audio of a file ends by its container's own headers, format by format."""

from __future__ import annotations

import math
import struct

from pipeline.audio.mpeg import walk_adts
from pipeline.audio.riff import MAX_CHUNKS, chunked_end, is_chunked, is_placeholder
from pipeline.audio.source import Source

_GUID_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def declared_end(source: Source, demuxer: str | None, head: bytes) -> int | None:
    """Return the byte after the audio, by the container's headers; None where they do not determine it.

    Not implemented, so that a cut goes unnoticed: MAT, AVR, PAF, PVF, VOC, IRCAM, SDS, WVE, XI, MPC, FLV, MPEG-TS,
    AC-3.

    Args:
        source: the recording.
        demuxer: FFmpeg's name of its format.
        head: its first 256 bytes.
    """
    if is_chunked(head) and demuxer != "avi":
        return chunked_end(source, head)
    by_demuxer = {
        "au": _au_end,
        "nistsphere": _nist_end,
        "flac": _flac_end,
        "mp4": _mp4_end,
        "matroska": _matroska_end,
        "asf": _asf_end,
        "avi": _avi_end,
        "aac": _adts_end,
    }
    return by_demuxer[demuxer](source) if demuxer in by_demuxer else None


def _au_end(source: Source) -> int | None:
    header = source.read_at(4, 8)
    if len(header) < 8:
        return None
    offset, size = struct.unpack(">II", header)
    return None if size == 0 or is_placeholder(size) else offset + size


def _nist_end(source: Source) -> int | None:
    lines = [line.split(None, 2) for line in source.read_at(0, 1024).split(b"\n")]  # name, type, value
    fields = {words[0]: words[2].strip() for words in lines if len(words) == 3}
    if b"shorten" in fields.get(b"sample_coding", b"") or len(lines) < 2:
        return None
    header_size = b"".join(lines[1])
    numbers = [fields.get(key, b"") for key in (b"sample_count", b"sample_n_bytes", b"channel_count")]
    if not all(number.isdigit() for number in (header_size, *numbers)):
        return None
    return int(header_size) + math.prod(int(number) for number in numbers)


def _flac_end(source: Source) -> int | None:
    """Return the end of the metadata if that is cut. Else None: the decoder counts the frames of audio after it."""
    position = 4
    for _ in range(MAX_CHUNKS):
        header = source.read_at(position, 4)
        position += 4 + int.from_bytes(header[1:4], "big")
        if len(header) < 4 or position > source.size:
            return position
        if header[0] & 0x80:  # the last block
            return None
    return None


def _avi_end(source: Source) -> int | None:
    size = int.from_bytes(source.read_at(4, 4), "little")
    return None if size == 0 or is_placeholder(size) else size + 8


def _adts_end(source: Source) -> int | None:
    walk = walk_adts(source, 0)
    return None if walk is None else walk.end


def _mp4_end(source: Source) -> int | None:
    position = 0
    for _ in range(MAX_CHUNKS):
        header = source.read_at(position, 16)
        if not header:
            return position
        if len(header) < 8:
            return position + 8
        size, name = struct.unpack(">I4s", header[:8])
        if size == 1 and len(header) == 16:
            size = struct.unpack(">Q", header[8:])[0]
        if size < 8 or not name.isascii() or not name.isalnum():  # 0: to the end of the file; others: not a box
            return None
        position += size
    return None


def _ebml_length(data: bytes, position: int) -> tuple[int | None, int]:
    """Parse an EBML length; return it and the position after it.

    The length is None where it is cut, or is the "unknown" of live writers.
    """
    width = 9 - data[position].bit_length() if position < len(data) else 9
    if width > 8 or position + width > len(data):
        return None, position
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(data[position : position + width], "big") & unknown
    return (None if length == unknown else length), position + width


def _matroska_end(source: Source) -> int | None:
    head = source.read_at(0, 256)
    size, position = _ebml_length(head, 4)
    if size is None or head[position + size : position + size + 4] != b"\x18S\x80g":
        return None
    size, position = _ebml_length(head, position + size + 4)
    return None if size is None else position + size


def _asf_end(source: Source) -> int | None:
    header = source.read_at(0, 8192)
    position = header.find(_GUID_ASF_FILE_PROPERTIES)
    if position < 0 or len(header) < position + 92:
        return None
    size, flags = struct.unpack_from("<Q", header, position + 40)[0], struct.unpack_from("<I", header, position + 88)[0]
    return None if flags & 1 else int(size)  # flag 1: a broadcast, whose size is meaningless
