"""What the bytes of a recording promise, held against the bytes that are there.

Decoders shorten a broken file without a word: libsndfile clips a WAV to the bytes that it finds, and drops the end of
an Ogg file. So chunk sizes, frame counts and the end-of-stream flag are checked here, before anything is decoded.

What cannot be seen: a cut at a frame border of formats that declare no length at all (MPEG audio without a Xing header,
ADTS, AC-3, MPEG-TS, FLV), and a cut in the rare formats named in `_declared_end` as left out.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple

from pipeline.errors import AudioError, ErrorCode


class Source:
    """A recording's bytes, as decoders may read them.

    Decoders call `read` and `seek` from C, where an exception cannot pass: cffi prints it and goes on, and
    the decoder takes a failed network for the end of the file. Here the first exception is kept, the decoder
    sees the end of the file, and `reraise`, called after each call of the decoder, raises it as it was.

    Attributes:
        size: in bytes.
        ran_out: whether a decoder asked for bytes beyond the end since this was last set to False.
    """

    def __init__(self, source: bytes | BinaryIO) -> None:
        # Decoders ask for a few kilobytes at a time: of what is in memory they are given slices, with little between.
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
        self._patch_at, self._patch = 0, b""

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer only at the end of the file. Raises what the file
        raises."""
        # Positions and counts come from headers: damaged ones are beyond what seek() and read() take.
        pieces, missing = [], min(count, self.size - position)
        if self._memory is not None:
            return bytes(self._memory[position : position + missing]) if missing > 0 else b""
        if missing > 0:
            self._file.seek(position)
        while missing > 0 and (piece := self._file.read(missing)):  # an unbuffered file may give less
            pieces.append(piece)
            missing -= len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        low, high = (
            max(position, self._patch_at),
            min(position + len(data), self._patch_at + len(self._patch)),
        )
        if low < high:
            patch = self._patch[low - self._patch_at : high - self._patch_at]
            data = data[: low - position] + patch + data[high - position :]
        return data

    def show_instead(self, position: int, data: bytes) -> None:
        """Let readers see `data` at `position`; the file stays as it is."""
        if self._memory is not None:
            patched = bytearray(self._memory)
            patched[position : position + len(data)] = data
            self._memory = memoryview(patched)
        self._patch_at, self._patch = position, data

    def reraise(self) -> None:
        """Raise what the file raised, if it has."""
        if self._error is not None:
            raise self._error

    def read(self, count: int = -1) -> bytes:
        """As of a file; nothing once the file underneath has raised."""
        if self._error is not None:
            return b""
        try:
            data = self.read_at(self._position, self.size - self._position if count < 0 else count)
        except BaseException as error:  # noqa: BLE001 - C comes between; `reraise` raises it
            self._error = error
            return b""
        self.ran_out |= len(data) < count
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """As of a file."""
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
        """As of a file; never before its start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """As of a file."""
        return self._position


@dataclass(frozen=True)
class Container:
    """What the first bytes say.

    Attributes:
        demuxer: FFmpeg's name for the format, None where it is not one that FFmpeg is asked to read.
        complete: True where the container declares its length and the bytes are there.
        has_frame_count: for MPEG audio: a Xing header counts the frames.
        short_of_bytes: for MPEG audio: the Xing header counts more bytes than there are.
        beyond_sndfile: for MPEG audio: there may be more than libsndfile would decode.
        mpeg_start: for MPEG audio: where the first frame begins.
    """

    demuxer: str | None
    complete: bool = False
    has_frame_count: bool = False
    short_of_bytes: bool = False
    beyond_sndfile: bool = False
    mpeg_start: int = 0


def check_container(source: Source) -> Container:
    """Name the container and hold its promises against the bytes.

    Raises:
        AudioError: TRUNCATED where bytes are missing; UNSUPPORTED where recordings are chained in a way of
            which libsndfile would read the first and drop the rest.
    """
    start = _skip_id3(source)
    head = source.read_at(start, 256)
    demuxer = _demuxer(head)
    if demuxer == "ogg" and start == 0:
        _check_ogg(source)
        return Container(demuxer, complete=True)
    if demuxer == "mp3" and (mpeg := _mpeg_stream(source, start)) is not None:
        return mpeg
    end = _declared_end(source, demuxer, head) if start == 0 else None
    if end is not None and end > source.size:
        message = f"the container goes on to byte {end}, the file ends at byte {source.size}"
        raise AudioError(ErrorCode.TRUNCATED, message)
    return Container(demuxer, complete=end is not None)


_GUID_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_GUID_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_GUID_W64_RIFF = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")

_MAGIC: Final = (
    (0, b"OggS", "ogg"),
    (0, b"RIFF", "wav"),  # AVI is told apart below
    (0, b"RIFX", "wav"),
    (0, b"RF64", "wav"),
    (0, b"BW64", "wav"),
    (0, _GUID_W64_RIFF, "w64"),
    (0, b"FORM", "aiff"),
    (0, b"caff", "caf"),
    (0, b".snd", "au"),
    (0, b"NIST_1A", "nistsphere"),
    (0, b"fLaC", "flac"),
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, _GUID_ASF, "asf"),
    (0, b"#!AMR", "amr"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x0bw", "ac3"),
    (0, b"MAC ", "ape"),
    (0, b"wvpk", "wv"),
    (0, b"TTA1", "tta"),
    (0, b"\0\0\x01\xba", "mpeg"),
)


def _demuxer(head: bytes) -> str | None:
    """FFmpeg's name for what begins with these bytes."""
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return "avi"
    for position, magic, name in _MAGIC:
        if head[position : position + len(magic)] == magic:
            return name
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return "mpegts"
    if len(head) > 1 and head[0] == 0xFF:
        if head[1] & 0xF6 == 0xF0:  # a sync word with layer 0
            return "aac"
        if head[1] & 0xE0 == 0xE0:
            return "mp3"
    return None


class _Chunks(NamedTuple):
    """How a chunked container lays itself out: where chunks begin, and what a chunk's header looks like."""

    begin: int
    header: str  # struct format: name, size
    align: int
    header_counts: bool  # whether the size includes the header


_RIFF_LITTLE: Final = _Chunks(12, "<4sI", 2, header_counts=False)
_CHUNKED: Final = {
    b"RIFF": (_RIFF_LITTLE, (b"data",)),
    b"RF64": (_RIFF_LITTLE, (b"data",)),
    b"BW64": (_RIFF_LITTLE, (b"data",)),
    b"RIFX": (_Chunks(12, ">4sI", 2, header_counts=False), (b"data",)),
    b"FORM": (_Chunks(12, ">4sI", 2, header_counts=False), (b"SSND", b"BODY")),
    b"caff": (_Chunks(8, ">4sq", 1, header_counts=False), (b"data",)),
    b"riff": (
        _Chunks(40, "<16sQ", 8, header_counts=True),
        (b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0O\x8e\xdb\x8a",),
    ),
}


_MOST_CHUNKS = 100_000  # looked at: a gigabyte of zeros is a hundred million chunks of no length


def _is_placeholder(size: int) -> bool:
    """Whether a writer to a pipe put it there: all ones (FFmpeg), about 2 GiB (sox, arecord)."""
    return size >= 0xFFFFF000 or 0x7FFFF000 <= size <= 0x80000000


def _declared_end(source: Source, demuxer: str | None, head: bytes) -> int | None:
    """The byte behind the audio, by the container's own account; None where it gives none, or none that is
    known here.

    Left out: MAT, AVR, PAF, PVF, VOC, IRCAM, SDS, WVE, XI, MPC (a cut shortens them unseen), FLV, MPEG-TS,
    AC-3.
    """
    if head[:4] in _CHUNKED and demuxer != "avi":
        return _chunked_end(source, head)
    own = {
        "au": _au_end,
        "nistsphere": _nist_end,
        "flac": _flac_end,
        "mp4": _mp4_end,
        "matroska": _matroska_end,
        "asf": _asf_end,
        "avi": _avi_end,
        "aac": _adts_end,
    }
    return own[demuxer](source) if demuxer in own else None


def _chunked_end(source: Source, head: bytes) -> int | None:
    layout, wanted = _CHUNKED[head[:4]]
    header_size = struct.calcsize(layout.header)
    position, data_size_64 = layout.begin, None
    for _ in range(_MOST_CHUNKS):
        header = source.read_at(position, header_size)
        if len(header) < header_size:
            return position + header_size  # the file ends, and there was no audio
        name, size = struct.unpack(layout.header, header)
        body = position + header_size
        if layout.header_counts:
            size -= header_size
        if name == b"ds64":
            fields = source.read_at(body, 16)
            data_size_64 = struct.unpack("<Q", fields[8:])[0] if len(fields) == 16 else None
        if name in wanted:
            if size == 0xFFFFFFFF and data_size_64 is not None:
                size = data_size_64
            return _data_end(source, head, body, size)
        # Damaged, or CAF's "to the end of the file" where it has no place, or out of step.
        if size < 0 or not name[:4].isascii() or not name[:4].decode().isprintable():
            return None
        position = body + size + -size % layout.align
    return None


def _data_end(source: Source, head: bytes, body: int, size: int) -> int | None:
    if head[:4] == b"RIFF" and size == 0 and source.size > body:
        # 0 is the truth where other chunks follow (the RIFF size counts them), and a placeholder where it
        # ends here. libsndfile takes it for the truth in both cases; all ones it reads to the end of the file.
        riff_end = struct.unpack("<I", head[4:8])[0] + 8
        if riff_end <= body or _is_placeholder(riff_end - 8):
            source.show_instead(body - 4, b"\xff\xff\xff\xff")
        return None
    if size <= 0 or (head[:4] in (b"RIFF", b"RIFX", b"FORM", b"RF64", b"BW64") and _is_placeholder(size)):
        return None
    return body + size


def _au_end(source: Source) -> int | None:
    header = source.read_at(4, 8)
    if len(header) < 8:
        return None
    offset, size = struct.unpack(">II", header)
    return None if size == 0 or _is_placeholder(size) else offset + size


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
    """The end of the metadata where it is cut; of the audio behind it, the decoder counts the frames."""
    position = 4
    for _ in range(_MOST_CHUNKS):
        header = source.read_at(position, 4)
        position += 4 + int.from_bytes(header[1:4], "big")
        if len(header) < 4 or position > source.size:
            return position
        if header[0] & 0x80:  # the last block
            return None
    return None


def _avi_end(source: Source) -> int | None:
    size = int.from_bytes(source.read_at(4, 4), "little")
    return None if size == 0 or _is_placeholder(size) else size + 8


def _adts_end(source: Source) -> int | None:
    walk = _walk_frames(source, 0, _adts_frame)
    return None if walk is None else walk.end


def _mp4_end(source: Source) -> int | None:
    position = 0
    for _ in range(_MOST_CHUNKS):
        header = source.read_at(position, 16)
        if not header:
            return position
        if len(header) < 8:
            return position + 8
        size, name = struct.unpack(">I4s", header[:8])
        if size == 1 and len(header) == 16:
            size = struct.unpack(">Q", header[8:])[0]
        if size < 8 or not name.isascii() or not name.isalnum():  # 0: to the end of the file. Else: not a box
            return None
        position += size
    return None


def _vint(data: bytes, position: int) -> tuple[int | None, int]:
    """An EBML length and the position behind it; None where it is the "unknown" of live writers, or not
    there."""
    length = 9 - data[position].bit_length() if position < len(data) else 9
    if length > 8 or position + length > len(data):
        return None, position
    value = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), position + length


def _matroska_end(source: Source) -> int | None:
    head = source.read_at(0, 256)
    size, position = _vint(head, 4)
    if size is None or head[position + size : position + size + 4] != b"\x18S\x80g":
        return None
    size, position = _vint(head, position + size + 4)
    return None if size is None else position + size


def _asf_end(source: Source) -> int | None:
    header = source.read_at(0, 8192)
    at = header.find(_GUID_ASF_FILE)
    if at < 0 or len(header) < at + 92:
        return None
    size, flags = struct.unpack_from("<Q", header, at + 40)[0], struct.unpack_from("<I", header, at + 88)[0]
    return None if flags & 1 else int(size)  # flag 1: broadcast, the size means nothing


def _check_ogg(source: Source) -> None:
    """Hold the last page of an Ogg file to its length and its end-of-stream flag."""
    begin = max(0, source.size - 2 * 65307)  # two of the longest pages: the last page begins in there
    tail = source.read_at(begin, source.size - begin)
    at = tail.rfind(b"OggS\0")
    table = at + 27
    if at < 0 or len(tail) < table or len(tail) < table + tail[table - 1]:
        raise AudioError(ErrorCode.TRUNCATED, f"the last Ogg page is cut in its header at byte {source.size}")
    end = table + tail[table - 1] + sum(tail[table : table + tail[table - 1]])
    if end > len(tail):
        message = f"the last Ogg page goes on to byte {begin + end}, the file ends at byte {source.size}"
        raise AudioError(ErrorCode.TRUNCATED, message)
    if not tail[at + 5] & 4:
        raise AudioError(ErrorCode.TRUNCATED, f"no end-of-stream flag on the last Ogg page, at byte {begin + at}")
    # libsndfile reads the first of chained streams and drops the rest.
    serials, position = set[bytes](), 0
    while (page := source.read_at(position, 282))[:4] == b"OggS" and len(page) > 27 and page[5] & 2:
        serials.add(page[14:18])
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    if tail[at + 14 : at + 18] not in serials:
        raise AudioError(ErrorCode.UNSUPPORTED, "chained Ogg: another stream follows the end of the first")


# ---- MPEG audio
# ----------------------------------------------------------------------------------------------------

_KBIT_PER_S: Final = {  # by (MPEG-1?, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


_HEADER_BYTES = 7  # enough of a frame to know its size: 4 of MPEG audio, 7 of ADTS


class _MpegFrame(NamedTuple):
    size: int  # bytes
    samples: int
    xing_at: int  # where a Xing header would stand in it


def _mpeg_frame(header: bytes) -> _MpegFrame | None:
    """Read a frame's 4 header bytes; None where they are none, or of the free format, which has no size."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bit_rate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    mpeg1 = version == 3
    hertz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits_per_s = 1000 * _KBIT_PER_S[mpeg1, layer][bit_rate - 1]
    if layer == 1:
        return _MpegFrame((12 * bits_per_s // hertz + padding) * 4, 384, 0)
    samples = 1152 if mpeg1 or layer == 2 else 576
    mono = header[3] >> 6 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return _MpegFrame(samples // 8 * bits_per_s // hertz + padding, samples, 4 + side)


def _adts_frame(header: bytes) -> _MpegFrame | None:
    """Read an ADTS (AAC) frame's header; None where it is none."""
    if len(header) < _HEADER_BYTES or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return None
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    samples = 1024 * (1 + (header[6] & 3))
    return _MpegFrame(size, samples, 0) if size >= _HEADER_BYTES else None


def _skip_id3(source: Source) -> int:
    """Where the file goes on behind ID3v2 tags."""
    position = 0
    for _ in range(_MOST_CHUNKS):
        header = source.read_at(position, 10)
        if header[:3] != b"ID3" or len(header) < 10:
            break
        size = header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9]
        position += 10 + size + (10 if header[5] & 0x10 else 0)
    return position


def _mpeg_stream(source: Source, start: int) -> Container | None:
    """What MPEG audio that begins at `start` says of its length; None where none begins there."""
    head = source.read_at(start, 256)
    frame = _mpeg_frame(head)
    if frame is None:
        return None
    second = source.read_at(start + frame.size, 4)
    if len(second) == 4 and _mpeg_frame(second) is None:
        return None
    is_xing = head[frame.xing_at : frame.xing_at + 4] in (b"Xing", b"Info")
    if is_xing and len(head) >= frame.xing_at + 16:
        flags, frames, size = struct.unpack_from(">III", head, frame.xing_at + 4)
        if flags & 1 and frames:
            end = start + size if flags & 2 else source.size
            _check_mpeg_bytes(source, start, end)
            short = end > source.size
            return Container("mp3", has_frame_count=True, short_of_bytes=short, mpeg_start=start)
    walk = walk_mpeg(source, start)
    if walk is None:
        return Container("mp3", mpeg_start=start)
    _check_last_frame(source, walk)
    # libsndfile stops at what it guesses from the size of the first frame.
    guess = (source.size - start) / frame.size * frame.samples
    return Container("mp3", complete=True, beyond_sndfile=walk.samples > guess, mpeg_start=start)


def _check_mpeg_bytes(source: Source, start: int, end: int) -> None:
    """Hold the end of the stream, as the Xing header has it, against the bytes."""
    # A stripped tag at the end would miss as well: only a cut frame is taken for a cut.
    if end > source.size and (walk := walk_mpeg(source, start)) is not None:
        _check_last_frame(source, walk)
    follows = source.read_at(end, 4)
    # More than a frame: some encoders leave the Xing frame itself out of its count.
    if source.size - end > 4096 and (follows[:3] == b"ID3" or _mpeg_frame(follows) is not None):
        message = f"joined MP3s: the Xing header ends at byte {end}, and MPEG audio goes on to byte {source.size}"
        raise AudioError(ErrorCode.UNSUPPORTED, message)


class _MpegWalk(NamedTuple):
    samples: int
    end: int
    cut: bool  # whether the last frame goes on behind the end of the file


def _check_last_frame(source: Source, walk: _MpegWalk) -> None:
    if walk.cut:
        message = f"the last MPEG frame goes on to byte {walk.end}, the file ends at byte {source.size}"
        raise AudioError(ErrorCode.TRUNCATED, message)


def walk_mpeg(source: Source, start: int) -> _MpegWalk | None:
    """Go from frame to frame of an MPEG audio stream; None where there is none at `start`."""
    return _walk_frames(source, start, _mpeg_frame)


def _walk_frames(source: Source, start: int, read_frame: Callable[[bytes], _MpegFrame | None]) -> _MpegWalk | None:
    """Count frames by their headers to the end of the file; None where something else lies between them."""
    position, samples = start, 0
    window, window_at = b"", start
    while position < source.size:
        if position + _HEADER_BYTES > window_at + len(window):
            window, window_at = source.read_at(position, 1 << 18), position
        header = window[position - window_at : position - window_at + _HEADER_BYTES]
        frame = read_frame(header)
        if frame is None:
            is_tag = header[:3] in (b"TAG", b"APE", b"LYR", b"ID3") or not header.strip(b"\0")
            if len(header) < _HEADER_BYTES and header[:1] == b"\xff":
                return _MpegWalk(samples, position + _HEADER_BYTES, cut=True)
            return _MpegWalk(samples, position, cut=False) if is_tag else None
        position += frame.size
        samples += frame.samples
    return _MpegWalk(samples, position, cut=position > source.size)
