"""Segments: no longer than allowed, cut at pauses, and together exactly the recording."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import sndfile
from pipeline.audio.decode import CUTS, AudioSettings, read_segments
from tests.support.decoding import concatenated, expected_samples
from tests.support.signals import encode, speech_like


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(0.05, 12),
    longest=st.floats(0.1, 6),
    rate=st.sampled_from((8000, 16_000, 22_050)),
    coding=st.sampled_from(("PCM_16", "FLOAT")),
    seed=st.integers(0, 5),
    cut=st.sampled_from(("pause", "quietest")),
)
def test_segments_tile_the_recording_and_are_neither_too_long_nor_tiny(seconds, longest, rate, coding, seed, cut):
    data = encode(speech_like(seconds, rate, seed=seed), rate, "WAV", coding)
    segments = list(read_segments(data, AudioSettings(max_segment_s=longest, cut=cut)))
    expected = expected_samples(data)
    np.testing.assert_array_equal(concatenated(segments), expected)
    uncut = int(longest * 16_000 + 0.001)
    assert (len(segments) > 1) == (len(expected) > uncut)
    if len(segments) > 1:
        max_samples = uncut // CUTS[cut][1]
        lengths = [len(segment.samples) for segment in segments]
        assert max(lengths) <= max_samples
        assert min(lengths[:-1]) >= max_samples // 2
        assert lengths[-1] >= min(16_000, max_samples // 2)
    position = 0
    for segment in segments:
        assert segment.start_s == pytest.approx(position / 16_000, abs=1e-9)
        assert segment.duration_s == len(segment.samples) / 16_000
        assert segment.whole == segment.only == (len(segments) == 1)
        position += len(segment.samples)


def test_a_recording_of_exactly_the_longest_segment_is_not_cut():
    settings = AudioSettings(max_segment_s=0.57)  # 0.57 * 16000 is 9119.999... in floating point
    assert len(list(read_segments(encode(np.zeros(9120, np.int16), 16_000), settings))) == 1
    assert len(list(read_segments(encode(np.zeros(9121, np.int16), 16_000), settings))) > 1


@settings(max_examples=25, deadline=None)
@given(block_values=st.integers(50, 40_000), coding=st.sampled_from(["PCM_16", "FLOAT", "MP3", "OGG", "ALAC_16"]))
def test_cuts_do_not_depend_on_the_block_size(block_values, coding):
    container = {"PCM_16": "WAV", "FLOAT": "WAV", "ALAC_16": "CAF"}.get(coding, coding)
    coding = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(coding, coding)
    data = encode(speech_like(5, 22_050), 22_050, container, coding)
    settings = AudioSettings(max_segment_s=1.5)
    expected = list(read_segments(data, settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sndfile, "BLOCK_VALUES", block_values)
        segments = list(read_segments(data, settings))
    assert [segment.start_s for segment in segments] == [segment.start_s for segment in expected]
    for segment, other in zip(segments, expected, strict=True):
        np.testing.assert_array_equal(segment.samples, other.samples)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_versions_up_to_0_1_0_cut_in_the_middle_of_the_quietest_20_ms_of_the_second_half(dtype):
    x = np.full(4 * 16_000, 0.5, np.float32)
    x[8_000:8_320] = 0  # quieter, but in the first half
    x[16_000 + 30 * 320 : 16_000 + 31 * 320] = 0.01
    data = encode(x, 16_000, "WAV", "PCM_16" if dtype == np.int16 else "FLOAT")
    segments = list(read_segments(data, AudioSettings(max_segment_s=2, cut="quietest")))
    assert segments[0].samples.dtype == dtype
    assert len(segments[0].samples) == 16_000 + 30 * 320 + 160


def test_versions_up_to_0_1_0_cut_in_the_first_of_equally_quiet_stretches():
    data = encode(np.zeros(4 * 16_000, np.int16), 16_000)
    segments = list(read_segments(data, AudioSettings(max_segment_s=2, cut="quietest")))
    assert len(segments[0].samples) == 16_000 + 160


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_cut_is_in_the_middle_of_the_longest_pause_and_not_of_the_quietest(dtype):
    x = 0.3 * np.random.default_rng(0).standard_normal(90 * 16_000)
    x[8 * 16_000 : round(8.9 * 16_000)] *= 0.01  # the longest, but in the first half
    x[12 * 16_000 : round(12.4 * 16_000)] *= 0.01
    x[15 * 16_000 : round(15.2 * 16_000)] = 0
    x[18 * 16_000 : round(18.1 * 16_000)] = 0
    data = encode(x.astype(np.float32), 16_000, "WAV", "PCM_16" if dtype == np.int16 else "FLOAT")
    segments = list(read_segments(data, AudioSettings(max_segment_s=79.8)))
    assert segments[0].samples.dtype == dtype
    assert segments[0].duration_s == pytest.approx(12.2, abs=0.02)


@pytest.mark.parametrize("level", [0.0, 1e-3, 1.0, 100.0])
def test_a_recording_without_pauses_is_cut(level):
    x = (level * np.random.default_rng(0).standard_normal(5 * 16_000)).astype(np.float32)
    segments = list(read_segments(encode(x, 16_000, "WAV", "FLOAT"), AudioSettings(max_segment_s=4)))
    assert max(len(segment.samples) for segment in segments) <= 16_000


@settings(max_examples=30, deadline=None)
@given(gain=st.sampled_from((2**-6, 0.25, 4.0)), seed=st.integers(0, 9))
def test_pauses_do_not_depend_on_the_volume(gain, seed):
    x = speech_like(9, 16_000, seed=seed).astype(np.float32)
    settings = AudioSettings(max_segment_s=4)
    first = [s.start_s for s in read_segments(encode(x / 8, 16_000, "WAV", "FLOAT"), settings)]
    louder = [s.start_s for s in read_segments(encode(x / 8 * np.float32(gain), 16_000, "WAV", "FLOAT"), settings)]
    np.testing.assert_allclose(first, louder, atol=0.05)  # levels are rounded to decibels


def test_cuts_are_in_pauses_and_not_in_bursts():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.r_[rng.uniform(0.1, 0.4, 10_000), np.zeros(2_000)] for _ in range(20)]).astype(np.float32)
    segments = list(read_segments(encode(x, 16_000, "WAV", "FLOAT"), AudioSettings(max_segment_s=12)))
    assert len(segments) > 4
    for segment in segments[:-1]:
        assert abs(segment.samples[-1]) == 0
    for segment in segments[1:]:
        assert abs(segment.samples[0]) == 0


def test_a_cut_leaves_at_least_one_second():
    x = np.random.default_rng(0).uniform(-0.5, 0.5, round(40.02 * 16_000)).astype(np.float32)
    x[9 * 16_000 : round(9.3 * 16_000)] = 0
    x[round(39.5 * 16_000) : round(39.9 * 16_000)] = 0  # the longest pause would leave 0.3 s
    segments = list(read_segments(encode(x, 16_000, "WAV", "FLOAT"), AudioSettings(max_segment_s=40)))
    starts = [segment.start_s for segment in segments]
    assert starts[1] == pytest.approx(9.15, abs=0.02)
    assert starts[-1] <= 39.02
