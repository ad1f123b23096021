"""Long pauses: what is skipped, what is never skipped, and levels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio.decode import AudioSettings, read_segments
from pipeline.audio.silence import MIN_PAUSE_S, PauseFinder, levels
from tests.support.signals import encode

RATE = 16_000


def voice(seconds: float, seed: int = 0, gain: float = 0.2) -> np.ndarray:
    """Syllables: noise that swells and fades four times a second, by 30 dB."""
    time = np.arange(round(seconds * RATE)) / RATE
    envelope = 10 ** (-1.5 * np.cos(np.pi * 4 * time) ** 2)
    return (gain * envelope * np.random.default_rng(seed).standard_normal(len(time))).astype(np.float32)


def noise(seconds: float, decibels: float, slope: float = 0.0, seed: int = 1) -> np.ndarray:
    """Steady noise whose power falls as 1 / f^slope, at a level in dBFS."""
    count = round(seconds * RATE)
    frequencies = np.fft.rfftfreq(count, 1 / RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    spectrum[1:] /= frequencies[1:] ** (slope / 2)
    spectrum[frequencies < 20] = 0
    signal = np.fft.irfft(spectrum, count)
    return (signal / signal.std() * 10 ** (decibels / 20)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def kept(*pieces: np.ndarray) -> np.ndarray:
    """Whether each sample of the joined pieces is computed."""
    signal = np.concatenate(pieces)
    mask = np.zeros(len(signal), bool)
    for start, stop in PauseFinder(RATE).spans(signal):
        mask[start:stop] = True
    return mask


PAUSES = {
    "digital": silence(20),
    "constant": np.full(20 * RATE, 0.1, np.float32),
    "last bit": (np.random.default_rng(0).integers(-1, 2, 20 * RATE) / 32768).astype(np.float32),
    "white, -50 dBFS": noise(20, -50),
    "white, -35 dBFS": noise(20, -35),
    "pink": noise(20, -45, 1.0),
    "hum": (0.01 * np.sin(2 * np.pi * 50 * np.arange(20 * RATE) / RATE)).astype(np.float32),
    "two rooms": np.concatenate([noise(9, -70), noise(11, -40)]),
}


@pytest.mark.parametrize("pause", PAUSES.values(), ids=PAUSES)
def test_a_long_pause_is_skipped_and_no_speech(pause):
    before, after = voice(3, 1), voice(4, 2)
    mask = kept(before, pause, after)
    assert mask[: len(before)].all()
    assert mask[-len(after) :].all()
    assert (~mask).sum() > 0.8 * len(pause)


@pytest.mark.parametrize(
    "pieces",
    [
        [voice(5)],
        [voice(3), silence(MIN_PAUSE_S - 0.1), voice(2)],
        [noise(30, -40)],  # nothing louder to compare it with
        [noise(0.01, -20)],
        [0.3 * np.sin(2 * np.pi * 440 * np.arange(10 * RATE) / RATE).astype(np.float32)],
        [voice(5, 1, 0.3), voice(8, 2, 0.002)],  # a quiet voice beside a loud one
        [voice(5, 1, 0.3), voice(8, 2, 0.003) + noise(8, -62)],  # in noise
        [voice(0.04)],
    ],
)
def test_speech_music_noise_alone_and_short_clips_are_kept(pieces):
    assert kept(*pieces).all()


def test_a_quiet_voice_in_a_recording_whose_pauses_are_louder_is_kept():
    quiet = voice(6, 3, 0.005)
    mask = kept(voice(4, 1, 0.3), noise(10, -35), quiet, noise(10, -35))
    assert mask[14 * RATE : 14 * RATE + len(quiet)].all()
    assert (~mask).sum() > 12 * RATE


def test_a_recording_that_is_all_digital_silence_is_all_pause():
    assert PauseFinder(RATE).spans(silence(10)) == ()
    assert PauseFinder(RATE).spans(np.zeros(10 * RATE, np.int16)) == ()


@given(st.sampled_from([1e-4, 1e-2, 0.5, 3.0]), st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_loudness_has_no_influence(gain, seed):
    signal = np.concatenate([voice(2, seed), noise(12, -50, seed=seed), voice(3, seed + 1)])
    expected = PauseFinder(RATE).spans(signal)
    assert len(expected) == 2
    assert PauseFinder(RATE).spans((signal * gain).astype(np.float32)) == expected


def test_16_bit_samples_give_the_spans_of_the_same_samples_as_floats():
    signal = (np.concatenate([voice(2), noise(12, -50), voice(3)]).clip(-1, 1) * 32767).astype(np.int16)
    assert PauseFinder(RATE).spans(signal) == PauseFinder(RATE).spans(signal.astype(np.float32) / 32768)


@given(st.lists(st.tuples(st.sampled_from(["voice", "noise", "silence"]), st.floats(0.01, 9)), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_spans_are_ordered_inside_the_signal_and_hold_every_voice(plan):
    make = {"voice": lambda s: voice(s, 4), "noise": lambda s: noise(s, -55), "silence": silence}
    signal = np.concatenate([make[kind](seconds) for kind, seconds in plan])
    spans = PauseFinder(RATE).spans(signal)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(set(edges))
    assert not edges or (edges[0] >= 0 and edges[-1] <= len(signal))
    mask = np.zeros(len(signal), bool)
    for start, stop in spans:
        mask[start:stop] = True
    position = 0
    for kind, seconds in plan:
        stop = position + round(seconds * RATE)
        if kind == "voice" and seconds > 0.3:  # shorter pieces may be no more than the onset of a syllable
            assert mask[position:stop].all()
        position = stop


ROOM = {
    "voice": lambda s: voice(s, 4),
    "far voice": lambda s: voice(s, 5, 0.004),
    "noise": lambda s: noise(s, -55),
    "louder noise": lambda s: noise(s, -30),
    "hum": lambda s: (0.1 * np.sin(2 * np.pi * 50 * np.arange(round(s * RATE)) / RATE)).astype(np.float32),
    "constant": lambda s: np.full(round(s * RATE), 0.1, np.float32),
    "silence": silence,
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(ROOM)), st.floats(0.01, 7)), min_size=1, max_size=8),
    st.sampled_from([1.0, 1e-3, 30.0, 1e6]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_single_piece_has_the_spans_that_it_would_have_before_others(plan, gain, is_int16):
    signal = np.concatenate([ROOM[kind](seconds) for kind, seconds in plan])
    signal = (signal.clip(-1, 1) * 32767).astype(np.int16) if is_int16 else (signal * gain).astype(np.float32)
    assert PauseFinder(RATE).spans(signal, alone=True) == PauseFinder(RATE).spans(signal)


@pytest.mark.parametrize("seconds", [3.9, 4.1, 7, 9, 30])
def test_most_single_pieces_with_speech_alone_are_not_filtered_whole(seconds, monkeypatch):
    filtered, powers = [], PauseFinder._powers

    def counted(finder, samples, count):
        filtered.append(count)
        return powers(finder, samples, count)

    monkeypatch.setattr(PauseFinder, "_powers", counted)
    PauseFinder(RATE).spans(voice(seconds), alone=True)
    assert sum(filtered) <= seconds * 50 / 2  # frames of 20 ms


@pytest.mark.parametrize("samples", [50, 160, 319])
def test_a_sound_at_the_very_end_of_a_pause_is_kept(samples):
    """The last frame is no whole one there."""
    sound = (0.5 * np.sin(np.arange(samples) / 3)).astype(np.float32)
    mask = kept(voice(5), silence(20), sound)
    assert mask[-samples:].all()
    assert not mask[8 * RATE : 20 * RATE].any()


def test_what_is_loud_is_known_from_the_segments_before():
    finder = PauseFinder(RATE)
    assert finder.spans(noise(20, -50)) == ((0, 20 * RATE),)  # it could be all there is
    finder.spans(voice(20))
    assert finder.spans(noise(20, -50)) == ()


def test_segments_have_spans_unless_silence_is_computed():
    data = encode(np.concatenate([voice(3), silence(20), voice(3)])[:, None], RATE, "WAV", "FLOAT")
    (segment,) = read_segments(data, AudioSettings())
    (first, second) = segment.spans
    assert first[0] == 0
    assert second[1] == len(segment.samples) == 26 * RATE
    (whole,) = read_segments(data, AudioSettings(skip_silence=False))
    assert whole.spans == ((0, 26 * RATE),)
    assert np.array_equal(whole.samples, segment.samples)


def test_levels_are_those_of_each_ten_milliseconds():
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE // 10) / RATE)
    signal = np.concatenate([tone, np.full(RATE // 10, 0.25), 100 * tone, tone[:77]]).astype(np.float32)
    found = levels(signal, RATE)
    assert found.dtype == np.int8
    assert [(value, len(list(run))) for value, run in itertools.groupby(found.tolist())][:3] == [
        (-9, 10),
        (-128, 10),
        (31, 10),
    ]
    assert len(found) == 31
