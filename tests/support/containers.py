"""A short recording in every container and coding that libsndfile and FFmpeg can write."""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

import numpy as np
import soundfile

from tests.support.signals import encode, encode_av, speech_like

SECONDS = 0.8


class Kind(NamedTuple):
    """A container with a coding, and the writer that makes it.

    Attributes:
        name: for messages, "WAV PCM_16".
        writer: "sndfile" or "ffmpeg".
        container: as the writer calls it.
        coding: as the writer calls it.
        rate: Hz.
        channels: how many.
        padding_s: what the coding adds at most, to complete its last frame or to start, seconds.
    """

    name: str
    writer: str
    container: str
    coding: str
    rate: int
    channels: int
    padding_s: float


_AV = (  # container, codec, rate, channels, padding
    ("mp3", "libmp3lame", 16_000, 1, 0.2),
    ("mp3", "libmp3lame", 44_100, 2, 0.1),
    ("mp2", "mp2", 16_000, 1, 0.2),
    ("ac3", "ac3", 48_000, 2, 0.1),
    ("eac3", "eac3", 48_000, 2, 0.1),
    ("adts", "aac", 16_000, 1, 0.2),
    ("ipod", "aac", 16_000, 1, 0.2),
    ("ipod", "alac", 16_000, 1, 0.01),
    ("mp4", "flac", 16_000, 1, 0.01),
    ("mov", "pcm_s16le", 16_000, 2, 0.01),
    ("3gp", "libopencore_amrnb", 8_000, 1, 0.1),
    ("amr", "libopencore_amrnb", 8_000, 1, 0.1),
    ("webm", "libopus", 48_000, 1, 0.1),
    ("matroska", "flac", 16_000, 2, 0.01),
    ("matroska", "pcm_s16le", 16_000, 1, 0.01),
    ("avi", "pcm_s16le", 16_000, 1, 0.01),
    ("asf", "libmp3lame", 44_100, 1, 0.1),
    ("flv", "libmp3lame", 44_100, 1, 0.1),
    ("mpegts", "mp2", 48_000, 1, 0.1),
    ("mpeg", "mp2", 48_000, 1, 0.1),
    ("ogg", "flac", 16_000, 1, 0.01),
    ("ogg", "libopus", 48_000, 2, 0.1),
    ("ogg", "speex", 16_000, 1, 0.1),
    ("caf", "pcm_s16be", 16_000, 1, 0.01),
    ("flac", "flac", 16_000, 1, 0.01),
    ("wav", "pcm_s16le", 16_000, 2, 0.01),
    ("wav", "adpcm_ima_wav", 16_000, 1, 0.2),
    ("w64", "pcm_s16le", 16_000, 1, 0.01),
    ("aiff", "pcm_s16be", 16_000, 1, 0.01),
    ("au", "pcm_s16be", 16_000, 1, 0.01),
    ("voc", "pcm_s16le", 16_000, 1, 0.01),
    ("wv", "wavpack", 16_000, 1, 0.01),
    ("tta", "tta", 16_000, 1, 0.01),
)
_FIXED_RATES = {"WVE": (8000,), "XI": (44_100,)}
_UNSEEN = {"RAW", "SD2"}  # without a header; with the header in another file


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """Every container with each coding that its writer accepts."""
    import av

    found = []
    for container in sorted(soundfile.available_formats()):
        for coding in soundfile.available_subtypes(container):
            if container in _UNSEEN:
                continue
            for rate in _FIXED_RATES.get(container, (16_000, 8_000, 44_100)):
                if soundfile.check_format(container, coding) and _writes(container, coding, rate):
                    padding = 0.2 if coding.startswith(("MPEG", "G72", "NMS", "GSM", "IMA", "MS_", "VOX")) else 0.03
                    found.append(Kind(f"{container} {coding}", "sndfile", container, coding, rate, 1, padding))
                    break
    for container, codec, rate, channels, padding in _AV:
        if codec in av.codecs_available and container in av.formats_available and codec != "speex":
            name = f"{container} {codec} {channels}"
            found.append(Kind(name, "ffmpeg", container, codec, rate, channels, padding))
    return tuple(found)


def _writes(container: str, coding: str, rate: int) -> bool:
    try:
        return bool(encode(np.zeros(rate // 10, np.float32), rate, container, coding))
    except (soundfile.SoundFileError, ValueError, TypeError):
        return False


@functools.cache
def written(name: str, seconds: float = SECONDS, seed: int = 0) -> bytes:
    """The recording of `kinds` of that name."""
    kind = next(kind for kind in kinds() if kind.name == name)
    signal = speech_like(seconds, kind.rate, kind.channels, seed)
    if kind.writer == "sndfile":
        return encode(signal, kind.rate, kind.container, kind.coding)
    return encode_av(signal, kind.rate, kind.container, kind.coding)


def ogg_page(packets: list[bytes], granule: int, number: int, flags: int = 0, serial: int = 7) -> bytes:
    """An Ogg page of whole packets, with its checksum."""
    lacing = b"".join(bytes([255] * (len(packet) // 255) + [len(packet) % 255]) for packet in packets)
    head = struct.pack("<4sBBQIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(lacing))
    page = head + lacing + b"".join(packets)
    crc = 0
    for byte in page:  # CRC-32 with the polynomial 0x04c11db7, the highest bit first
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return page[:22] + struct.pack("<I", crc) + page[26:]


def ogg_speex(frames: int, rate: int = 8000) -> bytes:
    """Ogg Speex of `frames` packets of 20 ms each, which say that nothing is transmitted."""
    size = rate // 50
    head = struct.pack("<8s20s13i", b"Speex   ", b"1.2", 1, 80, rate, rate // 16_000, 4, 1, -1, size, 0, 1, 0, 0, 0)
    comment = struct.pack("<I3sI", 3, b"abc", 0)
    pages = [ogg_page([head], 0, 0, flags=2), ogg_page([comment], 0, 1)]
    silent = bytes([0b00000_011, 0b11_000000])  # narrow band, mode 0; the terminator
    for number, begin in enumerate(range(0, frames, 50), 2):
        count = min(50, frames - begin)
        last = 4 if begin + count == frames else 0
        pages.append(ogg_page([silent] * count, (begin + count) * size, number, flags=last))
    return b"".join(pages)
