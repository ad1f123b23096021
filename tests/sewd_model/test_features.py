"""Feature extraction is bit-equal to that of transformers, and its files round trip."""

import json

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from sewd_model import CheckpointError, FeatureExtractor


def waveform(length, seed=0, level=0.1, offset=0.0):
    return (np.random.default_rng(seed).normal(0, level, length) + offset).astype(np.float32)


CLIPS = {
    "speech-like": waveform(16_001),
    "one sample": waveform(1),
    "with an offset": waveform(5000, offset=0.5),
    "silence": np.zeros(800, np.float32),
    "a constant": np.full(801, 0.25, np.float32),
    "very quiet": waveform(4000, level=1e-6),
    "clipped": np.sign(waveform(3000)).astype(np.float32),
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("normalize", [True, False])
def test_clip_is_bit_equal_to_transformers(clip, normalize):
    reference = Wav2Vec2FeatureExtractor(do_normalize=normalize)
    before = clip.copy()
    actual = FeatureExtractor(do_normalize=normalize).prepare(clip)
    expected = reference(clip, sampling_rate=16_000).input_values[0]
    assert actual.dtype == expected.dtype == np.float32
    assert np.array_equal(actual, expected)
    assert np.array_equal(clip, before)
    assert not np.shares_memory(actual, clip)


def test_padded_batch_is_bit_equal_to_transformers():
    clips = [waveform(900, 1), waveform(1200, 2, offset=0.3), waveform(350, 3)]
    reference = Wav2Vec2FeatureExtractor(return_attention_mask=True)(
        clips, sampling_rate=16_000, padding=True, return_tensors="pt"
    )
    values, mask = FeatureExtractor().pad(clips)
    assert (values.dtype, mask.dtype) == (torch.float32, torch.long)
    assert torch.equal(values, reference.input_values)
    assert torch.equal(mask, reference.attention_mask.long())


def test_padding_value_fills_the_padding():
    values, mask = FeatureExtractor(padding_value=-7.0).pad([waveform(5), waveform(3)])
    assert values[1, 3:].tolist() == [-7.0, -7.0]
    assert mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    "clip", [np.zeros(0, np.float32), np.zeros((2, 9), np.float32), np.zeros(9, np.int16)], ids=str
)
def test_input_other_than_a_mono_float_waveform_is_refused(clip):
    with pytest.raises(ValueError, match="1-D floating point"):
        FeatureExtractor().prepare(clip)


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match="no waveform"):
        FeatureExtractor().pad([])


def test_files_of_transformers_are_read(tmp_path):
    reference = Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=False, padding_value=1.5)
    reference.save_pretrained(tmp_path)
    features = FeatureExtractor.from_pretrained(tmp_path)
    assert (features.sampling_rate, features.do_normalize, features.padding_value) == (8000, False, 1.5)
    assert features.extra["feature_extractor_type"] == "Wav2Vec2FeatureExtractor"


def test_processor_file_of_newer_transformers_is_read(tmp_path):
    values = {"sampling_rate": 8000, "do_normalize": False}
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": values}))
    assert FeatureExtractor.from_pretrained(tmp_path) == FeatureExtractor(sampling_rate=8000, do_normalize=False)


@pytest.mark.parametrize("where", ["directory", "memory"])
def test_files_round_trip_here_and_in_transformers(tmp_path, where):
    features = FeatureExtractor(sampling_rate=8000, return_attention_mask=True, extra={"note": [1]})
    location = tmp_path if where == "directory" else "memory://features/round-trip"
    features.save_pretrained(location)
    again = FeatureExtractor.from_pretrained(location)
    assert again.extra["note"] == [1]
    assert (again.sampling_rate, again.return_attention_mask) == (8000, True)
    if where == "directory":
        reference = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
        assert (reference.sampling_rate, reference.return_attention_mask) == (8000, True)


def test_without_a_file_the_defaults_apply(tmp_path):
    assert FeatureExtractor.from_pretrained(tmp_path) == FeatureExtractor()
    reference = Wav2Vec2FeatureExtractor()
    for name in ("sampling_rate", "do_normalize", "padding_value", "return_attention_mask"):
        assert getattr(FeatureExtractor(), name) == getattr(reference, name)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"sampling_rate": 0}, "sampling_rate"),
        ({"sampling_rate": "16000"}, "sampling_rate"),
        ({"do_normalize": "yes"}, "do_normalize"),
        ({"padding_value": None}, "padding_value"),
        ({"feature_size": 80}, "feature_size"),
        ({"padding_side": "left"}, "padding_side"),
        ([1], "preprocessor_config.json"),
    ],
)
def test_unsupported_settings_are_refused_by_name(tmp_path, values, name):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=name):
        FeatureExtractor.from_pretrained(tmp_path)
