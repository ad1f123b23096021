"""Walk over the pages of an Ogg file (RFC 3533)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.audio.contents import Contents, joined, truncated
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode

_HEADER_BYTES = 27
_LONGEST_PAGE = 65_307
_WINDOW = 1 << 18
_CONTINUED, _FIRST, _LAST = 1, 2, 4  # flags of a page
_NO_GRANULE = (1 << 64) - 1
_REVERSED: Final = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class _Page(NamedTuple):
    position: int
    flags: int
    granule: int  # samples up to the end of the last packet that ends in the page
    serial: int
    number: int
    checksum: int
    num_packets: int  # that end in the page
    data: bytes  # the whole page

    @property
    def body(self) -> bytes:
        return self.data[_HEADER_BYTES + self.data[26] :]


@dataclass
class _Stream:
    codec: str
    rate: int
    skip: int  # samples at the start that are not part of the recording
    most: int  # samples that a packet has at most
    least: int = 0  # samples that a packet has at least; the first of Vorbis has none
    next_number: int = 1
    last_granule: int = 0
    first_granule: int | None = None  # that of the first page of audio
    first_packets: int = 0
    first_samples: int = 0  # of Opus: in the packets up to the end of that page
    ended: bool = False

    @property
    def offset(self) -> int:
        """The position of the first sample of Opus, in samples: some writers do not start at 0 (RFC 7845, section 4.5).

        If the first page of audio is the last one too, its position may be that of a cut end: then at least this.
        """
        if self.codec != "opus" or self.first_granule is None:
            return 0
        return max(0, self.first_granule - self.first_samples)

    @property
    def slack(self) -> int:
        """Samples by which the recording may be shorter than its last position: nothing states the first one.

        Opus packets state their lengths, the others do not: how many samples the first page has is known from the
        number of its packets only.
        """
        if self.codec == "opus":
            return 1
        return max(0, (self.first_granule or 0) - self.least * max(0, self.first_packets - 1))


def walk_ogg(source: Source) -> Contents:
    """Check every page of an Ogg file, and compute the samples of its first audio stream.

    Raises:
        AudioError: TRUNCATED where pages are cut or missing; UNDECODABLE where a page is damaged: decoders drop it;
            UNSUPPORTED where a second recording follows (chained Ogg): decoders read the first and drop it.
    """
    streams: dict[int, _Stream] = {}
    end = 0
    for page in _pages(source):
        has_ended = bool(streams) and all(stream.ended for stream in streams.values())
        if page.flags & _FIRST and (
            has_ended or page.serial in streams or any(s.next_number > 1 for s in streams.values())
        ):
            joined("pages", page.position, "another Ogg stream (chained Ogg)")
        if has_ended:
            break
        if page.checksum and page.checksum != _checksum(page.data):
            message = f"the Ogg page at byte {page.position} is damaged: its checksum is wrong"
            raise AudioError(ErrorCode.UNDECODABLE, message)
        end = page.position + len(page.data)
        if page.flags & _FIRST:
            streams[page.serial] = _identify(page.body)
        elif page.serial in streams:
            _follow(streams[page.serial], page)
        streams_of_page = streams.get(page.serial)
        if streams_of_page is not None and page.flags & _LAST:
            streams_of_page.ended = True
    if not streams or end == 0:
        return Contents()
    audio = next((stream for stream in streams.values() if stream.rate), None)
    if not (audio or next(iter(streams.values()))).ended:
        truncated(f"no Ogg page up to byte {end} has the end-of-stream flag of the audio")
    if audio is None:
        return Contents(end)
    # A stream that was cut out of another one does not start at 0: its length is then not known.
    starts_at_0 = audio.first_granule is None or audio.first_granule <= audio.first_packets * audio.most
    frames = max(0, audio.last_granule - audio.offset - audio.skip) if starts_at_0 and audio.codec != "speex" else None
    return Contents(end, frames, audio.rate if frames is not None else 0, audio.slack)


def _follow(stream: _Stream, page: _Page) -> None:
    if page.number != stream.next_number:
        truncated(
            f"Ogg pages are missing before byte {page.position}: page {stream.next_number} was expected, "
            f"and {page.number} found"
        )
    stream.next_number += 1
    if page.granule not in (0, _NO_GRANULE):
        if stream.first_granule is None:
            stream.first_granule = page.granule
        stream.last_granule = page.granule
    if page.granule and (stream.first_granule is None or page.granule == stream.first_granule):  # pages of headers: 0
        stream.first_packets += page.num_packets
        if stream.codec == "opus":
            stream.first_samples += sum(map(_opus_samples, _packets(page)))


def _pages(source: Source) -> Iterator[_Page]:
    position, window, window_start = 0, b"", 0
    while position < source.size:
        if position + _LONGEST_PAGE > window_start + len(window) < source.size:
            window, window_start = source.read_at(position, _WINDOW), position
        at = position - window_start
        if window[at : at + 4] != b"OggS"[: len(window) - at]:
            if position == 0 or not window[at:].strip(b"\0"):
                return
            if (following := window.find(b"OggS\0", at)) < 0:
                return
            message = (
                f"no Ogg page at byte {position}, where one should be; the next is at byte {window_start + following}"
            )
            raise AudioError(ErrorCode.UNDECODABLE, message)
        header = window[at : at + _HEADER_BYTES]
        lacing = window[at + _HEADER_BYTES :][: header[26] if len(header) == _HEADER_BYTES else 0]
        if len(header) < _HEADER_BYTES or len(lacing) < header[26]:
            truncated(f"the header of the Ogg page at byte {position} is cut")
        size = _HEADER_BYTES + len(lacing) + sum(lacing)
        if position + size > source.size:
            truncated(f"the last Ogg page extends to byte {position + size}, but the file ends at byte {source.size}")
        flags, granule, serial, number, checksum = struct.unpack_from("<BQIII", header, 5)
        packets = sum(length < 255 for length in lacing)
        yield _Page(position, flags, granule, serial, number, checksum, packets, window[at : at + size])
        position += size


def _packets(page: _Page) -> Iterator[bytes]:
    """The packets that begin in a page, of which the last may be cut."""
    start = at = 0
    continued = bool(page.flags & _CONTINUED)
    for length in page.data[_HEADER_BYTES : _HEADER_BYTES + page.data[26]]:
        at += length
        if length < 255:
            if not continued:
                yield page.body[start:at]
            start, continued = at, False


def _opus_samples(packet: bytes) -> int:
    """Samples of an Opus packet, at 48 kHz (RFC 6716, section 3.1)."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        samples = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        samples = (480, 960)[config & 1]
    else:
        samples = (120, 240, 480, 960)[config & 3]
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]
    return samples * frames


def _checksum(page: bytes) -> int:
    """CRC-32 of a page with its checksum field at 0: zlib's, with the bits of each byte and of the result reversed."""
    cleared = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(cleared.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def _identify(packet: bytes) -> _Stream:
    """Read the first packet of a stream; a stream that is not audio has rate 0."""
    if packet[:7] == b"\x01vorbis" and len(packet) >= 30:
        rate = int.from_bytes(packet[12:16], "little")
        return _Stream("vorbis", rate, 0, 1 << (packet[28] >> 4), (1 << (packet[28] & 15)) // 2)
    if packet[:8] == b"OpusHead" and len(packet) >= 19:
        return _Stream("opus", 48_000, int.from_bytes(packet[10:12], "little"), 5760)
    if packet[:5] == b"\x7fFLAC" and len(packet) >= 9 + 4 + 4 + 34:
        least = int.from_bytes(packet[17:19], "big")
        return _Stream("flac", int.from_bytes(packet[27:30], "big") >> 4, 0, 65_535, least)
    if packet[:8] == b"Speex   " and len(packet) >= 40:
        return _Stream("speex", int.from_bytes(packet[36:40], "little"), 0, 1 << 16)
    return _Stream("other", 0, 0, 0)
