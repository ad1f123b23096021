"""Truncated, damaged and joined files: errors, and never a shorter recording."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio.decode import AudioSettings, read_segments
from pipeline.audio.mpeg import parse_mpeg_frame
from pipeline.audio.riff import MAX_CHUNKS
from pipeline.audio.samples import to_float32
from pipeline.errors import AudioError, ErrorCode
from tests.support.decoding import (
    FORMATS,
    SETTINGS,
    error_code_of,
    expected_samples,
    read_single_segment,
    truncated,
)
from tests.support.signals import encode, encode_av, png, speech_like


@pytest.mark.parametrize(("container", "coding", "rates", "channels"), FORMATS)
def test_a_file_cut_anywhere_is_truncated(container, coding, rates, channels):
    rate, count = rates[1], channels[-1]
    data = encode(speech_like(2, rate, count), rate, container, coding)
    for share in (0.3, 0.5, 0.9):
        assert error_code_of(truncated(data, share)) is ErrorCode.TRUNCATED, share
    for missing in (2, 3, 40):
        assert error_code_of(data[:-missing]) is ErrorCode.TRUNCATED, missing


@pytest.mark.parametrize("coding", ["PCM_16", "MPEG_LAYER_III"])
def test_a_file_cut_at_any_byte_is_an_error(coding):
    file = encode(speech_like(0.3, 8000), 8000, "FLAC" if coding == "PCM_16" else "MP3", coding)
    for size in range(1, len(file)):
        assert error_code_of(file[:size]) in {ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE}, size


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_file_cut_at_a_random_byte_is_an_error_unless_only_padding_is_missing(data):
    container, coding, rates, channels = data.draw(st.sampled_from(FORMATS))
    rate = data.draw(st.sampled_from(rates))
    file = encode(speech_like(0.6, rate, channels[-1]), rate, container, coding)
    size = data.draw(st.integers(0, len(file) - 1))
    code = error_code_of(file[:size])
    if code is None:  # only a byte of padding was cut: no sample may be missing
        assert size == len(file) - 1
        samples, expected = to_float32(read_single_segment(file[:size]).samples), expected_samples(file)
        if coding == "GSM610":  # libsndfile decodes the byte of padding to noise, and to other noise if it is missing
            samples, expected = samples[: len(samples) * 3 // 4], expected[: len(expected) * 3 // 4]
        np.testing.assert_array_equal(samples, expected)
    else:
        assert code in {ErrorCode.EMPTY_FILE, ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
def test_a_cut_file_that_ffmpeg_decodes_is_truncated(share):
    for container, codec, rate in (
        ("ipod", "aac", 16_000),
        ("adts", "aac", 16_000),
        ("webm", "libopus", 48_000),
        ("avi", "pcm_s16le", 16_000),
    ):
        data = encode_av(speech_like(2, rate), rate, container, codec)
        assert error_code_of(data) is None, container
        # ADTS has no length: a cut between two frames is not detected. Of two cuts 3 bytes apart one is inside a frame.
        size = int(len(data) * share)
        codes = [error_code_of(data[:size]), error_code_of(data[: size - 3])]
        assert ErrorCode.TRUNCATED in codes, container
        assert container == "adts" or None not in codes, container


@pytest.mark.parametrize("bit_rate_mode", ["CONSTANT", "VARIABLE"])
def test_the_length_of_an_mp3_without_a_frame_count_is_found_by_walking_its_frames(bit_rate_mode):
    x = speech_like(6)
    x[48_000:] *= 0.001  # a variable rate starts high: from that libsndfile estimates too few frames
    data = encode(x, 16_000, "MP3", "MPEG_LAYER_III", compression_level=0.1, bitrate_mode=bit_rate_mode)
    first = parse_mpeg_frame(data[:4])
    bare = data[first.size :]  # without the first frame, which is the Xing header
    segment = read_single_segment(bare)
    assert segment.whole
    assert segment.duration_s == pytest.approx(6, abs=0.12)
    assert error_code_of(bare[:-3]) is ErrorCode.TRUNCATED
    assert error_code_of(truncated(bare, 0.5)) is ErrorCode.TRUNCATED


def test_joined_mp3s_are_refused_because_the_second_would_be_lost():
    data = encode(speech_like(4), 16_000, "MP3", "MPEG_LAYER_III")
    assert error_code_of(data + data) is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("padding", [0, 7])
def test_a_recording_behind_mpeg_frames_is_found_although_it_holds_bytes_that_look_like_frames(padding):
    frames = encode(speech_like(2), 16_000, "MP3", "MPEG_LAYER_III")
    second = encode(speech_like(2), 16_000, "FLAC", "PCM_16")
    middle = len(second) // 2  # of noise, in which frames may be found by chance
    mpeg = frames[-2 * parse_mpeg_frame(frames[:4]).size :]
    behind = second[:middle] + mpeg + second[middle:]
    assert error_code_of(frames + bytes(padding) + behind) is ErrorCode.UNSUPPORTED


def test_chained_ogg_streams_are_refused_because_the_second_would_be_lost():
    first = encode(speech_like(1), 16_000, "OGG", "VORBIS")
    pages, position, second = [], 0, encode(speech_like(1), 16_000, "OGG", "VORBIS")
    while position < len(second):  # change the serial number; checksums are not verified
        table = position + 27
        end = table + second[table - 1] + sum(second[table : table + second[table - 1]])
        pages.append(second[position : position + 14] + b"\x01\x02\x03\x04" + second[position + 18 : end])
        position = end
    assert error_code_of(first + b"".join(pages)) is ErrorCode.UNSUPPORTED


def test_an_ogg_file_without_its_last_page_is_truncated_although_no_page_is_cut():
    data = encode(speech_like(4, 48_000), 48_000, "OGG", "VORBIS")
    assert error_code_of(data[: data.rindex(b"OggS")]) is ErrorCode.TRUNCATED


def test_a_flac_file_with_a_damaged_middle_is_an_error():
    rng = np.random.default_rng(1)
    data = encode(rng.normal(0, 0.1, 16_000 * 20), 16_000, "FLAC")
    middle = len(data) // 2
    assert error_code_of(data[:middle] + bytes(200) + data[middle + 200 :]) in {
        ErrorCode.UNDECODABLE,
        ErrorCode.TRUNCATED,
    }


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0])
def test_a_wav_file_with_a_placeholder_length_is_read_to_its_end(size):
    data = encode(speech_like(1), 16_000)
    riff = min(size + 36, 0xFFFFFFFF)
    piped = data[:4] + struct.pack("<I", riff) + data[8:40] + struct.pack("<I", size) + data[44:]
    np.testing.assert_array_equal(to_float32(read_single_segment(piped).samples), expected_samples(data))


def test_a_wav_file_whose_empty_data_chunk_is_followed_by_another_has_no_samples():
    empty = encode(np.zeros(0, np.int16), 16_000)
    note = b"LIST" + struct.pack("<I", 400) + b"INFO" + bytes(396)
    data = empty[:4] + struct.pack("<I", len(empty) - 8 + len(note)) + empty[8:] + note
    assert error_code_of(data) is ErrorCode.NO_SAMPLES


def test_a_wav_file_that_lacks_only_a_chunk_after_the_samples_is_read():
    data = encode(speech_like(1), 16_000)
    lost = data[:4] + struct.pack("<I", len(data) - 8 + 400) + data[8:]
    np.testing.assert_array_equal(to_float32(read_single_segment(lost).samples), expected_samples(data))


def test_a_flac_file_without_a_length_is_read_to_its_end():
    data = bytearray(encode(speech_like(2), 16_000, "FLAC"))
    expected = expected_samples(bytes(data))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    samples = read_single_segment(bytes(data)).samples
    np.testing.assert_array_equal(to_float32(samples), expected)
    assert samples.base is None or samples.base.nbytes == samples.nbytes  # not a view of a full block


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_length_is_checked_before_the_first_segment_is_yielded(share):
    data = encode(speech_like(20), 16_000)
    with pytest.raises(AudioError, match="container declares"):
        next(read_segments(truncated(data, share), AudioSettings(max_segment_s=1)))


def test_zero_bytes_are_an_empty_file():
    assert error_code_of(b"") is ErrorCode.EMPTY_FILE


@pytest.mark.parametrize("container", ["WAV", "AIFF", "CAF"])
def test_a_header_without_frames_has_no_samples(container):
    assert error_code_of(encode(np.zeros(0, np.int16), 16_000, container)) is ErrorCode.NO_SAMPLES


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
def test_bytes_that_are_not_audio_are_undecodable_with_the_same_message_each_time(data):
    messages = set()
    for _ in range(3):
        with pytest.raises(AudioError) as caught:
            list(read_segments(io.BytesIO(data), SETTINGS))
        assert caught.value.code is ErrorCode.UNDECODABLE
        messages.add(caught.value.message)
    assert len(messages) == 1
    assert "libsndfile" in messages.pop()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_headers_raise_only_audio_errors(data):
    container, coding, _, channels = data.draw(st.sampled_from(FORMATS))
    file = bytearray(encode(speech_like(0.3, 16_000, channels[-1]), 16_000, container, coding))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, min(len(file), 200) - 1))
        file[position] = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
    error_code_of(bytes(file))


def test_a_chunk_size_beyond_any_file_size_is_truncated():
    data = bytearray(encode(speech_like(1), 16_000, "W64"))
    data[56:64] = b"\xf8" + b"\xff" * 7  # of the format chunk
    assert error_code_of(bytes(data)) is ErrorCode.TRUNCATED


def test_a_file_of_too_many_empty_chunks_is_undecodable():
    data = encode(speech_like(1), 16_000)[:12] + b"junk\0\0\0\0" * (MAX_CHUNKS + 512)
    assert error_code_of(data) is ErrorCode.UNDECODABLE


def with_positions_from(data: bytes, start: int) -> bytes:
    """An Ogg file whose positions begin at `start`, in samples, with right checksums."""
    pages, position = [], 0
    while position < len(data):
        table = position + 27
        end = table + data[table - 1] + sum(data[table : table + data[table - 1]])
        page = bytearray(data[position:end])
        granule = struct.unpack_from("<Q", page, 6)[0]
        if granule not in (0, 2**64 - 1):
            struct.pack_into("<Q", page, 6, granule + start)
        struct.pack_into("<I", page, 22, 0)
        crc = 0
        for byte in page:  # the polynomial of RFC 3533, bit by bit
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
        struct.pack_into("<I", page, 22, crc)
        pages.append(bytes(page))
        position = end
    return b"".join(pages)


@settings(max_examples=20, deadline=None)
@given(
    codec=st.sampled_from(["vorbis", "flac"]),
    seconds=st.sampled_from([0.02, 0.7, 3.3]),
    start=st.one_of(st.integers(1, 100_000), st.sampled_from([100, 500, 5000, 16_000, 3600 * 16_000])),
)
def test_an_ogg_file_whose_positions_do_not_start_at_0_is_whole(codec, seconds, start):
    samples = speech_like(seconds)
    data = encode(samples, 16_000, "OGG", "VORBIS") if codec == "vorbis" else encode_av(samples, 16_000, "ogg", "flac")
    moved = with_positions_from(data, start)
    assert read_single_segment(moved).duration_s == pytest.approx(seconds, abs=0.04)
    assert error_code_of(truncated(moved, 0.9)) is ErrorCode.TRUNCATED


@pytest.mark.parametrize("seconds", [0.5, 1.2, 3.3])
@pytest.mark.parametrize("start", [None, 0, 4800])
def test_an_opus_file_whose_positions_do_not_start_at_0_is_whole(seconds, start):
    """FFmpeg counts the delay of the encoder twice where a writer gives no time of its first frame."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        samples = speech_like(seconds, 48_000).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate, frame.pts = 48_000, start
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert read_single_segment(buffer.getvalue()).duration_s == pytest.approx(seconds, abs=0.02)
    assert error_code_of(truncated(buffer.getvalue(), 0.9)) is ErrorCode.TRUNCATED
