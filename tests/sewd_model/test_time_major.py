"""The time-major feature extractor equals the channel-major one, in results and in gradients."""

import dataclasses

import pytest
import torch

from sewd_model.config import SEWDConfig
from sewd_model.model import FeatureEncoder, conv_lengths
from sewd_model.time_major import TimeMajorFeatureEncoder, is_supported

CONFIG = SEWDConfig(conv_dim=(8, 8, 12, 12, 16, 16, 16, 16, 16, 24, 24, 24, 24))


@pytest.fixture
def pair():
    torch.manual_seed(0)
    reference = FeatureEncoder(CONFIG).double()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return reference, TimeMajorFeatureEncoder(reference)


@pytest.mark.parametrize("samples", [720, 4000, 4001, 4319, 4320, 16_007])
def test_a_single_clip_equals_the_reference(pair, samples):
    reference, time_major = pair
    waveform = torch.randn(1, samples, dtype=torch.float64) + 0.3
    # GroupNorm runs in float32 here, as it must under bfloat16
    torch.testing.assert_close(
        time_major(waveform, None), reference(waveform, None), rtol=1e-4, atol=1e-4, check_dtype=False
    )


def test_rows_of_a_padded_batch_and_their_gradients_equal_the_reference(pair):
    reference, time_major = pair
    lengths = torch.tensor([9000, 4321, 720])
    waveforms = torch.randn(3, 9000, dtype=torch.float64)
    waveforms *= torch.arange(9000) < lengths[:, None]
    frames = conv_lengths(lengths, CONFIG)
    gradients = []
    for encoder in (reference, time_major):
        encoder.zero_grad()
        features = encoder(waveforms, lengths)
        own = [features[row, :, : frames[row]].double() for row in range(3)]
        sum(part.square().sum() for part in own).backward()
        gradients.append([own, [p.grad.clone() for p in encoder.parameters()]])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


def test_layers_are_shared_with_the_reference(pair):
    reference, time_major = pair
    assert [id(p) for p in time_major.parameters()] == [id(p) for p in reference.parameters()]
    assert time_major.state_dict().keys() == reference.state_dict().keys()


@pytest.mark.parametrize(
    "changes",
    [{"feat_extract_norm": "layer"}, {"conv_bias": True}, {"conv_kernel": (10, 5, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1)}],
)
def test_unsupported_layers_are_refused(changes):
    config = dataclasses.replace(CONFIG, **changes)
    assert not is_supported(config)
    with pytest.raises(ValueError, match="not supported"):
        TimeMajorFeatureEncoder(FeatureEncoder(config))
