"""Recordings that are decoded with FFmpeg."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile
import soxr

from pipeline.audio.decode import AudioSettings, read_segments
from pipeline.errors import AudioError, ErrorCode
from tests.support.decoding import concatenated, error_code_of, read_single_segment
from tests.support.signals import aac, encode, encode_av, speech_like


@pytest.mark.parametrize(
    ("container", "codec", "rate", "channels"),
    [
        ("ipod", "alac", 16_000, 1),
        ("mov", "pcm_s16le", 16_000, 2),
        ("mov", "pcm_s24le", 44_100, 1),
        ("mov", "pcm_f32le", 44_100, 2),
        ("avi", "pcm_u8", 16_000, 1),
        ("matroska", "flac", 16_000, 2),
    ],
)
def test_lossless_codecs_decode_as_with_libsndfile(container, codec, rate, channels):
    coding = {"alac": "PCM_16", "flac": "PCM_16", "pcm_u8": "PCM_U8", "pcm_f32le": "FLOAT"}.get(codec)
    coding = coding or ("PCM_24" if "24" in codec else "PCM_16")
    x, _ = soundfile.read(io.BytesIO(encode(speech_like(1.5, rate, channels), rate, "WAV", coding)), dtype="float32")
    x = x.reshape(-1, channels)
    segment = read_single_segment(encode_av(x, rate, container, codec))
    expected = x.mean(axis=1)
    if rate != 16_000:
        expected = soxr.resample(expected, rate, 16_000)
    assert segment.whole
    np.testing.assert_allclose(segment.samples, expected, atol=2**-15 if "u8" not in codec else 2**-7)
    assert len(segment.samples) == len(expected)


def test_segments_tile_a_long_recording():
    data = aac(8, "ipod", 44_100, 2)
    whole = read_single_segment(data)
    segments = list(read_segments(data, AudioSettings(max_segment_s=2)))
    assert len(segments) > 3
    np.testing.assert_array_equal(concatenated(segments), whole.samples)


@pytest.mark.parametrize(("container", "codec", "rate"), [("ipod", "aac", 44_100), ("webm", "libopus", 48_000)])
def test_a_part_has_exactly_the_samples_of_the_whole(container, codec, rate):
    data = encode_av(speech_like(4, rate), rate, container, codec)
    full = read_single_segment(data, AudioSettings(sample_rate=rate)).samples
    part = read_single_segment(data, AudioSettings(sample_rate=rate), offset_s=1.5, duration_s=1)
    np.testing.assert_array_equal(part.samples, full[rate * 3 // 2 : rate * 5 // 2])
    assert part.start_s == 1.5


def test_sixteen_channels_are_decoded():
    # With so many planes PyAV's own conversion to an array crashes the process.
    x = speech_like(1, 16_000, 16)
    file = io.BytesIO()
    with av.open(file, "w", format="ipod") as output:
        stream = output.add_stream("aac", rate=16_000)
        stream.layout = "hexadecagonal"
        frame = av.AudioFrame(format="fltp", layout="hexadecagonal", samples=1024)
        frame.sample_rate = 16_000
        for start in range(0, 1024 * 12, 1024):
            for k, plane in enumerate(frame.planes[:16]):
                plane.update(x[start : start + 1024, k].tobytes())
            frame.pts = start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    segments = list(read_segments(file.getvalue(), AudioSettings(channels="split")))
    assert [segment.channel for segment in segments] == list(range(16))
    for segment in segments:
        k = segment.channel
        length = min(len(segment.samples), 12_000)
        assert np.corrcoef(segment.samples[:length], x[:length, k])[0, 1] > 0.8


def test_the_duration_in_the_header_is_checked_against_the_limit():
    data = aac(5)
    assert error_code_of(data, AudioSettings(max_duration_s=2)) is ErrorCode.TOO_LARGE


def test_a_video_without_sound_is_undecodable():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        output.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no audio stream") as caught:
        read_single_segment(file.getvalue())
    assert caught.value.code is ErrorCode.UNDECODABLE
