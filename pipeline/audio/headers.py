"""Where the audio of a file ends, and how many samples it has, for formats with one header or a tree of boxes."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from pipeline.audio.contents import Contents, joined, truncated
from pipeline.audio.riff import is_placeholder
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode

_MAX_BOXES = 100_000  # read at most
_MAX_TRACKS_BYTES = 1 << 20  # the tracks of Matroska are in front of the audio
_MAX_PACKET_S = 10  # a longer packet is a time that is wrong
_GUID_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_AU_BITS = {1: 8, 2: 8, 3: 16, 4: 24, 5: 32, 6: 32, 7: 64, 27: 8}


def au(source: Source) -> Contents:
    """Sun's and NeXT's format."""
    header = source.read_at(4, 20)
    if len(header) < 20:
        truncated(f"the file has {source.size} bytes, less than the header of AU")
    offset, size, coding, rate, channels = struct.unpack(">IIIII", header)
    available, warning, patches = source.size - offset, "", ()
    if size == 0 or is_placeholder(size):
        size = available
    elif size > available:
        if size - available != offset:
            truncated(f"the container declares {offset + size} bytes, but the file has {source.size}")
        warning, size = f"the header declares {offset} bytes of audio more than the file has: its own length", available
    bits = _AU_BITS.get(coding, 0) * channels
    frames = max(0, size) * 8 // bits if bits else None
    return Contents(offset + size, frames, rate if bits else 0, patches=patches, warning=warning)


def nist(source: Source) -> Contents:
    """NIST SPHERE."""
    lines = [line.split(None, 2) for line in source.read_at(0, 1024).split(b"\n")]  # name, type, value
    fields = {words[0]: words[2].strip() for words in lines if len(words) == 3}
    if b"shorten" in fields.get(b"sample_coding", b"") or len(lines) < 2:
        return Contents()
    header_size = b"".join(lines[1])
    numbers = [fields.get(key, b"") for key in (b"sample_count", b"sample_n_bytes", b"channel_count")]
    if not all(number.isdigit() for number in (header_size, *numbers)):
        return Contents()
    frames, rate = int(numbers[0]), fields.get(b"sample_rate", b"")
    end = int(header_size) + math.prod(int(number) for number in numbers)
    if end > source.size:
        truncated(f"the container declares {end} bytes, but the file has {source.size}")
    return Contents(end, frames if rate.isdigit() else None, int(rate) if rate.isdigit() else 0)


def avr(source: Source) -> Contents:
    """Audio Visual Research."""
    header = source.read_at(0, 30)
    if len(header) < 30:
        return Contents()
    stereo, bits = struct.unpack_from(">HH", header, 12)
    rate, frames = struct.unpack_from(">II", header, 22)
    end = 128 + frames * (2 if stereo else 1) * (bits // 8)
    if end > source.size:
        truncated(f"the container declares {end} bytes, but the file has {source.size}")
    return Contents(end, frames, rate & 0xFFFFFF)


def mat5(source: Source) -> Contents:
    """MATLAB 5: the end of its last element."""
    position, order = 128, "<" if source.read_at(126, 2) == b"IM" else ">"
    for _ in range(_MAX_BOXES):
        header = source.read_at(position, 8)
        if not header:
            break
        if len(header) < 8:
            truncated(f"an element is cut at byte {source.size}")
        kind, size = struct.unpack(f"{order}II", header)
        if not 1 <= kind <= 18:
            return Contents(position)
        position += 8 + size
        if position > source.size + 8:  # libsndfile writes sizes that are 8 too large
            truncated(f"an element extends to byte {position}, but the file ends at byte {source.size}")
    return Contents(min(position, source.size))


def avi(source: Source) -> Contents:
    """AVI: its RIFF lists, of which large files have several."""
    position = 0
    for _ in range(_MAX_BOXES):
        header = source.read_at(position, 12)
        if header[:4] != b"RIFF" or header[8:11] != b"AVI":
            break
        if header[11:12] != b"X" and position:
            joined("header", position, "another AVI")
        size = int.from_bytes(header[4:8], "little")
        if size == 0 or is_placeholder(size):
            return Contents()
        position += size + 8
    if position > source.size:
        truncated(f"the container declares {position} bytes, but the file has {source.size}")
    return Contents(position)


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


def matroska(source: Source) -> Contents:
    """Matroska and WebM."""
    head = source.read_at(0, 256)
    size, position = _ebml_length(head, 4)
    if size is None or head[position + size : position + size + 4] != b"\x18S\x80g":
        return Contents()
    size, position = _ebml_length(head, position + size + 4)
    if size is None:
        return Contents()
    if position + size > source.size:
        truncated(f"the container declares {position + size} bytes, but the file has {source.size}")
    _check_matroska_rate(source.read_at(position, min(size, _MAX_TRACKS_BYTES)))
    return Contents(position + size)


_TRACKS, _TRACK, _AUDIO, _SAMPLING_FREQUENCY = b"\x16\x54\xae\x6b", b"\xae", b"\xe1", b"\xb5"


def _check_matroska_rate(segment: bytes) -> None:
    """Raise UNDECODABLE where a track has a sampling rate that no file can have: FFmpeg takes 8000 Hz for it."""
    for value in _elements(segment, _TRACKS, _TRACK, _AUDIO, _SAMPLING_FREQUENCY):
        rate = struct.unpack(">f" if len(value) == 4 else ">d", value)[0] if len(value) in (4, 8) else 0.0
        if not 0 < rate < 2**31:
            raise AudioError(ErrorCode.UNDECODABLE, f"the container declares a sampling rate of {rate:g} Hz")


def _elements(data: bytes, *path: bytes) -> Iterator[bytes]:
    """The content of each EBML element at `path`, as far as they are whole."""
    if not path:
        yield data
        return
    position = 0
    while position < len(data) and data[position] >= 0x10:
        name = data[position : position + 9 - data[position].bit_length()]
        size, position = _ebml_length(data, position + len(name))
        if size is None or position + size > len(data):
            return
        if name == path[0]:
            yield from _elements(data[position : position + size], *path[1:])
        position += size


def asf(source: Source) -> Contents:
    """ASF: WMA and WMV."""
    header = source.read_at(0, 8192)
    position = header.find(_GUID_ASF_FILE_PROPERTIES)
    if position < 0 or len(header) < position + 92:
        return Contents()
    size, flags = struct.unpack_from("<Q", header, position + 40)[0], struct.unpack_from("<I", header, position + 88)[0]
    if flags & 1:  # a broadcast, whose size is meaningless
        return Contents()
    if size > source.size:
        truncated(f"the container declares {size} bytes, but the file has {source.size}")
    return Contents(int(size))


def mp4(source: Source) -> Contents:
    """MP4, M4A, MOV, 3GP: their boxes, and the samples of the first audio track."""
    position, frames, rate, slack, has_fragments = 0, None, 0, 0, False
    for _ in range(_MAX_BOXES):
        header = source.read_at(position, 16)
        if not header:
            break
        if len(header) < 8:
            truncated(f"a box is cut at byte {source.size}")
        size, name = struct.unpack(">I4s", header[:8])
        if size == 1 and len(header) == 16:
            size = struct.unpack(">Q", header[8:])[0]
        if size < 8 or not name.isascii() or not name.isalnum():  # 0: to the end of the file; others: not a box
            return Contents(None if size == 0 and name == b"mdat" else position)
        if name == b"ftyp" and position:
            joined("boxes", position, "another MP4")
        if position + size > source.size:
            truncated(f"a box extends to byte {position + size}, but the file ends at byte {source.size}")
        has_fragments |= name == b"moof"
        if name == b"moov" and size <= 1 << 26:
            frames, rate, slack = _sound_track(source.read_at(position + 8, size - 8))
        position += size
    if has_fragments or not rate:
        return Contents(position)
    return Contents(position, frames, rate, slack)


def _boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 0
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if size < 8:
            break
        found.append((name, data[position + 8 : position + size]))
        position += size
    return found


def _box(data: bytes, *path: bytes) -> bytes | None:
    """The content of the first box at `path`."""
    for name in path:
        data_of = dict(reversed(_boxes(data)))
        if name not in data_of:
            return None
        data = data_of[name]
    return data


def _sound_track(moov: bytes) -> tuple[int | None, int, int]:
    """The duration of the first audio track, its time scale, and how far a decoder may be off; else None, 0, 0."""
    movie = _box(moov, b"mvhd") or b""
    movie_scale = struct.unpack_from(">I", movie, 20 if movie[0] else 12)[0] if len(movie) >= 24 else 0
    for name, track in _boxes(moov):
        handler = _box(track, b"mdia", b"hdlr") if name == b"trak" else None
        if handler is None or handler[8:12] != b"soun":
            continue
        header, times = _box(track, b"mdia", b"mdhd"), _box(track, b"mdia", b"minf", b"stbl", b"stts")
        if header is None or times is None or len(times) < 8 or len(header) < 24:
            continue
        scale = struct.unpack_from(">I", header, 20 if header[0] else 12)[0]
        count = min(struct.unpack_from(">I", times, 4)[0], (len(times) - 8) // 8)
        entries = [struct.unpack_from(">II", times, 8 + 8 * index) for index in range(count)]
        longest = max((delta for _, delta in entries), default=0)
        duration = sum(number * delta for number, delta in entries)
        if longest >= 1 << 31 or duration >= 1 << 62:  # FFmpeg would drop what comes after
            raise AudioError(ErrorCode.UNDECODABLE, f"the container declares a packet of {longest / max(scale, 1):g} s")
        # Recorders of live sound write the times of arrival, which jitter: the usual time, for each packet, is right.
        _, usual = max(entries, default=(0, 0))
        jitter = abs(duration - usual * sum(number for number, _ in entries))
        slack = 3 * min(longest, _MAX_PACKET_S * scale) + jitter
        if _box(track, b"edts") is None:
            return duration, scale, slack
        # What an edit list leaves out need not be decoded, but may be: a player may ignore the list.
        presented = _presented(_box(track, b"edts", b"elst") or b"", scale, movie_scale)
        if presented is None:
            continue
        low, high = sorted((presented, duration))
        return (low + high) // 2, scale, slack + (high - low + 1) // 2
    return None, 0, 0


def _presented(edits: bytes, scale: int, movie_scale: int) -> int | None:
    """The duration that an edit list presents, in units of `scale`; None where it does not say."""
    form = struct.Struct(">Qqhh" if edits[:1] == b"\1" else ">Iihh")
    count = struct.unpack_from(">I", edits, 4)[0] if len(edits) >= 8 else 0
    if not movie_scale or not count or len(edits) < 8 + count * form.size:
        return None
    found = [form.unpack_from(edits, 8 + index * form.size) for index in range(count)]
    if any(duration == 0 or (rate, fraction) != (1, 0) for duration, _, rate, fraction in found):
        return None
    presented = sum(int(duration) for duration, start, _, _ in found if start >= 0)
    return round(presented * scale / movie_scale)
