"""Augmentations of waveforms: what other voices, rooms, microphones and channels do to speech.

Each is a function `(rng, waveform) -> waveform`: float32 (num_samples,) at 16 kHz, full scale 1. The input is not
changed. All draws come from `rng`, so the same generator repeats them. Only `speed` and `trim` change the length.
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
_MU: Final = 255  # of G.711 mu-law
_LOUDEST: Final = 0.99
_FRAME: Final = SAMPLE_RATE // 100
_BUMPS: Final = (-3.0, -2.0, -1.0, 0.0, 0.6, 1.2, 1.8, 2.4, 3.0)  # octaves from 1 kHz


def speed(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Play 0.85 to 1.18 times as fast, with pitch and formants: other speaker sizes and other tempos.

    Source: speed perturbation, Ko et al. 2015, "Audio augmentation for speech recognition", with a wider range.
    """
    factor = float(np.exp(rng.uniform(np.log(0.85), np.log(1.18))))
    return _resample(waveform, SAMPLE_RATE * factor, SAMPLE_RATE)


def trim(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Cut each end up to the first 10 ms within 3 to 35 dB of the loudest, but at most a third.

    Recorders that cut speech by its loudness lose the quiet sounds at its ends: "five" becomes "ive". Only for single
    words: it would remove the first words of a sentence.
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
    """Change the level by -20 to 6 dB, and clip at full scale, as a microphone that is too near does."""
    factor = np.float32(10 ** (rng.uniform(-20, 6) / 20))
    louder: Waveform = np.clip(waveform * factor, -1, 1)
    return louder


def noise(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Add noise 5 to 30 dB below the speech; its power spectrum falls as 1/f^a, a from 0 (white) to 2 (rumble)."""
    size = _fast_size(len(waveform))
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20.0)
    coloured = np.fft.irfft(spectrum * frequency ** (-rng.uniform(0, 2) / 2), size)[: len(waveform)]
    return _mix(waveform, coloured, rng.uniform(5, 30))


def band(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Limit the band: resample to 7 to 14 kHz and back, half of the time to the 8 kHz of telephones."""
    rate = 8000.0 if rng.random() < 0.5 else float(rng.uniform(7000, 14_000))
    narrow = _resample(waveform, SAMPLE_RATE, rate)
    return _fit(_resample(narrow, rate, SAMPLE_RATE), len(waveform))


def tilt(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Another microphone: a slope of -7 to 4 dB per octave above 1 kHz, and bumps of about 4 dB."""
    size = _fast_size(len(waveform))
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 80.0) / 1000)
    slopes = np.where(octaves < 0, rng.uniform(-3, 6) * octaves, rng.uniform(-7, 4) * octaves)
    decibels = slopes + np.interp(octaves, _BUMPS, rng.normal(0, 4, len(_BUMPS)))
    coloured = np.fft.irfft(np.fft.rfft(waveform, size) * 10 ** (decibels / 20), size)[: len(waveform)]
    return _same_power(coloured, waveform)


def codec(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Encode and decode with a lossy codec: 8-bit mu-law at 8 kHz, MP3 or Ogg Vorbis."""
    choice = rng.integers(3)
    if choice == 0:
        narrow = _resample(waveform, SAMPLE_RATE, 8000)
        magnitude = np.round(127 * np.log1p(_MU * np.minimum(np.abs(narrow), 1)) / np.log1p(_MU)) / 127
        expanded = np.sign(narrow) * np.expm1(magnitude * np.log1p(_MU)) / _MU
        return _fit(_resample(expanded.astype(np.float32), 8000, SAMPLE_RATE), len(waveform))
    container, coding = (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"))[choice - 1]
    level = float(rng.uniform(0.5, 1.0))  # in libsndfile 1 is the lowest bit rate
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", samplerate=SAMPLE_RATE, channels=1, format=container, subtype=coding, compression_level=level
    ) as sound:
        sound.write(waveform)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return _fit(decoded, len(waveform))


def reverb(rng: np.random.Generator, waveform: Waveform) -> Waveform:
    """Add a room: convolve with exponentially decaying noise, RT60 0.1 to 0.6 s, plus the direct sound."""
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
    # In the order from the mouth to the file, except for `trim`, which cuts clips before they are joined.
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
    """Parse `speed=0.5,noise=0.3`, the probability of each; `none` and an empty text are no augmentation.

    Raises:
        UsageError: there is no such augmentation, or the value is not a probability.
    """
    chances: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        if item == "none":
            continue
        if name not in AUGMENTATIONS:
            raise UsageError(f"augment: there is no {name!r}: choose from {', '.join(AUGMENTATIONS)}")
        try:
            chance = float(value)
        except ValueError:
            chance = -1.0
        if not 0 <= chance <= 1:
            raise UsageError(f"augment: {item!r} is not NAME=PROBABILITY, from 0 to 1")
        chances[name] = chance
    return chances


def augment(rng: np.random.Generator, waveform: Waveform, chances: Mapping[str, float]) -> Waveform:
    """Apply each augmentation with its probability, in the order of `AUGMENTATIONS`."""
    for name, function in AUGMENTATIONS.items():
        if name in chances and rng.random() < chances[name]:
            waveform = function(rng, waveform)
    return waveform


def _resample(waveform: Waveform, old: float, new: float) -> Waveform:
    resampled: Waveform = soxr.resample(waveform, old, new, quality="MQ").astype(np.float32, copy=False)
    return resampled


def _fit(waveform: NDArray[Any], length: int) -> Waveform:
    """Cut or zero-pad to `length` samples: codecs and resamplers round lengths."""
    fitted = np.zeros(length, np.float32)
    fitted[: len(waveform)] = waveform[:length]
    return fitted


def _fast_size(length: int) -> int:
    """The next m * 2^k with m up to 32: the FFT of a length with large prime factors is many times slower."""
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def _mix(waveform: Waveform, other: NDArray[np.float64], snr_db: float) -> Waveform:
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    wanted = power / 10 ** (snr_db / 10)
    present = float(np.mean(np.square(other)))
    mixed: Waveform = (waveform + other * np.sqrt(wanted / max(present, 1e-20))).astype(np.float32)
    return mixed


def _same_power(changed: NDArray[np.float64], original: Waveform) -> Waveform:
    """`changed` scaled to the mean power of `original`, or less if its peaks would clip."""
    ratio = np.sqrt(np.mean(np.square(original, dtype=np.float64)) / max(float(np.mean(np.square(changed))), 1e-20))
    peak = float(np.max(np.abs(changed), initial=0.0)) * ratio
    scaled: Waveform = (changed * (ratio * min(1.0, _LOUDEST / max(peak, 1e-20)))).astype(np.float32)
    return scaled
