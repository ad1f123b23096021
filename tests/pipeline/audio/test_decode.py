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

from pipeline.audio import containers, decode
from pipeline.audio.decode import AudioSettings, LastRecording, Segment, read_segments, to_float32
from pipeline.errors import AudioError, ErrorCode

from tests.support.signals import BrokenFile, aac, encode, encode_av, png, speech_like

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
MODEL = AudioSettings()

# Container, coding, rates that it takes, channels that it takes.
RATES = (8000, 11025, 16000, 22050, 44100, 48000)
FORMATS = [
    *[("WAV", coding, RATES, (1, 2)) for coding in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
    *[("WAV", coding, RATES, (1, 2)) for coding in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")],
    ("WAV", "GSM610", RATES, (1,)),
    ("WAV", "G721_32", RATES, (1,)),
    ("WAVEX", "PCM_16", RATES, (1, 2)),
    ("RF64", "PCM_16", RATES, (1, 2)),
    ("W64", "PCM_24", RATES, (1, 2)),
    ("AIFF", "PCM_16", RATES, (1, 2)),
    ("AIFF", "FLOAT", RATES, (1, 2)),
    ("AU", "PCM_16", RATES, (1, 2)),
    ("CAF", "PCM_16", RATES, (1, 2)),
    ("CAF", "ALAC_16", RATES, (1, 2)),
    ("NIST", "PCM_16", RATES, (1, 2)),
    ("FLAC", "PCM_16", RATES, (1, 2)),
    ("FLAC", "PCM_24", RATES, (1, 2)),
    ("OGG", "VORBIS", RATES, (1, 2)),
    ("OGG", "OPUS", (8000, 16000, 48000), (1, 2)),
    ("MP3", "MPEG_LAYER_III", RATES, (1, 2)),
]


def oracle(data: bytes, rate: int = 16_000) -> np.ndarray:
    """What the samples must be: one read, the mean, one resampling."""
    x, source_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    x = x.mean(axis=1)
    return x if source_rate == rate else soxr.resample(x, source_rate, rate)


def read_one(data, settings: AudioSettings = MODEL, **request: float) -> Segment:
    (segment,) = read_segments(data, settings, **request)
    return segment


def joined(segments: list[Segment]) -> np.ndarray:
    return np.concatenate([to_float32(segment.samples) for segment in segments])


def code_of(data, settings: AudioSettings = MODEL, **request: float) -> ErrorCode | None:
    """The error that reading ends in, None where it does not."""
    try:
        for _ in read_segments(data, settings, **request):
            pass
    except AudioError as error:
        assert error.message  # noqa: PT017 - says something, whatever it is
        return error.code
    return None


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


class TestTheSamples:
    @pytest.mark.parametrize(("container", "coding", "rates", "channels"), FORMATS)
    def test_are_those_of_one_read_and_one_resampling_and_intact_files_are_never_truncated(
        self, container, coding, rates, channels
    ):
        for rate in rates:
            for count in channels:
                data = encode(speech_like(1.3, rate, count), rate, container, coding)
                segment = read_one(data)
                expected = oracle(data)
                np.testing.assert_array_equal(to_float32(segment.samples), expected, f"{rate} Hz, {count} channels")
                assert segment.whole
                assert segment.only
                assert segment.start_s == 0
                assert segment.duration_s == len(expected) / 16_000

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_hold_for_any_length_rate_and_channel_count(self, data):
        container, coding, rates, channels = data.draw(st.sampled_from(FORMATS))
        rate = data.draw(st.sampled_from(rates))
        count = data.draw(st.sampled_from(channels if len(channels) == 1 or container == "MP3" else (1, 2)))
        frames = data.draw(st.integers(1, 3000))
        file = encode(speech_like(0.4, rate, count)[:frames], rate, container, coding)
        expected = oracle(file)
        if len(expected) == 0:
            assert code_of(file) is ErrorCode.NO_SAMPLES
        else:
            np.testing.assert_array_equal(to_float32(read_one(file).samples), expected)

    def test_of_every_int16_become_the_float32_that_libsndfile_reads(self):
        x = np.arange(-32768, 32768).astype(np.int16)
        expected, _ = soundfile.read(io.BytesIO(encode(x, 16_000)), dtype="float32")
        np.testing.assert_array_equal(to_float32(x), expected)
        assert to_float32(x).dtype == np.float32

    def test_float32_passes_uncopied_and_other_types_are_refused(self):
        x = np.zeros(3, np.float32)
        assert to_float32(x) is x
        with pytest.raises(TypeError, match="float64"):
            to_float32(np.zeros(3))

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
    def test_are_int16_only_where_that_loses_nothing(self, container, coding, rate, channels, dtype):
        data = encode(speech_like(0.5, rate, channels), rate, container, coding)
        assert read_one(data).samples.dtype == dtype

    def test_are_the_same_from_bytes_a_path_and_an_open_file(self, tmp_path):
        data = encode(speech_like(0.7), 16_000, "FLAC")
        path = tmp_path / "named.wrong"
        path.write_bytes(data)
        with path.open("rb") as file:
            file.seek(17)
            for source in (data, path, file):
                np.testing.assert_array_equal(to_float32(read_one(source).samples), oracle(data))
            assert not file.closed

    def test_own_their_memory(self):
        data = encode(speech_like(9), 16_000)
        for segment in read_segments(data, AudioSettings(max_segment_s=2)):
            assert segment.samples.base is None

    def test_stay_bit_equal_when_a_mix_has_many_channels(self):
        # From 8 channels on, numpy sums pairwise: the order must not depend on how many frames a block has.
        data = encode(speech_like(0.3, channels=13), 16_000, "WAV", "FLOAT")
        for block_values in (13, 13 * 7, 1 << 20):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(decode, "_BLOCK_VALUES", block_values)
                np.testing.assert_array_equal(read_one(data).samples, oracle(data))

    def test_reach_another_rate_of_the_model(self):
        data = encode(speech_like(1), 16_000)
        np.testing.assert_array_equal(read_one(data, AudioSettings(sample_rate=8000)).samples, oracle(data, 8000))


class TestChannels:
    stereo = speech_like(1.0, 8000, 2)
    file = encode(stereo, 8000, "WAV", "FLOAT")

    @pytest.mark.parametrize("k", [0, 1])
    def test_picking_takes_one_and_gives_it_no_number(self, k):
        segment = read_one(self.file, AudioSettings(channels=k))
        np.testing.assert_array_equal(segment.samples, soxr.resample(self.stereo[:, k].copy(), 8000, 16_000))
        assert segment.channel is None
        assert segment.whole

    def test_splitting_gives_one_utterance_a_channel_with_its_number(self):
        segments = list(read_segments(self.file, AudioSettings(channels="split")))
        assert [segment.channel for segment in segments] == [0, 1]
        for k, segment in enumerate(segments):
            assert segment.whole
            np.testing.assert_array_equal(segment.samples, soxr.resample(self.stereo[:, k].copy(), 8000, 16_000))

    def test_splitting_a_long_recording_tiles_each_channel(self):
        segments = list(read_segments(self.file, AudioSettings(channels="split", max_segment_s=0.3)))
        for k in (0, 1):
            own = [segment for segment in segments if segment.channel == k]
            assert len(own) > 2
            np.testing.assert_array_equal(joined(own), soxr.resample(self.stereo[:, k].copy(), 8000, 16_000))

    def test_one_that_is_not_there_is_an_error(self):
        assert code_of(self.file, AudioSettings(channels=2)) is ErrorCode.NO_SUCH_CHANNEL

    def test_nan_in_another_channel_does_not_hurt(self):
        x = self.stereo.copy()
        x[100, 1] = np.nan
        data = encode(x, 8000, "WAV", "FLOAT")
        assert code_of(data, AudioSettings(channels=0)) is None
        assert code_of(data, AudioSettings(channels=1)) is ErrorCode.NON_FINITE
        assert code_of(data) is ErrorCode.NON_FINITE


class TestSegments:
    @settings(max_examples=60, deadline=None)
    @given(
        seconds=st.floats(0.05, 12),
        longest=st.floats(0.1, 6),
        rate=st.sampled_from((8000, 16_000, 22_050)),
        coding=st.sampled_from(("PCM_16", "FLOAT")),
        seed=st.integers(0, 5),
    )
    def test_tile_the_recording_and_none_is_too_long_and_no_rest_is_tiny(self, seconds, longest, rate, coding, seed):
        data = encode(speech_like(seconds, rate, seed=seed), rate, "WAV", coding)
        segments = list(read_segments(data, AudioSettings(max_segment_s=longest)))
        expected = oracle(data)
        np.testing.assert_array_equal(joined(segments), expected)
        most = int(longest * 16_000 + 0.001)
        assert max(len(segment.samples) for segment in segments) <= most
        if len(segments) > 1:
            assert min(len(segment.samples) for segment in segments) >= min(16_000, most // 2)
        position = 0
        for segment in segments:
            assert segment.start_s == pytest.approx(position / 16_000, abs=1e-9)
            assert segment.duration_s == len(segment.samples) / 16_000
            assert segment.whole == segment.only == (len(segments) == 1)
            position += len(segment.samples)

    def test_are_not_made_of_what_fits_to_the_sample(self):
        settings = AudioSettings(max_segment_s=0.57)  # 0.57 * 16000 is 9119.999... in floating point
        assert len(list(read_segments(encode(np.zeros(9120, np.int16), 16_000), settings))) == 1
        assert len(list(read_segments(encode(np.zeros(9121, np.int16), 16_000), settings))) == 2

    @settings(max_examples=25, deadline=None)
    @given(block_values=st.integers(50, 40_000), coding=st.sampled_from(["PCM_16", "FLOAT", "MP3", "OGG", "ALAC_16"]))
    def test_do_not_depend_on_the_block_size(self, block_values, coding):
        container = {"PCM_16": "WAV", "FLOAT": "WAV", "ALAC_16": "CAF"}.get(coding, coding)
        coding = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(coding, coding)
        data = encode(speech_like(5, 22_050), 22_050, container, coding)
        settings = AudioSettings(max_segment_s=1.5)
        expected = list(read_segments(data, settings))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decode, "_BLOCK_VALUES", block_values)
            got = list(read_segments(data, settings))
        assert [segment.start_s for segment in got] == [segment.start_s for segment in expected]
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a.samples, b.samples)

    @pytest.mark.parametrize("dtype", [np.int16, np.float32])
    def test_are_cut_in_the_middle_of_the_quietest_20_ms_of_the_second_half(self, dtype):
        x = np.full(4 * 16_000, 0.5, np.float32)
        x[8_000:8_320] = 0  # quieter, but in the first half
        x[16_000 + 30 * 320 : 16_000 + 31 * 320] = 0.01
        data = encode(x, 16_000, "WAV", "PCM_16" if dtype == np.int16 else "FLOAT")
        segments = list(read_segments(data, AudioSettings(max_segment_s=2)))
        assert segments[0].samples.dtype == dtype
        assert len(segments[0].samples) == 16_000 + 30 * 320 + 160

    def test_are_cut_at_the_first_of_equally_quiet_frames(self):
        segments = list(read_segments(encode(np.zeros(4 * 16_000, np.int16), 16_000), AudioSettings(max_segment_s=2)))
        assert len(segments[0].samples) == 16_000 + 160

    def test_fall_into_pauses_and_not_into_bursts(self):
        x = np.concatenate([np.r_[np.full(10_000, 0.4), np.zeros(2_000)] for _ in range(20)]).astype(np.float32)
        segments = list(read_segments(encode(x, 16_000, "WAV", "FLOAT"), AudioSettings(max_segment_s=3)))
        assert len(segments) > 4
        for segment in segments[:-1]:
            assert abs(segment.samples[-1]) == 0
        for segment in segments[1:]:
            assert abs(segment.samples[0]) == 0

    def test_leave_no_rest_below_a_second_where_a_cut_could_be_earlier(self):
        x = np.full(round(10.02 * 16_000), 0.5, np.float32)
        x[round(9.9 * 16_000) : 10 * 16_000] = 0  # the best pause would leave 0.1 s
        segments = list(read_segments(encode(x, 16_000, "WAV", "FLOAT"), AudioSettings(max_segment_s=10)))
        assert len(segments) == 2
        assert len(segments[1].samples) >= 16_000

    def test_need_memory_that_does_not_grow_with_the_recording(self):
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

    def test_before_a_fault_are_handed_out_and_then_the_fault_is_raised(self):
        x = speech_like(30)
        x[25 * 16_000] = np.inf
        segments = []
        with pytest.raises(AudioError, match=r"25\.000 s.*inf") as caught:
            segments.extend(read_segments(encode(x, 16_000, "WAV", "FLOAT"), AudioSettings(max_segment_s=4)))
        assert caught.value.code is ErrorCode.NON_FINITE
        # extend() keeps what came before the error
        assert len(segments) >= 3
        np.testing.assert_array_equal(joined(segments), x[: len(joined(segments)), 0])

    def test_can_be_left_half_way_and_the_file_is_closed(self, tmp_path):
        path = tmp_path / "long.wav"
        path.write_bytes(encode(speech_like(20), 16_000))
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None  # noqa: PTH208
        reading = read_segments(path, AudioSettings(max_segment_s=2))
        next(reading)
        reading.close()
        if before is None:
            pytest.skip("no /proc to count open files")
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


class TestRequests:
    rate = 22_050
    x = speech_like(6, rate)

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
    def test_for_a_part_give_the_very_samples_in_every_format(self, container, coding, offset_s, duration_s):
        data = encode(self.x, self.rate, container, coding)
        full, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        start = round(offset_s * self.rate)
        stop = len(full) if duration_s is None else start + round(duration_s * self.rate)
        segment = read_one(data, offset_s=offset_s, duration_s=duration_s)
        np.testing.assert_array_equal(segment.samples, soxr.resample(full[start:stop].copy(), self.rate, 16_000))
        assert segment.start_s == pytest.approx(offset_s, abs=1 / self.rate)
        assert not segment.whole
        assert segment.only

    def test_for_opus_decode_from_the_start_because_its_seek_is_not_exact(self):
        data = encode(speech_like(4, 16_000, 2), 16_000, "OGG", "OPUS")
        full, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        segment = read_one(data, offset_s=12_345 / 16_000, duration_s=1)
        np.testing.assert_array_equal(segment.samples, full[12_345:28_345].mean(axis=1))

    @pytest.mark.parametrize(
        ("offset_s", "duration_s"),
        [(-0.1, 1), (6.0, 1), (7.0, None), (0, 0), (0, -1), (5.0, 1.2), (float("nan"), 1), (0, float("inf"))],
    )
    @pytest.mark.parametrize("container", ["WAV", "m4a"])
    def test_outside_the_recording_are_errors_that_give_the_numbers(self, container, offset_s, duration_s):
        if container == "m4a":
            pytest.importorskip("av")
            data = encode_av(speech_like(6), 16_000, "ipod", "alac")
        else:
            data = encode(self.x, self.rate)
        with pytest.raises(AudioError, match=f"offset {offset_s}") as caught:
            list(read_segments(data, MODEL, offset_s=offset_s, duration_s=duration_s))
        assert caught.value.code is ErrorCode.OUT_OF_RANGE

    @pytest.mark.parametrize("container", ["WAV", "m4a"])
    def test_that_miss_the_end_by_a_rounding_are_clipped(self, container):
        if container == "m4a":
            pytest.importorskip("av")
            data = encode_av(speech_like(6), 16_000, "ipod", "alac")
        else:
            data = encode(speech_like(6), 16_000)
        segment = read_one(data, offset_s=5.0, duration_s=1.09)
        assert segment.duration_s == 1.0
        assert not segment.whole

    @pytest.mark.parametrize("container", ["WAV", "m4a"])
    @pytest.mark.parametrize(
        ("offset_s", "duration_s", "whole"),
        [(None, None, True), (0, 6.0, True), (0, 5.95, True), (0, 6.05, True), (0, 5.85, False), (0.2, None, False)],
    )
    def test_for_all_but_a_rounding_are_whole(self, container, offset_s, duration_s, whole):
        if container == "m4a":
            pytest.importorskip("av")
            data = encode_av(speech_like(6), 16_000, "ipod", "alac")
        else:
            data = encode(speech_like(6), 16_000)
        segment = read_one(data, offset_s=offset_s, duration_s=duration_s)
        assert segment.whole is whole
        assert segment.only

    def test_for_a_long_part_tile_it(self):
        data = encode(self.x, self.rate, "FLAC")
        full, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        segments = list(read_segments(data, AudioSettings(max_segment_s=1.1), offset_s=1.0, duration_s=4.0))
        expected = soxr.resample(full[self.rate : 5 * self.rate].copy(), self.rate, 16_000)
        np.testing.assert_array_equal(joined(segments), expected)
        assert segments[0].start_s == 1.0
        assert not any(segment.whole or segment.only for segment in segments)


class TestBrokenFiles:
    @pytest.mark.parametrize(("container", "coding", "rates", "channels"), FORMATS)
    def test_that_are_cut_anywhere_are_truncated(self, container, coding, rates, channels):
        rate, count = rates[1], channels[-1]
        data = encode(speech_like(2, rate, count), rate, container, coding)
        for share in (0.3, 0.5, 0.9):
            assert code_of(cut(data, share)) is ErrorCode.TRUNCATED, share
        for missing in (2, 3, 40):
            assert code_of(data[:-missing]) is ErrorCode.TRUNCATED, missing

    @pytest.mark.parametrize("coding", ["PCM_16", "MPEG_LAYER_III"])
    def test_that_are_cut_at_any_byte_never_pass_for_whole(self, coding):
        file = encode(speech_like(0.3, 8000), 8000, "FLAC" if coding == "PCM_16" else "MP3", coding)
        for at in range(1, len(file)):
            assert code_of(file[:at]) in {ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE}, at

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_that_are_cut_never_pass_for_whole(self, data):
        container, coding, rates, channels = data.draw(st.sampled_from(FORMATS))
        rate = data.draw(st.sampled_from(rates))
        file = encode(speech_like(0.6, rate, channels[-1]), rate, container, coding)
        at = data.draw(st.integers(0, len(file) - 1))
        code = code_of(file[:at])
        if code is None:  # nothing but a byte of padding was cut: all samples must be there
            assert at == len(file) - 1
            got, expected = to_float32(read_one(file[:at]).samples), oracle(file)
            if coding == "GSM610":  # libsndfile makes a block of noise of the byte of padding, and another without it
                got, expected = got[: len(got) * 3 // 4], expected[: len(expected) * 3 // 4]
            np.testing.assert_array_equal(got, expected)
        else:
            assert code in {ErrorCode.EMPTY_FILE, ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE}

    @pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
    def test_of_a_kind_that_pyav_reads_are_truncated_too(self, share):
        pytest.importorskip("av")
        for container, codec, rate in (
            ("ipod", "aac", 16_000),
            ("adts", "aac", 16_000),
            ("webm", "libopus", 48_000),
            ("avi", "pcm_s16le", 16_000),
        ):
            data = encode_av(speech_like(2, rate), rate, container, codec)
            assert code_of(data) is None, container
            # ADTS has no length: a cut between two frames is not seen. One of two cuts 3 bytes apart lies in a frame.
            at = int(len(data) * share)
            codes = [code_of(data[:at]), code_of(data[: at - 3])]
            assert ErrorCode.TRUNCATED in codes, container
            assert container == "adts" or None not in codes, container

    @pytest.mark.parametrize("bit_rate_mode", ["CONSTANT", "VARIABLE"])
    def test_mp3_without_a_frame_count_is_counted_by_its_frames(self, bit_rate_mode):
        x = speech_like(6)
        x[48_000:] *= 0.001  # a variable rate starts high: libsndfile guesses too few frames from it
        data = encode(x, 16_000, "MP3", "MPEG_LAYER_III", compression_level=0.1, bitrate_mode=bit_rate_mode)
        first = containers._mpeg_frame(data[:4])
        bare = data[first.size :]  # without the frame that holds the Xing header
        if bit_rate_mode == "VARIABLE":
            pytest.importorskip("av")
        segment = read_one(bare)
        assert segment.whole
        assert segment.duration_s == pytest.approx(6, abs=0.12)
        assert code_of(bare[:-3]) is ErrorCode.TRUNCATED
        assert code_of(cut(bare, 0.5)) is ErrorCode.TRUNCATED

    def test_mp3s_joined_end_to_end_are_refused_because_the_second_would_be_lost(self):
        data = encode(speech_like(4), 16_000, "MP3", "MPEG_LAYER_III")
        assert code_of(data + data) is ErrorCode.UNSUPPORTED

    def test_chained_ogg_is_refused_because_the_second_stream_would_be_lost(self):
        first = encode(speech_like(1), 16_000, "OGG", "VORBIS")
        pages, position, second = [], 0, encode(speech_like(1), 16_000, "OGG", "VORBIS")
        while position < len(second):  # another serial number; nobody here checks the sums
            table = position + 27
            end = table + second[table - 1] + sum(second[table : table + second[table - 1]])
            pages.append(second[position : position + 14] + b"\x01\x02\x03\x04" + second[position + 18 : end])
            position = end
        assert code_of(first + b"".join(pages)) is ErrorCode.UNSUPPORTED

    def test_ogg_without_its_last_page_is_truncated_although_no_page_is_cut(self):
        data = encode(speech_like(4, 48_000), 48_000, "OGG", "VORBIS")
        assert code_of(data[: data.rindex(b"OggS")]) is ErrorCode.TRUNCATED

    def test_flac_with_a_damaged_middle_is_an_error(self):
        rng = np.random.default_rng(1)
        data = encode(rng.normal(0, 0.1, 16_000 * 20), 16_000, "FLAC")
        middle = len(data) // 2
        assert code_of(data[:middle] + bytes(200) + data[middle + 200 :]) in {
            ErrorCode.UNDECODABLE,
            ErrorCode.TRUNCATED,
        }

    @pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0])
    def test_wav_from_a_pipe_has_no_length_and_is_read_to_its_end(self, size):
        data = encode(speech_like(1), 16_000)
        riff = min(size + 36, 0xFFFFFFFF)
        piped = data[:4] + struct.pack("<I", riff) + data[8:40] + struct.pack("<I", size) + data[44:]
        np.testing.assert_array_equal(to_float32(read_one(piped).samples), oracle(data))

    def test_wav_whose_empty_data_is_followed_by_a_chunk_holds_no_samples(self):
        empty = encode(np.zeros(0, np.int16), 16_000)
        note = b"LIST" + struct.pack("<I", 400) + b"INFO" + bytes(396)
        data = empty[:4] + struct.pack("<I", len(empty) - 8 + len(note)) + empty[8:] + note
        assert code_of(data) is ErrorCode.NO_SAMPLES

    def test_wav_that_lost_only_a_chunk_behind_the_samples_is_whole(self):
        data = encode(speech_like(1), 16_000)
        lost = data[:4] + struct.pack("<I", len(data) - 8 + 400) + data[8:]
        np.testing.assert_array_equal(to_float32(read_one(lost).samples), oracle(data))

    def test_flac_that_does_not_tell_its_length_is_read_to_its_end(self):
        data = bytearray(encode(speech_like(2), 16_000, "FLAC"))
        expected = oracle(bytes(data))
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        samples = read_one(bytes(data)).samples
        np.testing.assert_array_equal(to_float32(samples), expected)
        assert samples.base is None or samples.base.nbytes == samples.nbytes  # not all that might have been read

    @pytest.mark.parametrize("share", [0.2, 0.6])
    def test_the_length_is_held_before_anything_is_handed_out(self, share):
        data = encode(speech_like(20), 16_000)
        with pytest.raises(AudioError, match="container goes on"):
            next(read_segments(cut(data, share), AudioSettings(max_segment_s=1)))

    def test_nothing_is_an_empty_file(self):
        assert code_of(b"") is ErrorCode.EMPTY_FILE

    @pytest.mark.parametrize("container", ["WAV", "AIFF", "CAF"])
    def test_a_header_and_no_frames_is_no_samples(self, container):
        assert code_of(encode(np.zeros(0, np.int16), 16_000, container)) is ErrorCode.NO_SAMPLES

    @pytest.mark.parametrize(
        "data",
        [
            b"<html><body>404</body></html>",
            b"#EXTM3U\nfile:///etc/passwd\n",
            "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode("utf-16") * 100,
            bytes(5000),
            np.random.default_rng(3).bytes(30_000),
            b"\x00",
            png(),
        ],
        ids=["html", "playlist", "utf-16", "zeros", "noise", "one byte", "png"],
    )
    def test_what_is_no_audio_is_undecodable_in_the_same_words_each_time(self, data):
        messages = set()
        for _ in range(3):
            with pytest.raises(AudioError) as caught:
                list(read_segments(io.BytesIO(data), MODEL))
            assert caught.value.code is ErrorCode.UNDECODABLE
            messages.add(caught.value.message)
        assert len(messages) == 1
        assert "libsndfile" in messages.pop()

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_damaged_headers_raise_nothing_but_audio_errors(self, data):
        container, coding, _, channels = data.draw(st.sampled_from(FORMATS))
        file = bytearray(encode(speech_like(0.3, 16_000, channels[-1]), 16_000, container, coding))
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, min(len(file), 200) - 1))
            file[at] = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
        code_of(bytes(file))

    def test_a_chunk_size_beyond_what_a_file_can_have_is_no_crash(self):
        data = bytearray(encode(speech_like(1), 16_000, "W64"))
        data[56:64] = b"\xf8" + b"\xff" * 7  # of the format chunk
        assert code_of(bytes(data)) is ErrorCode.TRUNCATED

    def test_endless_chunks_of_no_length_are_given_up(self):
        data = encode(speech_like(1), 16_000)[:12] + b"junk\0\0\0\0" * (containers._MOST_CHUNKS + 512)
        assert code_of(data) is ErrorCode.UNDECODABLE

    def test_a_film_without_sound_is_undecodable(self):
        av = pytest.importorskip("av")
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as output:
            stream = output.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
            output.mux(stream.encode(None))
        with pytest.raises(AudioError, match="no audio stream") as caught:
            read_one(file.getvalue())
        assert caught.value.code is ErrorCode.UNDECODABLE

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("rate", [8000, 16_000])
    def test_a_sample_that_is_no_number_is_found_at_the_source(self, value, rate):
        x = speech_like(1, rate)
        x[-1] = value
        with pytest.raises(AudioError, match=f"frame {rate - 1} ") as caught:
            read_one(encode(x, rate, "WAV", "FLOAT"))
        assert caught.value.code is ErrorCode.NON_FINITE


class TestCaps:
    def test_hold_before_anything_is_decoded(self, monkeypatch):
        def never(*_args, **_kwargs):
            raise AssertionError("decoded")

        data = encode(speech_like(3, channels=4), 16_000)
        monkeypatch.setattr(soundfile.SoundFile, "read", never)
        for tight in (
            AudioSettings(max_channels=3),
            AudioSettings(max_rate=8000),
            AudioSettings(max_duration_s=2.9),
        ):
            assert code_of(data, tight) is ErrorCode.TOO_LARGE
        with pytest.raises(AssertionError, match="decoded"):
            code_of(data, AudioSettings(max_channels=4, max_rate=16_000, max_duration_s=3))

    def test_on_duration_hold_while_decoding_where_the_header_does_not_tell(self):
        data = bytearray(encode(speech_like(20), 16_000, "FLAC"))
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        assert code_of(bytes(data), AudioSettings(max_duration_s=19.9)) is ErrorCode.TOO_LARGE
        assert code_of(bytes(data), AudioSettings(max_duration_s=20)) is None

    def test_on_duration_bear_on_the_part_that_is_asked_for(self):
        data = encode(speech_like(3), 16_000)
        assert code_of(data, AudioSettings(max_duration_s=1), offset_s=1.5, duration_s=1) is None
        assert code_of(data, AudioSettings(max_duration_s=1), offset_s=1.5) is ErrorCode.TOO_LARGE

    def test_a_rate_of_one_hertz_is_refused(self):
        data = encode(speech_like(0.1), 16_000)
        assert code_of(data[:24] + struct.pack("<I", 1) + data[28:]) is ErrorCode.UNSUPPORTED

    @pytest.mark.parametrize(
        "wrong", [{"sample_rate": 0}, {"channels": -1}, {"channels": "left"}, {"max_segment_s": 0}]
    )
    def test_settings_without_sense_are_refused(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AudioSettings(**wrong)


class TestPyAV:
    @pytest.mark.parametrize(
        ("container", "codec", "rate", "channels"),
        [
            ("ipod", "alac", 16_000, 1),  # lossless: the very signal
            ("mov", "pcm_s16le", 16_000, 2),
            ("mov", "pcm_s24le", 44_100, 1),
            ("mov", "pcm_f32le", 44_100, 2),
            ("avi", "pcm_u8", 16_000, 1),
            ("matroska", "flac", 16_000, 2),
        ],
    )
    def test_reads_lossless_codecs_as_libsndfile_would(self, container, codec, rate, channels):
        pytest.importorskip("av")
        coding = {"alac": "PCM_16", "flac": "PCM_16", "pcm_u8": "PCM_U8", "pcm_f32le": "FLOAT"}.get(codec)
        coding = coding or ("PCM_24" if "24" in codec else "PCM_16")
        x, _ = soundfile.read(
            io.BytesIO(encode(speech_like(1.5, rate, channels), rate, "WAV", coding)), dtype="float32"
        )
        x = x.reshape(-1, channels)
        segment = read_one(encode_av(x, rate, container, codec))
        expected = x.mean(axis=1)
        if rate != 16_000:
            expected = soxr.resample(expected, rate, 16_000)
        assert segment.whole
        np.testing.assert_allclose(segment.samples, expected, atol=2**-15 if "u8" not in codec else 2**-7)
        assert len(segment.samples) == len(expected)

    def test_streams_a_long_recording_into_segments_that_tile_it(self):
        pytest.importorskip("av")
        data = aac(8, "ipod", 44_100, 2)
        whole = read_one(data)
        segments = list(read_segments(data, AudioSettings(max_segment_s=2)))
        assert len(segments) > 3
        np.testing.assert_array_equal(joined(segments), whole.samples)

    @pytest.mark.parametrize(("container", "codec", "rate"), [("ipod", "aac", 44_100), ("webm", "libopus", 48_000)])
    def test_reads_a_part_sample_by_sample_as_the_whole_has_it(self, container, codec, rate):
        pytest.importorskip("av")
        data = encode_av(speech_like(4, rate), rate, container, codec)
        full = read_one(data, AudioSettings(sample_rate=rate)).samples
        part = read_one(data, AudioSettings(sample_rate=rate), offset_s=1.5, duration_s=1)
        np.testing.assert_array_equal(part.samples, full[rate * 3 // 2 : rate * 5 // 2])
        assert part.start_s == 1.5

    def test_reads_more_planes_than_a_frame_struct_holds(self):
        # Sixteen channels: PyAV's own conversion to an array crashes the process.
        av = pytest.importorskip("av")
        x = speech_like(1, 16_000, 16)
        file = io.BytesIO()
        with av.open(file, "w", format="ipod") as output:
            stream = output.add_stream("aac", rate=16_000)
            stream.layout = "hexadecagonal"
            frame = av.AudioFrame(format="fltp", layout="hexadecagonal", samples=1024)
            frame.sample_rate = 16_000
            for at in range(0, 1024 * 12, 1024):
                for k, plane in enumerate(frame.planes[:16]):
                    plane.update(x[at : at + 1024, k].tobytes())
                frame.pts = at
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        segments = list(read_segments(file.getvalue(), AudioSettings(channels="split")))
        assert [segment.channel for segment in segments] == list(range(16))
        for segment in segments:
            k = segment.channel
            length = min(len(segment.samples), 12_000)
            assert np.corrcoef(segment.samples[:length], x[:length, k])[0, 1] > 0.8

    def test_is_asked_for_by_name_where_it_is_missing(self, monkeypatch):
        pytest.importorskip("av")
        data = aac(5)
        monkeypatch.setattr(decode, "av", None)
        with pytest.raises(AudioError, match=r"pip install 'sewd-pipeline\[ffmpeg\]'") as caught:
            read_one(data)
        assert caught.value.code is ErrorCode.UNSUPPORTED
        assert code_of(b"<html>") is ErrorCode.UNDECODABLE
        assert code_of(encode(speech_like(1), 16_000)) is None

    def test_holds_the_cap_by_the_header(self):
        pytest.importorskip("av")
        data = aac(5)
        assert code_of(data, AudioSettings(max_duration_s=2)) is ErrorCode.TOO_LARGE


class TestBadWeather:
    """An exception of the file underneath comes out as it was, and is never taken for bad data."""

    @pytest.mark.parametrize("failure", [OSError("reset"), PermissionError("expired"), KeyboardInterrupt()])
    @pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.95])
    @pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "m4a", "adts"])
    def test_comes_out_of_every_decoder(self, container, share, failure, capfd):
        if container in ("m4a", "adts"):
            pytest.importorskip("av")
            data = aac(5, "ipod" if container == "m4a" else container)
        else:
            coding = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(container, "PCM_16")
            data = encode(speech_like(5), 16_000, container, coding)
        file = BrokenFile(data, int(len(data) * share), lambda: failure)
        with pytest.raises(type(failure)) as caught:
            list(read_segments(file, AudioSettings(max_segment_s=1)))
        assert caught.value is failure
        assert "Traceback" not in capfd.readouterr().err  # cffi would print what it swallows

    def test_a_failed_read_after_a_whole_one_leaves_nothing_behind(self):
        data = encode(speech_like(1), 16_000, "FLAC")
        with pytest.raises(OSError, match="reset"):
            list(read_segments(BrokenFile(data, 100, lambda: OSError("reset")), MODEL))
        np.testing.assert_array_equal(to_float32(read_one(data).samples), oracle(data))

    def test_a_missing_path_is_left_to_the_caller(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            list(read_segments(tmp_path / "none.wav", MODEL))

    @pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
    def test_short_reads_of_an_unbuffered_file_are_not_the_end(self, container):
        class Dribble(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                return super().read(min(size, 1000) if size and size > 0 else size)

        data = encode(speech_like(2), 16_000, container, "VORBIS" if container == "OGG" else "PCM_16")
        np.testing.assert_array_equal(to_float32(read_one(Dribble(data)).samples), oracle(data))


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the repository")
@pytest.mark.parametrize("name", ["librispeech-dev-clean", "coffee-orders", "keywords", "spoken-digits", "synthetic"])
def test_real_recordings_come_out_as_soundfile_and_soxr_have_them_and_cut_ones_do_not(name):
    paths = sorted(path for path in (DATA / name / "audio").rglob("*") if path.is_file())
    for path in random.Random(0).sample(paths, 12):
        data = path.read_bytes()
        np.testing.assert_array_equal(to_float32(read_one(path).samples), oracle(data), path.name)
        assert code_of(data[:-3]) is ErrorCode.TRUNCATED, path.name
        assert code_of(cut(data, 0.5)) is ErrorCode.TRUNCATED, path.name


# ------------------------------------------------------------------------------------- parts of one recording
def outcome(data, settings, offset_s, duration_s, last=None):
    """Times and samples of a part, and the error that it ends in."""
    segments, code = [], None
    try:
        segments.extend(read_segments(data, settings, offset_s=offset_s, duration_s=duration_s, last=last))
    except AudioError as error:
        code = (error.code, error.message)
    return [(s.start_s, s.channel, s.whole, s.only, s.samples.tobytes()) for s in segments], code


PARTS_OF = {
    name: encode(speech_like(6, rate, channels), rate, container, coding)
    for name, container, coding, rate, channels in [
        ("vorbis", "OGG", "VORBIS", 16_000, 1),
        ("opus", "OGG", "OPUS", 48_000, 2),
        ("mp3", "MP3", "MPEG_LAYER_III", 44_100, 1),
        ("gsm", "WAV", "GSM610", 8000, 1),
        ("flac", "FLAC", "PCM_16", 16_000, 1),
    ]
}
# Without its first frame, which holds the tag that counts them, an MP3 has no length.
TAGGED = encode(speech_like(6, 44_100), 44_100, "MP3", "MPEG_LAYER_III", compression_level=0.1, bitrate_mode="CONSTANT")
PARTS_OF["mp3 of unknown length"] = TAGGED[containers._mpeg_frame(TAGGED[:4]).size :]
seconds = st.one_of(st.none(), st.floats(-1, 8), st.sampled_from([0.0, 1.0, 1.5, 3.0, 5.99, math.nan, math.inf]))


@given(
    st.sampled_from(sorted(PARTS_OF)),
    st.sampled_from([MODEL, AudioSettings(channels="split", max_segment_s=1), AudioSettings(8000, max_segment_s=0.7)]),
    st.lists(st.tuples(seconds, seconds), min_size=2, max_size=6),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_parts_are_the_same_where_the_recording_stays_open(name, wanted, parts, in_order, broken):
    data = cut(PARTS_OF[name], 0.7) if broken else PARTS_OF[name]
    if in_order:
        parts.sort(key=lambda part: -1.0 if part[0] is None or math.isnan(part[0]) else part[0])
    last = LastRecording()
    for part in parts:
        assert outcome(data, wanted, *part, last) == outcome(data, wanted, *part)
    last.close()


@pytest.fixture
def opened(monkeypatch):
    found = []
    open_it = decode._open
    monkeypatch.setattr(decode, "_open", lambda *given: found.append(given) or open_it(*given))
    return found


@pytest.mark.parametrize("overlap_s", [0.0, 0.1])
@pytest.mark.parametrize("name", ["gsm", "mp3", "mp3 of unknown length", "opus", "vorbis"])
def test_parts_in_the_order_of_time_are_one_pass(opened, name, overlap_s):
    """Also where one begins at the frame where the one before ended, by its rounding or the other's, or just before."""
    last = LastRecording()
    durations = [0.333, 0.701, 1.0, 0.25, 1.117, 0.0015, 0.05]
    for start_s, duration_s in zip(itertools.accumulate(durations, initial=0.0), durations, strict=False):
        offset_s = max(0.0, start_s - overlap_s)
        read_one(PARTS_OF[name], offset_s=offset_s, duration_s=start_s + duration_s - offset_s, last=last)
    assert len(opened) == 1
    assert (last._reader.frames is None) == (name == "mp3 of unknown length")
    last.close()


def test_a_part_that_was_decoded_with_the_one_before_owns_its_samples():
    last, data = LastRecording(), PARTS_OF["vorbis"]
    read_one(data, offset_s=0.0, duration_s=2.0, last=last)
    kept_s = len(last._reader._tail) / 16_000
    read_one(data, offset_s=2 - kept_s, duration_s=kept_s, last=last).samples[:] = 0
    assert read_one(data, offset_s=2 - kept_s, duration_s=kept_s, last=last).samples.any()
    last.close()


def test_what_overlaps_the_part_before_or_was_given_up_begins_anew_and_a_whole_recording_is_let_go(opened):
    last = LastRecording()
    data = PARTS_OF["vorbis"]
    for offset_s in (1.0, 1.7, 1.0):
        read_one(data, offset_s=offset_s, duration_s=1.0, last=last)
    assert len(opened) == 3
    segments = read_segments(data, AudioSettings(max_segment_s=1), offset_s=2.1, duration_s=3, last=last)
    next(segments)
    segments.close()
    assert len(opened) == 3
    read_one(data, offset_s=5.5, duration_s=0.1, last=last)
    assert len(opened) == 4
    read_one(data, last=last)
    assert last._source is None
