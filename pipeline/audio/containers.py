"""Check that a file holds all the bytes that its container declares, before anything is decoded.

Decoders silently shorten a broken file: libsndfile clips a WAV to the bytes that exist, and drops the end of an Ogg
file. Therefore chunk sizes, frame counts and the end-of-stream flag are checked here.

Two kinds of damage cannot be detected: a cut between two frames of formats that declare no length at all (MPEG audio
without a Xing header, ADTS, AC-3, MPEG-TS, FLV), and a cut in the rare formats that `declared_end` does not implement.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pipeline.audio.declared_ends import declared_end
from pipeline.audio.mpeg import MpegWalk, parse_mpeg_frame, skip_id3, walk_mpeg
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode


@dataclass(frozen=True)
class Container:
    """What the headers of a file say about it.

    Attributes:
        demuxer: FFmpeg's name of the format; None where FFmpeg is not to be used.
        is_complete: True where the container declares its length and all its bytes exist.
        has_frame_count: MPEG audio: a Xing header counts the frames.
        lacks_bytes: MPEG audio: the Xing header declares more bytes than exist.
        exceeds_sndfile: MPEG audio: libsndfile might stop before the end.
        mpeg_start: MPEG audio: the first frame, in bytes from the start of the file.
    """

    demuxer: str | None
    is_complete: bool = False
    has_frame_count: bool = False
    lacks_bytes: bool = False
    exceeds_sndfile: bool = False
    mpeg_start: int = 0


def check_container(source: Source) -> Container:
    """Recognise the container, and compare the length that it declares with the bytes that exist.

    Raises:
        AudioError: TRUNCATED where bytes are missing; UNSUPPORTED where recordings are joined in such a way that
            libsndfile would read the first and drop the others.
    """
    start = skip_id3(source)
    head = source.read_at(start, 256)
    demuxer = _demuxer(head)
    if demuxer == "ogg" and start == 0:
        _check_ogg(source)
        return Container(demuxer, is_complete=True)
    if demuxer == "mp3" and (mpeg := _check_mpeg(source, start)) is not None:
        return mpeg
    end = declared_end(source, demuxer, head) if start == 0 else None
    if end is not None and end > source.size:
        message = f"the container declares {end} bytes, but the file has {source.size}"
        raise AudioError(ErrorCode.TRUNCATED, message)
    return Container(demuxer, is_complete=end is not None)


_GUID_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_GUID_W64_RIFF = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")

_MAGIC: Final = (  # position, bytes, FFmpeg's name
    (0, b"OggS", "ogg"),
    (0, b"RIFF", "wav"),  # except AVI, see _demuxer
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
    """Return FFmpeg's name for the format of a file that begins with `head`; None where it is not recognised."""
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


def _check_ogg(source: Source) -> None:
    """Check the length and the end-of-stream flag of the last page of an Ogg file, and that no stream follows."""
    begin = max(0, source.size - 2 * 65307)  # twice the longest page: the last page begins in the tail
    tail = source.read_at(begin, source.size - begin)
    page_start = tail.rfind(b"OggS\0")
    table = page_start + 27  # the table of segment lengths
    if page_start < 0 or len(tail) < table or len(tail) < table + tail[table - 1]:
        message = f"the header of the last Ogg page is cut at byte {source.size}"
        raise AudioError(ErrorCode.TRUNCATED, message)
    end = table + tail[table - 1] + sum(tail[table : table + tail[table - 1]])
    if end > len(tail):
        message = f"the last Ogg page extends to byte {begin + end}, but the file ends at byte {source.size}"
        raise AudioError(ErrorCode.TRUNCATED, message)
    if not tail[page_start + 5] & 4:
        message = f"the last Ogg page, at byte {begin + page_start}, has no end-of-stream flag"
        raise AudioError(ErrorCode.TRUNCATED, message)
    # libsndfile reads the first of chained streams and drops the others.
    serials, position = set[bytes](), 0
    while (page := source.read_at(position, 282))[:4] == b"OggS" and len(page) > 27 and page[5] & 2:
        serials.add(page[14:18])
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    if tail[page_start + 14 : page_start + 18] not in serials:
        message = "chained Ogg: another stream follows the end of the first; store each stream in its own file"
        raise AudioError(ErrorCode.UNSUPPORTED, message)


def _check_mpeg(source: Source, start: int) -> Container | None:
    """Check MPEG audio whose first frame is at byte `start`; None where there is no such frame."""
    head = source.read_at(start, 256)
    frame = parse_mpeg_frame(head)
    if frame is None:
        return None
    second = source.read_at(start + frame.size, 4)
    if len(second) == 4 and parse_mpeg_frame(second) is None:
        return None
    is_xing = head[frame.xing_offset : frame.xing_offset + 4] in (b"Xing", b"Info")
    if is_xing and len(head) >= frame.xing_offset + 16:
        flags, num_frames, size = struct.unpack_from(">III", head, frame.xing_offset + 4)
        if flags & 1 and num_frames:
            end = start + size if flags & 2 else source.size
            _check_xing_end(source, start, end)
            return Container("mp3", has_frame_count=True, lacks_bytes=end > source.size, mpeg_start=start)
    walk = walk_mpeg(source, start)
    if walk is None:
        return Container("mp3", mpeg_start=start)
    _check_last_frame(source, walk)
    # libsndfile stops at the length that it estimates from the size of the first frame.
    estimate = (source.size - start) / frame.size * frame.num_samples
    return Container("mp3", is_complete=True, exceeds_sndfile=walk.num_samples > estimate, mpeg_start=start)


def _check_xing_end(source: Source, start: int, end: int) -> None:
    """Compare the end of the stream that the Xing header declares with the bytes that exist."""
    # A tag that was stripped from the end is missing as well: only a cut frame proves that the file was cut.
    if end > source.size and (walk := walk_mpeg(source, start)) is not None:
        _check_last_frame(source, walk)
    next_bytes = source.read_at(end, 4)
    # More than one frame: some encoders do not count the Xing frame itself.
    if source.size - end > 4096 and (next_bytes[:3] == b"ID3" or parse_mpeg_frame(next_bytes) is not None):
        message = (
            f"joined MP3s: the first ends at byte {end} by its Xing header, "
            f"but MPEG audio continues to byte {source.size}; store each recording in its own file"
        )
        raise AudioError(ErrorCode.UNSUPPORTED, message)


def _check_last_frame(source: Source, walk: MpegWalk) -> None:
    if walk.is_cut:
        message = f"the last MPEG frame extends to byte {walk.end}, but the file ends at byte {source.size}"
        raise AudioError(ErrorCode.TRUNCATED, message)
