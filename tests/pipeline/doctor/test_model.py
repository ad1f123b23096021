"""The model's numbers are those of the reference, and a model that computes others is named."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.doctor import model
from pipeline.doctor.check import Outcome
from sewd_model import FeatureExtractor, SEWDForCTC


def test_the_stored_numbers_are_those_of_the_reference_in_float64():
    head = SEWDForCTC.from_pretrained("bundled").eval().double()
    waveform = torch.from_numpy(FeatureExtractor.from_pretrained("bundled").prepare(model.probe(16_000)))
    with torch.inference_mode():
        logits = head(waveform.double()[None]).logits[0].numpy()
    np.testing.assert_allclose(logits[list(model.FRAMES), :6], model.STORED, atol=2e-5)
    assert model.stored_numbers().outcome is Outcome.OK


def test_other_numbers_are_a_failure(monkeypatch):
    monkeypatch.setattr(model, "STORED", tuple(tuple(value + 0.2 for value in row) for row in model.STORED))
    assert model.stored_numbers().outcome is Outcome.FAILURE


def test_a_checkpoint_is_compared_with_the_reference_model(small_ctc, small_classifier, tmp_path):
    check = model.checkpoint(str(small_ctc))
    assert check.outcome is Outcome.OK, check
    assert "16000 Hz" in check.message
    for broken in (tmp_path, small_classifier):
        assert model.checkpoint(str(broken)).outcome is Outcome.FAILURE
