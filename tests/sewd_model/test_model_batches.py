"""Padded batches: in exact mode each row is the clip alone; in transformers' mode the batch is transformers' batch."""

import pytest
import torch

from sewd_model import InputTooShortError, SEWDConfig, SEWDForCTC

# 20 samples a frame; frames: 61 (odd), 40, 25 (odd), 4, 2, and 60 with 7 samples that reach no frame.
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
    theirs, ours = oracle.pair(kind, **overrides, **variant)
    waveforms = oracle.clips(*LENGTHS)
    # The padding holds large numbers: a model that looks at it cannot pass.
    values, mask = oracle.batch(waveforms, filler=50.0)
    found = ours(values, mask, output_hidden_states=True, output_attentions=True)
    squeeze = ours.config.squeeze_factor
    for row, waveform in enumerate(waveforms):
        alone = theirs(waveform[None], output_hidden_states=True, output_attentions=True)
        expected = main_output(alone)[0]
        frames = ours.config.num_frames(len(waveform))
        assert found.num_frames[row] == frames
        mine = main_output(found)[row]
        if kind != "classifier":
            assert expected.shape[0] == frames
            mine = mine[:frames]
        oracle.assert_close(mine, expected)
        for state, other in zip(found.hidden_states, alone.hidden_states, strict=True):
            oracle.assert_close(state[row, : frames // squeeze], other[0])
            assert not state[row, frames // squeeze :].any()
        for attention, other in zip(found.attentions, alone.attentions, strict=True):
            own = attention[row, :, : frames // squeeze]
            oracle.assert_close(own[..., : frames // squeeze], other[0])
            assert not own[..., frames // squeeze :].any()
            assert not attention[row, :, frames // squeeze :].any()


def test_rows_do_not_depend_on_order_or_company(oracle):
    _, ours = oracle.pair("ctc")
    waveforms = oracle.clips(*LENGTHS)
    together = ours(*oracle.batch(waveforms)).logits
    reversed_rows = ours(*oracle.batch(waveforms[::-1])).logits.flip(0)
    oracle.assert_close(reversed_rows, together, 1e-6)
    two = ours(*oracle.batch(waveforms[2:4])).logits
    frames = ours.config.num_frames(LENGTHS[2])
    oracle.assert_close(two[0, :frames], together[2, :frames], 1e-5)


@every_kind
@every_variant
def test_batch_mode_of_transformers_equals_its_padded_batch(oracle, kind, overrides, variant):
    theirs, ours = oracle.pair(kind, **overrides, **variant)
    values, mask = oracle.batch(oracle.clips(*LENGTHS))
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected = theirs(values, attention_mask=mask, **asked)
    found = ours(values, mask, padding="transformers", **asked)
    oracle.assert_close(main_output(found), main_output(expected))
    pairs = zip(found.hidden_states + found.attentions, expected.hidden_states + expected.attentions, strict=True)
    for mine, other in pairs:
        oracle.assert_close(mine, other)


def test_the_two_modes_differ_for_a_padded_batch(oracle):
    # Guards the tests above: were the modes the same, one of them would test nothing.
    _, ours = oracle.pair("ctc")
    values, mask = oracle.batch(oracle.clips(*LENGTHS))
    exact, theirs = ours(values, mask).logits, ours(values, mask, padding="transformers").logits
    assert (exact[1, :40] - theirs[1, :40]).abs().max() > 0.05 * (exact.max() - exact.min())


@pytest.mark.parametrize("padding", ["exact", "transformers"])
@every_kind
def test_a_mask_of_ones_is_no_mask(oracle, kind, overrides, padding):
    _, ours = oracle.pair(kind, **overrides)
    values = torch.stack(oracle.clips(1230, 1230))
    with_mask = ours(values, torch.ones_like(values), padding=padding)
    assert torch.equal(main_output(with_mask), main_output(ours(values)))


@pytest.mark.parametrize("variant", [VARIANTS["group norm"], VARIANTS["layer norm"]], ids=["group", "layer"])
@pytest.mark.parametrize(
    ("kind", "overrides"),
    [("ctc", {}), ("classifier", {}), ("classifier", {"use_weighted_layer_sum": True})],
    ids=["ctc", "classifier", "weighted classifier"],
)
def test_gradients_of_a_batch_loss_are_the_sum_of_those_of_transformers_on_each_clip(oracle, kind, overrides, variant):
    theirs, ours = oracle.pair(kind, **overrides, **variant)
    theirs.train()
    ours.train()
    waveforms = oracle.clips(*LENGTHS)
    if kind == "ctc":
        labels = torch.tensor([[4, 4, 7], [1, 9, -100], [2, 5, 8], [3, -100, -100], [6, -100, -100], [1, 2, 3]])
    else:
        labels = torch.tensor([0, 1, 1, 0, 1, 0])
    share = 1.0 if kind == "ctc" else 1.0 / len(waveforms)  # the CTC loss is set to "sum"; cross-entropy averages
    total = 0.0
    for row, waveform in enumerate(waveforms):
        loss = theirs(waveform[None], labels=labels[row : row + 1]).loss * share
        loss.backward()
        total += loss.item()
    # Padding that is not even a number: 0 * NaN in any backward step would show.
    found = ours(*oracle.batch(waveforms, filler=float("nan")), labels=labels).loss
    found.backward()
    assert found.item() == pytest.approx(total, rel=1e-4)
    oracle.assert_gradients_close(ours, theirs)


def test_weights_of_half_precision_stay_near_float32(oracle):
    waveforms = oracle.clips(1230, 810, 510)
    for dtype, tolerance in ((torch.bfloat16, 0.15), (torch.float16, 0.03)):
        _, ours = oracle.pair("ctc")
        values, mask = oracle.batch(waveforms)
        full = ours(values, mask).logits
        half = ours.to(dtype)(values.to(dtype), mask)
        assert half.logits.dtype == dtype
        oracle.assert_close(half.logits.float(), full, tolerance)
        labels = torch.tensor([[4, 4], [1, 9], [2, 5]])
        loss = ours(values.to(dtype), mask, labels=labels).loss
        loss.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in ours.parameters())


def test_inputs_are_not_modified(oracle):
    _, ours = oracle.pair("ctc", apply_spec_augment=True)
    values, mask = oracle.batch(oracle.clips(1230, 810), filler=9.0)
    hidden = torch.zeros(2, 61, dtype=torch.bool)
    hidden[:, 3:7] = True
    labels = torch.tensor([[4, -100], [1, 9]])
    copies = [tensor.clone() for tensor in (values, mask, hidden, labels)]
    for training in (False, True):
        ours.train(training)(values, mask, hidden, labels=labels)
        for tensor, copy in zip((values, mask, hidden, labels), copies, strict=True):
            assert torch.equal(tensor, copy)


def test_input_gradients_flow_and_stay_out_of_the_padding(oracle):
    _, ours = oracle.pair("ctc")
    values, mask = oracle.batch(oracle.clips(1230, 810))
    values.requires_grad_()
    ours(values, mask).logits.square().sum().backward()
    assert values.grad[1, :810].abs().sum() > 0
    assert not values.grad[1, 810:].any()


# ------------------------------------------------------------------------------------------------- refused input
@pytest.mark.parametrize("squeeze", [1, 2, 3])
def test_shortest_clip_is_exactly_min_samples(oracle, squeeze):
    theirs, ours = oracle.pair("ctc", squeeze_factor=squeeze)
    least = ours.config.min_samples
    waveform = oracle.clips(least)[0]
    oracle.assert_close(ours(waveform[None]).logits, theirs(waveform[None]).logits)
    assert ours.config.num_frames(least) == squeeze
    with pytest.raises(InputTooShortError, match=rf"{least - 1} samples.*at least {least}") as caught:
        ours(waveform[None, 1:])
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


def test_short_row_in_a_padded_batch_is_refused_by_its_own_samples(oracle):
    _, ours = oracle.pair("ctc")
    least = ours.config.min_samples
    ours(*oracle.batch(oracle.clips(1230, least)))
    with pytest.raises(InputTooShortError, match=str(least - 1)):
        ours(*oracle.batch(oracle.clips(1230, least - 1)))


def test_too_short_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(InputTooShortError(10, 720)))  # as between processes
    assert (error.num_samples, error.min_samples, str(error)) == (10, 720, str(InputTooShortError(10, 720)))


def test_malformed_input_is_refused(oracle):
    _, ours = oracle.pair("ctc")
    values, mask = oracle.batch(oracle.clips(1230, 810))
    refused = [
        ((values[0],), "floating point"),
        ((values.long(),), "floating point"),
        ((values[:0],), "floating point"),
        ((values, mask[:, 1:]), "attention_mask must be"),
        ((values, mask.flip(1)), "on the right"),
        ((values, mask, torch.zeros(2, 60, dtype=torch.bool)), "mask_time_indices must be"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            ours(*arguments)
    with pytest.raises(ValueError, match="padding must be"):
        ours(values, padding="left")
    with pytest.raises(ValueError, match="labels must be"):
        ours(values, labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="labels must be one a clip"):
        oracle.pair("classifier")[1](values, labels=torch.tensor([1]))
