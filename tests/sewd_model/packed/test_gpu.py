"""Packed batches on one device: the logits of each clip are those of transformers for the clip alone.

Here the device is the CPU, where FlexAttention runs without a compiler.
"""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sewd_model import InputTooShortError, SEWDConfig
from sewd_model.packed import gpu_layers
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_attention import BLOCK, Clips, padded_length
from tests.sewd_model.packed.test_cpu import CONFIGURATIONS, KINDS, LENGTHS, SMALL, alone, assert_clips_close

CPU = torch.device("cpu")
CHECK_LENGTHS = [26, 300, 7, 140]  # about as in `gpu_check`
BATCHES = 200
ONE_LAYER = {**SMALL, "num_hidden_layers": 1}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def logits(model, waveforms, head=0):
    return [clip_logits[head] for clip_logits in model(waveforms)]


def random_lengths(generator):
    """Lengths of clips: often one clip, or a number of blocks that equals the heads, or a clip of 512 frames."""
    number = generator.choice([1, 2, 4, 6, 8, 12, 20])
    longest = generator.choice([2, 40, 128, 256, 512])
    return [generator.choice([generator.randint(1, longest), longest]) for _ in range(number)]


def pack(*models, dtype="float32"):
    return PackedDeviceModel(models, device=CPU, dtype=dtype)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_of_each_clip_equal_transformers_on_that_clip_alone(oracle, name):
    reference, model = oracle.pair("ctc", **CONFIGURATIONS[name])
    least = model.config.min_samples
    waveforms = oracle.clips(*(max(least, length) for length in LENGTHS), least, least + 1, 4 * least)
    assert_clips_close(oracle, logits(pack(model), waveforms), alone(reference, waveforms))


@pytest.mark.parametrize("name", ["defaults", "squeeze 3"])
@pytest.mark.parametrize("kind", ["classifier", "weighted classifier"])
def test_class_logits_of_each_clip_equal_transformers_on_that_clip_alone(oracle, name, kind):
    kind, kind_options = KINDS[kind]
    reference, model = oracle.pair(kind, **CONFIGURATIONS[name], **kind_options)
    waveforms = oracle.clips(*(max(model.config.min_samples, length) for length in LENGTHS))
    assert_clips_close(oracle, logits(pack(model), waveforms), alone(reference, waveforms))


@pytest.fixture(scope="module")
def small(oracle):
    """A CTC model of transformers with the published kernels and one layer, and the same model packed."""
    reference, model = oracle.pair("ctc", **ONE_LAYER)
    return reference, pack(model)


def test_clips_of_many_blocks_and_distant_offsets_equal_transformers(oracle, small):
    reference, packed = small
    waveforms = oracle.clips(16_000, 12 * 16_000 + 7, 720, 3 * 16_000, 40_000)
    assert packed.config.num_frames(len(waveforms[1])) // 2 > 2 * BLOCK
    assert_clips_close(oracle, logits(packed, waveforms), alone(reference, waveforms))


def test_every_length_from_the_shortest_to_a_few_frames_equals_transformers(oracle, small):
    reference, packed = small
    waveforms = oracle.clips(*range(720, 720 + 4 * 320, 33))
    assert_clips_close(oracle, logits(packed, waveforms), alone(reference, waveforms))


@given(lengths=st.lists(st.integers(720, 12_000), min_size=1, max_size=6), data=st.data())
@settings(max_examples=12, deadline=None)
def test_results_do_not_depend_on_batch_or_order(oracle, small, lengths, data):
    reference, packed = small
    order = data.draw(st.permutations(range(len(lengths))))
    clips = oracle.clips(*lengths)
    waveforms = [clips[row] for row in order]
    actual = logits(packed, waveforms)
    assert_clips_close(oracle, actual, alone(reference, waveforms))
    oracle.assert_close(actual[0], logits(packed, waveforms[:1])[0], 1e-5)


@pytest.mark.parametrize("overrides", [{}, {"use_weighted_layer_sum": True}], ids=["last layer", "weighted layers"])
def test_several_heads_share_one_pass(oracle, overrides):
    sizes = {"num_labels": 6, **SMALL, **overrides}
    ctc_theirs, ctc = oracle.pair("ctc", **sizes)
    classifier_theirs, classifier = oracle.pair("classifier", seed=5, **sizes)
    for one, other in ((ctc, classifier), (ctc_theirs, classifier_theirs)):
        other.sew_d.load_state_dict(one.sew_d.state_dict())
    waveforms = oracle.clips(9000, 720, 5333)
    packed = pack(classifier, ctc)
    assert_clips_close(oracle, logits(packed, waveforms), alone(classifier_theirs, waveforms))
    assert_clips_close(oracle, logits(packed, waveforms, head=1), alone(ctc_theirs, waveforms))


@pytest.mark.parametrize("conv_bias", [False, True])
def test_unusual_levels_equal_the_reference_in_float64(oracle, conv_bias):
    _, model = oracle.pair("ctc", **ONE_LAYER, conv_bias=conv_bias)
    time = torch.arange(8000)
    waveforms = [
        *oracle.clips(4000),
        0.1 * torch.sin(time * 0.3) + 1000.0,
        torch.where(time < 7500, 0.5, -9.0) + 0.1 * torch.sin(time * 0.7),
        torch.full((8000,), 0.7),
        torch.zeros(8000),
        (time == 3000).float(),
        *(level * clip for level, clip in zip((1e4, 1e-4), oracle.clips(5000, 5000, seed=3), strict=True)),
    ]
    actual = logits(pack(model), waveforms)
    expected = alone(model.double(), [waveform.double() for waveform in waveforms])
    floor = (expected[0].max() - expected[0].min()).item()
    for one, other in zip(actual, expected, strict=True):
        oracle.assert_close(one, other, floor=floor)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision_is_near_float32_and_returns_float32(oracle, dtype, tolerance):
    """The tolerance is a share of the spread of the logits, with random weights."""
    reference, model = oracle.pair("ctc", **SMALL)
    waveforms = oracle.clips(9000, 720, 5333)
    actual = logits(pack(model, dtype=dtype), waveforms)
    assert {clip.dtype for clip in actual} == {torch.float32}
    assert_clips_close(oracle, actual, alone(reference, waveforms), tolerance)


def test_inputs_are_not_modified(oracle, small):
    waveforms = oracle.clips(3000, 900)
    copies = [waveform.clone() for waveform in waveforms]
    small[1](waveforms)
    assert all(map(torch.equal, waveforms, copies))


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
    for models in ([one, other], []):
        with pytest.raises(ValueError, match="share one backbone"):
            pack(*models)
    with pytest.raises(ValueError, match="float32 on the CPU"):
        pack(one.to(torch.bfloat16))


def test_the_mask_has_the_blocks_of_each_clip_and_no_others():
    lengths = [100, 300, 1, 257, 128]
    mask = Clips.lay_out(lengths, SEWDConfig(), CPU).mask()
    clip = torch.repeat_interleave(torch.arange(6), torch.tensor([*lengths, -sum(lengths) % BLOCK]))
    blocks = (clip[:, None] == clip).view(len(clip) // BLOCK, BLOCK, -1, BLOCK)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(3).any(1))
    whole = torch.zeros_like(blocks.all(3).all(1))
    for row, (count, columns) in enumerate(
        zip(mask.full_kv_num_blocks[0, 0].tolist(), mask.full_kv_indices[0, 0].tolist(), strict=True)
    ):
        whole[row, columns[:count]] = True
    assert torch.equal(whole, blocks.all(3).all(1))
    assert whole.any()


@pytest.mark.parametrize("heads", [4, 6, 8, 12])
def test_the_layers_are_compiled_once_for_all_batches(oracle, heads, monkeypatch):
    """Whatever sizes are equal by chance: blocks and heads, frames and channels, clips and columns."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lambda *_: (torch.zeros(()),)  # the result does not matter here

    torch.compiler.reset()
    compiled = torch.compile(gpu_layers._run_layers, fullgraph=True, dynamic=False, backend=backend)
    monkeypatch.setattr(gpu_layers, "_compiled", lambda: compiled)
    monkeypatch.setattr(gpu_layers, "_is_compiled", lambda _: True)
    _, model = oracle.pair("ctc", **ONE_LAYER, num_attention_heads=heads, hidden_size=8 * heads)
    layers = pack(model)._layers
    generator = random.Random(heads)
    with torch.inference_mode():
        for lengths in [CHECK_LENGTHS, *(random_lengths(generator) for _ in range(BATCHES))]:
            clips = Clips.lay_out(lengths, model.config, CPU)
            hidden = torch.zeros(padded_length(lengths), model.config.hidden_size)
            gpu_layers.run_layers(layers, hidden, clips, None)
    assert len(graphs) == 1


def test_compiled_layers_compute_what_the_layers_compute(oracle, small, monkeypatch):
    waveforms = oracle.clips(90_000, 720, 41_000)
    expected = logits(small[1], waveforms)
    torch.compiler.reset()
    compiled = torch.compile(gpu_layers._run_layers, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(gpu_layers, "_compiled", lambda: compiled)
    monkeypatch.setattr(gpu_layers, "_is_compiled", lambda _: True)
    assert_clips_close(oracle, logits(small[1], waveforms), expected, 1e-5)
