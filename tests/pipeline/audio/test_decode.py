"""Samples, channels, limits and memory of `read_segments`, and parts of one recording that stays open."""

from __future__ import annotations

import io
import itertools
import math
import os
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import decode, sndfile
from pipeline.audio.decode import AudioSettings, LastRecording, read_segments
from pipeline.audio.mpeg import parse_mpeg_frame
from pipeline.audio.samples import to_float32
from pipeline.errors import AudioError, ErrorCode
from tests.support.decoding import (
    FORMATS,
    SETTINGS,
    concatenated,
    error_code_of,
    expected_samples,
    read_single_segment,
    truncated,
)
from tests.support.signals import encode, speech_like

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
STEREO = speech_like(1.0, 8000, 2)
STEREO_FILE = encode(STEREO, 8000, "WAV", "FLOAT")


# ---- Samples


@pytest.mark.parametrize(("container", "coding", "rates", "channels"), FORMATS)
def test_samples_equal_one_read_and_one_resampling_in_every_format(container, coding, rates, channels):
    for rate in rates:
        for count in channels:
            data = encode(speech_like(1.3, rate, count), rate, container, coding)
            segment = read_single_segment(data)
            expected = expected_samples(data)
            np.testing.assert_array_equal(to_float32(segment.samples), expected, f"{rate} Hz, {count} channels")
            assert segment.whole
            assert segment.only
            assert segment.start_s == 0
            assert segment.duration_s == len(expected) / 16_000


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_samples_are_exact_for_any_length_rate_and_channel_count(data):
    container, coding, rates, channels = data.draw(st.sampled_from(FORMATS))
    rate = data.draw(st.sampled_from(rates))
    count = data.draw(st.sampled_from(channels if len(channels) == 1 or container == "MP3" else (1, 2)))
    frames = data.draw(st.integers(1, 3000))
    file = encode(speech_like(0.4, rate, count)[:frames], rate, container, coding)
    expected = expected_samples(file)
    if len(expected) == 0:
        assert error_code_of(file) is ErrorCode.NO_SAMPLES
    else:
        np.testing.assert_array_equal(to_float32(read_single_segment(file).samples), expected)


@pytest.mark.parametrize(
    ("container", "coding", "rate", "channels", "dtype"),
    [
        ("WAV", "PCM_16", 16_000, 1, np.int16),
        ("FLAC", "PCM_16", 16_000, 1, np.int16),
        ("AIFF", "PCM_16", 16_000, 1, np.int16),
        ("WAV", "PCM_16", 8000, 1, np.float32),  # resampled
        ("WAV", "PCM_16", 16_000, 2, np.float32),  # mixed
        ("WAV", "PCM_24", 16_000, 1, np.float32),
        ("WAV", "ULAW", 16_000, 1, np.float32),
        ("OGG", "VORBIS", 16_000, 1, np.float32),
        ("MP3", "MPEG_LAYER_III", 16_000, 1, np.float32),
    ],
)
def test_samples_are_int16_only_where_that_is_lossless(container, coding, rate, channels, dtype):
    data = encode(speech_like(0.5, rate, channels), rate, container, coding)
    assert read_single_segment(data).samples.dtype == dtype


def test_samples_are_the_same_from_bytes_a_path_and_an_open_file(tmp_path):
    data = encode(speech_like(0.7), 16_000, "FLAC")
    path = tmp_path / "named.wrong"
    path.write_bytes(data)
    with path.open("rb") as file:
        file.seek(17)
        for source in (data, path, file):
            np.testing.assert_array_equal(to_float32(read_single_segment(source).samples), expected_samples(data))
        assert not file.closed


def test_samples_own_their_memory():
    data = encode(speech_like(9), 16_000)
    for segment in read_segments(data, AudioSettings(max_segment_s=2)):
        assert segment.samples.base is None


def test_the_mean_of_many_channels_does_not_depend_on_the_block_size():
    # From 8 channels on, numpy sums pairwise: the order must not depend on the number of frames in a block.
    data = encode(speech_like(0.3, channels=13), 16_000, "WAV", "FLOAT")
    for block_values in (13, 13 * 7, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sndfile, "BLOCK_VALUES", block_values)
            np.testing.assert_array_equal(read_single_segment(data).samples, expected_samples(data))


def test_samples_are_resampled_to_another_rate_of_the_model():
    data = encode(speech_like(1), 16_000)
    np.testing.assert_array_equal(
        read_single_segment(data, AudioSettings(sample_rate=8000)).samples, expected_samples(data, 8000)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_a_sample_that_is_not_finite_is_reported_with_its_frame(value, rate):
    x = speech_like(1, rate)
    x[-1] = value
    with pytest.raises(AudioError, match=f"frame {rate - 1} ") as caught:
        read_single_segment(encode(x, rate, "WAV", "FLOAT"))
    assert caught.value.code is ErrorCode.NON_FINITE


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the repository")
@pytest.mark.parametrize("name", ["librispeech-dev-clean", "coffee-orders", "keywords", "spoken-digits", "synthetic"])
def test_real_recordings_are_exact_and_truncated_ones_are_errors(name):
    paths = sorted(path for path in (DATA / name / "audio").rglob("*") if path.is_file())
    for path in random.Random(0).sample(paths, 12):
        data = path.read_bytes()
        np.testing.assert_array_equal(to_float32(read_single_segment(path).samples), expected_samples(data), path.name)
        assert error_code_of(data[:-3]) is ErrorCode.TRUNCATED, path.name
        assert error_code_of(truncated(data, 0.5)) is ErrorCode.TRUNCATED, path.name


# ---- Channels


@pytest.mark.parametrize("k", [0, 1])
def test_a_picked_channel_is_one_utterance_without_a_number(k):
    segment = read_single_segment(STEREO_FILE, AudioSettings(channels=k))
    np.testing.assert_array_equal(segment.samples, soxr.resample(STEREO[:, k].copy(), 8000, 16_000))
    assert segment.channel is None
    assert segment.whole


def test_split_channels_are_one_utterance_each_with_its_number():
    segments = list(read_segments(STEREO_FILE, AudioSettings(channels="split")))
    assert [segment.channel for segment in segments] == [0, 1]
    for k, segment in enumerate(segments):
        assert segment.whole
        np.testing.assert_array_equal(segment.samples, soxr.resample(STEREO[:, k].copy(), 8000, 16_000))


def test_segments_tile_each_split_channel():
    segments = list(read_segments(STEREO_FILE, AudioSettings(channels="split", max_segment_s=0.3)))
    for k in (0, 1):
        own = [segment for segment in segments if segment.channel == k]
        assert len(own) > 2
        np.testing.assert_array_equal(concatenated(own), soxr.resample(STEREO[:, k].copy(), 8000, 16_000))


def test_a_missing_channel_is_an_error():
    assert error_code_of(STEREO_FILE, AudioSettings(channels=2)) is ErrorCode.NO_SUCH_CHANNEL


def test_nan_in_a_channel_that_is_not_used_is_ignored():
    x = STEREO.copy()
    x[100, 1] = np.nan
    data = encode(x, 8000, "WAV", "FLOAT")
    assert error_code_of(data, AudioSettings(channels=0)) is None
    assert error_code_of(data, AudioSettings(channels=1)) is ErrorCode.NON_FINITE
    assert error_code_of(data) is ErrorCode.NON_FINITE


# ---- Streaming


def test_memory_does_not_grow_with_the_recording():
    settings = AudioSettings(max_segment_s=2)

    def peak(seconds: int) -> int:
        file = io.BytesIO(encode(np.tile(speech_like(5, 8000), (seconds // 5, 1)), 8000, "WAV", "PCM_16"))
        tracemalloc.start()
        try:
            for _ in read_segments(file, settings):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(400) < 1.1 * peak(50)  # 400 s would be 25.6 MB of float32


def test_segments_before_a_fault_are_yielded_and_then_the_error_is_raised():
    x = speech_like(30)
    x[25 * 16_000] = np.inf
    segments = []
    with pytest.raises(AudioError, match=r"25\.000 s.*inf") as caught:
        segments.extend(read_segments(encode(x, 16_000, "WAV", "FLOAT"), AudioSettings(max_segment_s=4)))
    assert caught.value.code is ErrorCode.NON_FINITE
    # extend() keeps the segments before the error
    assert len(segments) >= 3
    np.testing.assert_array_equal(concatenated(segments), x[: len(concatenated(segments)), 0])


def test_an_abandoned_reading_closes_its_file(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(encode(speech_like(20), 16_000))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None  # noqa: PTH208
    reading = read_segments(path, AudioSettings(max_segment_s=2))
    next(reading)
    reading.close()
    if before is None:
        pytest.skip("no /proc to count open files")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# ---- Limits


def test_limits_are_checked_before_anything_is_decoded(monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("decoded")

    data = encode(speech_like(3, channels=4), 16_000)
    monkeypatch.setattr(soundfile.SoundFile, "read", never)
    for tight in (
        AudioSettings(max_channels=3),
        AudioSettings(max_rate=8000),
        AudioSettings(max_duration_s=2.9),
    ):
        assert error_code_of(data, tight) is ErrorCode.TOO_LARGE
    with pytest.raises(AssertionError, match="decoded"):
        error_code_of(data, AudioSettings(max_channels=4, max_rate=16_000, max_duration_s=3))


def test_the_duration_is_limited_while_decoding_if_the_header_has_none():
    data = bytearray(encode(speech_like(20), 16_000, "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert error_code_of(bytes(data), AudioSettings(max_duration_s=19.9)) is ErrorCode.TOO_LARGE
    assert error_code_of(bytes(data), AudioSettings(max_duration_s=20)) is None


def test_the_duration_limit_applies_to_the_requested_part():
    data = encode(speech_like(3), 16_000)
    assert error_code_of(data, AudioSettings(max_duration_s=1), offset_s=1.5, duration_s=1) is None
    assert error_code_of(data, AudioSettings(max_duration_s=1), offset_s=1.5) is ErrorCode.TOO_LARGE


def test_a_sample_rate_of_one_hertz_is_refused():
    data = encode(speech_like(0.1), 16_000)
    assert error_code_of(data[:24] + struct.pack("<I", 1) + data[28:]) is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("wrong", [{"sample_rate": 0}, {"channels": -1}, {"channels": "left"}, {"max_segment_s": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AudioSettings(**wrong)


# ---- Parts of one recording that stays open


def outcome(data, settings, offset_s, duration_s, last=None):
    """Return the fields of a part's segments, and the error that its reading raises."""
    segments, code = [], None
    try:
        segments.extend(read_segments(data, settings, offset_s=offset_s, duration_s=duration_s, last=last))
    except AudioError as error:
        code = (error.code, error.message)
    return [(s.start_s, s.channel, s.whole, s.only, s.samples.tobytes()) for s in segments], code


PART_FILES = {
    name: encode(speech_like(6, rate, channels), rate, container, coding)
    for name, container, coding, rate, channels in [
        ("vorbis", "OGG", "VORBIS", 16_000, 1),
        ("opus", "OGG", "OPUS", 48_000, 2),
        ("mp3", "MP3", "MPEG_LAYER_III", 44_100, 1),
        ("gsm", "WAV", "GSM610", 8000, 1),
        ("flac", "FLAC", "PCM_16", 16_000, 1),
    ]
}
# Without its first frame, which is the Xing header that counts the frames, an MP3 has no length.
TAGGED = encode(speech_like(6, 44_100), 44_100, "MP3", "MPEG_LAYER_III", compression_level=0.1, bitrate_mode="CONSTANT")
PART_FILES["mp3 of unknown length"] = TAGGED[parse_mpeg_frame(TAGGED[:4]).size :]
seconds = st.one_of(st.none(), st.floats(-1, 8), st.sampled_from([0.0, 1.0, 1.5, 3.0, 5.99, math.nan, math.inf]))


@given(
    st.sampled_from(sorted(PART_FILES)),
    st.sampled_from(
        [SETTINGS, AudioSettings(channels="split", max_segment_s=1), AudioSettings(8000, max_segment_s=0.7)]
    ),
    st.lists(st.tuples(seconds, seconds), min_size=2, max_size=6),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_parts_are_the_same_if_the_recording_stays_open(name, wanted, parts, in_order, broken):
    data = truncated(PART_FILES[name], 0.7) if broken else PART_FILES[name]
    if in_order:
        parts.sort(key=lambda part: -1.0 if part[0] is None or math.isnan(part[0]) else part[0])
    last = LastRecording()
    for part in parts:
        assert outcome(data, wanted, *part, last) == outcome(data, wanted, *part)
    last.close()


@pytest.fixture
def openings(monkeypatch):
    """The arguments of each opening of a recording."""
    openings = []
    open_recording = decode.open_recording
    monkeypatch.setattr(decode, "open_recording", lambda *args: openings.append(args) or open_recording(*args))
    return openings


@pytest.mark.parametrize("overlap_s", [0.0, 0.1])
@pytest.mark.parametrize("name", ["gsm", "mp3", "mp3 of unknown length", "opus", "vorbis"])
def test_parts_in_the_order_of_time_are_decoded_in_one_pass(openings, name, overlap_s):
    """Also if a part begins at the end of the one before it, however both are rounded, or just before that end."""
    last = LastRecording()
    durations = [0.333, 0.701, 1.0, 0.25, 1.117, 0.0015, 0.05]
    for start_s, duration_s in zip(itertools.accumulate(durations, initial=0.0), durations, strict=False):
        offset_s = max(0.0, start_s - overlap_s)
        read_single_segment(PART_FILES[name], offset_s=offset_s, duration_s=start_s + duration_s - offset_s, last=last)
    assert len(openings) == 1
    assert (last._reader.num_frames is None) == (name == "mp3 of unknown length")
    last.close()


def test_a_part_that_was_decoded_with_the_one_before_it_owns_its_samples():
    last, data = LastRecording(), PART_FILES["vorbis"]
    read_single_segment(data, offset_s=0.0, duration_s=2.0, last=last)
    tail_s = len(last._reader._reader._tail) / 16_000
    read_single_segment(data, offset_s=2 - tail_s, duration_s=tail_s, last=last).samples[:] = 0
    assert read_single_segment(data, offset_s=2 - tail_s, duration_s=tail_s, last=last).samples.any()
    last.close()


def test_a_recording_is_opened_again_after_an_overlap_or_an_abandoned_part_and_closed_at_its_end(openings):
    last = LastRecording()
    data = PART_FILES["vorbis"]
    for offset_s in (1.0, 1.7, 1.0):
        read_single_segment(data, offset_s=offset_s, duration_s=1.0, last=last)
    assert len(openings) == 3
    segments = read_segments(data, AudioSettings(max_segment_s=1), offset_s=2.1, duration_s=3, last=last)
    next(segments)
    segments.close()
    assert len(openings) == 3
    read_single_segment(data, offset_s=5.5, duration_s=0.1, last=last)
    assert len(openings) == 4
    read_single_segment(data, last=last)
    assert last._source is None
