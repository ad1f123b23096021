"""Kinds of files that outsiders found: each is read whole, or is an error that says what is missing."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
import soundfile

from pipeline.audio.decode import AudioSettings, Segment, read_segments
from pipeline.audio.mpeg import parse_mpeg_frame
from pipeline.audio.samples import to_float32
from pipeline.errors import AudioError, ErrorCode
from tests.support.containers import ogg_speex
from tests.support.decoding import SETTINGS, error_code_of, expected_samples, read_single_segment
from tests.support.mutations import ape, id3, id3v1
from tests.support.signals import encode, encode_av, speech_like

SPEECH = speech_like(2)
WAV = encode(SPEECH, 16_000)
FLAC = encode(SPEECH, 16_000, "FLAC")
AIFF = encode(SPEECH, 16_000, "AIFF")
W64 = encode(SPEECH, 16_000, "W64")


def mp3(channels: int = 1, seconds: float = 2, rate: int = 16_000, mode: str = "CONSTANT") -> bytes:
    signal = speech_like(seconds, rate, channels)
    return encode(signal, rate, "MP3", "MPEG_LAYER_III", compression_level=0.5, bitrate_mode=mode)


def without_xing(data: bytes) -> bytes:
    return data[parse_mpeg_frame(data[:4]).size :]


def with_frame_count(data: bytes, count: int) -> bytes:
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    return data[:at] + struct.pack(">I", count) + data[at + 4 :]


def assert_whole(data: bytes, warns: bool, seconds: float = 2, tolerance_s: float = 0.15) -> Segment:
    segment = read_single_segment(data)
    assert segment.whole
    assert segment.duration_s == pytest.approx(seconds, abs=tolerance_s)
    assert bool(segment.warning) is warns, segment.warning
    return segment


def assert_samples(data: bytes, original: bytes, warns: bool = False) -> None:
    segment = assert_whole(data, warns)
    np.testing.assert_array_equal(to_float32(segment.samples), expected_samples(original))


# ---- MPEG audio


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_mp3_frames_that_change_their_channels_are_all_decoded(first, second):
    data = without_xing(mp3(first)) + without_xing(mp3(second))
    segment = assert_whole(data, warns=True, seconds=4, tolerance_s=0.3)
    assert np.abs(segment.samples[-24_000:]).max() > 0.05
    assert error_code_of(data, AudioSettings(channels="split")) is None


def test_mp3_frames_that_change_their_rate_are_refused():
    assert error_code_of(without_xing(mp3(rate=16_000)) + without_xing(mp3(rate=24_000))) is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.9, 2])
def test_a_xing_header_that_counts_wrong_loses_nothing(share, mode):
    data = mp3(mode=mode)
    at = max(data.find(b"Xing"), data.find(b"Info"))
    count = struct.unpack_from(">I", data, at + 8)[0]
    assert_whole(with_frame_count(data, round(count * share)), warns=True)


def test_a_xing_header_without_a_frame_count_loses_nothing():
    data = bytearray(mp3())
    at = max(data.find(b"Xing"), data.find(b"Info")) + 4
    struct.pack_into(">I", data, at, 0)
    assert_whole(bytes(data), warns=True)


@pytest.mark.parametrize("between", [b"", id3(1000), id3v1() + id3(10), bytes(700)])
def test_a_second_mp3_behind_the_first_is_decoded_or_refused(between):
    joined = mp3() + between + mp3()
    assert error_code_of(joined) is ErrorCode.UNSUPPORTED
    bare = without_xing(mp3()) + between + without_xing(mp3())
    if error_code_of(bare) is None:
        assert_whole(bare, bool(between), seconds=4, tolerance_s=0.3)
    else:
        assert error_code_of(bare) is ErrorCode.UNSUPPORTED


JUNK = {
    "a line feed": b"\n",
    "zeros": bytes(1024),
    "the end of a frame": without_xing(mp3())[-100:],
    "an ID3 tag, then zeros": id3(300) + bytes(2000),
    "an ID3 tag that is longer than it says": id3(300) + b"\1" * 500,
    "an ID3 tag with a footer": id3(300, footer=True),
    "two ID3 tags, one with a footer": id3(20, footer=True) + id3(300),
    "an APE tag": ape(),
    "text": b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n",
    "sync words that are none": b"\xff\xfb\x90\x64" * 40,
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("channels", [1, 2])
def test_junk_in_front_of_the_first_mpeg_frame_is_skipped(junk, channels):
    assert_whole(
        JUNK[junk] + without_xing(mp3(channels)), warns=not junk.startswith(("an ID3 tag with", "two", "an APE"))
    )
    assert_whole(JUNK[junk] + mp3(channels), warns=not junk.startswith(("an ID3 tag with", "two", "an APE")))


def test_an_id3_tag_that_is_shorter_than_it_says_hides_no_frames():
    tag = id3(300)
    claims_more = tag[:6] + bytes([0, 0, 20, 0]) + tag[10:]
    assert_whole(claims_more + mp3(), warns=True)


def test_junk_in_the_middle_of_an_mp3_loses_nothing_else():
    data = without_xing(mp3())
    half = 0
    while half < len(data) // 2:
        half += parse_mpeg_frame(data[half : half + 4]).size
    assert_whole(data[:half] + b"\1" * 3000 + data[half:], warns=True)


# ---- Tags and second files


@pytest.mark.parametrize(
    "tag", [id3(0), id3(200), id3(20_000), id3(300_000), id3(50, footer=True), ape(), id3(9) + b"\n" * 99]
)
@pytest.mark.parametrize("original", [WAV, FLAC, AIFF, W64], ids=["wav", "flac", "aiff", "w64"])
def test_tags_in_front_of_any_format_take_no_samples_away(tag, original):
    assert_samples(tag + original, original, warns=tag.endswith(b"\n"))


@pytest.mark.parametrize("first", [WAV, FLAC, AIFF, W64], ids=["wav", "flac", "aiff", "w64"])
@pytest.mark.parametrize("second", [WAV, FLAC, AIFF, W64, mp3()], ids=["wav", "flac", "aiff", "w64", "mp3"])
def test_a_second_file_behind_the_first_is_refused(first, second):
    assert error_code_of(first + second) is ErrorCode.UNSUPPORTED
    assert error_code_of(first + bytes(10) + second) is ErrorCode.UNSUPPORTED


def test_two_chunks_of_audio_in_a_wav_are_refused():
    data = WAV + b"data" + struct.pack("<I", 2000) + WAV[44:2044]
    assert error_code_of(data[:4] + struct.pack("<I", len(data) - 8) + data[8:]) is ErrorCode.UNSUPPORTED


def test_a_wav_whose_data_size_counts_half_is_refused():
    half = struct.pack("<I", (len(WAV) - 44) // 2)
    assert error_code_of(WAV[:40] + half + WAV[44:]) is ErrorCode.UNSUPPORTED


NOTE = b"LIST" + struct.pack("<I", 40_000) + b"INFO" + b"\1" * 39_996


def test_chunks_behind_the_samples_are_no_second_file():
    assert_samples(WAV + NOTE, WAV)


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_chunks_behind_an_odd_number_of_bytes_are_found_with_and_without_padding(padding):
    odd = encode(SPEECH[:-1], 16_000, "WAV", "PCM_U8")[: 44 + 31_999]
    assert_whole(odd + padding + NOTE, warns=False)


@pytest.mark.parametrize("codec", ["libmp3lame", "adpcm_ms", "pcm_alaw", "pcm_s32le"])
def test_a_wav_of_other_codings_is_decoded_whole(codec):
    assert_whole(encode_av(SPEECH, 16_000, "wav", codec), warns=False, tolerance_s=0.15)


# ---- VOC


def voc(*blocks: tuple[int, bytes]) -> bytes:
    head = b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x010A, 0x1129)
    body = b"".join(bytes([kind]) + struct.pack("<I", len(data))[:3] + data for kind, data in blocks)
    return head + body + b"\0"


def sound(samples: np.ndarray) -> bytes:
    return struct.pack("<IBBHI", 16_000, 16, 1, 4, 0) + samples.astype("<i2").tobytes()


PCM = np.round(SPEECH[:, 0] * 32767).astype(np.int16)


@pytest.mark.parametrize("cuts", [(), (8000,), (8000, 16_000), (5000, 9000, 20_000, 30_000)])
@pytest.mark.parametrize("continues", [False, True])
def test_all_blocks_of_a_voc_are_decoded_and_no_header_is_taken_for_samples(cuts, continues):
    pieces = np.split(PCM, cuts)
    others = [(2, piece.astype("<i2").tobytes()) if continues else (9, sound(piece)) for piece in pieces[1:]]
    segment = read_single_segment(voc((9, sound(pieces[0])), *others))
    np.testing.assert_array_equal(np.round(to_float32(segment.samples) * 32768), PCM)


def test_a_voc_without_its_terminator_is_truncated():
    first, second = np.split(PCM, [8000])
    whole = voc((9, sound(first)), (9, sound(second)))
    assert error_code_of(whole[:-1]) is ErrorCode.TRUNCATED
    assert error_code_of(voc((9, sound(first)))[:-1]) is ErrorCode.TRUNCATED


def test_a_voc_with_a_block_of_silence_is_refused():
    silence = (3, struct.pack("<HB", 8000, 100))
    assert error_code_of(voc((9, sound(PCM)), silence, (9, sound(PCM)))) is ErrorCode.UNSUPPORTED


# ---- Formats that libsndfile does not read, and files that were written to a pipe


@pytest.mark.parametrize("codec", ["flac", "libopus"])
def test_ogg_of_every_codec_is_read(codec):
    rate = 48_000 if codec == "libopus" else 16_000
    assert_whole(encode_av(speech_like(2, rate), rate, "ogg", codec), warns=False, tolerance_s=0.01)


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_ogg_speex_is_read(rate):
    assert_whole(ogg_speex(100, rate), warns=False, tolerance_s=0.05)
    assert error_code_of(ogg_speex(100, rate)[:-3]) is ErrorCode.TRUNCATED


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("wav", "pcm_s16le", {}),
        ("wav", "pcm_s16le", {"rf64": "always"}),
        ("wav", "pcm_f32le", {}),
        ("w64", "pcm_s16le", {}),
        ("aiff", "pcm_s16be", {}),
        ("caf", "pcm_s16be", {}),
        ("au", "pcm_s16be", {}),
        ("flac", "flac", {}),
        ("voc", "pcm_s16le", {}),
        ("ogg", "flac", {}),
        ("matroska", "flac", {}),
        ("mp3", "libmp3lame", {}),
        ("tta", "tta", {}),
        ("wv", "wavpack", {}),
    ],
)
def test_a_file_that_was_written_to_a_pipe_is_read_to_its_end(container, codec, options):
    try:
        data = encode_av(SPEECH, 16_000, container, codec, pipe=True, **options)
    except (ValueError, OSError):
        pytest.skip(f"FFmpeg does not write {container} to a pipe")
    assert_whole(data, warns=False, tolerance_s=0.1)


@pytest.mark.parametrize("size", [0x7F000008, 0x7F000050, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0])
@pytest.mark.parametrize("coding", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_an_aiff_with_placeholders_is_read_to_its_end(size, coding):
    data = bytearray(encode(SPEECH, 16_000, "AIFF", coding))
    expected = expected_samples(bytes(data))
    body, common = data.index(b"SSND") + 4, data.index(b"COMM") + 10
    struct.pack_into(">I", data, 4, size and min(size + 0x48, 0xFFFFFFFF))
    struct.pack_into(">I", data, body, size)
    struct.pack_into(">I", data, common, size // 2)
    np.testing.assert_array_equal(to_float32(read_single_segment(bytes(data)).samples), expected)


@pytest.mark.parametrize("size", [1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 63) + 128])
def test_a_w64_with_placeholders_is_read_to_its_end(size):
    data = bytearray(W64)
    struct.pack_into("<Q", data, 16, size)
    struct.pack_into("<Q", data, data.index(b"data\xf3\xac") + 16, size)
    assert_samples(bytes(data), W64)


@pytest.mark.parametrize("size", [0, (1 << 64) - 1, (1 << 63) - 1])
def test_an_rf64_with_placeholders_is_read_to_its_end(size):
    original = encode(SPEECH, 16_000, "RF64")
    data = bytearray(original)
    at = data.index(b"ds64") + 8
    struct.pack_into("<QQQ", data, at, size, size, size)
    assert_samples(bytes(data), original)


def test_a_caf_without_a_size_is_read_to_its_end():
    original = encode(SPEECH, 16_000, "CAF")
    data = bytearray(original)
    struct.pack_into(">q", data, data.index(b"data") + 4, -1)
    assert_samples(bytes(data), original)


def test_a_mode_of_amr_without_a_decoder_is_unsupported_and_not_truncated():
    data = encode_av(speech_like(2, 8000), 8000, "amr", "libopencore_amrnb")
    comfort_noise = bytes([8 << 3 | 4]) + bytes(5)
    assert error_code_of(data + 20 * comfort_noise) is ErrorCode.UNSUPPORTED


# ---- Headers that count more than the audio


@pytest.mark.parametrize("excess", [44, 36])
@pytest.mark.parametrize("outer", ["right", "too long too"])
def test_a_wav_whose_data_size_counts_the_header_keeps_its_samples_and_warns(excess, outer):
    data = bytearray(WAV)
    struct.pack_into("<I", data, 40, len(WAV) - 44 + excess)
    if outer != "right":
        struct.pack_into("<I", data, 4, len(WAV) - 8 + excess)
    assert_samples(bytes(data), WAV, warns=True)


def test_a_wav_with_any_data_size_keeps_its_samples_if_the_size_of_the_file_is_right():
    data = bytearray(WAV)
    struct.pack_into("<I", data, 40, 10_000_000)
    assert_samples(bytes(data), WAV, warns=True)


@pytest.mark.parametrize("container", ["AIFF", "AU", "W64", "RIFX"])
def test_other_headers_that_count_themselves_keep_the_samples(container):
    if container == "RIFX":
        original = encode(SPEECH, 16_000, "WAV", endian="BIG")
        position, size = 40, struct.pack(">I", len(original))
    elif container == "AU":
        original = encode(SPEECH, 16_000, "AU")
        position, size = 8, struct.pack(">I", len(original))
    elif container == "AIFF":
        original, position, size = AIFF, AIFF.index(b"SSND") + 4, struct.pack(">I", len(AIFF))
    else:
        original, position, size = W64, W64.index(b"data\xf3\xac") + 16, struct.pack("<Q", len(W64))
    data = original[:position] + size + original[position + len(size) :]
    assert_samples(data, original, warns=True)


# ---- Decoders that fail


def test_a_flac_that_libsndfile_loses_is_decoded_by_ffmpeg_from_where_it_was(monkeypatch):
    original, calls = encode(speech_like(35), 16_000, "FLAC"), []
    read = soundfile.SoundFile.read

    def lose_sync(self, *args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise soundfile.LibsndfileError(2, "FLAC decoder lost sync.")
        return read(self, *args, **options)

    expected = expected_samples(original)
    monkeypatch.setattr(soundfile.SoundFile, "read", lose_sync)
    segments = list(read_segments(original, SETTINGS))
    assert len(calls) == 3
    np.testing.assert_array_equal(np.concatenate([to_float32(segment.samples) for segment in segments]), expected)


@pytest.mark.parametrize("rate", [8000, 11_025, 12_000, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_frames_of_a_flac_agree_with_its_header_in_every_format(rate, channels):
    data = encode(speech_like(0.3, rate, channels), rate, "FLAC")
    assert error_code_of(data) is None
    fields = int.from_bytes(data[18:26], "big")
    for wrong in (fields ^ 1 << 44, fields ^ 1 << 41):  # another rate; another number of channels
        assert error_code_of(data[:18] + wrong.to_bytes(8, "big") + data[26:]) is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("bits", ["PCM_S8", "PCM_16", "PCM_24"])
def test_a_flac_that_ffmpeg_decodes_to_another_md5_is_an_error(bits, monkeypatch):
    data = bytearray(encode(SPEECH, 16_000, "FLAC", bits))

    def refuse(*_args, **_options):
        raise soundfile.LibsndfileError(2, "FLAC decoder lost sync.")

    monkeypatch.setattr(soundfile.SoundFile, "read", refuse)
    assert error_code_of(bytes(data)) is None
    data[26] ^= 1  # of the MD5
    assert error_code_of(bytes(data)) is ErrorCode.UNDECODABLE


def test_a_damaged_page_of_an_ogg_file_is_an_error_and_not_a_gap():
    data = bytearray(encode(speech_like(20, 44_100), 44_100, "OGG", "VORBIS"))
    data[len(data) // 2] ^= 1
    assert error_code_of(bytes(data)) is ErrorCode.UNDECODABLE


def test_a_missing_page_of_an_ogg_file_is_an_error_and_not_a_gap():
    data = encode(speech_like(20, 44_100), 44_100, "OGG", "VORBIS")
    first = data.index(b"OggS\0\0", len(data) // 3)
    second = data.index(b"OggS\0\0", first + 4)
    assert error_code_of(data[:first] + data[second:]) is ErrorCode.TRUNCATED


@pytest.mark.parametrize("error", [ValueError, KeyError, OverflowError, RuntimeError, MemoryError])
def test_whatever_a_decoder_raises_is_an_error_of_the_file(error, monkeypatch):
    def fail(*_args, **_options):
        raise error("bad")

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    code = ErrorCode.TOO_LARGE if error is MemoryError else ErrorCode.UNDECODABLE
    assert error_code_of(WAV) is code


# ---- Samples that are finite, but huge


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("value", [3e38, -3e38, 1e30, 1e10])
def test_one_huge_sample_is_an_error(rate, channels, value):
    signal = speech_like(1, rate, channels)
    signal[rate // 2] = value
    assert error_code_of(encode(signal, rate, "WAV", "FLOAT")) is ErrorCode.NON_FINITE


def test_a_flipped_bit_of_an_exponent_is_an_error():
    data = bytearray(encode(SPEECH, 16_000, "WAV", "FLOAT"))
    body = data.index(b"data") + 8
    data[body + 4 * 16_000 + 3] ^= 0x40
    assert error_code_of(bytes(data)) is ErrorCode.NON_FINITE


def test_doubles_beyond_float32_are_an_error():
    signal = SPEECH.astype(np.float64)
    signal[100] = 1e300
    assert error_code_of(encode(signal, 16_000, "WAV", "DOUBLE")) is ErrorCode.NON_FINITE


@pytest.mark.parametrize("scale", [2.0**15, 2.0**31])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_floats_on_the_scale_of_integers_are_read(scale, rate):
    signal = speech_like(1, rate) * np.float32(scale)
    assert np.abs(read_single_segment(encode(signal, rate, "WAV", "FLOAT")).samples).max() > scale / 100


# ---- Sizes that no file has


@pytest.mark.parametrize("position", [22, 24, 32, 34])
@pytest.mark.parametrize("value", [0, 1, 0x7FFF, 0xFFFF])
def test_absurd_fields_of_a_wav_header_are_errors_or_harmless(position, value):
    data = bytearray(WAV)
    struct.pack_into("<H", data, position, value)
    with contextlib.suppress(AudioError):
        for segment in read_segments(io.BytesIO(data), SETTINGS):
            assert len(segment.samples) <= 60 * 16_000


@pytest.mark.parametrize("junk", ["zeros", "an ID3 tag with a footer"])
def test_views_and_patches_of_an_open_file_equal_those_of_bytes(junk, tmp_path):
    piped = bytearray(W64)
    struct.pack_into("<Q", piped, piped.index(b"data\xf3\xac") + 16, 1 << 63)
    for data in (JUNK[junk] + mp3(), JUNK[junk] + AIFF, bytes(piped), WAV + id3v1()):
        path = tmp_path / "file"
        path.write_bytes(data)
        with path.open("rb") as file:
            np.testing.assert_array_equal(read_single_segment(file).samples, read_single_segment(data).samples)


# ---- GSM without a header


def test_gsm_without_a_header_is_found_by_its_frames_and_decoded_as_libsndfile_does():
    data = encode(speech_like(2.02, 8000), 8000, "RAW", "GSM610")
    (segment,) = read_segments(data, AudioSettings(8000, "mix"))
    options = {"format": "RAW", "subtype": "GSM610", "samplerate": 8000, "channels": 1}
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", **options)
    np.testing.assert_array_equal(to_float32(segment.samples), expected)
    # What is cut or damaged is not recognised; nor are three frames, which may be an accident.
    for other in (data[:-1], data[: 33 * 20] + b"\0" + data[33 * 20 + 1 :], data[:99]):
        assert error_code_of(other) is ErrorCode.UNDECODABLE


@pytest.mark.parametrize("byte", [0x55, 0xD0, 0xD5, 0xDD])
def test_bytes_that_begin_like_gsm_frames_are_no_gsm(byte):
    """Silence in A-law is 0xD5."""
    whole = encode(speech_like(5), 16_000)
    assert read_single_segment(whole + bytes([byte]) * 200).duration_s == 5
    assert error_code_of(bytes([byte]) * 33 * 240) is ErrorCode.UNDECODABLE
