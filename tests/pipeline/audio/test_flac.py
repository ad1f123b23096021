"""The walk over FLAC frames: every frame is found, and the last ends where its checksum says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio import flac
from pipeline.audio.source import Source
from tests.support.signals import encode, speech_like


@given(st.binary(max_size=300))
def test_a_checksum_is_that_of_one_byte_after_the_other(data):
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x8005 if crc & 0x8000 else 0)) & 0xFFFF
    assert flac._crc16(data) == crc


@pytest.mark.parametrize("window", [64, 1000, 1 << 20])
@pytest.mark.parametrize("behind", [b"", b"junk" * 30, b"\xff\xf8" * 5])
def test_all_samples_are_counted_to_the_end_of_the_last_frame(window, behind, monkeypatch):
    monkeypatch.setattr(flac, "_WINDOW", window)
    data = encode(speech_like(3), 16_000, "FLAC")
    contents = flac.walk_flac(Source(data + behind))
    assert (contents.end, contents.frames, contents.rate) == (len(data), 48_000, 16_000)


def test_frames_and_files_are_found_in_the_order_of_the_bytes():
    first, second = (encode(speech_like(1, seed=seed), 16_000, "FLAC") for seed in (1, 2))
    found = [position for position, _ in flac._candidates(Source(first + second), 0)]
    assert found == sorted(found)
    assert len(first) in found
