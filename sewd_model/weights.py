"""The weights that a model of a configuration has, and whether a file holds just these: without loading torch.

What reads a checkpoint to plan its use needs the configuration, and to know that the weights will load. Building the
model to find out takes seconds.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from sewd_model.config import SEWDConfig
from sewd_model.files import SAFETENSORS_FILE, Location, local_path

BACKBONE_PREFIX: Final = "sew_d."
MASK_VECTOR: Final = "masked_spec_embed"
CTC_KEYS: Final = ("lm_head",)  # first parts of the keys of the heads of published SEW-D checkpoints
CLASSIFIER_KEYS: Final = ("layer_weights", "projector", "classifier")
HEAD_KEYS: Final = (*CTC_KEYS, *CLASSIFIER_KEYS)
# Weight norm of older torch, and its present spelling.
SPELLINGS: Final = {
    ".conv.weight_g": ".conv.parametrizations.weight.original0",
    ".conv.weight_v": ".conv.parametrizations.weight.original1",
}
_FLOATING: Final = frozenset({"F16", "BF16", "F32", "F64"})

Shapes = dict[str, tuple[int, ...]]


def ctc_shapes(config: SEWDConfig) -> Shapes:
    """Return the shape of each weight of `SEWDForCTC`, by its key in the state dict."""
    return _backbone(config) | _linear("lm_head", config.hidden_size, config.vocab_size)


def classifier_shapes(config: SEWDConfig) -> Shapes:
    """Return the shape of each weight of `SEWDForSequenceClassification`, by its key in the state dict."""
    shapes = _backbone(config)
    if config.use_weighted_layer_sum:
        shapes["layer_weights"] = (config.num_hidden_layers + 1,)
    shapes |= _linear("projector", config.hidden_size, config.classifier_proj_size)
    return shapes | _linear("classifier", config.classifier_proj_size, config.num_labels)


def _backbone(config: SEWDConfig) -> Shapes:
    hidden, channels = config.hidden_size, config.conv_dim[-1]
    shapes: Shapes = {}
    for index, (inputs, outputs, kernel) in enumerate(
        zip((1, *config.conv_dim[:-1]), config.conv_dim, config.conv_kernel, strict=True)
    ):
        layer = f"feature_extractor.conv_layers.{index}"
        shapes[f"{layer}.conv.weight"] = (outputs, inputs, kernel)
        if config.conv_bias:
            shapes[f"{layer}.conv.bias"] = (outputs,)
        if config.feat_extract_norm == "layer" or index == 0:
            shapes |= _norm(f"{layer}.layer_norm", outputs)
    shapes |= _norm("layer_norm", channels)
    if channels != hidden:
        shapes |= _linear("feature_projection", channels, hidden)
    if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
        shapes[MASK_VECTOR] = (hidden,)
    kernel, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    positional = "encoder.pos_conv_embed.conv"
    shapes[f"{positional}.bias"] = (hidden,)
    shapes[f"{positional}.parametrizations.weight.original0"] = (1, 1, kernel)
    shapes[f"{positional}.parametrizations.weight.original1"] = (hidden, hidden // groups, kernel)
    for index in range(config.num_hidden_layers):
        shapes |= _layer(f"encoder.encoder.layer.{index}", config)
    if config.relative_attention:
        shapes["encoder.encoder.rel_embeddings.weight"] = (2 * config.position_span, hidden)
    if config.normalizes_positions:
        shapes |= _norm("encoder.encoder.LayerNorm", hidden)
    shapes |= _linear("encoder.upsample.projection", hidden, hidden * config.squeeze_factor)
    return {BACKBONE_PREFIX + key: shape for key, shape in shapes.items()}


def _layer(name: str, config: SEWDConfig) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    projections = ["query_proj", "key_proj", "value_proj"]
    if config.relative_attention and not config.share_att_key:
        projections += ["pos_key_proj"] * ("c2p" in config.pos_att_type)
        projections += ["pos_query_proj"] * ("p2c" in config.pos_att_type)
    shapes: Shapes = {}
    for projection in projections:
        shapes |= _linear(f"{name}.attention.self.{projection}", hidden, hidden)
    shapes |= _linear(f"{name}.attention.output.dense", hidden, hidden)
    shapes |= _norm(f"{name}.attention.output.LayerNorm", hidden)
    shapes |= _linear(f"{name}.intermediate.dense", hidden, inner)
    shapes |= _linear(f"{name}.output.dense", inner, hidden)
    return shapes | _norm(f"{name}.output.LayerNorm", hidden)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def holds(location: Location, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a checkpoint is one whole safetensors file on a local disk with just these weights, by its header.

    False says nothing: weights in another form, under other spellings or elsewhere may load too, and why they do not
    is for who loads them to say.
    """
    path = local_path(location, SAFETENSORS_FILE)
    if path is None:
        return False
    try:
        stored = list(_header(path))
    except (SafetensorError, OSError):
        return False
    others = CLASSIFIER_KEYS if "lm_head.weight" in shapes else CTC_KEYS  # of a head that the file may hold besides
    stored = [(key, shape) for key, shape in stored if key.split(".")[0] not in others]
    found = dict(stored)
    if len(found) < len(stored):  # a weight under two spellings
        return False
    mask = BACKBONE_PREFIX + MASK_VECTOR  # a model without one leaves it, and one with it begins with its own
    wanted = dict(shapes)
    if mask not in found or mask not in wanted:
        found.pop(mask, None)
        wanted.pop(mask, None)
    return found == wanted


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Yield the key and shape of each tensor of a safetensors file, which is whole; None for one that is not floats."""
    with safe_open(path, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            tensor = file.get_slice(key)
            name = key
            for old, new in SPELLINGS.items():
                if key.endswith(old):
                    name = key.removesuffix(old) + new
            yield name, tuple(tensor.get_shape()) if tensor.get_dtype() in _FLOATING else None
