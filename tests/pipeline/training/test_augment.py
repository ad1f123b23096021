"""Augmentations: the effect of each on a signal, which depends on its random generator alone."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.training.augment import (
    AUGMENTATIONS,
    augment,
    band,
    codec,
    gain,
    noise,
    parse_augmentations,
    reverb,
    speed,
    tilt,
    trim,
)

RATE = 16_000


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def power(x: np.ndarray) -> float:
    return float(np.mean(np.square(x, dtype=np.float64)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("length", [1, 733, 16_001])
def test_every_augmentation_is_repeatable_returns_float32_and_keeps_its_input(name, length):
    original = np.random.default_rng(0).uniform(-0.5, 0.5, length).astype(np.float32)
    copy = original.copy()
    for seed in range(6):  # draws all three codecs and both bands
        first = AUGMENTATIONS[name](np.random.default_rng(seed), original)
        second = AUGMENTATIONS[name](np.random.default_rng(seed), original)
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32
        assert first.ndim == 1
        assert np.isfinite(first).all()
        if name not in ("speed", "trim"):
            assert len(first) == length
    np.testing.assert_array_equal(original, copy)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_silence_stays_finite(name):
    assert np.isfinite(AUGMENTATIONS[name](np.random.default_rng(1), np.zeros(4000, np.float32))).all()


def test_speed_changes_pitch_and_length_by_the_same_factor():
    for seed in range(20):
        fast = speed(np.random.default_rng(seed), tone(1000))
        factor = RATE / len(fast)
        assert 0.84 < factor < 1.19
        spectrum = np.abs(np.fft.rfft(fast * np.hanning(len(fast))))
        assert np.argmax(spectrum) * RATE / len(fast) == pytest.approx(1000 * factor, rel=0.01)


def test_trim_cuts_quiet_ends_and_no_more_than_a_third_of_either():
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    quiet = 10 ** (-20 / 20) * loud[: RATE // 5]
    utterance = np.concatenate([quiet, loud, quiet])
    lengths = {len(trim(np.random.default_rng(seed), utterance)) for seed in range(40)}
    assert min(lengths) == len(loud)
    assert max(lengths) == len(utterance)
    faint = np.concatenate([np.zeros(2 * RATE, np.float32), loud])
    assert len(trim(np.random.default_rng(0), faint)) == 2 * RATE


def test_gain_scales_and_clips():
    changed = gain(np.random.default_rng(0), tone(500))
    ratio = power(changed) / power(tone(500))
    assert 10**-2.0 <= ratio <= 10**0.6 + 1e-6
    assert np.abs(gain(np.random.default_rng(3), np.ones(10, np.float32) * 0.99)).max() <= 1


def test_noise_is_within_its_range_of_signal_to_noise_ratios():
    signal = tone(500)
    for seed in range(10):
        added = noise(np.random.default_rng(seed), signal) - signal
        snr = 10 * np.log10(power(signal) / power(added))
        assert 4.9 < snr < 30.1


def test_band_removes_frequencies_above_its_limit():
    both = tone(1000) + tone(7500)
    for seed in range(8):
        spectrum = np.abs(np.fft.rfft(band(np.random.default_rng(seed), both)))
        assert spectrum[7500] < 0.02 * spectrum[1000]


def test_tilt_keeps_power():
    signal = tone(300) + tone(3000)
    changed = tilt(np.random.default_rng(0), signal)
    assert power(changed) == pytest.approx(power(signal), rel=1e-3)
    assert np.abs(changed - signal).max() > 1e-3


def test_codec_changes_the_signal_little_and_does_not_delay_it():
    signal = tone(440) * np.hanning(RATE).astype(np.float32)
    for seed in range(6):
        changed = codec(np.random.default_rng(seed), signal)
        assert np.corrcoef(changed[2000:-2000], signal[2000:-2000])[0, 1] > 0.98, "delay or damage"


def test_reverb_rings_after_the_sound():
    signal = np.zeros(RATE, np.float32)
    signal[4000:6000] = tone(700, 0.125)
    wet = reverb(np.random.default_rng(0), signal)
    assert power(wet[6000:7000]) > 1e-3 * power(wet[4000:6000])
    assert power(wet[:4000]) < 1e-6 * power(wet[4000:6000])


def test_augmentations_are_applied_with_their_probability():
    signal = tone(500, 0.1)
    never = augment(np.random.default_rng(0), signal, dict.fromkeys(AUGMENTATIONS, 0.0))
    np.testing.assert_array_equal(never, signal)
    changed = sum(
        not np.array_equal(augment(np.random.default_rng(seed), signal, {"gain": 0.3}), signal) for seed in range(500)
    )
    assert 110 < changed < 190


def test_a_list_of_augmentations_is_parsed():
    assert parse_augmentations("speed=0.5, noise=1") == {"speed": 0.5, "noise": 1.0}
    assert parse_augmentations("none") == {}
    assert parse_augmentations("") == {}


@pytest.mark.parametrize("text", ["echo=0.5", "speed", "speed=2", "speed=-1", "speed=often", "speed=nan"])
def test_an_invalid_list_of_augmentations_is_a_usage_error(text):
    with pytest.raises(UsageError, match="augment: "):
        parse_augmentations(text)
