"""Padded batches: in exact mode, each row equals the clip alone; in the other, the batch equals transformers'."""

import pytest
import torch

from sewd_model import InputTooShortError, SEWDConfig, SEWDForCTC

# 20 samples per frame; frames: 61 (odd), 40, 25 (odd), 4, 2, and 60 with 7 samples too few for one more.
LENGTHS = (1230, 810, 510, 90, 50, 1217)
KINDS = {
    "backbone": ("backbone", {}),
    "ctc": ("ctc", {}),
    "classifier": ("classifier", {}),
    "weighted classifier": ("classifier", {"use_weighted_layer_sum": True}),
}
VARIANTS = {
    "group norm": {},
    "layer norm": {"feat_extract_norm": "layer", "conv_bias": True},
    "group norm, conv bias, even kernel": {"conv_bias": True, "num_conv_pos_embeddings": 6},
    "squeeze 1": {"squeeze_factor": 1},
    "features not projected": {"conv_dim": (8, 8, 16)},
    "no relative attention": {"relative_attention": False},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
every_kind = pytest.mark.parametrize(("kind", "overrides"), KINDS.values(), ids=KINDS)


def main_output(output):
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits


@every_variant
@every_kind
def test_each_row_of_a_padded_batch_equals_transformers_on_that_clip_alone(oracle, kind, overrides, variant):
    reference, model = oracle.pair(kind, **overrides, **variant)
    waveforms = oracle.clips(*LENGTHS)
    # The padding has large values: a model that reads it cannot pass.
    values, mask = oracle.batch(waveforms, filler=50.0)
    actual = model(values, mask, output_hidden_states=True, output_attentions=True)
    squeeze = model.config.squeeze_factor
    for row, waveform in enumerate(waveforms):
        alone = reference(waveform[None], output_hidden_states=True, output_attentions=True)
        expected = main_output(alone)[0]
        frames = model.config.num_frames(len(waveform))
        assert actual.num_frames[row] == frames
        actual_part = main_output(actual)[row]
        if kind != "classifier":
            assert expected.shape[0] == frames
            actual_part = actual_part[:frames]
        oracle.assert_close(actual_part, expected)
        for state, other in zip(actual.hidden_states, alone.hidden_states, strict=True):
            oracle.assert_close(state[row, : frames // squeeze], other[0])
            assert not state[row, frames // squeeze :].any()
        for attention, other in zip(actual.attentions, alone.attentions, strict=True):
            own = attention[row, :, : frames // squeeze]
            oracle.assert_close(own[..., : frames // squeeze], other[0])
            assert not own[..., frames // squeeze :].any()
            assert not attention[row, :, frames // squeeze :].any()


def test_rows_do_not_depend_on_their_order_or_on_other_rows(oracle):
    _, model = oracle.pair("ctc")
    waveforms = oracle.clips(*LENGTHS)
    together = model(*oracle.batch(waveforms)).logits
    reversed_rows = model(*oracle.batch(waveforms[::-1])).logits.flip(0)
    oracle.assert_close(reversed_rows, together, 1e-6)
    two = model(*oracle.batch(waveforms[2:4])).logits
    frames = model.config.num_frames(LENGTHS[2])
    oracle.assert_close(two[0, :frames], together[2, :frames], 1e-5)


@every_kind
@every_variant
def test_padding_mode_transformers_equals_its_padded_batch(oracle, kind, overrides, variant):
    reference, model = oracle.pair(kind, **overrides, **variant)
    values, mask = oracle.batch(oracle.clips(*LENGTHS))
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected = reference(values, attention_mask=mask, **asked)
    actual = model(values, mask, padding="transformers", **asked)
    oracle.assert_close(main_output(actual), main_output(expected))
    pairs = zip(actual.hidden_states + actual.attentions, expected.hidden_states + expected.attentions, strict=True)
    for actual_part, other in pairs:
        oracle.assert_close(actual_part, other)


def test_the_two_modes_differ_for_a_padded_batch(oracle):
    # Guards the tests above: if the modes were equal, one of them would test nothing.
    _, model = oracle.pair("ctc")
    values, mask = oracle.batch(oracle.clips(*LENGTHS))
    exact, reference = model(values, mask).logits, model(values, mask, padding="transformers").logits
    assert (exact[1, :40] - reference[1, :40]).abs().max() > 0.05 * (exact.max() - exact.min())


@pytest.mark.parametrize("padding", ["exact", "transformers"])
@every_kind
def test_a_mask_of_ones_equals_no_mask(oracle, kind, overrides, padding):
    _, model = oracle.pair(kind, **overrides)
    values = torch.stack(oracle.clips(1230, 1230))
    with_mask = model(values, torch.ones_like(values), padding=padding)
    assert torch.equal(main_output(with_mask), main_output(model(values)))


@pytest.mark.parametrize("variant", [VARIANTS["group norm"], VARIANTS["layer norm"]], ids=["group", "layer"])
@pytest.mark.parametrize(
    ("kind", "overrides"),
    [("ctc", {}), ("classifier", {}), ("classifier", {"use_weighted_layer_sum": True})],
    ids=["ctc", "classifier", "weighted classifier"],
)
def test_gradients_of_a_batch_loss_are_the_sum_of_those_of_transformers_on_each_clip(oracle, kind, overrides, variant):
    reference, model = oracle.pair(kind, **overrides, **variant)
    reference.train()
    model.train()
    waveforms = oracle.clips(*LENGTHS)
    if kind == "ctc":
        labels = torch.tensor([[4, 4, 7], [1, 9, -100], [2, 5, 8], [3, -100, -100], [6, -100, -100], [1, 2, 3]])
    else:
        labels = torch.tensor([0, 1, 1, 0, 1, 0])
    share = 1.0 if kind == "ctc" else 1.0 / len(waveforms)  # the CTC loss is set to "sum"; cross-entropy averages
    total = 0.0
    for row, waveform in enumerate(waveforms):
        loss = reference(waveform[None], labels=labels[row : row + 1]).loss * share
        loss.backward()
        total += loss.item()
    # NaN as padding: 0 * NaN in any backward step would show.
    actual = model(*oracle.batch(waveforms, filler=float("nan")), labels=labels).loss
    actual.backward()
    assert actual.item() == pytest.approx(total, rel=1e-4)
    oracle.assert_gradients_close(model, reference)


def test_weights_of_half_precision_stay_near_float32(oracle):
    waveforms = oracle.clips(1230, 810, 510)
    for dtype, tolerance in ((torch.bfloat16, 0.15), (torch.float16, 0.03)):
        _, model = oracle.pair("ctc")
        values, mask = oracle.batch(waveforms)
        full = model(values, mask).logits
        half = model.to(dtype)(values.to(dtype), mask)
        assert half.logits.dtype == dtype
        oracle.assert_close(half.logits.float(), full, tolerance)
        labels = torch.tensor([[4, 4], [1, 9], [2, 5]])
        loss = model(values.to(dtype), mask, labels=labels).loss
        loss.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_inputs_are_not_modified(oracle):
    _, model = oracle.pair("ctc", apply_spec_augment=True)
    values, mask = oracle.batch(oracle.clips(1230, 810), filler=9.0)
    hidden = torch.zeros(2, 61, dtype=torch.bool)
    hidden[:, 3:7] = True
    labels = torch.tensor([[4, -100], [1, 9]])
    copies = [tensor.clone() for tensor in (values, mask, hidden, labels)]
    for training in (False, True):
        model.train(training)(values, mask, labels, mask_time_indices=hidden)
        for tensor, copy in zip((values, mask, hidden, labels), copies, strict=True):
            assert torch.equal(tensor, copy)


def test_input_gradients_flow_and_stay_out_of_the_padding(oracle):
    _, model = oracle.pair("ctc")
    values, mask = oracle.batch(oracle.clips(1230, 810))
    values.requires_grad_()
    model(values, mask).logits.square().sum().backward()
    assert values.grad[1, :810].abs().sum() > 0
    assert not values.grad[1, 810:].any()


# ------------------------------------------------------------------------------------------------- refused input
@pytest.mark.parametrize("squeeze", [1, 2, 3])
def test_shortest_clip_is_exactly_min_samples(oracle, squeeze):
    reference, model = oracle.pair("ctc", squeeze_factor=squeeze)
    least = model.config.min_samples
    waveform = oracle.clips(least)[0]
    oracle.assert_close(model(waveform[None]).logits, reference(waveform[None]).logits)
    assert model.config.num_frames(least) == squeeze
    with pytest.raises(InputTooShortError, match=rf"{least - 1} samples.*at least {least}") as caught:
        model(waveform[None, 1:])
    assert (caught.value.num_samples, caught.value.min_samples) == (least - 1, least)


def test_shortest_clip_at_the_published_convolutions_is_720_samples():
    config = SEWDConfig()
    assert (config.min_samples, config.hop_length) == (720, 320)
    assert (config.num_frames(719), config.num_frames(720)) == (1, 2)
    small = SEWDConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(4,) * 13,
        num_conv_pos_embeddings=4,
    )
    model = SEWDForCTC(small).eval()
    assert model(torch.randn(1, 720)).logits.shape == (1, 2, 32)
    with pytest.raises(InputTooShortError, match="719"):
        model(torch.randn(1, 719))


def test_short_row_in_a_padded_batch_is_refused(oracle):
    _, model = oracle.pair("ctc")
    least = model.config.min_samples
    model(*oracle.batch(oracle.clips(1230, least)))
    with pytest.raises(InputTooShortError, match=str(least - 1)):
        model(*oracle.batch(oracle.clips(1230, least - 1)))


def test_too_short_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(InputTooShortError(10, 720)))  # as errors pass between processes
    assert (error.num_samples, error.min_samples, str(error)) == (10, 720, str(InputTooShortError(10, 720)))


def test_malformed_input_is_refused(oracle):
    _, model = oracle.pair("ctc")
    values, mask = oracle.batch(oracle.clips(1230, 810))
    refused = [
        ((values[0],), "floating point"),
        ((values.long(),), "floating point"),
        ((values[:0],), "floating point"),
        ((values, mask[:, 1:]), "attention_mask must be"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            model(*arguments)
    with pytest.raises(ValueError, match="mask_time_indices must be"):
        model(values, mask, mask_time_indices=torch.zeros(2, 60, dtype=torch.bool))
    with pytest.raises(ValueError, match="padding must be"):
        model(values, padding="left")
    with pytest.raises(ValueError, match="labels must be"):
        model(values, labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="labels must be one per clip"):
        oracle.pair("classifier")[1](values, labels=torch.tensor([1]))
