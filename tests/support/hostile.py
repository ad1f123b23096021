"""Audio files that promise the impossible, are cut, or are no audio: in every container, each one error row."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from pipeline.errors import ErrorCode
from tests.support.containers import kinds, written
from tests.support.mutations import NO_LENGTH
from tests.support.signals import encode, encode_av, png, speech_like

SECONDS = 0.5
HUGE = 2**60
U32, U16 = 2**32 - 1, 2**16 - 1
RATE_4_GHZ = 4_000_000_000

EMPTY = {ErrorCode.EMPTY_FILE}
CUT = {ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE, ErrorCode.UNSUPPORTED}
FOREIGN = {ErrorCode.UNDECODABLE}
ABSURD = {
    *(ErrorCode.UNDECODABLE, ErrorCode.UNSUPPORTED, ErrorCode.TRUNCATED, ErrorCode.TOO_LARGE, ErrorCode.NO_SAMPLES),
    *(ErrorCode.NON_FINITE, ErrorCode.TOO_SHORT),
}

Bad = tuple[str, bytes, set[ErrorCode]]
"""The name of a file, its bytes, and the codes that it may get."""


def packed(data: bytes, at: int, form: str, *values: float) -> bytes:
    """`data` with `values` packed at byte `at`."""
    assert at >= 0, (form, values)
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def behind(data: bytes, mark: bytes, skip: int = 0) -> int:
    """The first byte behind `mark` and `skip` bytes more."""
    at = data.index(mark)
    return at + len(mark) + skip


def sndfile(container: str, coding: str = "PCM_16") -> bytes:
    return encode(speech_like(SECONDS), 16_000, container, coding)


def ffmpeg(container: str, codec: str, rate: int = 16_000) -> bytes:
    return encode_av(speech_like(SECONDS, rate), rate, container, codec)


def extended(value: float) -> bytes:
    """An 80-bit float, in which AIFF has the rate."""
    exponent = int(np.floor(np.log2(value)))
    return struct.pack(">HQ", 16383 + exponent, int(value * 2.0 ** (63 - exponent)))


def absurd_wav() -> Iterator[tuple[str, bytes]]:
    wav = sndfile("WAV")
    yield "channels", packed(wav, 22, "<H", U16)
    yield "no-channels", packed(wav, 22, "<H", 0)
    yield "rate", packed(wav, 24, "<I", RATE_4_GHZ)
    yield "no-rate", packed(wav, 24, "<I", 0)
    yield "bits", packed(wav, 34, "<H", U16)
    yield "no-block", packed(wav, 32, "<HH", 0, 0)
    yield "coding", packed(wav, 20, "<H", 0x7777)
    yield "samples", packed(packed(wav, 4, "<I", 0x40000024), 40, "<I", 0x40000000)
    yield "no-samples", packed(wav[:44], 40, "<I", 0)
    yield "no-fmt", wav[:12] + wav[36:]
    yield "fmt-of-4-gb", packed(wav, 16, "<I", U32 - 1)
    yield "chunks", wav[:12] + b"junk\0\0\0\0" * 200_000
    adpcm = sndfile("WAV", "IMA_ADPCM")
    yield "adpcm-block", packed(adpcm, 32, "<H", 1)
    yield "adpcm-frames", packed(adpcm, 38, "<H", U16)
    rf64 = sndfile("RF64")
    yield "rf64-samples", packed(rf64, behind(rf64, b"ds64", 4), "<QQQ", HUGE, HUGE, HUGE)
    w64 = sndfile("W64")
    yield "w64-samples", packed(packed(w64, 16, "<Q", HUGE), behind(w64, b"data", 12), "<Q", HUGE)
    yield "w64-channels", packed(w64, behind(w64, b"fmt ", 22), "<H", U16)
    yield "w64-rate", packed(w64, behind(w64, b"fmt ", 24), "<I", RATE_4_GHZ)


def absurd_others() -> Iterator[tuple[str, bytes]]:
    aiff = sndfile("AIFF")
    comm = behind(aiff, b"COMM", 4)
    yield "aiff-channels", packed(aiff, comm, ">H", U16)
    yield "aiff-rate", aiff[: comm + 8] + extended(4e9) + aiff[comm + 18 :]
    yield "aiff-no-rate", aiff[: comm + 8] + bytes(10) + aiff[comm + 18 :]
    yield "aiff-infinite-rate", aiff[: comm + 8] + b"\x7f\xff" + bytes(8) + aiff[comm + 18 :]
    yield "aiff-data", packed(packed(aiff, 4, ">I", 0x40000100), behind(aiff, b"SSND"), ">I", 0x40000000)
    au = sndfile("AU")
    yield "au-data", packed(au, 8, ">I", 0x40000000)
    yield "au-offset", packed(au, 4, ">I", U32)
    yield "au-rate", packed(au, 16, ">I", RATE_4_GHZ)
    yield "au-channels", packed(au, 20, ">I", U32)
    yield "au-coding", packed(au, 12, ">I", 999)
    caf = sndfile("CAF")
    desc = behind(caf, b"desc", 8)
    yield "caf-rate", packed(caf, desc, ">d", 4e9)
    yield "caf-nan-rate", packed(caf, desc, ">d", float("nan"))
    yield "caf-channels", packed(caf, desc + 24, ">I", U16)
    yield "caf-data", packed(caf, behind(caf, b"data"), ">q", HUGE)
    voc = sndfile("VOC")
    yield "voc-block", packed(voc, 26, "<I", 0x09FFFFFF)
    yield "voc-offset", packed(voc, 20, "<H", U16)
    nist = sndfile("NIST")
    for name, field in (("samples", rb"sample_count -i \d+"), ("channels", rb"channel_count -i \d+")):
        key = re.search(field, nist)[0].rpartition(b" ")[0]
        yield f"sphere-{name}", re.sub(field, key + b" %d" % (HUGE if name == "samples" else U16), nist, count=1)
    yield "sphere-rate", re.sub(rb"sample_rate -i \d+", b"sample_rate -i 4000000000", nist, count=1)
    yield "sphere-header", nist.replace(b"   1024", b"9999999", 1)
    flac = sndfile("FLAC")
    yield "flac-samples", packed(flac, 21, ">BI", 0xFF, U32)
    yield "flac-no-rate", packed(flac, 18, ">H", 0)
    yield "flac-block-of-16-mb", packed(flac, 4, ">I", 0x00FFFFFF)
    yield "flac-tags-without-end", flac[:42] + b"\x04\xff\xff\xff" + flac[46:]
    vorbis = sndfile("OGG", "VORBIS")
    yield "vorbis-channels", packed(vorbis, behind(vorbis, b"\x01vorbis", 4), "<B", 255)
    yield "vorbis-rate", packed(vorbis, behind(vorbis, b"\x01vorbis", 5), "<I", RATE_4_GHZ)
    opus = sndfile("OGG", "OPUS")
    yield "opus-channels", packed(opus, behind(opus, b"OpusHead", 1), "<B", 255)
    yield "ogg-segments", packed(opus, 26, "<B", 255)
    mp3 = sndfile("MP3", "MPEG_LAYER_III")
    yield "mp3-tag-of-256-mb", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + mp3[:100]
    yield "mp3-syncs-only", b"\xff\xfb\xff\xff" * 5000
    yield "adts-rate", bytes(0xFC | 0x3C if i % 7 == 2 else b for i, b in enumerate(ffmpeg("adts", "aac")[:700]))
    yield "adts-syncs-only", b"\xff\xf1\x50\x80\x00\x1f\xfc" * 2000
    amr = ffmpeg("amr", "libopencore_amrnb", 8000)
    yield "amr-modes", amr[:6] + b"\x7c" * 5000
    yield "amr-magic", b"#!AMX\n" + amr[6:]


def absurd_mp4() -> Iterator[tuple[str, bytes]]:
    for name, data in (
        ("m4a", ffmpeg("ipod", "aac")),
        ("mov", ffmpeg("mov", "pcm_s16le")),
        ("3gp", ffmpeg("3gp", "libopencore_amrnb", 8000)),
        ("mp4", ffmpeg("mp4", "flac")),
    ):
        if name != "mov":  # in PCM all samples are of one size
            yield f"{name}-sample-size", packed(data, behind(data, b"stsz", 4), ">I", 0x7FFFFFFF)
            yield f"{name}-sample-count", packed(data, behind(data, b"stsz", 8), ">I", U32)
        yield f"{name}-durations", packed(data, behind(data, b"stts", 8), ">II", U32, U32)
        yield f"{name}-chunks", packed(data, behind(data, b"stsc", 8), ">III", U32, U32, U32)
        yield f"{name}-offsets", packed(data, behind(data, b"stco", 4), ">II", U32, U32)
        yield f"{name}-moov-of-4-gb", packed(data, data.index(b"moov") - 4, ">I", U32)
        yield f"{name}-no-moov", data[: data.index(b"moov") - 4]
    m4a = ffmpeg("ipod", "aac")
    yield (
        "m4a-nested",
        b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42"
        + b"".join(struct.pack(">I4s", 8 * (20_000 - i), b"moov") for i in range(20_000)),
    )
    yield "m4a-box-of-2^60", m4a[:28] + struct.pack(">I4sQ", 1, b"moov", HUGE) + m4a[28:]


def absurd_streams() -> Iterator[tuple[str, bytes]]:
    mkv = ffmpeg("matroska", "pcm_s16le")
    yield "mkv-channels", packed(mkv, behind(mkv, b"\x9f\x81"), ">B", 255)
    for name, rate in (("rate", 4e9), ("nan-rate", float("nan")), ("negative-rate", -16_000.0), ("no-rate", 0.0)):
        yield f"mkv-{name}", packed(mkv, behind(mkv, b"\xb5\x88"), ">d", rate)
    webm = ffmpeg("webm", "libopus", 48_000)
    for name, data in (("mkv", mkv), ("webm", webm)):
        yield f"{name}-no-cluster", data[: data.index(b"\x1f\x43\xb6\x75")]
        yield f"{name}-no-tracks", data.replace(b"\x16\x54\xae\x6b", b"\x16\x54\xae\x6c")
    yield "mkv-nested", b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" * 5000
    wma = ffmpeg("asf", "wmav2", 44_100)
    media = wma.index(bytes.fromhex("409e69f84d5bcf11a8fd00805f5c442b"))
    yield "wma-channels", packed(wma, media + 56, "<H", U16)
    yield "wma-no-channels", packed(wma, media + 56, "<H", 0)
    yield "wma-rate", packed(wma, media + 58, "<I", RATE_4_GHZ)
    yield "wma-no-rate", packed(wma, media + 58, "<I", 0)
    yield "wma-block", packed(wma, media + 66, "<H", U16)
    yield "wma-size", packed(wma, behind(wma, bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"), 24), "<Q", HUGE)
    avi = ffmpeg("avi", "pcm_s16le")
    yield "avi-channels", packed(avi, behind(avi, b"strf", 6), "<H", U16)
    yield "avi-rate", packed(avi, behind(avi, b"strf", 8), "<I", RATE_4_GHZ)
    yield "avi-no-movi", avi[: avi.index(b"movi")]
    tta = ffmpeg("tta", "tta")
    yield "tta-samples", packed(tta, 14, "<I", U32)
    yield "tta-channels", packed(tta, 6, "<H", U16)
    wavpack = ffmpeg("wv", "wavpack")
    yield "wavpack-samples", packed(wavpack, 12, "<I", 0xFFFFFFFE)
    yield "wavpack-block", packed(wavpack, 4, "<I", U32)


def foreign() -> dict[str, bytes]:
    """Files that are no audio, by what they are."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.wav", bytes(10_000_000))
    return {
        "zip": archive.getvalue(),
        "gzip": gzip.compress(sndfile("WAV")),
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 40,
        "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "json": b'{"error": "expired"}',
        "text": "das ist kein Ton \u00e4\u00f6\u00fc\n".encode() * 40,
        "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n%%EOF\n" * 20,
        "png": png(),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(3000),
        "zeros": bytes(20_000),
        "noise": np.random.default_rng(1).bytes(20_000),
        "playlist": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "subtitles": b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n",
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    }


NAMES = ("wav", "flac", "mp3", "m4a", "ogg", "webm", "aiff", "wma")


def bad_files() -> list[Bad]:
    """Every bad file, with its name and the codes that it may get."""
    found: list[Bad] = [(f"empty-{suffix}.{suffix}", b"", EMPTY) for suffix in NAMES]
    for number, (what, data) in enumerate(foreign().items()):
        suffixes = (NAMES[(number + i) % len(NAMES)] for i in (0, 3))
        found += [(f"{what}-as-{suffix}.{suffix}", data, FOREIGN) for suffix in suffixes]
    for group in (absurd_wav, absurd_others, absurd_mp4, absurd_streams):
        # The content decides, not the name.
        found += [(f"{what}.{NAMES[i % len(NAMES)]}", data, ABSURD) for i, (what, data) in enumerate(group())]
    for kind in kinds():
        data = written(kind.name)
        name = kind.name.replace(" ", "-").replace("_", "-").lower()
        sizes = (11,) if any(form in kind.name for form in NO_LENGTH) else (len(data) // 2 + 1, 11)
        found += [(f"cut-{name}-{size}.wav", data[:size], CUT) for size in sizes]
    return found
