"""Augmentations of waveforms for training: what other voices, rooms, microphones and channels do to speech.

Each is a plain function `(rng, waveform) -> waveform`: float32 `(N,)` at 16 kHz with full scale at 1 in and out, the
input left as it is. They draw from `rng` alone, so that a draw is repeated by repeating the generator. `speed` and
`trim` alone change the length.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import UsageError

Waveform = NDArray[np.float32]
Augmentation = Callable[[np.random.Generator, Waveform], Waveform]

SAMPLE_RATE: Final = 16_000
_MU: Final = 255  # of G.711
_LOUDEST: Final = 0.99
_FRAME: Final = SAMPLE_RATE // 100
_BUMPS: Final = (-3.0, -2.0, -1.0, 0.0, 0.6, 1.2, 1.8, 2.4, 3.0)  # octaves from 1 kHz


def speed(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Played 0.85 to 1.18 times as fast, pitch and formants along: other sizes of speaker as well as other tempos.

    Source: speed perturbation, Ko et al. 2015, "Audio augmentation for speech recognition", with a wider range.
    """
    factor = float(np.exp(rng.uniform(np.log(0.85), np.log(1.18))))
    return _resample(waveform, SAMPLE_RATE * factor, SAMPLE_RATE)


def trim(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Cut at either end up to the first 10 ms that come within 3 to 35 dB of the loudest, but no more than a third.

    Recorders and corpora that cut speech by its loudness lose the quiet sounds at its ends: "five" becomes "ive". For
    single words: of a sentence it takes the first ones, up to the loudest.
    """
    frames = waveform[: len(waveform) // _FRAME * _FRAME].reshape(-1, _FRAME)
    if len(frames) < 3:
        return waveform
    decibels = 10 * np.log10(np.mean(np.square(frames, dtype=np.float64), axis=1) + 1e-20)
    most = len(frames) // 3
    before, behind = (
        min(int(np.argmax(ends >= decibels.max() - rng.uniform(3, 35))), most) for ends in (decibels, decibels[::-1])
    )
    return waveform[before * _FRAME : len(waveform) - behind * _FRAME]


def gain(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Made 20 dB quieter to 6 dB louder, clipped at full scale as a microphone too near would be."""
    factor = np.float32(10 ** (rng.uniform(-20, 6) / 20))
    louder: Waveform = np.clip(waveform * factor, -1, 1)
    return louder


def noise(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """With noise at 5 to 30 dB below the speech: its spectrum falls as 1/f^a, a from 0 (white) to 2 (a rumble)."""
    size = _fast_size(len(waveform))
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20.0)
    coloured = np.fft.irfft(spectrum * frequency ** (-rng.uniform(0, 2) / 2), size)[: len(waveform)]
    return _mix(waveform, coloured, rng.uniform(5, 30))


def band(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Band-limited: down to a rate of 7 to 14 kHz and back, half the time the telephone's 8 kHz."""
    rate = 8000.0 if rng.random() < 0.5 else float(rng.uniform(7000, 14_000))
    narrow = _resample(waveform, SAMPLE_RATE, rate)
    return _fit(_resample(narrow, rate, SAMPLE_RATE), len(waveform))


def tilt(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Through a microphone of another colour: up to 7 dB an octave lost or won above 1 kHz, and bumps of some 4 dB."""
    size = _fast_size(len(waveform))
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 80.0) / 1000)
    slopes = np.where(octaves < 0, rng.uniform(-3, 6) * octaves, rng.uniform(-7, 4) * octaves)
    decibels = slopes + np.interp(octaves, _BUMPS, rng.normal(0, 4, len(_BUMPS)))
    coloured = np.fft.irfft(np.fft.rfft(waveform, size) * 10 ** (decibels / 20), size)[: len(waveform)]
    return _same_power(coloured, waveform)


def codec(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Through a lossy codec and back: mu-law of 8 bits at 8 kHz, MP3 or Ogg Vorbis."""
    choice = rng.integers(3)
    if choice == 0:
        narrow = _resample(waveform, SAMPLE_RATE, 8000)
        magnitude = np.round(127 * np.log1p(_MU * np.minimum(np.abs(narrow), 1)) / np.log1p(_MU)) / 127
        expanded = np.sign(narrow) * np.expm1(magnitude * np.log1p(_MU)) / _MU
        return _fit(_resample(expanded.astype(np.float32), 8000, SAMPLE_RATE), len(waveform))
    container, coding = (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"))[choice - 1]
    level = float(rng.uniform(0.5, 1.0))  # libsndfile's scale: 1 is the lowest bit rate
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", samplerate=SAMPLE_RATE, channels=1, format=container, subtype=coding, compression_level=level
    ) as sound:
        sound.write(waveform)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return _fit(decoded, len(waveform))


def reverb(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """In a room: convolved with exponentially decaying noise, RT60 0.1 to 0.6 s, the direct sound on top."""
    rt60 = rng.uniform(0.1, 0.6)
    length = int(rt60 * SAMPLE_RATE)
    decay = 10 ** (-3 * np.arange(length) / length)  # 60 dB down at the end
    tail = rng.standard_normal(length) * decay
    response = tail * (10 ** (-rng.uniform(0, 12) / 20) / np.sqrt(np.sum(tail**2)))
    response[0] = 1.0
    size = _fast_size(len(waveform) + length)
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
    return _same_power(wet, waveform)


AUGMENTATIONS: Final[Mapping[str, Augmentation]] = MappingProxyType(
    # The order is that of the way from the mouth to the file, but for what cuts clips before they are joined.
    {
        "trim": trim,
        "speed": speed,
        "reverb": reverb,
        "tilt": tilt,
        "noise": noise,
        "gain": gain,
        "band": band,
        "codec": codec,
    }
)


def parse_augmentations(text: str) -> dict[str, float]:
    """Read `speed=0.5,noise=0.3`: the probability of each; `none` or nothing is no augmentation.

    Raises:
        UsageError: no such augmentation, or no probability.
    """
    chances: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        if item == "none":
            continue
        if name not in AUGMENTATIONS:
            raise UsageError(f"augment: there is no {name!r}: choose of {', '.join(AUGMENTATIONS)}")
        try:
            chance = float(value)
        except ValueError:
            chance = -1.0
        if not 0 <= chance <= 1:
            raise UsageError(f"augment: {item!r} is not NAME=PROBABILITY, from 0 to 1")
        chances[name] = chance
    return chances


def augment(rng: np.random.Generator, waveform: Waveform, chances: Mapping[str, float]) -> Waveform:
    """Apply each augmentation with its chance, in the order of `AUGMENTATIONS`."""
    for name, function in AUGMENTATIONS.items():
        if name in chances and rng.random() < chances[name]:
            waveform = function(rng, waveform)
    return waveform


def _resample(waveform: Waveform, old: float, new: float) -> Waveform:
    resampled: Waveform = soxr.resample(waveform, old, new, quality="MQ").astype(np.float32, copy=False)
    return resampled


def _fit(waveform: NDArray[Any], length: int) -> Waveform:
    """Cut, or padded with zeros, to `length` samples: codecs and resamplers round."""
    fitted = np.zeros(length, np.float32)
    fitted[: len(waveform)] = waveform[:length]
    return fitted


def _fast_size(length: int) -> int:
    """The next m * 2^k with m of at most 32: the FFT of a length with large prime factors takes many times as long."""
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def _mix(waveform: Waveform, other: NDArray[np.float64], snr_db: float) -> Waveform:
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    wanted = power / 10 ** (snr_db / 10)
    present = float(np.mean(np.square(other)))
    mixed: Waveform = (waveform + other * np.sqrt(wanted / max(present, 1e-20))).astype(np.float32)
    return mixed


def _same_power(changed: NDArray[np.float64], original: Waveform) -> Waveform:
    """`changed` with the mean power of `original`, less where its peaks would clip."""
    ratio = np.sqrt(np.mean(np.square(original, dtype=np.float64)) / max(float(np.mean(np.square(changed))), 1e-20))
    peak = float(np.max(np.abs(changed), initial=0.0)) * ratio
    scaled: Waveform = (changed * (ratio * min(1.0, _LOUDEST / max(peak, 1e-20)))).astype(np.float32)
    return scaled
