"""Each format at each rate with one and two channels, decoded and compared: `python -m tests.support.format_table`.

A cell is the correlation with what was encoded, with `=` where the length is equal to the sample; `-` where the format
does not have the rate or the channels.
"""

from __future__ import annotations

import io
import itertools
import struct
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.audio.decode import AudioSettings, read_segments
from pipeline.audio.samples import to_float32
from tests.support.signals import encode, encode_av, speech_like

RATES = (8000, 16_000, 22_050, 44_100, 48_000, 96_000)
CHANNELS = (1, 2)
SECONDS = 1.0
OPUS_RATES, MPEG_RATES, AC3_RATES = (8000, 16_000, 48_000), RATES[:-1], (44_100, 48_000)

Encoder = Callable[[np.ndarray, int], bytes]


class Format(NamedTuple):
    """A container with a coding.

    Attributes:
        name: as the table calls it.
        encode: (samples (frames, channels), rate) -> a file.
        error: most that a sample may differ, full scale at 1; None where the coding is lossy.
        correlation: least correlation with the original.
        rates: that the coding has.
        channels: that the coding has.
    """

    name: str
    encode: Encoder
    error: float | None = None
    correlation: float = 0.999
    rates: Sequence[int] = RATES
    channels: Sequence[int] = CHANNELS


def _sndfile(container: str, coding: str) -> Encoder:
    return lambda x, rate: encode(x, rate, container, coding)


def _ffmpeg(container: str, codec: str, pipe: bool = False) -> Encoder:
    return lambda x, rate: encode_av(x, rate, container, codec, pipe)


def _wav(change: Callable[[bytes], bytes]) -> Encoder:
    return lambda x, rate: change(encode(x, rate, "WAV", "PCM_16"))


def _sizes(size: int) -> Callable[[bytes], bytes]:
    """The sizes that a writer to a pipe leaves."""
    return lambda wav: wav[:4] + struct.pack("<I", size) + wav[8:40] + struct.pack("<I", size) + wav[44:]


def _odd_chunks(wav: bytes) -> bytes:
    return wav[:12] + b"LIST\3\0\0\0abc\0bext\1\0\0\0x\0" + wav[12:] + b"id3 \5\0\0\0hello\0"


def _bw64(x: np.ndarray, rate: int) -> bytes:
    return b"BW64" + encode(x, rate, "RF64", "PCM_16")[4:]


BITS_8, BITS_16, BITS_24 = 2**-7, 2**-15, 2**-23
FORMATS: tuple[Format, ...] = (
    Format("WAV 8 bit", _sndfile("WAV", "PCM_U8"), BITS_8, 0.99),
    Format("WAV 16 bit", _sndfile("WAV", "PCM_16"), BITS_16),
    Format("WAV 24 bit", _sndfile("WAV", "PCM_24"), BITS_24),
    Format("WAV 32 bit", _sndfile("WAV", "PCM_32"), BITS_24),
    Format("WAV float", _sndfile("WAV", "FLOAT"), 0.0),
    Format("WAV double", _sndfile("WAV", "DOUBLE"), 0.0),
    Format("WAV mu-law", _sndfile("WAV", "ULAW"), 0.03, 0.99),
    Format("WAV a-law", _sndfile("WAV", "ALAW"), 0.03, 0.99),
    Format("WAV IMA ADPCM", _sndfile("WAV", "IMA_ADPCM"), correlation=0.99),
    Format("WAV MS ADPCM", _sndfile("WAV", "MS_ADPCM"), correlation=0.97),
    Format("WAV GSM", _sndfile("WAV", "GSM610"), correlation=0.45, channels=(1,)),
    Format("WAV extensible", _sndfile("WAVEX", "PCM_16"), BITS_16),
    Format("WAV, sizes 0", _wav(_sizes(0)), BITS_16),
    Format("WAV, sizes 0xFFFFFFFF", _wav(_sizes(0xFFFFFFFF)), BITS_16),
    Format("WAV, odd chunks", _wav(_odd_chunks), BITS_16),
    Format("RF64", _sndfile("RF64", "PCM_16"), BITS_16),
    Format("BW64", _bw64, BITS_16),
    Format("W64", _sndfile("W64", "PCM_16"), BITS_16),
    Format("AIFF", _sndfile("AIFF", "PCM_16"), BITS_16),
    Format("AU", _sndfile("AU", "PCM_16"), BITS_16),
    Format("CAF", _sndfile("CAF", "PCM_16"), BITS_16),
    Format("CAF ALAC", _sndfile("CAF", "ALAC_16"), BITS_16),
    Format("NIST SPHERE", _sndfile("NIST", "PCM_16"), BITS_16),
    Format("NIST SPHERE mu-law", _sndfile("NIST", "ULAW"), 0.03, 0.99),
    Format("VOC", _ffmpeg("voc", "pcm_s16le"), BITS_16),
    Format("FLAC", _sndfile("FLAC", "PCM_16"), BITS_16),
    Format("FLAC 24 bit", _sndfile("FLAC", "PCM_24"), BITS_24),
    Format("FLAC to a pipe", _ffmpeg("flac", "flac", pipe=True), BITS_16),
    Format("Ogg FLAC", _ffmpeg("ogg", "flac"), BITS_16),
    Format("Ogg Vorbis", _sndfile("OGG", "VORBIS"), correlation=0.97),
    Format("Ogg Opus", _sndfile("OGG", "OPUS"), correlation=0.97, rates=OPUS_RATES),
    Format("MP3", _sndfile("MP3", "MPEG_LAYER_III"), correlation=0.97, rates=MPEG_RATES),
    Format("MP2", _ffmpeg("mp2", "mp2"), correlation=0.96, rates=(16_000, 22_050, 44_100, 48_000)),
    Format("AAC (ADTS)", _ffmpeg("adts", "aac"), correlation=0.97),
    Format("m4a AAC", _ffmpeg("ipod", "aac"), correlation=0.97),
    Format("m4a ALAC", _ffmpeg("ipod", "alac"), BITS_16),
    Format(
        "mp4 AAC, fragmented",
        lambda x, rate: encode_av(x, rate, "mp4", "aac", pipe=True, movflags="frag_keyframe+empty_moov"),
        correlation=0.97,
    ),
    Format("mp4 FLAC", _ffmpeg("mp4", "flac"), BITS_16),
    Format("mov", _ffmpeg("mov", "pcm_s16le"), BITS_16),
    Format("3gp AMR", _ffmpeg("3gp", "libopencore_amrnb"), correlation=0.7, rates=(8000,), channels=(1,)),
    Format("AMR", _ffmpeg("amr", "libopencore_amrnb"), correlation=0.7, rates=(8000,), channels=(1,)),
    Format("WebM Opus", _ffmpeg("webm", "libopus"), correlation=0.97, rates=OPUS_RATES),
    Format("mkv", _ffmpeg("matroska", "pcm_s16le"), BITS_16),
    Format("mkv FLAC", _ffmpeg("matroska", "flac"), BITS_16),
    Format("WMA", _ffmpeg("asf", "wmav2"), correlation=0.97, rates=MPEG_RATES),
    Format("AC-3", _ffmpeg("ac3", "ac3"), correlation=0.97, rates=AC3_RATES),
    Format("AVI", _ffmpeg("avi", "pcm_s16le"), BITS_16),
    Format("FLV MP3", _ffmpeg("flv", "libmp3lame"), correlation=0.97, rates=(44_100,)),
    Format("MPEG-TS MP2", _ffmpeg("mpegts", "mp2"), correlation=0.96, rates=(16_000, 22_050, 44_100, 48_000)),
    Format("WavPack 8 bit", _ffmpeg("wv", "wavpack"), BITS_8, 0.99),
    Format("TTA 8 bit", _ffmpeg("tta", "tta"), BITS_8, 0.99),
)


class Cell(NamedTuple):
    """What came of one file.

    Attributes:
        correlation: of what was decoded with what was encoded, at the best delay.
        missing: samples that were decoded less than encoded.
        error: largest difference of a sample; NaN where lengths differ.
        seconds: decoded at the model's rate.
    """

    correlation: float
    missing: int
    error: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.correlation:.3f}{'=' if not self.missing else ' '}"


def compare(form: Format, rate: int, channels: int) -> Cell:
    """Encode, decode at the same rate and at the model's, and compare with the mean over channels."""
    original = speech_like(SECONDS, rate, channels)
    data = form.encode(original, rate)
    expected = original.mean(axis=1)
    decoded = _decoded(data, AudioSettings(sample_rate=rate))
    missing = len(expected) - len(decoded)
    error = float(np.abs(decoded - expected).max()) if not missing else float("nan")
    seconds = len(_decoded(data, AudioSettings())) / AudioSettings().sample_rate
    return Cell(_correlation(decoded, expected), missing, error, seconds)


def _decoded(data: bytes, settings: AudioSettings) -> np.ndarray:
    return np.concatenate([to_float32(segment.samples) for segment in read_segments(io.BytesIO(data), settings)])


def _correlation(found: np.ndarray, expected: np.ndarray) -> float:
    """The highest correlation at any delay: coders add up to a few thousand samples in front."""
    size = len(found) + len(expected)
    both = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size)), size)
    return float(both.max() / np.sqrt(np.square(found).sum() * np.square(expected).sum()))


def table() -> dict[tuple[str, int, int], Cell | None]:
    """All cells; None where the format does not have the rate or the channels."""
    return {
        (form.name, rate, channels): compare(form, rate, channels)
        if rate in form.rates and channels in form.channels
        else None
        for form, rate, channels in itertools.product(FORMATS, RATES, CHANNELS)
    }


def described(cells: dict[tuple[str, int, int], Cell | None]) -> str:
    """The table as text."""
    columns = list(itertools.product(RATES, CHANNELS))
    lines = [f"{'':24}" + "".join(f"{f'{rate / 1000:g}/{channels}':>8}" for rate, channels in columns)]
    for form in FORMATS:
        found = (cells[form.name, *column] for column in columns)
        lines.append(f"{form.name:24}" + "".join(f"{'- ' if cell is None else str(cell):>8}" for cell in found))
    return "\n".join(["Correlation by kHz/channels; = where the length is equal to the sample", *lines])


if __name__ == "__main__":
    sys.stdout.write(described(table()) + "\n")
