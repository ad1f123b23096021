"""Packed batches on one device: each clip's logits are what transformers gives for it alone.

Here the device is the CPU, where FlexAttention runs without a compiler.
"""

import pytest
import torch

from sewd_model.packed_device import PackedDeviceModel
from tests.sewd_model.test_packed import CONFIGURATIONS, KINDS, LENGTHS, SMALL, alone, assert_clips_close

CPU = torch.device("cpu")
ONE_LAYER = {**SMALL, "num_hidden_layers": 1}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def logits(model, waveforms, head=0):
    return [of_clip[head] for of_clip in model(waveforms)]


def pack(*models, dtype="float32"):
    return PackedDeviceModel(models, device=CPU, dtype=dtype)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_clips_logits_are_transformers_on_that_clip_alone(oracle, name):
    theirs, ours = oracle.pair("ctc", **CONFIGURATIONS[name])
    least = ours.config.min_samples
    waveforms = oracle.clips(*(max(least, length) for length in LENGTHS), least, least + 1, 4 * least)
    assert_clips_close(oracle, logits(pack(ours), waveforms), alone(theirs, waveforms))


@pytest.mark.parametrize("name", ["defaults", "squeeze 3"])
@pytest.mark.parametrize("kind", ["classifier", "weighted classifier"])
def test_each_clips_class_logits_are_transformers_on_that_clip_alone(oracle, name, kind):
    kind, of_kind = KINDS[kind]
    theirs, ours = oracle.pair(kind, **CONFIGURATIONS[name], **of_kind)
    waveforms = oracle.clips(*(max(ours.config.min_samples, length) for length in LENGTHS))
    assert_clips_close(oracle, logits(pack(ours), waveforms), alone(theirs, waveforms))
