"""Requests for a part of a recording."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import soxr

from pipeline.audio.decode import AudioSettings, read_segments
from pipeline.errors import AudioError, ErrorCode
from tests.support.decoding import SETTINGS, concatenated, read_single_segment
from tests.support.signals import encode, encode_av, speech_like

RATE = 22_050
SIGNAL = speech_like(6, RATE)


@pytest.mark.parametrize(
    ("container", "coding"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "GSM610"),
        ("WAV", "MS_ADPCM"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
        ("OGG", "VORBIS"),
        ("CAF", "ALAC_16"),
        ("AIFF", "FLOAT"),
    ],
)
@pytest.mark.parametrize(("offset_s", "duration_s"), [(0.0, 1.0), (1.2345, 2.0), (5.75, 0.2), (3.3, None)])
def test_a_part_has_exactly_the_samples_of_the_whole_in_every_format(container, coding, offset_s, duration_s):
    data = encode(SIGNAL, RATE, container, coding)
    full, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    start = round(offset_s * RATE)
    stop = len(full) if duration_s is None else start + round(duration_s * RATE)
    segment = read_single_segment(data, offset_s=offset_s, duration_s=duration_s)
    np.testing.assert_array_equal(segment.samples, soxr.resample(full[start:stop].copy(), RATE, 16_000))
    assert segment.start_s == pytest.approx(offset_s, abs=1 / RATE)
    assert not segment.whole
    assert segment.only


def test_a_part_of_an_opus_file_is_exact_although_its_seek_is_not():
    data = encode(speech_like(4, 16_000, 2), 16_000, "OGG", "OPUS")
    full, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    segment = read_single_segment(data, offset_s=12_345 / 16_000, duration_s=1)
    np.testing.assert_array_equal(segment.samples, full[12_345:28_345].mean(axis=1))


@pytest.mark.parametrize(
    ("offset_s", "duration_s"),
    [(-0.1, 1), (6.0, 1), (7.0, None), (0, 0), (0, -1), (5.0, 1.2), (float("nan"), 1), (0, float("inf"))],
)
@pytest.mark.parametrize("container", ["WAV", "m4a"])
def test_a_part_outside_the_recording_is_an_error_that_names_the_request(container, offset_s, duration_s):
    data = encode_av(speech_like(6), 16000, "ipod", "alac") if container == "m4a" else encode(SIGNAL, RATE)
    with pytest.raises(AudioError, match=f"offset {offset_s}") as caught:
        list(read_segments(data, SETTINGS, offset_s=offset_s, duration_s=duration_s))
    assert caught.value.code is ErrorCode.OUT_OF_RANGE


@pytest.mark.parametrize("container", ["WAV", "m4a"])
def test_a_part_that_ends_a_rounding_after_the_recording_is_clipped(container):
    data = encode_av(speech_like(6), 16000, "ipod", "alac") if container == "m4a" else encode(speech_like(6), 16000)
    segment = read_single_segment(data, offset_s=5.0, duration_s=1.09)
    assert segment.duration_s == 1.0
    assert not segment.whole


@pytest.mark.parametrize("container", ["WAV", "m4a"])
@pytest.mark.parametrize(
    ("offset_s", "duration_s", "whole"),
    [(None, None, True), (0, 6.0, True), (0, 5.95, True), (0, 6.05, True), (0, 5.85, False), (0.2, None, False)],
)
def test_a_part_that_lacks_no_more_than_a_rounding_is_the_whole_recording(container, offset_s, duration_s, whole):
    data = encode_av(speech_like(6), 16000, "ipod", "alac") if container == "m4a" else encode(speech_like(6), 16000)
    segment = read_single_segment(data, offset_s=offset_s, duration_s=duration_s)
    assert segment.whole is whole
    assert segment.only


def test_segments_tile_a_long_part():
    data = encode(SIGNAL, RATE, "FLAC")
    full, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    segments = list(read_segments(data, AudioSettings(max_segment_s=1.1), offset_s=1.0, duration_s=4.0))
    expected = soxr.resample(full[RATE : 5 * RATE].copy(), RATE, 16_000)
    np.testing.assert_array_equal(concatenated(segments), expected)
    assert segments[0].start_s == 1.0
    assert not any(segment.whole or segment.only for segment in segments)
