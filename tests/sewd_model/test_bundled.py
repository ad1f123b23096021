"""The bundled model: its name resolves from anywhere, it is small, and transformers gives the same results."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import soundfile
import soxr
import torch
import transformers

import sewd_model
from sewd_model import (
    CheckpointError,
    CTCTokenizer,
    FeatureExtractor,
    SEWDForCTC,
    SEWDForSequenceClassification,
    greedy_path,
)
from sewd_model.files import BUNDLED, located

DIRECTORY = Path(sewd_model.__file__).with_name("bundled")
RECORDINGS = Path(__file__).parents[2] / "jobs" / "demo_corpus" / "audio"
LABELS = {"alexa", "computer", "jarvis", "smart_mirror", "snowboy", "view_glass"}


def clips() -> list[np.ndarray]:
    """Waveforms at 16 kHz of the demo's files with one utterance each."""
    waveforms = []
    for path in sorted(RECORDINGS.glob("order-*")):
        samples, rate = soundfile.read(path, dtype="float32")
        waveforms.append(samples if rate == 16_000 else soxr.resample(samples, rate, 16_000))
    assert len(waveforms) == 4
    return waveforms


def reference_logits(cls: type, waveform: np.ndarray) -> torch.Tensor:
    model = cls.from_pretrained(DIRECTORY, dtype=torch.float32).eval()
    features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(DIRECTORY)
    with torch.inference_mode():
        return model(features(waveform, sampling_rate=16_000, return_tensors="pt").input_values).logits[0]


def test_the_checkpoint_is_one_small_file_with_both_heads():
    names = {path.name for path in DIRECTORY.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "vocab.json"} <= names
    assert [name for name in names if name.endswith((".safetensors", ".bin"))] == ["model.safetensors"]
    assert "@" not in (DIRECTORY / "README.md").read_text()
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= 16e6
    assert set(SEWDForSequenceClassification.from_pretrained(BUNDLED).config.id2label.values()) == LABELS


def test_the_name_resolves_from_any_directory_and_before_a_directory_of_that_name(tmp_path, monkeypatch):
    (tmp_path / BUNDLED).mkdir()
    monkeypatch.chdir(tmp_path)
    assert SEWDForCTC.from_pretrained(BUNDLED).config.hidden_size == 256
    assert located("./bundled") == "./bundled"
    assert located(Path("./bundled")) == "bundled"  # a path object is always a directory
    with pytest.raises(CheckpointError):
        SEWDForCTC.from_pretrained("./bundled")


def test_the_bundled_model_cannot_be_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"\./bundled"):
        FeatureExtractor().save_pretrained(BUNDLED)
    assert not list(tmp_path.iterdir())


def test_texts_equal_those_of_transformers():
    model, tokenizer = SEWDForCTC.from_pretrained(BUNDLED).eval(), CTCTokenizer.from_pretrained(BUNDLED)
    features = FeatureExtractor.from_pretrained(BUNDLED)
    their_tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(DIRECTORY)
    for waveform in clips():
        with torch.inference_mode():
            logits = model(torch.from_numpy(features.prepare(waveform))[None]).logits[0]
        expected = reference_logits(transformers.SEWDForCTC, waveform)
        torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.std()), rtol=0)
        text = tokenizer.text(greedy_path(logits, model.blank, tokenizer.drop_ids).token_ids.tolist())
        assert text == their_tokenizer.decode(expected.argmax(-1))
        assert len(text.split()) > 3


def test_labels_equal_those_of_transformers():
    model = SEWDForSequenceClassification.from_pretrained(BUNDLED).eval()
    features = FeatureExtractor.from_pretrained(BUNDLED)
    for waveform in clips():
        with torch.inference_mode():
            logits = model(torch.from_numpy(features.prepare(waveform))[None]).logits[0]
        expected = reference_logits(transformers.SEWDForSequenceClassification, waveform)
        torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.std()), rtol=1e-4)
        assert logits.argmax() == expected.argmax()
