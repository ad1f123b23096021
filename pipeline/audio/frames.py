"""Walk over the frames or blocks of formats that are a header and a row of them: AMR, AC-3, WavPack, TTA, FLV, VOC."""

from __future__ import annotations

import struct
from typing import Final

from pipeline.audio.contents import Contents, joined, truncated
from pipeline.audio.mpeg import walk_adts
from pipeline.audio.source import Source
from pipeline.errors import AudioError, ErrorCode

_AMR_BYTES: Final = {  # of a frame, by its type
    False: (13, 14, 16, 18, 20, 21, 27, 32, 6, 7, 6, 6, 1, 1, 1, 1),
    True: (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 6, 1, 1, 1, 1, 1),
}
_AC3_KBIT: Final = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_AC3_RATES: Final = (48_000, 44_100, 32_000)
_GSM_BYTES = 33  # of a frame of 160 samples
_WINDOW = 1 << 18


def _cut(what: str, end: int, source: Source) -> None:
    if end > source.size:
        truncated(f"the last {what} extends to byte {end}, but the file ends at byte {source.size}")


class _Window:
    """Reads a source onwards in large pieces, for walks that look at a few bytes at a time."""

    def __init__(self, source: Source) -> None:
        self._source, self._data, self._start = source, b"", 0

    def read(self, position: int, count: int) -> bytes:
        if not self._start <= position <= position + count <= self._start + len(self._data):
            self._data, self._start = self._source.read_at(position, _WINDOW), position
        return self._data[position - self._start :][:count]


def adts(source: Source) -> Contents:
    """AAC in ADTS."""
    walk = walk_adts(source, 0)
    if walk is None:
        return Contents()
    _cut("ADTS frame", walk.end, source)
    if walk.change:
        raise AudioError(ErrorCode.UNSUPPORTED, f"the AAC changes its format {walk.change}")
    return Contents(walk.end, walk.num_samples, walk.rate, 2 * 1024, gaps=walk.gaps)


def amr(source: Source) -> Contents:
    """AMR and AMR-WB of one channel."""
    is_wide = source.read_at(0, 9) == b"#!AMR-WB\n"
    if not is_wide and source.read_at(0, 6) != b"#!AMR\n":
        return Contents()
    position, frames, window = 9 if is_wide else 6, 0, _Window(source)
    while position < source.size:
        head = window.read(position, 6)
        if head[:5] == b"#!AMR":
            joined("frames", position, "another AMR")
        position += _AMR_BYTES[is_wide][head[0] >> 3 & 15]
        frames += 1
    _cut("AMR frame", position, source)
    return Contents(position, frames * (320 if is_wide else 160), 16_000 if is_wide else 8_000, 0)


def is_gsm(source: Source) -> bool:
    """Whether a file is GSM 06.10 without a header: every frame of 33 bytes begins with 1101, and not all are equal.

    The whole file is looked at, since other data hold such bytes by chance, and silence in A-law is made of them.
    """
    if source.size % _GSM_BYTES or source.size < 4 * _GSM_BYTES:
        return False
    step = _WINDOW // _GSM_BYTES * _GSM_BYTES
    seen: set[int] = set()
    for start in range(0, source.size, step):
        data = source.read_at(start, step)
        if any(first >> 4 != 0xD for first in data[::_GSM_BYTES]):
            return False
        seen.update(data)
    return any(byte >> 4 != 0xD for byte in seen)


def gsm(source: Source) -> Contents:
    """GSM 06.10 without a header, as telephone systems store it; always at 8 kHz."""
    return Contents(source.size, source.size // _GSM_BYTES * 160, 8_000, 0)


def ac3(source: Source) -> Contents:
    """AC-3 and E-AC-3."""
    position, samples, window, first_rate = 0, 0, _Window(source), 0
    while position < source.size:
        head = window.read(position, 6)
        if head[:2] != b"\x0bw"[: len(head)]:
            break
        if len(head) < 6:
            position += 6
            break
        if head[5] >> 3 > 10:  # E-AC-3
            size, code = 2 * (((head[2] & 7) << 8 | head[3]) + 1), head[4] >> 6
            rate = _AC3_RATES[code] if code < 3 else 0
            blocks = (1, 2, 3, 6)[head[4] >> 4 & 3]
            is_own = head[2] >> 6 != 1  # else it adds channels to the frame before it
        else:
            code, size_code = head[4] >> 6, head[4] & 63
            if code == 3 or size_code >= 2 * len(_AC3_KBIT):
                return Contents()
            rate, kbit = _AC3_RATES[code], _AC3_KBIT[size_code // 2]
            size = 2 * (kbit * 96_000 // rate + (size_code & 1 if rate == 44_100 else 0))
            blocks, is_own = 6, True
        if not rate or (first_rate and rate != first_rate):
            return Contents()
        first_rate = rate
        position += size
        samples += 256 * blocks if is_own else 0
    _cut("AC-3 frame", position, source)
    return Contents(position, samples, first_rate, 2 * 1536) if first_rate else Contents()


_WAVPACK_RATES: Final = (6, 8, 9.6, 11.025, 12, 16, 22.05, 24, 32, 44.1, 48, 64, 88.2, 96, 192)


def wavpack(source: Source) -> Contents:
    """WavPack."""
    position, samples, rate, declared = 0, 0, 0, 0
    for_flags = 0
    while (head := source.read_at(position, 32))[:4] == b"wvpk" and len(head) == 32:
        size, _, _, _, total, index, count, flags = struct.unpack_from("<IHBBIIII", head, 4)
        if position == 0:
            for_flags, declared = flags, 0 if total == 0xFFFFFFFF else total
        elif index == 0 and flags & 0x800 and count:
            joined("blocks", position, "another WavPack")
        position += size + 8
        samples += count if flags & 0x800 else 0  # the first block of those that hold the channels of one stretch
        _cut("WavPack block", position, source)
    if not position:
        return Contents()
    if 0 < len(head) < 32:
        truncated(f"a WavPack block is cut at byte {source.size}")
    if samples < declared:
        truncated(f"the header declares {declared} samples, but the blocks hold {samples}")
    code = for_flags >> 23 & 15
    rate = round(1000 * _WAVPACK_RATES[code]) if code < 15 else 0
    return Contents(position, samples if rate else None, rate)


def tta(source: Source) -> Contents:
    """True Audio."""
    head = source.read_at(0, 22)
    if len(head) < 22:
        return Contents()
    rate, frames = struct.unpack_from("<II", head, 10)
    count = -(-frames * 245 // (256 * rate)) if rate else 0
    if not 0 < count < 1 << 22:
        return Contents()
    table = source.read_at(22, 4 * count)
    if len(table) < 4 * count:
        truncated(f"the table of frames is cut at byte {source.size}")
    end = 22 + 4 * count + 4 + sum(struct.unpack(f"<{count}I", table))
    _cut("TTA frame", end, source)
    return Contents(end, frames, rate)


def flv(source: Source) -> Contents:
    """Flash video: its tags."""
    position, window = int.from_bytes(source.read_at(5, 4), "big") + 4, _Window(source)
    while position < source.size:
        head = window.read(position, 11)
        if head[:4] == b"FLV\x01":
            joined("tags", position, "another FLV")
        if head[0] & 0x1F not in (8, 9, 18):
            break
        position += 11 + int.from_bytes(head[1:4], "big") + 4
    _cut("FLV tag", position, source)
    return Contents(position)


def mpegts(source: Source) -> Contents:
    """MPEG transport stream: its packets of 188 bytes."""
    end = 0
    while data := source.read_at(end, 188 * 4096):
        count = next((n for n in range(-(-len(data) // 188)) if data[188 * n] != 0x47), -(-len(data) // 188))
        end += 188 * count
        if 188 * count < len(data):
            break
    _cut("packet", end, source)
    return Contents(end)


def mpegps(source: Source) -> Contents:
    """MPEG program stream: its packs and packets."""
    position, window = 0, _Window(source)
    while position < source.size:
        head = window.read(position, 14)
        if head[:3] != b"\0\0\1" or len(head) < 4 or head[3] < 0xB9:
            break
        if head[3] == 0xB9:
            position += 4
        elif head[3] == 0xBA:
            position += 14 + (head[13] & 7) if len(head) > 13 and head[4] >> 6 == 1 else 12
        else:
            position += 6 + int.from_bytes(head[4:6], "big")
    _cut("packet", position, source)
    return Contents(position)


def voc(source: Source) -> Contents:
    """Creative Voice: its blocks. libsndfile takes the headers of all but the first for samples.

    Raises:
        AudioError: UNSUPPORTED where blocks of silence or repetition, which no decoder follows, are among them, or the
            rate changes; TRUNCATED where a block is cut, or the terminator is missing.
    """
    position = int.from_bytes(source.read_at(20, 2), "little")
    num_blocks, size_of_audio, first, bits, rate, last_coding, is_open = 0, 0, None, 8, 0, b"", True
    while position < source.size:
        head = source.read_at(position, 20)
        kind, size = head[0], int.from_bytes(head[1:4], "little")
        if kind == 0:
            position += 1
            is_open = False
            break
        if kind > 9 or len(head) < 4:
            break
        if kind in (3, 6, 7):
            message = f"the VOC block at byte {position} is {'silence' if kind == 3 else 'a repetition'}: not read"
            raise AudioError(ErrorCode.UNSUPPORTED, message)
        if kind in (1, 9):
            coding = head[4:6] if kind == 1 else head[4:12]
            if first is not None and coding != last_coding:
                raise AudioError(ErrorCode.UNSUPPORTED, f"the VOC block at byte {position} has another rate or coding")
            first, last_coding = kind, coding
            if kind == 1 and len(head) > 5:
                rate, bits = 1_000_000 // (256 - head[4]), 8 if head[5] == 0 else 0
            elif len(head) >= 14:
                rate, bits = int.from_bytes(head[4:8], "little"), head[8] * head[9]
                is_open = head[10] not in (6, 7)  # libsndfile writes A-law and mu-law without a terminator
            size_of_audio += size - (2 if kind == 1 else 12)
        elif kind == 2:
            size_of_audio += size
        elif kind == 8:
            return Contents()
        num_blocks += kind in (1, 2, 9)
        position += 4 + size
    _cut("VOC block", position, source)
    if not num_blocks:
        return Contents()
    if is_open and position + 4 > source.size:
        truncated(f"no VOC block up to byte {position} is the terminator")
    frames = size_of_audio * 8 // bits if bits else None
    avoids = f"the VOC has {num_blocks} blocks" if num_blocks > 1 else ""
    return Contents(position, frames, rate if bits else 0, 1, avoids_sndfile=avoids)
