"""Tokens that are read into noise are dropped, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio.silence import LEVEL_S, levels, steady_noise
from pipeline.stages.noise import without_noise
from sewd_model import GreedyPath
from tests.pipeline.audio.test_silence import PAUSES, RATE, noise, silence, voice

FRAME_S = 0.02
DELIMITER = 4


def marked(*pieces: np.ndarray) -> np.ndarray:
    return steady_noise(levels(np.concatenate(pieces), RATE))


def path_of(*tokens: tuple[int, float]) -> GreedyPath:
    """Tokens of one frame, by (id, second)."""
    ids, times = zip(*tokens, strict=True) if tokens else ((), ())
    starts = np.array([round(time / FRAME_S) for time in times], np.int64)
    return GreedyPath(np.array(ids, np.int64), starts, starts + 1, np.ones(len(ids), np.float32), 10_000)


def kept(signal: np.ndarray, *tokens: tuple[int, float]) -> list[float]:
    path = without_noise(path_of(*tokens), levels(signal, RATE), FRAME_S, DELIMITER)
    return [round(float(start) * FRAME_S, 2) for start in path.start_frames]


@pytest.mark.parametrize("decibels", [-120, -70, -50, -35])
@pytest.mark.parametrize("pause_s", [0.7, 1.5, 10])
def test_noise_in_a_pause_of_any_length_is_found_away_from_sound(decibels, pause_s):
    found = marked(voice(3), noise(pause_s, decibels), voice(3))
    (places,) = np.nonzero(found)
    assert places.min() * LEVEL_S == pytest.approx(3.25, abs=0.1)
    assert places.max() * LEVEL_S == pytest.approx(3 + pause_s - 0.25, abs=0.1)
    assert found[places.min() : places.max()].all()


@pytest.mark.parametrize(
    "signal",
    [voice(20), voice(0.2), noise(20, -40), np.zeros(0, np.float32), *(PAUSES[k] for k in PAUSES if k != "two rooms")],
)
def test_nothing_is_noise_where_nothing_is_louder(signal):
    assert not marked(signal).any()


@given(
    st.lists(st.tuples(st.sampled_from(["voice", "noise", "silence"]), st.floats(0.01, 4)), min_size=1, max_size=8),
    st.floats(0.05, 1),
)
@settings(max_examples=40, deadline=None)
def test_no_level_of_a_voice_is_noise_at_any_place_and_gain(plan, gain):
    makers = {"voice": lambda s: voice(s, gain=0.2 * gain), "noise": lambda s: noise(s, -60), "silence": silence}
    found = marked(*(makers[kind](seconds) for kind, seconds in plan))
    position = 0.0
    for kind, seconds in plan:
        stop = position + seconds
        if kind == "voice" and seconds > 0.3:  # shorter pieces may be no more than the onset of a syllable
            assert not found[round(position / LEVEL_S) : round(stop / LEVEL_S)].any()
        position = stop


def test_tokens_in_noise_are_dropped_and_delimiters_and_tokens_near_sound_are_kept():
    signal = np.concatenate([voice(3), noise(2, -50), voice(3)])
    tokens = [(7, 1.0), (8, 3.1), (8, 3.6), (DELIMITER, 4.0), (9, 4.4), (9, 4.9), (7, 6.0)]
    assert kept(signal, *tokens) == [1.0, 3.1, 4.0, 4.9, 6.0]
    assert kept(voice(8), *tokens) == [time for _, time in tokens]
    assert kept(signal) == []


def test_a_token_that_begins_in_sound_is_kept_however_long_it_lasts():
    signal = np.concatenate([voice(3), noise(2, -50), voice(3)])
    path = GreedyPath(np.array([5]), np.array([140]), np.array([220]), np.ones(1, np.float32), 400)
    assert without_noise(path, levels(signal, RATE), FRAME_S, None) == path
