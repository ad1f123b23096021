"""An exception of the underlying file is raised unchanged, and never taken for bad data."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pipeline.audio.decode import AudioSettings, read_segments
from pipeline.audio.samples import to_float32
from tests.support.decoding import SETTINGS, expected_samples, read_single_segment
from tests.support.signals import BrokenFile, aac, encode, speech_like


@pytest.mark.parametrize("failure", [OSError("reset"), PermissionError("expired"), KeyboardInterrupt()])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "m4a", "adts"])
def test_an_exception_of_the_file_is_raised_unchanged_through_every_decoder(container, share, failure, capfd):
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
    assert "Traceback" not in capfd.readouterr().err  # cffi prints exceptions that it swallows


def test_a_failed_read_does_not_affect_the_next_recording():
    data = encode(speech_like(1), 16_000, "FLAC")
    with pytest.raises(OSError, match="reset"):
        list(read_segments(BrokenFile(data, 100, lambda: OSError("reset")), SETTINGS))
    np.testing.assert_array_equal(to_float32(read_single_segment(data).samples), expected_samples(data))


def test_a_missing_path_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_segments(tmp_path / "none.wav", SETTINGS))


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
def test_short_reads_of_an_unbuffered_file_are_not_its_end(container):
    class ShortReads(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size, 1000) if size and size > 0 else size)

    data = encode(speech_like(2), 16_000, container, "VORBIS" if container == "OGG" else "PCM_16")
    np.testing.assert_array_equal(to_float32(read_single_segment(ShortReads(data)).samples), expected_samples(data))
