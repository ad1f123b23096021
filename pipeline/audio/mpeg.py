"""MPEG audio and ADTS (AAC) as streams of frames: parse frame headers and walk from frame to frame.

Here a frame is an MPEG frame: a header and the code of `num_samples` samples of every channel.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from pipeline.audio.source import Source

_KBIT_PER_S: Final = {  # by (is MPEG-1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}

_ADTS_RATES: Final = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_HEADER_BYTES = 7  # enough to know a frame's size: 4 for MPEG audio, 7 for ADTS
_XING_BYTES = 64  # enough to find a Xing header in a frame
_READ_BYTES = 1 << 18
_MAX_ID3_TAGS = 100_000  # read at most
_SEARCHED_BYTES = 1 << 24  # for a first frame behind junk
_SYNC = re.compile(rb"\xff(?=[\xe2-\xff][^\xff])", re.DOTALL)  # of a frame of MPEG audio or ADTS
_MIN_FRAMES = 4  # that agree, in a row or up to the end, are no accident


class MpegFrame(NamedTuple):
    """The header of one frame.

    Attributes:
        size: of the frame, header included, in bytes.
        num_samples: of each channel.
        xing_offset: where in the frame a Xing header would start, in bytes; 0 where there can be none.
        rate: sample rate, Hz.
        channels: 1 or 2; 0 where only the decoder knows.
    """

    size: int
    num_samples: int
    xing_offset: int
    rate: int
    channels: int


class MpegWalk(NamedTuple):
    """The result of walking over all frames of a stream.

    Attributes:
        num_frames: that begin in the file.
        num_samples: of each channel, over all frames that begin in the file.
        end: the byte after the last frame, by its header.
        is_cut: whether the last frame extends beyond the end of the file.
        rate: of the first frame, Hz.
        channels: the most that a frame has.
        change: where and how frames change their format; empty where they do not.
        changes_rate: whether they change the rate too.
        gaps: where stretches of bytes between frames begin that are neither a frame nor a tag.
        second_start: where a second recording begins, by a tag or a Xing header between frames; 0 where none does.
    """

    num_frames: int
    num_samples: int
    end: int
    is_cut: bool
    rate: int = 0
    channels: int = 0
    change: str = ""
    changes_rate: bool = False
    gaps: tuple[int, ...] = ()
    second_start: int = 0


def parse_mpeg_frame(header: bytes) -> MpegFrame | None:
    """Parse the 4 header bytes of an MPEG audio frame; None where they are not one.

    None also for the free format, whose headers do not determine the size.
    """
    return _mpeg_frame(header[:4])


@functools.lru_cache(maxsize=1024)  # a recording has a few different headers
def _mpeg_frame(header: bytes) -> MpegFrame | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bit_rate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_mpeg1 = version == 3
    hertz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits_per_s = 1000 * _KBIT_PER_S[is_mpeg1, layer][bit_rate - 1]
    channels = 1 if header[3] >> 6 == 3 else 2
    if layer == 1:
        return MpegFrame((12 * bits_per_s // hertz + padding) * 4, 384, 0, hertz, channels)
    num_samples = 1152 if is_mpeg1 or layer == 2 else 576
    is_mono = channels == 1
    side_info_bytes = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
    xing_offset = 4 + side_info_bytes if layer == 3 else 0
    return MpegFrame(num_samples // 8 * bits_per_s // hertz + padding, num_samples, xing_offset, hertz, channels)


def _parse_adts_frame(header: bytes) -> MpegFrame | None:
    """Parse the 7 header bytes of an ADTS (AAC) frame; None where they are not one."""
    if len(header) < _HEADER_BYTES or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return None
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    num_samples = 1024 * (1 + (header[6] & 3))
    rate_index = header[2] >> 2 & 15
    if size < _HEADER_BYTES or rate_index >= len(_ADTS_RATES):
        return None
    return MpegFrame(size, num_samples, 0, _ADTS_RATES[rate_index], 0)


def skip_id3(source: Source, position: int = 0) -> int:
    """Return the first byte after the ID3v2 tags at `position`; `position` where there are none."""
    for _ in range(_MAX_ID3_TAGS):
        header = source.read_at(position, 10)
        if header[:3] != b"ID3" or len(header) < 10:
            break
        size = header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9]
        position += 10 + size + (10 if header[5] & 0x10 else 0)
    return position


def find_mpeg(source: Source, start: int) -> int | None:
    """Return the first byte from `start` on where MPEG audio frames of one format follow each other; None if nowhere.

    The first 16 MiB are searched. Four frames count, or fewer that end with the file.
    """
    stop = min(source.size, start + _SEARCHED_BYTES)
    for begin in range(start, stop, _READ_BYTES):
        for match in _SYNC.finditer(source.read_at(begin, _READ_BYTES + 2)):
            if match.start() < _READ_BYTES and _begins_stream(source, begin + match.start()):
                return begin + match.start()
    return None


def _begins_stream(source: Source, position: int) -> bool:
    first = source.read_at(position, 4)
    for number in range(_MIN_FRAMES):
        header = source.read_at(position, 4)
        if number > 1 and (not header or header[:3] == b"TAG"):
            return True
        frame = parse_mpeg_frame(header)
        if frame is None or frame.size < 5 or header[1] != first[1] or (header[2] ^ first[2]) & 0x0C:
            return False
        position += frame.size
    return True


def walk_mpeg(source: Source, start: int) -> MpegWalk | None:
    """Walk over the frames of the MPEG audio stream that starts at byte `start`; None where there is no such stream."""
    return _walk_frames(source, start, parse_mpeg_frame)


def walk_adts(source: Source, start: int) -> MpegWalk | None:
    """Walk over the frames of the ADTS stream that starts at byte `start`; None where there is no such stream."""
    return _walk_frames(source, start, _parse_adts_frame)


def tag_end(source: Source, position: int) -> int:
    """Return the byte after the tag (ID3v1, ID3v2, APE, Lyrics3) at `position`; `position` where there is none."""
    header = source.read_at(position, 32)
    if header[:3] == b"ID3":
        return min(source.size, skip_id3(source, position))
    if header[:8] == b"APETAGEX" and len(header) >= 16:
        has_header = len(header) >= 24 and bool(header[23] & 0x20)  # else this is the footer
        return min(source.size, position + 32 + (int.from_bytes(header[12:16], "little") if has_header else 0))
    if header[:3] == b"TAG":
        return min(source.size, position + 128)
    if header[:11] == b"LYRICSBEGIN":
        end = source.read_at(position, 1 << 16).find(b"LYRICS200")
        return position + end + 9 if end >= 0 else position
    return position


def end_without_tags(source: Source) -> int:
    """Return the byte before which no ID3v1 and APE tags are at the end of the file."""
    end = source.size
    for _ in range(4):
        if end >= 128 and source.read_at(end - 128, 3) == b"TAG":
            end -= 128
        elif end >= 32 and (footer := source.read_at(end - 32, 32))[:8] == b"APETAGEX":
            size, _, flags = struct.unpack_from("<III", footer, 12)
            end = max(0, end - size - (32 if flags & 0x80000000 else 0))
        else:
            break
    return end


def _walk_frames(source: Source, start: int, parse_frame: Callable[[bytes], MpegFrame | None]) -> MpegWalk | None:
    """Count frames by their headers, over tags and junk between them, up to the last frame.

    None where fewer frames than junk are found.
    """
    position, end, num_frames, num_samples = start, start, 0, 0
    rate = channels = second_start = 0
    gaps: list[int] = []
    change, changes_rate = "", False
    window, window_start = b"", start
    behind_tag = 0
    while position < source.size:
        if position + _XING_BYTES > window_start + len(window):
            window, window_start = source.read_at(position, _READ_BYTES), position
        at = position - window_start
        header = window[at : at + _HEADER_BYTES]
        frame = parse_frame(header)
        if frame is None:
            if len(header) < _HEADER_BYTES and header[:1] == b"\xff":
                return MpegWalk(num_frames, num_samples, position + _HEADER_BYTES, True, rate, channels)
            behind = tag_end(source, position)
            is_id3 = header[:3] == b"ID3"
            if behind == position:
                found = _resynchronise(source, position, parse_frame)
                if found is None:
                    break
                gaps.append(position)
                behind = found
            if is_id3:
                behind_tag = position
            position = behind
            continue
        if num_frames and (frame.rate, frame.channels) != (rate, channels) and not change:
            change = f"from {rate} Hz x {channels} to {frame.rate} Hz x {frame.channels} after {num_samples} samples"
        changes_rate |= bool(num_frames) and frame.rate != rate
        rate, channels = rate or frame.rate, max(channels, frame.channels)
        if num_frames and not second_start and (behind_tag or _has_frame_count(window[at : at + _XING_BYTES], frame)):
            second_start = behind_tag or position
        behind_tag = 0
        position += frame.size
        end = position
        num_frames += 1
        num_samples += frame.num_samples
    if num_frames <= len(gaps):
        return None
    is_cut = end > source.size
    return MpegWalk(
        num_frames, num_samples, end, is_cut, rate, channels, change, changes_rate, tuple(gaps), second_start
    )


def _has_frame_count(head: bytes, frame: MpegFrame) -> bool:
    """Whether the frame has no audio, but a Xing or VBRI header, which only the first frame of a recording has."""
    if not frame.xing_offset:
        return False
    return head[frame.xing_offset : frame.xing_offset + 4] in (b"Xing", b"Info") or head[36:40] == b"VBRI"


def _resynchronise(source: Source, position: int, parse_frame: Callable[[bytes], MpegFrame | None]) -> int | None:
    """Return the next byte after `position` at which two frames follow each other, or one that ends with the file."""
    for begin in range(position + 1, source.size, _READ_BYTES):
        window = source.read_at(begin, _READ_BYTES + _HEADER_BYTES)
        for match in _SYNC.finditer(window):
            at = match.start()
            frame = parse_frame(window[at : at + _HEADER_BYTES])
            if at < _READ_BYTES and frame is not None and frame.size > _HEADER_BYTES:
                behind = begin + at + frame.size
                following = source.read_at(behind, _HEADER_BYTES)
                if behind == source.size or parse_frame(following) is not None or tag_end(source, behind) > behind:
                    return begin + at
    return None
