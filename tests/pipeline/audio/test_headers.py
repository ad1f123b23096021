"""What the boxes and elements of a file declare: edit lists, tables that lose packets, rates that no file can have."""

import struct

import pytest

from pipeline.audio.decode import read_segments
from pipeline.errors import AudioError, ErrorCode
from tests.support.decoding import SETTINGS, error_code_of
from tests.support.hostile import bad_files, behind, ffmpeg, packed

SECONDS = 0.5  # of `hostile.ffmpeg`


def seconds_of(data):
    return sum(segment.duration_s for segment in read_segments(data, SETTINGS))


@pytest.mark.parametrize(
    ("container", "codec", "rate"), [("ipod", "aac", 16_000), ("mov", "pcm_s16le", 16_000), ("mp4", "flac", 16_000)]
)
@pytest.mark.parametrize(("start_s", "length_s"), [(0.0, 0.5), (0.0, 0.25), (0.2, 0.2), (0.0, 0.6)])
def test_an_edit_list_may_leave_out_audio(container, codec, rate, start_s, length_s):
    data = ffmpeg(container, codec, rate)
    scale = struct.unpack_from(">I", data, behind(data, b"mvhd", 12))[0]
    edited = packed(data, behind(data, b"elst", 8), ">II", round(length_s * scale), round(start_s * rate))
    assert seconds_of(edited) <= SECONDS + 0.1
    assert seconds_of(edited) >= min(length_s, SECONDS - start_s) - 0.2


@pytest.mark.parametrize(("container", "codec", "rate"), [("ipod", "aac", 16_000), ("3gp", "libopencore_amrnb", 8000)])
def test_packets_that_the_tables_lose_are_missing(container, codec, rate):
    data = ffmpeg(container, codec, rate)
    first_of_second_chunk = packed(data, behind(data, b"stsc", 8), ">I", 2)  # FFmpeg skips what no chunk holds
    one_packet_a_chunk = packed(data, behind(data, b"stsc", 12), ">I", 1)
    assert seconds_of(data) == pytest.approx(SECONDS, abs=0.1)
    for damaged in (first_of_second_chunk, one_packet_a_chunk):
        assert error_code_of(damaged) in {ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE, ErrorCode.NO_SAMPLES}


@pytest.mark.parametrize("rate", [4e9, float("nan"), float("inf"), -16_000.0, 0.0])
def test_a_rate_of_matroska_that_no_file_can_have_is_an_error(rate):
    data = ffmpeg("matroska", "pcm_s16le")
    with pytest.raises(AudioError, match="sampling rate of"):
        seconds_of(packed(data, behind(data, b"\xb5\x88"), ">d", rate))


def test_every_bad_file_is_an_error():
    bad = bad_files()
    assert len({name.rpartition(".")[0] for name, _, _ in bad}) == len(bad) > 400
    found = {name: error_code_of(data) for name, data, _ in bad}
    assert {name: found[name] for name, _, codes in bad if found[name] not in codes} == {}
