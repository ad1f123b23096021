"""SpecAugment, dropout, freezing, and the initial weights of a new model."""

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from sewd_model import SEWDConfig, SEWDForCTC, SEWDModel
from sewd_model.spec_augment import draw_mask


# ----------------------------------------------------------------------------------------------------- SpecAugment
def spans(row):
    """Lengths of the runs of True."""
    edges = torch.diff(row.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    return (torch.nonzero(edges == -1) - torch.nonzero(edges == 1)).flatten().tolist()


def test_expected_number_of_spans_is_probability_times_length_over_span():
    # Spans of one frame cannot overlap, so the masked frames count them. Random rounding keeps the mean of 2.25.
    generator = torch.Generator().manual_seed(0)
    for probability, expected in ((0.008, 2.0), (0.009, 2.25), (0.05, 12.5)):
        masks = [draw_mask([250], 250, probability=probability, span=1, generator=generator) for _ in range(1500)]
        counts = torch.stack([mask.sum() for mask in masks]).float()
        assert counts.mean().item() == pytest.approx(expected, rel=0.02)
        assert set(counts.tolist()) <= {math.floor(expected), math.ceil(expected)}


def test_spans_have_their_length_and_reach_every_frame():
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(30)
    for _ in range(600):
        mask = draw_mask([30], 30, probability=0.4, span=5, generator=generator)[0]
        assert all(length >= 5 for length in spans(mask))
        assert 5 < mask.sum() <= 15  # 0.4 * 30 / 5 = 2.4: two or three spans, which never coincide
        hits += mask
    assert hits.min() > 0  # the first and last frames are reachable too


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    probability=st.floats(0, 1),
    span=st.integers(1, 20),
    min_spans=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_masks_stay_inside_each_row_and_hold_the_least_number_of_spans(lengths, probability, span, min_spans, seed):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + 3
    mask = draw_mask(lengths, width, probability=probability, span=span, min_spans=min_spans, generator=generator)
    assert mask.shape == (len(lengths), width)
    for row, length in zip(mask, lengths, strict=True):
        own_span = min(span, max(length, 1))
        assert not row[length:].any()
        assert row.sum() <= length // own_span * own_span
        if min_spans and length:
            assert row.sum() >= own_span
        assert all(run >= own_span for run in spans(row))


def test_share_of_hidden_frames_is_near_that_of_transformers():
    from transformers.models.sew_d.modeling_sew_d import _compute_mask_indices

    np.random.seed(0)
    generator = torch.Generator().manual_seed(0)
    for probability, span, least in ((0.3, 10, 2), (0.05, 10, 2), (0.65, 7, 0)):
        shares = [_compute_mask_indices((2, 120), probability, span, min_masks=least).mean() for _ in range(1000)]
        reference = sum(shares) / len(shares)
        drawn = [
            draw_mask([120], 120, probability=probability, span=span, min_spans=least, generator=generator)
            for _ in range(2000)
        ]
        assert torch.cat(drawn).float().mean().item() == pytest.approx(reference, abs=0.02)


def test_clip_shorter_than_a_span_is_masked_where_transformers_raises(oracle):
    settings = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 10}
    reference, model = oracle.pair("backbone", **settings)
    waveforms = torch.stack(oracle.clips(110))  # 5 frames
    with pytest.raises(ValueError, match="mask_length"):
        reference.train()(waveforms)
    assert torch.isfinite(model.train()(waveforms).last_hidden_state).all()


def test_masks_are_drawn_in_training_only_and_repeat_with_the_seed(oracle):
    _, model = oracle.pair("backbone", apply_spec_augment=True, mask_time_prob=0.3, mask_feature_prob=0.3)
    values, mask = oracle.batch(oracle.clips(1230, 810))

    def run(seed):
        torch.manual_seed(seed)
        return model(values, mask).last_hidden_state

    assert torch.equal(run(1), run(2))
    model.train()
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    model.spec_augment_generator = torch.Generator().manual_seed(5)
    first = run(1)
    model.spec_augment_generator = torch.Generator().manual_seed(5)
    assert torch.equal(first, run(2))  # with its own generator, the global seed has no effect


@pytest.mark.parametrize("training", [False, True])
def test_frames_of_mask_time_indices_are_masked_as_in_transformers(oracle, training):
    reference, model = oracle.pair("ctc", apply_spec_augment=True, mask_time_prob=0.1)
    reference.train(training)
    model.train(training)
    waveforms = torch.stack(oracle.clips(1230, 1230))
    hide = torch.rand(2, 61, generator=torch.Generator().manual_seed(0)) < 0.3
    labels = torch.tensor([[4, 4], [1, 9]])
    expected = reference(waveforms, mask_time_indices=hide, labels=labels)
    actual = model(waveforms, mask_time_indices=hide, labels=labels)
    oracle.assert_close(actual.logits, expected.logits)
    expected.loss.backward()
    actual.loss.backward()
    oracle.assert_gradients_close(model, reference)
    assert model.sew_d.masked_spec_embed.grad.any()
    assert not torch.allclose(actual.logits, model.eval()(waveforms).logits)


def test_mask_time_indices_without_a_mask_vector_are_refused(oracle):
    _, model = oracle.pair("ctc", apply_spec_augment=True, mask_time_prob=0.0)
    assert not hasattr(model.sew_d, "masked_spec_embed")
    with pytest.raises(ValueError, match="mask_time_prob"):
        model(torch.stack(oracle.clips(1230)), mask_time_indices=torch.ones(1, 61, dtype=torch.bool))


def test_mask_time_indices_are_ignored_without_spec_augment_as_in_transformers(oracle):
    reference, model = oracle.pair("ctc", apply_spec_augment=False)
    waveforms = torch.stack(oracle.clips(1230))
    hide = torch.ones(1, 61, dtype=torch.bool)
    oracle.assert_close(model(waveforms, None, hide).logits, reference(waveforms, mask_time_indices=hide).logits)


def test_feature_masks_hide_the_same_channels_in_every_frame(oracle):
    _, model = oracle.pair(
        "backbone",
        apply_spec_augment=True,
        mask_time_prob=0.0,
        mask_feature_prob=0.4,
        mask_feature_length=4,
        mask_feature_min_masks=1,
    )
    seen = []
    model.encoder.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    model.train()(torch.stack(oracle.clips(1230, 1230)))
    hidden = seen[0] == 0  # (2, 61, 16)
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert (hidden[:, 0].sum(-1) >= 4).all()
    assert not hidden.all()


# --------------------------------------------------------------------------------------------------------- dropout
@pytest.mark.parametrize("name", ["activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout"])
def test_each_dropout_acts_in_training_only(oracle, name):
    _, plain = oracle.pair("ctc")
    _, model = oracle.pair("ctc", **{name: 0.4})
    waveforms = torch.stack(oracle.clips(1230))
    assert torch.equal(model(waveforms).logits, plain(waveforms).logits)
    model.train()
    torch.manual_seed(0)
    first = model(waveforms).logits
    torch.manual_seed(0)
    assert torch.equal(model(waveforms).logits, first)
    assert not torch.allclose(model(waveforms).logits, first)


def test_dropouts_are_where_transformers_has_them_and_each_one_acts(oracle):
    shares = {
        "activation_dropout": 0.1,
        "attention_dropout": 0.2,
        "feat_proj_dropout": 0.3,
        "final_dropout": 0.4,
    }
    reference, model = oracle.pair("ctc", **shares)
    expected = {
        name: module.p if isinstance(module, torch.nn.Dropout) else module.drop_prob
        for name, module in reference.named_modules()
        if "Dropout" in type(module).__name__
    }
    dropouts = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert {name: module.p for name, module in dropouts.items()} == expected
    waveforms = torch.stack(oracle.clips(1230))
    without = model(waveforms).logits
    model.train()
    for chosen in dropouts:
        for name, module in dropouts.items():
            module.p = 0.5 if name == chosen else 0.0
        assert not torch.allclose(model(waveforms).logits, without), chosen


def test_deprecated_hidden_dropout_does_nothing(oracle):
    _, model = oracle.pair("ctc", hidden_dropout=0.9)
    waveforms = torch.stack(oracle.clips(1230))
    assert torch.equal(model.train()(waveforms).logits, model.eval()(waveforms).logits)


# -------------------------------------------------------------------------------------------------------- freezing
@pytest.mark.parametrize("kind", ["ctc", "classifier"])
def test_frozen_parameters_get_no_gradients(oracle, kind):
    labels = {"ctc": torch.tensor([[4, 4]]), "classifier": torch.tensor([1])}[kind]
    waveforms = torch.stack(oracle.clips(1230))
    _, model = oracle.pair(kind)
    model.freeze_feature_encoder()
    model.train()(waveforms, labels=labels).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without - {"sew_d.masked_spec_embed"} == {
        name for name, _ in model.named_parameters() if name.startswith("sew_d.feature_extractor.")
    }
    _, model = oracle.pair(kind)
    model.freeze_base_model()
    model.train()(waveforms, labels=labels).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("sew_d.")}
    assert trained


# -------------------------------------------------------------------------------------------------- initialisation
def test_fresh_weights_are_spread_like_those_of_transformers():
    settings = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "conv_dim": (32, 48),
        "conv_stride": (5, 2),
        "conv_kernel": (10, 3),
        "conv_bias": True,
        "num_conv_pos_embeddings": 16,
        "initializer_range": 0.05,
    }
    torch.manual_seed(0)
    model = SEWDForCTC(SEWDConfig(**settings)).state_dict()
    reference = transformers.SEWDForCTC(transformers.SEWDConfig(**settings)).state_dict()
    assert model.keys() == reference.keys()
    for name, tensor in reference.items():
        if "pos_conv_embed" in name:
            continue  # transformers intends to initialise it and does not: see the next test
        assert model[name].shape == tensor.shape
        if tensor.numel() > 300:
            assert model[name].std().item() == pytest.approx(tensor.std().item(), rel=0.15), name
        assert model[name].mean().item() == pytest.approx(tensor.mean().item(), abs=0.2), name


def test_fresh_positional_convolution_has_the_spread_of_the_formula():
    model = SEWDModel(SEWDConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=1))
    conv = model.encoder.pos_conv_embed.conv
    assert conv.weight.std().item() == pytest.approx(2 * math.sqrt(1 / (128 * 64)), rel=0.02)
    assert not conv.bias.any()


def test_fresh_models_repeat_with_the_seed(oracle):
    def fresh(seed):
        torch.manual_seed(seed)
        return SEWDForCTC(SEWDConfig.from_dict(oracle.tiny())).state_dict()

    first, again, other = fresh(3), fresh(3), fresh(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_few_steps_of_training_lower_the_loss(oracle):
    torch.manual_seed(0)
    settings = oracle.tiny(
        apply_spec_augment=True,
        activation_dropout=0.05,
        attention_dropout=0.05,
        final_dropout=0.05,
        ctc_loss_reduction="mean",
    )
    model = SEWDForCTC(SEWDConfig.from_dict(settings)).train()
    values, mask = oracle.batch(oracle.clips(1230, 810))
    labels = torch.tensor([[4, 4, 7], [1, 9, -100]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(values, mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
