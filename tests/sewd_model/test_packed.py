"""Packed batches: every clip's output is what transformers gives for it alone, whatever is packed beside it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sewd_model import InputTooShortError, SEWDConfig
from sewd_model.packed import PackedModel
from sewd_model.packed_features import TILE_FRAMES

# 20 samples a frame; frames: 61 (odd), 40, 25 (odd), 4, 2, and 60 with 7 samples that reach no frame.
LENGTHS = (1230, 810, 510, 90, 50, 1217)
SMALL_CONV = (8, 16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32)
PUBLISHED_CONV = {
    "conv_dim": SMALL_CONV,
    "conv_kernel": SEWDConfig.conv_kernel,
    "conv_stride": SEWDConfig.conv_stride,
}
CONFIGURATIONS = {
    "defaults": {},
    "published convolutions": PUBLISHED_CONV,
    "layer norm extractor": {"feat_extract_norm": "layer"},
    "layer norm extractor with conv bias": {"feat_extract_norm": "layer", "conv_bias": True},
    "conv bias": {"conv_bias": True},
    "one convolution": {"conv_dim": (8,), "conv_kernel": (10,), "conv_stride": (5,)},
    "wide kernels, odd strides": {"conv_kernel": (7, 8, 5), "conv_stride": (4, 3, 2)},
    "kernels below their strides": {"conv_kernel": (3, 1, 2), "conv_stride": (5, 2, 3)},
    "even positional kernel": {"num_conv_pos_embeddings": 6},
    "even positional kernel, squeeze 3": {"num_conv_pos_embeddings": 4, "squeeze_factor": 3},
    "positional kernel of 1": {"num_conv_pos_embeddings": 1},
    "positional kernel of 128": {"num_conv_pos_embeddings": 128},
    "squeeze 1": {"squeeze_factor": 1},
    "squeeze 3": {"squeeze_factor": 3},
    "own position projections": {"share_att_key": False},
    "c2p only": {"pos_att_type": ["c2p"]},
    "p2c only": {"pos_att_type": ["p2c"]},
    "no position terms": {"pos_att_type": []},
    "own projection, c2p only": {"pos_att_type": ["c2p"], "share_att_key": False},
    "own projection, p2c only": {"pos_att_type": ["p2c"], "share_att_key": False},
    "no buckets": {"position_buckets": -1, "max_position_embeddings": 30},
    "no buckets, clamped": {"position_buckets": -1, "max_position_embeddings": 7},
    "odd bucket count": {"position_buckets": 7},
    "two buckets": {"position_buckets": 2},
    "many buckets": {"position_buckets": 64, "max_position_embeddings": 200},
    "maximum distance by its legacy key": {"max_relative_positions": 17},
    "no relative attention": {"relative_attention": False},
    "no relative attention, own projections": {"relative_attention": False, "share_att_key": False},
    "plain position table": {"norm_rel_ebd": "none"},
    "features not projected": {"conv_dim": (8, 8, 16)},
    "relu extractor, gelu_new layers": {"feat_extract_activation": "relu", "hidden_act": "gelu_new"},
    "large norm epsilons": {"layer_norm_eps": 0.1, "feature_layer_norm_eps": 0.2},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1},
}
KINDS = {
    "backbone": ("backbone", {}),
    "ctc": ("ctc", {}),
    "classifier": ("classifier", {}),
    "weighted classifier": ("classifier", {"use_weighted_layer_sum": True}),
}


def main_output(output):
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits


def found_output(output):
    return output.logits[0] if output.logits else output.last_hidden_state


@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize(("kind", "of_kind"), KINDS.values(), ids=KINDS)
def test_each_clip_of_a_packed_batch_equals_transformers_on_that_clip_alone(oracle, kind, of_kind, overrides):
    theirs, ours = oracle.pair(kind, **overrides, **of_kind)
    least = ours.config.min_samples
    waveforms = oracle.clips(*(max(least, length) for length in LENGTHS), least, least + 1, 4 * least)
    outputs = PackedModel([ours])(waveforms)
    for waveform, found in zip(waveforms, outputs, strict=True):
        with torch.no_grad():
            expected = main_output(theirs(waveform[None]))[0]
        oracle.assert_close(found_output(found), expected)
        assert len(found.last_hidden_state) == ours.config.num_frames(len(waveform))


