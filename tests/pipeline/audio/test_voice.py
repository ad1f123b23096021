"""Cuts by voice activity."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pipeline.audio import voice
from pipeline.audio.decode import AudioSettings, read_segments
from tests.support.decoding import concatenated
from tests.support.signals import encode, speech_like

pytestmark = pytest.mark.skipif(voice.missing() is not None, reason=str(voice.missing()))

RATE = voice.RATE


def test_the_probabilities_are_those_of_the_network_frame_by_frame():
    x = speech_like(40, RATE, seed=1)[:, 0].astype(np.float32)
    state = np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)
    expected, before = [], np.zeros(64, np.float32)
    for frame in x[: len(x) // 512 * 512].reshape(-1, 512):
        inputs = {"input": np.concatenate([before, frame])[None], "h": state[0], "c": state[1]}
        value, *state = voice._network().run(["speech_probs", "hn", "cn"], inputs)
        expected.append(value[0])
        before = frame[-64:]
    found = voice.speech_probabilities(x)
    assert found.shape == (len(x) // 512,)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_segments_tile_the_recording(dtype):
    x = speech_like(20, RATE, seed=2)
    data = encode(x, RATE, "WAV", "PCM_16" if dtype == np.int16 else "FLOAT")
    segments = list(read_segments(data, AudioSettings(max_segment_s=16, cut="vad")))
    whole = list(read_segments(data, AudioSettings()))
    np.testing.assert_array_equal(concatenated(segments), concatenated(whole))
    assert all(2 <= segment.duration_s <= 4 for segment in segments[:-1])


def test_a_model_at_another_rate_is_refused():
    with pytest.raises(ValueError, match="voice activity needs a model for 16000 Hz, not 8000"):
        AudioSettings(8000, cut="vad")


def test_the_threads_of_torch_stay_as_they_are():
    code = (
        "import torch; torch.set_num_threads(3)\n"
        "import numpy as np; from pipeline.audio import voice\n"
        "voice.longest_silence(np.zeros(80_000, np.float32), 16_000, 80_000)\n"
        "import sys; assert torch.get_num_threads() == 3; assert 'silero_vad' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
