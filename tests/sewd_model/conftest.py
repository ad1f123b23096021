"""The oracle of these tests: transformers' SEW-D with tiny random weights, made by the tests."""

from types import SimpleNamespace

import pytest
import torch
import transformers

import sewd_model

# Three convolutions, 20 samples per frame. With 8 buckets, those of offsets beyond 4 squeezed frames are logarithmic.
TINY = {
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "position_buckets": 8,
    "conv_dim": (8, 8, 12),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 2),
    "num_conv_pos_embeddings": 5,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 9,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "apply_spec_augment": False,
    "ctc_loss_reduction": "sum",
}

REFERENCES = {
    "backbone": transformers.SEWDModel,
    "ctc": transformers.SEWDForCTC,
    "classifier": transformers.SEWDForSequenceClassification,
}
MODELS = {
    "backbone": sewd_model.SEWDModel,
    "ctc": sewd_model.SEWDForCTC,
    "classifier": sewd_model.SEWDForSequenceClassification,
}


def tiny(**overrides):
    """Return the content of a tiny model's config.json."""
    return {**TINY, **overrides}


def randomize(model, seed=0):
    """Set every parameter to a random value: new models have norms of 1 and biases of 0, which hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("original0") or ("norm" in name.lower() and name.endswith("weight")):
                parameter.copy_(1.0 + 0.2 * noise)
            elif parameter.dim() > 1:
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model


def reference(kind, seed=0, **overrides):
    """Return transformers' model of a tiny configuration, every weight random, in eval mode."""
    config = transformers.SEWDConfig.from_dict(tiny(**overrides))
    return randomize(REFERENCES[kind](config), seed).eval()


def pair(kind, seed=0, **overrides):
    """Return transformers' model and this project's with the same weights, in eval mode."""
    expected = reference(kind, seed, **overrides)
    model = MODELS[kind](sewd_model.SEWDConfig.from_dict(tiny(**overrides)))
    model.load_state_dict(expected.state_dict())
    return expected, model.eval()


def clips(*lengths, seed=1):
    """Return random waveforms of the given numbers of samples, each with a level and an offset of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) * (1.0 + row) + 0.2 * row for row, length in enumerate(lengths)]


def batch(waveforms, filler=0.0):
    """Pad waveforms on the right; returns values and mask."""
    values = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=filler)
    mask = torch.stack([torch.arange(values.shape[1]) < len(waveform) for waveform in waveforms]).long()
    return values, mask


def assert_close(actual, expected, tolerance=1e-4, floor=0.0):
    """Assert equal shapes and differences of at most `tolerance` times the spread of `expected` (or `floor`)."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    spread = (expected.max() - expected.min()).item() or expected.abs().max().item()
    assert torch.isfinite(actual).all()
    difference = (actual - expected).abs().max().item()
    assert difference <= tolerance * max(spread, floor), f"differ by {difference}, spread {spread}"


def assert_gradients_close(model, expected_model, tolerance=1e-4):
    """Assert that two models have equal gradients for every parameter.

    Some gradients are 0 except for rounding (of a bias before a GroupNorm, or of the keys' bias before a softmax): a
    gradient below a hundredth of the model's largest is compared on the scale of that hundredth.
    """
    expected = {name: parameter.grad for name, parameter in expected_model.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in expected.values() if gradient is not None)
    for name, parameter in model.named_parameters():
        if expected[name] is None or not expected[name].any():
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            assert_close(parameter.grad, expected[name], tolerance, floor=1e-2 * largest)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def oracle():
    """The helpers above, because test modules cannot import a conftest."""
    return SimpleNamespace(
        tiny=tiny,
        randomize=randomize,
        reference=reference,
        pair=pair,
        clips=clips,
        batch=batch,
        assert_close=assert_close,
        assert_gradients_close=assert_gradients_close,
        models=MODELS,
        references=REFERENCES,
    )
