"""MPEG audio and ADTS (AAC) as streams of frames: parse frame headers and walk from frame to frame.

Here a frame is an MPEG frame: a header and the code of `num_samples` samples of every channel.
"""

from __future__ import annotations

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

_HEADER_BYTES = 7  # enough to know a frame's size: 4 for MPEG audio, 7 for ADTS
_READ_BYTES = 1 << 18
_MAX_ID3_TAGS = 100_000  # read at most


class MpegFrame(NamedTuple):
    """The header of one frame.

    Attributes:
        size: of the frame, header included, in bytes.
        num_samples: of each channel.
        xing_offset: where in the frame a Xing header would start, in bytes.
    """

    size: int
    num_samples: int
    xing_offset: int


class MpegWalk(NamedTuple):
    """The result of walking over all frames of a stream.

    Attributes:
        num_samples: of each channel, over all frames that begin in the file.
        end: the byte after the last frame, by its header.
        is_cut: whether the last frame extends beyond the end of the file.
    """

    num_samples: int
    end: int
    is_cut: bool


def parse_mpeg_frame(header: bytes) -> MpegFrame | None:
    """Parse the 4 header bytes of an MPEG audio frame; None where they are not one.

    None also for the free format, whose headers do not determine the size.
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bit_rate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_mpeg1 = version == 3
    hertz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits_per_s = 1000 * _KBIT_PER_S[is_mpeg1, layer][bit_rate - 1]
    if layer == 1:
        return MpegFrame((12 * bits_per_s // hertz + padding) * 4, 384, 0)
    num_samples = 1152 if is_mpeg1 or layer == 2 else 576
    is_mono = header[3] >> 6 == 3
    side_info_bytes = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
    return MpegFrame(num_samples // 8 * bits_per_s // hertz + padding, num_samples, 4 + side_info_bytes)


def _parse_adts_frame(header: bytes) -> MpegFrame | None:
    """Parse the 7 header bytes of an ADTS (AAC) frame; None where they are not one."""
    if len(header) < _HEADER_BYTES or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return None
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    num_samples = 1024 * (1 + (header[6] & 3))
    return MpegFrame(size, num_samples, 0) if size >= _HEADER_BYTES else None


def skip_id3(source: Source) -> int:
    """Return the first byte after the ID3v2 tags at the start of the file; 0 where there are none."""
    position = 0
    for _ in range(_MAX_ID3_TAGS):
        header = source.read_at(position, 10)
        if header[:3] != b"ID3" or len(header) < 10:
            break
        size = header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9]
        position += 10 + size + (10 if header[5] & 0x10 else 0)
    return position


def walk_mpeg(source: Source, start: int) -> MpegWalk | None:
    """Walk over the frames of the MPEG audio stream that starts at byte `start`; None where there is no such stream."""
    return _walk_frames(source, start, parse_mpeg_frame)


def walk_adts(source: Source, start: int) -> MpegWalk | None:
    """Walk over the frames of the ADTS stream that starts at byte `start`; None where there is no such stream."""
    return _walk_frames(source, start, _parse_adts_frame)


def _walk_frames(source: Source, start: int, parse_frame: Callable[[bytes], MpegFrame | None]) -> MpegWalk | None:
    """Count frames by their headers up to a tag or the end of the file; None where other bytes are between them."""
    position, num_samples = start, 0
    window, window_start = b"", start
    while position < source.size:
        if position + _HEADER_BYTES > window_start + len(window):
            window, window_start = source.read_at(position, _READ_BYTES), position
        header = window[position - window_start : position - window_start + _HEADER_BYTES]
        frame = parse_frame(header)
        if frame is None:
            is_tag = header[:3] in (b"TAG", b"APE", b"LYR", b"ID3") or not header.strip(b"\0")
            if len(header) < _HEADER_BYTES and header[:1] == b"\xff":
                return MpegWalk(num_samples, position + _HEADER_BYTES, is_cut=True)
            return MpegWalk(num_samples, position, is_cut=False) if is_tag else None
        position += frame.size
        num_samples += frame.num_samples
    return MpegWalk(num_samples, position, is_cut=position > source.size)
