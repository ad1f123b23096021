"""Packed batches on the CPU: the output of each clip is that of transformers for the clip alone, in any batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sewd_model import InputTooShortError, SEWDConfig
from sewd_model.activations import ACTIVATIONS
from sewd_model.config import ACTIVATION_NAMES
from sewd_model.packed import cpu as packed_module
from sewd_model.packed import cpu_attention, cpu_convolutions, products
from sewd_model.packed.cpu import PackedModel, PackedOutput
from sewd_model.packed.cpu_convolutions import TILE_FRAMES
from sewd_model.packed.layers import fast_activation
from sewd_model.packed.products import OneDNNLinear
from tests.support import configurations

# 20 samples per frame; frames: 61 (odd), 40, 25 (odd), 4, 2, and 60 with 7 samples too few for one more.
LENGTHS = (1230, 810, 510, 90, 50, 1217)
SMALL_CONV = (8, 16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32)
PUBLISHED_CONV = {
    "conv_dim": SMALL_CONV,
    "conv_kernel": SEWDConfig.conv_kernel,
    "conv_stride": SEWDConfig.conv_stride,
}
CONFIGURATIONS = configurations.CONFIGURATIONS | {
    "published convolutions": PUBLISHED_CONV,
    "one convolution": {"conv_dim": (8,), "conv_kernel": (10,), "conv_stride": (5,)},
    "wide kernels, odd strides": {"conv_kernel": (7, 8, 5), "conv_stride": (4, 3, 2)},
    "kernels below their strides": {"conv_kernel": (3, 1, 2), "conv_stride": (5, 2, 3)},
    "positional kernel of 128": {"num_conv_pos_embeddings": 128},
    "many buckets": {"position_buckets": 64, "max_position_embeddings": 200},
}
KINDS = {
    "backbone": ("backbone", {}),
    "ctc": ("ctc", {}),
    "classifier": ("classifier", {}),
    "weighted classifier": ("classifier", {"use_weighted_layer_sum": True}),
}


# Published kernels and strides (320 samples per frame, at least 720), everything else small.
SMALL = {**PUBLISHED_CONV, "position_buckets": 16, "max_position_embeddings": 60, "num_conv_pos_embeddings": 31}


def main_output(output):
    """Return the logits of a clip, or the hidden states of a bare backbone, from either model's output."""
    if isinstance(output, PackedOutput):
        return output.logits[0] if output.logits else output.last_hidden_state
    return (output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits)[0]


def alone(model, waveforms):
    with torch.no_grad():
        return [main_output(model(waveform[None])) for waveform in waveforms]


def assert_clips_close(oracle, actual, expected, tolerance=1e-4):
    """Compare clips on the scale of the spread over all of them: the logits of one clip can be close by chance."""
    actual = list(actual)
    assert [clip.shape for clip in actual] == [clip.shape for clip in expected]
    oracle.assert_close(torch.cat(actual), torch.cat(expected), tolerance)


@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize(("kind", "kind_options"), KINDS.values(), ids=KINDS)
def test_each_clip_of_a_packed_batch_equals_transformers_on_that_clip_alone(oracle, kind, kind_options, overrides):
    reference, model = oracle.pair(kind, **overrides, **kind_options)
    least = model.config.min_samples
    waveforms = oracle.clips(*(max(least, length) for length in LENGTHS), least, least + 1, 4 * least)
    outputs = PackedModel([model])(waveforms)
    assert_clips_close(oracle, map(main_output, outputs), alone(reference, waveforms))
    squeeze = model.config.squeeze_factor
    for waveform, output in zip(waveforms, outputs, strict=True):
        frames = model.config.num_frames(len(waveform))
        assert len(output.last_hidden_state) == frames
        assert not output.last_hidden_state[frames - frames % squeeze :].any()


@pytest.mark.parametrize("name", ["defaults", "published convolutions", "layer norm extractor with conv bias"])
def test_without_onednn_the_results_are_the_same(oracle, name, monkeypatch):
    monkeypatch.setattr(products, "_HAS_ONEDNN", False)
    reference, model = oracle.pair("ctc", **CONFIGURATIONS[name])
    least = model.config.min_samples
    waveforms = oracle.clips(*(max(least, length) for length in LENGTHS))
    assert_clips_close(oracle, map(main_output, PackedModel([model])(waveforms)), alone(reference, waveforms))


@pytest.mark.parametrize("name", sorted(ACTIVATION_NAMES))
def test_fast_activations_equal_the_reference(oracle, name):
    values = torch.linspace(-12, 12, 10_001)
    oracle.assert_close(fast_activation(name)(values), ACTIVATIONS[name](values), 1e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATION_NAMES))
def test_activations_after_a_product_equal_the_reference(oracle, name):
    values = torch.linspace(-12, 12, 10_001)[:, None]
    weight = torch.tensor([[1.0], [-0.5]])
    actual = OneDNNLinear.pack(weight, torch.tensor([0.0, 0.1]), name)(values)
    oracle.assert_close(actual, ACTIVATIONS[name](values @ weight.T + torch.tensor([0.0, 0.1])), 1e-6)


@pytest.fixture(scope="module")
def small(oracle):
    """A small CTC model of transformers, and the same model packed."""
    reference, model = oracle.pair("ctc", **SMALL)
    return reference, PackedModel([model])


def test_every_length_from_the_shortest_to_a_few_frames_equals_transformers(oracle, small):
    reference, packed = small
    waveforms = oracle.clips(*range(720, 720 + 4 * 320, 33))
    assert_clips_close(oracle, map(main_output, packed(waveforms)), alone(reference, waveforms))


def test_a_clip_of_many_tiles_and_distant_offsets_equals_transformers(oracle, small, monkeypatch):
    monkeypatch.setattr(cpu_attention, "TILE", 96)
    monkeypatch.setattr(cpu_attention, "STRIP", 40)
    reference, packed = small
    waveforms = oracle.clips(20 * 16_000 + 7)
    frames = packed.config.num_frames(len(waveforms[0]))
    assert frames > 5 * TILE_FRAMES
    assert frames // 2 > 4 * 96
    assert_clips_close(oracle, map(main_output, packed(waveforms)), alone(reference, waveforms))


@given(
    lengths=st.lists(st.integers(720, 12_000), min_size=1, max_size=6),
    tile_frames=st.integers(1, 9),
    tile=st.integers(1, 9),
    strip=st.integers(1, 9),
    block_rows=st.integers(1, 9),
    pack_frames=st.integers(1, 60),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_results_do_not_depend_on_batch_order_tiles_or_packs(
    oracle, small, lengths, tile_frames, tile, strip, block_rows, pack_frames, data
):
    reference, packed = small
    waveforms = oracle.clips(*lengths)
    order = data.draw(st.permutations(range(len(lengths))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_convolutions, "TILE_FRAMES", tile_frames)
        patch.setattr(cpu_attention, "TILE", tile)
        patch.setattr(cpu_attention, "STRIP", strip)
        patch.setattr(packed_module, "BLOCK_ROWS", block_rows)
        patch.setattr(packed, "pack_frames", pack_frames)
        actual = [main_output(output) for output in packed([waveforms[row] for row in order])]
    assert_clips_close(oracle, actual, alone(reference, [waveforms[row] for row in order]))
    for row, clip in zip(order, actual, strict=True):
        oracle.assert_close(clip, main_output(packed([waveforms[row]])[0]), 1e-5)


@pytest.mark.parametrize("overrides", [{}, {"use_weighted_layer_sum": True}], ids=["last layer", "weighted layers"])
def test_several_heads_share_one_pass(oracle, overrides):
    sizes = {"num_labels": 6, **SMALL, **overrides}
    ctc_theirs, ctc = oracle.pair("ctc", **sizes)
    classifier_theirs, classifier = oracle.pair("classifier", seed=5, **sizes)
    for one, other in ((ctc, classifier), (ctc_theirs, classifier_theirs)):
        other.sew_d.load_state_dict(one.sew_d.state_dict())
    waveforms = oracle.clips(9000, 720, 5333)
    outputs = PackedModel([classifier, ctc, classifier.sew_d])(waveforms)
    class_logits, ctc_logits = zip(*(output.logits for output in outputs), strict=True)
    assert_clips_close(oracle, ctc_logits, alone(ctc_theirs, waveforms))
    assert_clips_close(oracle, class_logits, alone(classifier_theirs, waveforms))
    hidden = [output.last_hidden_state for output in outputs]
    assert_clips_close(oracle, hidden, alone(ctc_theirs.sew_d, waveforms))


@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize(
    "clip",
    {
        "offset of ten thousand times the signal": lambda n: 0.1 * torch.sin(torch.arange(n) * 0.3) + 1000.0,
        "offset that a loud end undoes": lambda n: torch.where(torch.arange(n) < n - 500, 0.5, -9.0) + torch.randn(n),
        "constant": lambda n: torch.full((n,), 0.7),
        "silence": torch.zeros,
        "a click in silence": lambda n: (torch.arange(n) == 3000).float(),
        "loud": lambda n: 1e4 * torch.randn(n),
        "faint": lambda n: 1e-4 * torch.randn(n),
    }.items(),
    ids=lambda item: item[0],
)
def test_unusual_levels_equal_the_reference_in_float64(oracle, clip, conv_bias):
    _, model = oracle.pair("ctc", **SMALL, conv_bias=conv_bias)
    torch.manual_seed(0)
    waveforms = [*oracle.clips(4000), clip[1](8000), *oracle.clips(5000)]
    actual = [output.logits[0] for output in PackedModel([model])(waveforms)]
    expected = alone(model.double(), [waveform.double() for waveform in waveforms])
    for one, other in zip(actual, expected, strict=True):
        oracle.assert_close(one, other, floor=(expected[0].max() - expected[0].min()).item())


def test_a_nan_affects_only_its_own_clip(oracle, small):
    _, packed = small
    one, two, three = oracle.clips(4000, 3000, 5000)
    expected = [packed([clip])[0].logits[0] for clip in (one, three)]
    for bad in (float("nan"), float("inf")):
        actual = packed([one, torch.full_like(two, bad), three])
        assert actual[1].logits[0].isnan().any()
        assert_clips_close(oracle, [actual[0].logits[0], actual[2].logits[0]], expected, 1e-5)


def test_a_pack_holds_as_many_neighbours_as_fit_the_limit(oracle, small, monkeypatch):
    _, packed = small
    monkeypatch.setattr(packed, "pack_frames", 20)
    waveforms = oracle.clips(*(80 + 320 * frames for frames in (8, 12, 1, 30, 5, 15, 16, 4, 20)))
    frames = [[packed.config.num_frames(len(clip)) for clip in pack] for pack in packed._packs(waveforms)]
    assert frames == [[8, 12], [1], [30], [5, 15], [16, 4], [20]]


def test_results_and_their_order_do_not_depend_on_threads(oracle, monkeypatch):
    _, model = oracle.pair("ctc", **SMALL)
    monkeypatch.setattr(packed_module, "PACK_FRAMES", 20)
    waveforms = oracle.clips(*range(8000, 720, -317))
    one, three = PackedModel([model])(waveforms), PackedModel([model], threads=3)(waveforms)
    assert [len(output.last_hidden_state) for output in three] == sorted(
        (len(output.last_hidden_state) for output in one), reverse=True
    )
    for output, other in zip(three, one, strict=True):
        assert torch.equal(output.logits[0], other.logits[0])
        assert not output.logits[0].requires_grad


def test_an_error_in_a_thread_is_raised_and_the_next_call_works(oracle):
    _, model = oracle.pair("ctc", **SMALL)
    packed = PackedModel([model], threads=2)
    waveforms = oracle.clips(3000, 4000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_features", lambda waveform, map_parts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            packed(waveforms)
    assert len(packed(waveforms)) == 2


def test_inputs_are_not_modified_and_outputs_are_not_reused(oracle, small):
    waveforms = oracle.clips(3000, 900)
    copies = [waveform.clone() for waveform in waveforms]
    first = small[1](waveforms)
    kept = first[0].logits[0].clone()
    small[1](oracle.clips(3000, 900, seed=9))
    assert torch.equal(first[0].logits[0], kept)
    assert all(map(torch.equal, waveforms, copies))


def test_no_clips_give_no_outputs(small):
    assert small[1]([]) == []


def test_a_short_clip_among_others_is_refused(oracle, small):
    with pytest.raises(InputTooShortError, match=r"719 samples.*at least 720"):
        small[1](oracle.clips(3000, 719))


@pytest.mark.parametrize("waveform", [torch.zeros(1, 3000), torch.zeros(3000, dtype=torch.float64), torch.zeros(())])
def test_input_other_than_a_float32_waveform_is_refused(small, waveform):
    with pytest.raises(ValueError, match="must be float32"):
        small[1]([waveform])


def test_different_backbones_and_other_dtypes_are_refused(oracle):
    _, one = oracle.pair("ctc")
    _, other = oracle.pair("classifier", seed=1)
    with pytest.raises(ValueError, match="share one backbone"):
        PackedModel([one, other])
    with pytest.raises(ValueError, match="share one backbone"):
        PackedModel([])
    with pytest.raises(ValueError, match="float32 on the CPU"):
        PackedModel([one.to(torch.bfloat16)])
