"""The configuration: transformers' defaults, a lossless round trip, and contradictions refused by name."""

import copy
import dataclasses
import json
import pickle

import pytest
import transformers

from sewd_model import CheckpointError, SEWDConfig, SEWDModel


def test_defaults_are_those_of_transformers():
    config, reference = SEWDConfig(), transformers.SEWDConfig()
    for item in dataclasses.fields(SEWDConfig):
        if item.name not in ("extra", "max_relative_positions"):
            assert getattr(config, item.name) == getattr(reference, item.name), item.name
    assert (config.num_labels, config.label2id) == (reference.num_labels, reference.label2id)


def test_every_field_of_transformers_is_known():
    reference = set(transformers.SEWDConfig.__dataclass_fields__)
    common = set(transformers.PreTrainedConfig.__dataclass_fields__)
    known = {item.name for item in dataclasses.fields(SEWDConfig)}
    assert reference - common <= known


CHANGED = {
    "vocab_size": 45,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "squeeze_factor": 3,
    "max_position_embeddings": 300,
    "position_buckets": 64,
    "share_att_key": False,
    "relative_attention": False,
    "pos_att_type": ["c2p"],
    "norm_rel_ebd": "none",
    "hidden_act": "relu",
    "hidden_dropout": 0.2,
    "activation_dropout": 0.3,
    "attention_dropout": 0,
    "feat_proj_dropout": 0.4,
    "final_dropout": 1.0,
    "initializer_range": 0.1,
    "layer_norm_eps": 1e-4,
    "feature_layer_norm_eps": 1e-3,
    "feat_extract_norm": "layer",
    "feat_extract_activation": "silu",
    "conv_dim": [8, 16],
    "conv_stride": [4, 2],
    "conv_kernel": [9, 3],
    "conv_bias": True,
    "num_conv_pos_embeddings": 31,
    "num_conv_pos_embedding_groups": 12,
    "apply_spec_augment": False,
    "mask_time_prob": 0.5,
    "mask_time_length": 4,
    "mask_time_min_masks": 0,
    "mask_feature_prob": 0.25,
    "mask_feature_length": 3,
    "mask_feature_min_masks": 1,
    "ctc_loss_reduction": "sum",
    "ctc_zero_infinity": True,
    "use_weighted_layer_sum": True,
    "classifier_proj_size": 17,
    "pad_token_id": 44,
    "bos_token_id": None,
    "eos_token_id": [5, 6],
    "id2label": {"0": "yes", "1": "no", "2": "more"},
}


def test_every_value_round_trips_through_json_and_transformers(tmp_path):
    config = SEWDConfig.from_dict(CHANGED)
    for name, value in CHANGED.items():
        if name not in ("attention_dropout",):
            default = getattr(SEWDConfig(), name)
            assert getattr(config, name) != default, f"{name} is not changed by this test"
        actual = getattr(config, name)
        assert (list(actual) if isinstance(actual, tuple) else actual) == (
            {int(key): label for key, label in value.items()} if name == "id2label" else value
        )
    config.save_pretrained(tmp_path)
    assert SEWDConfig.from_pretrained(tmp_path) == config
    reference = transformers.SEWDConfig.from_pretrained(tmp_path)
    for name in CHANGED:
        actual, expected = getattr(reference, name), getattr(config, name)
        assert (list(actual) if isinstance(actual, list | tuple) else actual) == (
            list(expected) if isinstance(expected, tuple) else expected
        ), name
    reference.save_pretrained(tmp_path / "theirs")
    back = SEWDConfig.from_pretrained(tmp_path / "theirs")
    assert dataclasses.replace(back, extra={}) == config


def test_unknown_keys_are_kept_and_written_back(tmp_path):
    values = {
        "architectures": ["SEWDForCTC"],
        "transformers_version": "4.11.0.dev0",
        "torch_dtype": "float32",
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "output_hidden_size": 768,
        "codevector_dim": 256,
        "num_codevectors_per_group": 320,
        "add_adapter": False,
        "gradient_checkpointing": False,
        "task_specific_params": {"nested": [1, None, "x"]},
    }
    config = SEWDConfig.from_dict({"model_type": "sew-d", **values})
    assert config.extra == values
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in values} == values
    assert written["model_type"] == "sew-d"
    assert SEWDConfig.from_pretrained(tmp_path) == config


REFUSED = {
    "unequal convolution lists": ({"conv_dim": [8, 8]}, ["conv_dim", "conv_stride", "conv_kernel"]),
    "no convolutions": ({"conv_dim": [], "conv_stride": [], "conv_kernel": []}, ["conv_dim"]),
    "stride of 0": ({"conv_stride": [0] * 13}, ["conv_stride"]),
    "kernel that is no list": ({"conv_kernel": 3}, ["conv_kernel"]),
    "unknown activation": ({"hidden_act": "gleu"}, ["hidden_act"]),
    "activation with weights": ({"hidden_act": "prelu"}, ["hidden_act"]),
    "activation that transformers only documents": (
        {"feat_extract_activation": "selu"},
        ["feat_extract_activation"],
    ),
    "activation that is no name": ({"hidden_act": None}, ["hidden_act"]),
    "unknown norm": ({"feat_extract_norm": "batch"}, ["feat_extract_norm"]),
    "unknown reduction": ({"ctc_loss_reduction": "median"}, ["ctc_loss_reduction"]),
    "unknown attention term": ({"pos_att_type": ["c2p", "p2p"]}, ["pos_att_type"]),
    "attention terms that are no list": ({"pos_att_type": 3}, ["pos_att_type"]),
    "attention terms with a list inside": ({"pos_att_type": [["c2p"]]}, ["pos_att_type"]),
    "probability above 1": ({"mask_time_prob": 1.5}, ["mask_time_prob"]),
    "negative dropout": ({"attention_dropout": -0.1}, ["attention_dropout"]),
    "dropout in words": ({"final_dropout": "0.1"}, ["final_dropout"]),
    "not a number": ({"mask_feature_prob": float("nan")}, ["mask_feature_prob"]),
    "infinite epsilon": ({"layer_norm_eps": float("inf")}, ["layer_norm_eps"]),
    "epsilon of 0": ({"feature_layer_norm_eps": 0.0}, ["feature_layer_norm_eps"]),
    "negative spread": ({"initializer_range": -1.0}, ["initializer_range"]),
    "no layers": ({"num_hidden_layers": 0}, ["num_hidden_layers"]),
    "squeeze of 0": ({"squeeze_factor": 0}, ["squeeze_factor"]),
    "size in words": ({"hidden_size": "768"}, ["hidden_size"]),
    "size that is true": ({"intermediate_size": True}, ["intermediate_size"]),
    "span of 0": ({"mask_time_length": 0}, ["mask_time_length"]),
    "negative masks": ({"mask_feature_min_masks": -1}, ["mask_feature_min_masks"]),
    "flag in words": ({"conv_bias": "no"}, ["conv_bias"]),
    "buckets beyond the distance": (
        {"position_buckets": 1024},
        ["position_buckets", "max_position_embeddings"],
    ),
    "buckets that meet the distance": (
        {"position_buckets": 256, "max_position_embeddings": 129},
        ["position_buckets", "max_position_embeddings"],
    ),
    "one bucket": ({"position_buckets": 1}, ["position_buckets"]),
    "buckets beyond the legacy distance": (
        {"max_relative_positions": 100},
        ["position_buckets", "max_relative_positions"],
    ),
    "count that is not that of the labels": (
        {"num_labels": 3, "id2label": {"0": "a", "1": "b"}},
        ["num_labels", "id2label"],
    ),
    "no labels": ({"num_labels": 0}, ["num_labels"]),
    "empty labels": ({"id2label": {}}, ["id2label"]),
    "labels with a gap": ({"id2label": {"0": "a", "2": "b"}}, ["id2label"]),
    "label numbers in words": ({"id2label": {"first": "a"}}, ["id2label"]),
    "labels that are no object": ({"id2label": ["a", "b"]}, ["id2label"]),
    "label maps that disagree": (
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}},
        ["label2id", "id2label"],
    ),
    "adapters": ({"add_adapter": True}, ["add_adapter"]),
    "quantized weights": ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
    "blank outside the vocabulary": ({"pad_token_id": 32}, ["pad_token_id", "vocab_size"]),
    "negative blank": ({"pad_token_id": -1}, ["pad_token_id"]),
    "head size of its own": ({"attention_head_size": 32}, ["attention_head_size"]),
    "convolution after the first layer": ({"conv_kernel_size": 3}, ["conv_kernel_size"]),
    "count that is not that of the convolutions": ({"num_feat_extract_layers": 7}, ["num_feat_extract_layers"]),
    "another model": ({"model_type": "wav2vec2"}, ["model_type"]),
}


@pytest.mark.parametrize(("values", "names"), REFUSED.values(), ids=REFUSED)
def test_contradictory_value_is_refused_by_name(values, names):
    with pytest.raises(ValueError, match=names[0]) as caught:
        SEWDConfig.from_dict(values)
    for name in names:
        assert name in str(caught.value)


ACCEPTED = {
    "head size that is the same": {"attention_head_size": 64},
    "no convolution after the first layer": {"conv_kernel_size": 0},
    "convolution count that agrees": {"num_feat_extract_layers": 13},
    "buckets just below the distance": {"position_buckets": 256, "max_position_embeddings": 130},
    "buckets that nothing reads": {"position_buckets": 1024, "relative_attention": False},
    "label numbers as strings": {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": "0", "b": "1"}},
    "no attention terms": {"pos_att_type": None},
    "no blank": {"pad_token_id": None},
}


@pytest.mark.parametrize("values", ACCEPTED.values(), ids=ACCEPTED)
def test_value_at_the_edge_is_accepted(values):
    SEWDConfig.from_dict(values)


def test_num_labels_gives_the_labels_of_transformers():
    config, reference = SEWDConfig.from_dict({"num_labels": 4}), transformers.SEWDConfig(num_labels=4)
    assert (config.id2label, config.label2id, config.num_labels) == (reference.id2label, reference.label2id, 4)


def test_attention_terms_in_early_spelling_are_a_list():
    assert SEWDConfig.from_dict({"pos_att_type": "c2p|p2c"}).pos_att_type == ("c2p", "p2c")
    assert SEWDConfig.from_dict({"pos_att_type": "p2c"}).pos_att_type == ("p2c",)


def test_legacy_distance_sets_span_and_distance():
    config = SEWDConfig(max_relative_positions=200, position_buckets=-1)
    assert (config.max_distance, config.position_span) == (200, 200)
    assert SEWDConfig(max_relative_positions=200).position_span == 256
    assert SEWDConfig().max_distance == 512


@pytest.mark.parametrize(
    "values",
    [{}, {"conv_stride": (3, 2, 2), "conv_kernel": (7, 4, 2), "conv_dim": (4, 4, 4), "squeeze_factor": 3}],
    ids=["defaults", "three layers"],
)
def test_frame_counts_are_those_of_transformers(values):
    import torch

    config = SEWDConfig(**values)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    reference = transformers.SEWDModel(transformers.SEWDConfig(**{**values, **size, "intermediate_size": 4}))
    for samples in (config.min_samples, 1000, 1279, 1280, 1281, 16000, 99_999):
        assert config.num_frames(samples) == reference._get_feat_extract_output_lengths(torch.tensor(samples))
    assert config.num_frames(config.min_samples) == config.squeeze_factor
    assert config.num_frames(config.min_samples - 1) == config.squeeze_factor - 1
    assert config.num_frames(0) == config.num_frames(1) == 0
    assert config.num_frames(16000 + 10 * config.hop_length) == config.num_frames(16000) + 10


@pytest.mark.parametrize("name", ["num_attention_heads", "num_conv_pos_embedding_groups"])
def test_sizes_that_do_not_divide_are_refused_where_a_model_is_built(name, tmp_path):
    config = SEWDConfig(**{name: 7})
    with pytest.raises(ValueError, match=f"hidden_size 768 is not a multiple of {name} 7"):
        SEWDModel(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"config.json.*hidden_size 768 is not a multiple of {name} 7"):
        SEWDModel.from_pretrained(tmp_path)


def test_keys_of_every_configuration_are_taken_kept_and_readable(tmp_path):
    values = {"feat_extract_dropout": 0.0, "position_biased_input": False, "output_attentions": True, "layerdrop": 0.1}
    config = SEWDConfig(num_labels=3, return_dict=False, **values)
    assert config.num_labels == 3
    assert {name: getattr(config, name) for name in values} == values
    config.save_pretrained(tmp_path)
    assert SEWDConfig.from_pretrained(tmp_path) == config
    reference = transformers.SEWDConfig.from_pretrained(tmp_path)
    assert (reference.layerdrop, reference.output_attentions, reference.num_labels) == (0.1, True, 3)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


def test_keys_that_are_not_set_have_the_defaults_of_transformers():
    config, reference = SEWDConfig(), transformers.SEWDConfig()
    for name in ("output_hidden_states", "output_attentions", "return_dict", "problem_type", "inputs_to_logits_ratio"):
        assert getattr(config, name) == getattr(reference, name), name
    assert config.diversity_loss_weight == 0.1  # documented by transformers, which has no such attribute
    assert "output_attentions" not in config.to_dict()
    with pytest.raises(AttributeError, match="layer_drop"):
        config.layer_drop  # noqa: B018


def test_assigned_values_are_checked_and_a_refused_one_changes_nothing():
    config = SEWDConfig()
    config.ctc_loss_reduction = "sum"
    config.layerdrop = 0.0
    config.conv_dim = [1] * 13
    assert (config.ctc_loss_reduction, config.layerdrop, config.conv_dim) == ("sum", 0.0, (1,) * 13)
    config.num_labels = 5
    assert config.id2label == dict(enumerate(["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4"]))
    config.id2label = {0: "yes", 1: "no"}
    assert (config.num_labels, config.label2id) == (2, {"yes": 0, "no": 1})
    config.label2id = {"on": 1, "off": 0}
    assert config.id2label == {0: "off", 1: "on"}
    before = copy.deepcopy(config)
    for name, value in {
        "ctc_loss_reduction": "median",
        "conv_stride": [1],
        "num_labels": 0,
        "add_adapter": True,
    }.items():
        with pytest.raises(ValueError, match=name):
            setattr(config, name, value)
    with pytest.raises(AttributeError, match="hop_length"):
        config.hop_length = 3
    assert config == before
