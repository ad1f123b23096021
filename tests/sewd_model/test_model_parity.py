"""One clip, or a batch without padding: every output, loss and gradient equals that of transformers."""

import pytest
import torch
import transformers

from sewd_model import SEWDConfig, SEWDForCTC
from sewd_model.activations import ACTIVATIONS
from sewd_model.config import ACTIVATION_NAMES
from sewd_model.model import position_buckets
from tests.support.configurations import CONFIGURATIONS

HEADS = {
    "ctc": ("ctc", {}),
    "ctc, other blank": ("ctc", {"pad_token_id": 3, "ctc_loss_reduction": "mean"}),
    "classifier": ("classifier", {"id2label": {0: "a", 1: "b", 2: "c"}}),
    "classifier, weighted layers": ("classifier", {"use_weighted_layer_sum": True}),
}


def labels_for(kind):
    return torch.tensor([[4, 4, 7, -100], [1, 9, 2, 5]]) if kind == "ctc" else torch.tensor([1, 0])


def compare(oracle, kind, overrides, waveforms):
    """Compare hidden states, attentions, logits, loss and all gradients in train mode (dropouts are 0)."""
    reference, model = oracle.pair(kind, **overrides)
    reference.train()
    model.train()
    asked = {"labels": labels_for(kind), "output_hidden_states": True, "output_attentions": True}
    expected = reference(waveforms, **asked)
    actual = model(waveforms, **asked)
    oracle.assert_close(actual.logits, expected.logits)
    oracle.assert_close(actual.loss, expected.loss)
    assert len(actual.hidden_states) == len(expected.hidden_states) == model.config.num_hidden_layers + 1
    assert len(actual.attentions) == len(expected.attentions) == model.config.num_hidden_layers
    recorded = zip(actual.hidden_states + actual.attentions, expected.hidden_states + expected.attentions, strict=True)
    for actual_part, other in recorded:
        oracle.assert_close(actual_part, other)
    expected.loss.backward()
    actual.loss.backward()
    oracle.assert_gradients_close(model, reference)


@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configuration_gives_outputs_and_gradients_of_transformers(oracle, overrides):
    # 1230 samples are 61 frames: odd, so the last is zeros; 30 squeezed frames exceed the linear buckets by far.
    compare(oracle, "ctc", overrides, torch.stack(oracle.clips(1230, 1230)))


@pytest.mark.parametrize(("kind", "overrides"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("num_samples", [1210, 1230], ids=["even frames", "odd frames"])
def test_head_gives_outputs_and_gradients_of_transformers(oracle, kind, overrides, num_samples):
    compare(oracle, kind, overrides, torch.stack(oracle.clips(num_samples, num_samples)))


def test_frame_counts_of_the_two_lengths_above_are_even_and_odd(oracle):
    config = SEWDConfig.from_dict(oracle.tiny())
    assert (config.num_frames(1210), config.num_frames(1230)) == (60, 61)


@pytest.mark.parametrize("num_samples", [1210, 1230, 1250])
@pytest.mark.parametrize("squeeze", [1, 2, 3])
def test_frames_after_the_last_whole_squeezed_frame_are_zeros(oracle, num_samples, squeeze):
    reference, model = oracle.pair("backbone", squeeze_factor=squeeze)
    waveforms = torch.stack(oracle.clips(num_samples))
    last = model(waveforms).last_hidden_state
    oracle.assert_close(last, reference(waveforms).last_hidden_state)
    whole = last.shape[1] // squeeze * squeeze
    assert not last[:, whole:].any()
    assert last[:, :whole].abs().sum(-1).min() > 0


def test_activation_names_are_those_of_transformers_without_the_two_that_have_weights():
    known = set(transformers.activations.ACT2CLS)
    assert ACTIVATIONS.keys() == ACTIVATION_NAMES == known - {"prelu", "xielu"}


@pytest.mark.parametrize("name", sorted(ACTIVATION_NAMES))
def test_activation_equals_transformers(oracle, name):
    x = torch.linspace(-12.0, 12.0, 481, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    actual, expected = ACTIVATIONS[name](x), transformers.activations.ACT2FN[name](other)
    oracle.assert_close(actual, expected, tolerance=1e-6)
    actual.sum().backward()
    expected.sum().backward()
    oracle.assert_close(x.grad, other.grad, tolerance=1e-6)


@pytest.mark.parametrize("name", ["tanh", "quick_gelu", "mish", "relu2"])
def test_model_with_another_activation_equals_transformers(oracle, name):
    compare(
        oracle,
        "ctc",
        {"hidden_act": name, "feat_extract_activation": name},
        torch.stack(oracle.clips(1230, 1230)),
    )


@pytest.mark.parametrize(("buckets", "maximum"), [(256, 512), (8, 40), (7, 40), (2, 9), (32, 18), (-1, 512), (-1, 5)])
def test_position_buckets_are_exactly_those_of_transformers(buckets, maximum):
    from transformers.models.sew_d.modeling_sew_d import build_relative_position

    config = SEWDConfig(position_buckets=buckets, max_position_embeddings=maximum)
    length = 700
    relative = build_relative_position(length, length, buckets, maximum)[0]
    span = config.position_span
    expected = (relative + span).clamp(0, 2 * span - 1)
    actual = position_buckets(length, config)
    positions = torch.arange(length)
    assert torch.equal(actual[positions[:, None] - positions + length - 1], expected)


@pytest.mark.parametrize("kind", ["backbone", "ctc", "classifier"])
def test_tuples_equal_those_of_transformers(oracle, kind):
    reference, model = oracle.pair(kind)
    waveforms = torch.stack(oracle.clips(500, 500))
    for asked in (
        {},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"output_hidden_states": True, "output_attentions": True},
    ):
        labels = {} if kind == "backbone" else {"labels": labels_for(kind)}
        expected = reference(waveforms, return_dict=False, **asked, **labels)
        actual = model(waveforms, return_dict=False, **asked, **labels)
        assert isinstance(actual, tuple)
        assert len(actual) == len(expected)
        for actual_part, other in zip(actual, expected, strict=True):
            assert isinstance(actual_part, tuple) == isinstance(other, tuple)
            tensors = (actual_part, other) if isinstance(actual_part, tuple) else ((actual_part,), (other,))
            for one, two in zip(*tensors, strict=True):
                oracle.assert_close(one, two)


def test_hidden_states_for_the_weighted_sum_are_not_returned_unless_requested(oracle):
    _, model = oracle.pair("classifier", use_weighted_layer_sum=True)
    waveforms = torch.stack(oracle.clips(500))
    assert model(waveforms).hidden_states is None
    assert len(model(waveforms, output_hidden_states=True).hidden_states) == 3


def test_one_encoder_pass_serves_several_heads(oracle):
    waveforms = torch.stack(oracle.clips(500, 500))
    _, ctc = oracle.pair("ctc")
    _, weighted = oracle.pair("classifier", use_weighted_layer_sum=True)
    weighted.sew_d.load_state_dict(ctc.sew_d.state_dict())
    assert (ctc.needs_hidden_states, weighted.needs_hidden_states) == (False, True)
    shared = ctc.sew_d(waveforms, output_hidden_states=True)
    assert torch.equal(ctc.head(shared), ctc(waveforms).logits)
    assert torch.equal(weighted.head(shared), weighted(waveforms).logits)
    with pytest.raises(ValueError, match="output_hidden_states"):
        weighted.head(ctc.sew_d(waveforms))


def test_regression_loss_is_the_mean_square_error(oracle):
    # transformers applies cross-entropy to the single logit, which is always 0.
    _, model = oracle.pair("classifier", num_labels=1)
    waveforms = torch.stack(oracle.clips(500, 500, 500))
    targets = torch.tensor([0.5, -2.0, 3.0])
    output = model(waveforms, labels=targets)
    assert output.logits.shape == (3, 1)
    expected = ((output.logits[:, 0] - targets) ** 2).mean()
    torch.testing.assert_close(output.loss, expected)
    assert output.loss > 0.1
    output.loss.backward()
    assert model.sew_d.feature_extractor.conv_layers[0].conv.weight.grad.any()


def test_regression_logits_equal_transformers(oracle):
    reference, model = oracle.pair("classifier", num_labels=1)
    waveforms = torch.stack(oracle.clips(500, 500))
    oracle.assert_close(model(waveforms).logits, reference(waveforms).logits)


def test_ctc_loss_ignores_padding_labels_and_blanks(oracle):
    reference, model = oracle.pair("ctc")
    waveforms = torch.stack(oracle.clips(500, 500))
    bare = model(waveforms, labels=torch.tensor([[4, 4], [1, 9]])).loss
    padded = torch.tensor([[4, -100, 4, 0], [0, 1, 9, -100]])
    torch.testing.assert_close(model(waveforms, labels=padded).loss, bare)
    oracle.assert_close(reference(waveforms, labels=padded).loss, bare)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ctc_loss_reduction_is_that_of_transformers(oracle, reduction):
    reference, model = oracle.pair("ctc", ctc_loss_reduction=reduction)
    waveforms = torch.stack(oracle.clips(500, 500))
    labels = torch.tensor([[4, 4, 7, -100], [1, -100, -100, -100]])
    oracle.assert_close(model(waveforms, labels=labels).loss, reference(waveforms, labels=labels).loss, 1e-5)


def test_labels_that_do_not_fit_give_an_infinite_loss_or_optionally_zero(oracle):
    waveforms = torch.stack(oracle.clips(100))  # 4 frames
    labels = torch.full((1, 9), 5)
    assert oracle.pair("ctc")[1](waveforms, labels=labels).loss == float("inf")
    assert oracle.pair("ctc", ctc_zero_infinity=True)[1](waveforms, labels=labels).loss == 0


@pytest.mark.parametrize("label", [11, 99, -1])
def test_label_outside_the_vocabulary_is_refused(oracle, label):
    _, model = oracle.pair("ctc")
    with pytest.raises(ValueError, match="vocab_size 11"):
        model(torch.stack(oracle.clips(500)), labels=torch.tensor([[1, label]]))


def test_ctc_without_a_blank_is_refused(oracle):
    with pytest.raises(ValueError, match="pad_token_id"):
        SEWDForCTC(SEWDConfig.from_dict(oracle.tiny(pad_token_id=None)))
