"""Options of SEWDConfig in the combinations that have code paths of their own in the model."""

from __future__ import annotations

CONFIGURATIONS = {
    "defaults": {},
    "layer norm extractor": {"feat_extract_norm": "layer"},
    "layer norm extractor with conv bias": {"feat_extract_norm": "layer", "conv_bias": True},
    "conv bias": {"conv_bias": True},
    "even positional kernel": {"num_conv_pos_embeddings": 6},
    "even positional kernel, squeeze 3": {"num_conv_pos_embeddings": 4, "squeeze_factor": 3},
    "positional kernel of 1": {"num_conv_pos_embeddings": 1},
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
    "maximum distance by its legacy key": {"max_relative_positions": 17},
    "no relative attention": {"relative_attention": False},
    "no relative attention, own projections": {"relative_attention": False, "share_att_key": False},
    "plain position table": {"norm_rel_ebd": "none"},
    "features not projected": {"conv_dim": (8, 8, 16)},
    "relu extractor, gelu_new layers": {"feat_extract_activation": "relu", "hidden_act": "gelu_new"},
    "large norm epsilons": {"layer_norm_eps": 0.1, "feature_layer_norm_eps": 0.2},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1},
}
