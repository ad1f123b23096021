"""The configuration of a SEW-D model: every number that its weights and its arithmetic depend on.

The field names and defaults are those of `config.json` in the Hugging Face layout: transformers reads the files that
are written here, and the reverse. The names are explained in the paper (Wu et al., "Performance-Efficiency Trade-offs
in Unsupervised Pre-training for Speech Recognition", arXiv 2109.06870) and, for the disentangled attention, in DeBERTa
(He et al., arXiv 2006.03654).
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

from sewd_model import hub
from sewd_model.architecture import MODEL_TYPE, check_architecture
from sewd_model.files import CONFIG_FILE, CheckpointError, Location, read_json, shown, write_json

# The names in transformers' ACT2FN, without two that have weights of their own (prelu, xielu).
ACTIVATION_NAMES = frozenset(
    {
        "gelu",
        "gelu_10",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
        "hardswish",
        "laplace",
        "leaky_relu",
        "linear",
        "mish",
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "sigmoid",
        "silu",
        "sqrtsoftplus",
        "swish",
        "tanh",
    }
)

_POSITIVE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("squeeze_factor", "max_position_embeddings", "mask_time_length", "mask_feature_length"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "classifier_proj_size"),
)
_NOT_NEGATIVE = ("mask_time_min_masks", "mask_feature_min_masks")
_INTEGERS = (*_POSITIVE, *_NOT_NEGATIVE, "position_buckets", "max_relative_positions")
_PROBABILITIES = (
    *("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout"),
    *("mask_time_prob", "mask_feature_prob"),
)
_NUMBERS = (*_PROBABILITIES, "initializer_range", "layer_norm_eps", "feature_layer_norm_eps")
_FLAGS = (
    *("share_att_key", "relative_attention", "conv_bias", "apply_spec_augment"),
    *("ctc_zero_infinity", "use_weighted_layer_sum"),
)
# Bounds that no trained model comes near. Without them a damaged file takes hours, or all memory, to be refused.
_MAX_LAYERS = 1000
_MAX_LABELS = 10**6
_LABEL_KEYS = frozenset(("model_type", "id2label", "label2id", "num_labels"))
# What transformers answers for keys that are not in a file. They are not written.
_DEFAULTS_OF_EXTRA: Mapping[str, Any] = {
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "problem_type": None,
    "architectures": None,
    "dtype": None,
    "diversity_loss_weight": 0.1,  # of pre-training, which this package does not do
}
_CONV_TUPLES = ("conv_dim", "conv_stride", "conv_kernel")
_CHOICES = {
    "hidden_act": ACTIVATION_NAMES,
    "feat_extract_activation": ACTIVATION_NAMES,
    "feat_extract_norm": frozenset({"group", "layer"}),
    "ctc_loss_reduction": frozenset({"mean", "sum", "none"}),
}


class InputTooShortError(ValueError):
    """A clip has too few samples for one squeezed frame.

    Attributes:
        num_samples: samples of the (shortest) clip.
        min_samples: fewest samples that the model needs, `SEWDConfig.min_samples`.
    """

    def __init__(self, num_samples: int, min_samples: int) -> None:
        super().__init__(f"a clip of {num_samples} samples is too short: the model needs at least {min_samples}")
        self.num_samples = num_samples
        self.min_samples = min_samples

    def __reduce__(self) -> tuple[type["InputTooShortError"], tuple[int, int]]:
        # The default calls the constructor with the message, and unpickling in another process would fail.
        return type(self), (self.num_samples, self.min_samples)


def _default_labels() -> dict[int, str]:
    return {0: "LABEL_0", 1: "LABEL_1"}


@dataclass(kw_only=True)
class SEWDConfig:
    """All settings of a SEW-D model, checked at construction and at every assignment.

    Keys that this class does not know are kept in `extra`, are attributes as well, and are written back, except for
    the few that would change the arithmetic: these are rejected by name. A model reads the sizes when it is built, and
    the rest (`ctc_loss_reduction`, `output_hidden_states`, ...) when it is called, as transformers' models do.

    Raises:
        ValueError: values contradict each other, are out of range or are not supported; the message names the
            parameters.
    """

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    squeeze_factor: int = 2  # frames pooled into one before the transformer, and upsampled again after it

    # Disentangled attention. Offsets between query and key beyond position_buckets / 2 share buckets whose width grows
    # with the logarithm of the offset. With position_buckets <= 0 every offset has a row of its own, clamped at the
    # span.
    max_position_embeddings: int = 512
    max_relative_positions: int = -1  # < 1: max_position_embeddings. A legacy key, which the reference reads too.
    position_buckets: int = 256
    share_att_key: bool = True  # content and position share the key and query projections
    relative_attention: bool = True
    pos_att_type: tuple[str, ...] = ("p2c", "c2p")
    norm_rel_ebd: str = "layer_norm"  # "|"-separated words; only "layer_norm" has a meaning

    hidden_act: str = "gelu_python"
    hidden_dropout: float = 0.1  # deprecated and unused, as in the reference
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    feature_layer_norm_eps: float = 1e-5

    # Convolutional feature extractor, one entry per layer.
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)
    conv_kernel: tuple[int, ...] = (10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128  # kernel size of the positional convolution
    num_conv_pos_embedding_groups: int = 16

    # SpecAugment (arXiv 1904.08779) on the projected features, in training.
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0

    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256

    pad_token_id: int | None = 0  # the CTC blank
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2

    id2label: Mapping[int, str] = field(default_factory=_default_labels)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        """Set the fields, by name; the rest take their defaults.

        Args:
            values: fields of this class; `num_labels`, or `label2id` beside `id2label`; the keys that every
                configuration of transformers has, and any others, which go to `extra`.
        """
        extra = dict(values.pop("extra", {}))
        model_type = values.pop("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            msg = f"model_type is {model_type!r}; only {MODEL_TYPE!r} is supported"
            raise ValueError(msg)
        labels = _read_labels(
            values.pop("id2label", None), values.pop("label2id", None), values.pop("num_labels", None)
        )
        if labels is not None:
            values["id2label"] = labels
        if values.get("pos_att_type", ()) is None:
            values["pos_att_type"] = ()
        elif isinstance(values.get("pos_att_type"), str):  # the spelling of early DeBERTa configurations: "c2p|p2c"
            values["pos_att_type"] = tuple(word.strip() for word in values["pos_att_type"].split("|") if word.strip())
        settings: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            if item.name in values:
                value = values.pop(item.name)
                settings[item.name] = tuple(value) if isinstance(value, list) else value
            elif item.default is not dataclasses.MISSING:
                settings[item.name] = item.default
            elif item.default_factory is not dataclasses.MISSING:
                settings[item.name] = item.default_factory()
        self.__dict__.update(settings, extra={**extra, **values})
        _check_types(self)
        _check_ranges(self)
        _check_agreement(self)
        _check_extra(self)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field or a further key, with the checks of the constructor; nothing changes if they fail."""
        if isinstance(getattr(type(self), name, None), property) and name not in _LABEL_KEYS:
            msg = f"{name} follows from other values and cannot be set"
            raise AttributeError(msg)
        self.__dict__.update(self.changed({name: value}).__dict__)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Return the configuration with some values replaced, checked together.

        `num_labels` keeps the names of the labels if there are as many.
        """
        values = {**self.extra, **self._fields(), **changes}
        if "id2label" not in changes:
            if isinstance(changes.get("label2id"), Mapping):
                values["id2label"] = {index: label for label, index in changes["label2id"].items()}
            elif changes.get("num_labels", self.num_labels) != self.num_labels:
                del values["id2label"]
        return type(self)(**values)

    def __getattr__(self, name: str) -> Any:
        """Return a key of `extra`, or the default that transformers has for it."""
        extra = self.__dict__.get("extra", {})  # absent while an instance is unpickled
        if name in extra:
            return extra[name]
        if name in _DEFAULTS_OF_EXTRA:
            return _DEFAULTS_OF_EXTRA[name]
        msg = f"{type(self).__name__!r} object has no attribute {name!r}"
        raise AttributeError(msg)

    def _fields(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "extra"}

    # ---------------------------------------------------------------------------------------- derived numbers
    @property
    def model_type(self) -> str:
        """The name of the architecture in `config.json`."""
        return MODEL_TYPE

    @property
    def num_labels(self) -> int:
        """Number of classes of the sequence classifier; 1 means regression."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """The inverse of `id2label`."""
        return {label: index for index, label in self.id2label.items()}

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_distance(self) -> int:
        """The offset between query and key from which on all offsets share a bucket."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def position_span(self) -> int:
        """Half the rows of the relative position table: row `span + b` belongs to bucket b, -span <= b < span."""
        return self.position_buckets if self.position_buckets > 0 else self.max_distance

    @property
    def normalizes_positions(self) -> bool:
        """Whether LayerNorm is applied to the relative position table."""
        return "layer_norm" in [word.strip() for word in self.norm_rel_ebd.lower().split("|")]

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next: the product of the strides (320, which is 20 ms at 16 kHz)."""
        return math.prod(self.conv_stride)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """`hop_length`, by its name in transformers."""
        return self.hop_length

    @property
    def min_samples(self) -> int:
        """The fewest samples for one squeezed frame (720 at the defaults)."""
        return self._samples_of(self.squeeze_factor)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame is computed from (400 at the defaults, which is 25 ms at 16 kHz)."""
        return self._samples_of(1)

    def _samples_of(self, num_frames: int) -> int:
        """Return the samples that neighbouring frames are computed from."""
        samples = num_frames
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames, before squeezing, of a clip of `num_samples` samples (0 if it is too short)."""
        frames = num_samples
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            frames = max(0, (frames - kernel) // stride + 1)
        return frames

    @property
    def num_weights(self) -> int:
        """A lower bound of the number of weights of the backbone: those of its matrices and convolutions."""
        hidden = self.hidden_size
        inputs = (1, *self.conv_dim[:-1])
        convolutions = sum(a * b * kernel for a, b, kernel in zip(inputs, self.conv_dim, self.conv_kernel, strict=True))
        positional = hidden * hidden // self.num_conv_pos_embedding_groups * self.num_conv_pos_embeddings
        layer = 4 * hidden * hidden + 2 * hidden * self.intermediate_size
        positions = 2 * self.position_span * hidden if self.relative_attention else 0
        upsampling = hidden * hidden * self.squeeze_factor
        return convolutions + positional + self.num_hidden_layers * layer + positions + upsampling

    def check_sizes(self) -> None:
        """Check that a model of these sizes can be built. A configuration alone may be changed field by field.

        Raises:
            ValueError: a size is not a multiple of another; the message names both.
        """
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                msg = f"hidden_size {self.hidden_size} is not a multiple of {name} {getattr(self, name)}"
                raise ValueError(msg)

    # ------------------------------------------------------------------------------------------------ reading
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from the content of a `config.json`.

        Missing keys take their defaults; unknown keys go to `extra`. `num_labels` is read if there is no `id2label`.
        If there are both `label2id` and `id2label`, each must be the inverse of the other.

        Raises:
            ValueError: values contradict each other or are not supported; the message names the parameters.
        """
        names = {item.name for item in dataclasses.fields(cls)} | _LABEL_KEYS
        known = {name: value for name, value in values.items() if name in names and name != "extra"}
        return cls(**known, extra={name: value for name, value in values.items() if name not in known})

    @classmethod
    def from_pretrained(
        cls,
        location: Location,
        *,
        revision: str | None = None,
        token: hub.Token = None,
        cache_dir: Location | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Self:
        """Read the `config.json` of a checkpoint.

        Args:
            location: a directory, any fsspec URI of one, or a name on the hub (`ORG/NAME`, `ORG/NAME@REVISION`).
            revision: of a checkpoint on the hub, see `sewd_model.hub.directory`, and so for the next three.
            token: see `revision`.
            cache_dir: see `revision`.
            local_files_only: see `revision`.
            changes: values that replace those of the file.

        Raises:
            CheckpointError: the file is missing, is not JSON, describes another architecture, or holds values that
                `from_dict` rejects.
            OSError: the store or the hub cannot be read.
        """
        location = hub.directory(
            location, (), revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        values = read_json(location, CONFIG_FILE)
        if values is None:
            msg = f"there is no {CONFIG_FILE} in {shown(location)}"
            raise CheckpointError(msg)
        check_architecture(values, shown(location))
        try:
            return cls.from_dict(values).changed(changes)
        except ValueError as error:
            msg = f"{CONFIG_FILE} in {shown(location)}: {error}"
            raise CheckpointError(msg) from error

    # ------------------------------------------------------------------------------------------------ writing
    def to_dict(self) -> dict[str, Any]:
        """Return the content of `config.json`: JSON values only, `id2label` with string keys, `extra` merged in."""
        values: dict[str, Any] = dict(self.extra)
        values |= {name: list(value) if isinstance(value, tuple) else value for name, value in self._fields().items()}
        values["id2label"] = {str(index): label for index, label in sorted(self.id2label.items())}
        values["label2id"] = self.label2id
        values["model_type"] = MODEL_TYPE
        return values

    def to_json_string(self) -> str:
        """Return the content of `config.json` as text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, location: Location) -> None:
        """Write `config.json` into a directory or under any fsspec URI."""
        write_json(location, CONFIG_FILE, self.to_dict())


def _read_labels(id2label: object, label2id: object, num_labels: object) -> dict[int, str] | None:
    """Convert the three spellings of the labels to `id2label` with integer keys; None if there is none."""
    if id2label is None:
        if num_labels is None:
            return None
        if not isinstance(num_labels, int) or isinstance(num_labels, bool) or not 1 <= num_labels <= _MAX_LABELS:
            msg = f"num_labels must be a positive integer, of at most {_MAX_LABELS}, not {num_labels!r}"
            raise ValueError(msg)
        return {index: f"LABEL_{index}" for index in range(num_labels)}
    if not isinstance(id2label, Mapping):
        msg = f"id2label must be an object, not {id2label!r}"
        raise ValueError(msg)
    try:
        labels = {int(index): label for index, label in id2label.items()}
        inverse = {label: int(index) for label, index in label2id.items()} if isinstance(label2id, Mapping) else None
    except (TypeError, ValueError) as error:
        msg = f"id2label and label2id must use integers for the classes: {error}"
        raise ValueError(msg) from error
    if num_labels is not None and num_labels != len(labels):
        msg = f"num_labels is {num_labels}, but id2label has {len(labels)} entries"
        raise ValueError(msg)
    # Setting `id2label` on a transformers model leaves placeholders in `label2id`, and transformers saves them.
    placeholders = {f"LABEL_{index}": index for index in labels}
    if inverse not in (None, placeholders, {label: index for index, label in labels.items()}):
        msg = "label2id is not the inverse of id2label"
        raise ValueError(msg)
    return labels


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(cast(float, value))


def _is_id(value: object) -> bool:
    return value is None or _is_int(value)


def _is_sizes(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(_is_int(item) and item > 0 for item in value)


def _is_labels(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(_is_int(index) and isinstance(label, str) for index, label in value.items())
    )


def _require(config: SEWDConfig, names: Iterable[str], wanted: str, is_right: Callable[[Any], bool]) -> None:
    for name in names:
        value = getattr(config, name)
        if not is_right(value):
            msg = f"{name} must be {wanted}, not {value!r}"
            raise ValueError(msg)


def _check_types(config: SEWDConfig) -> None:
    _require(config, _INTEGERS, "an integer", _is_int)
    _require(config, _NUMBERS, "a finite number", _is_number)
    _require(config, _FLAGS, "true or false", lambda value: isinstance(value, bool))
    _require(config, ("norm_rel_ebd", *_CHOICES), "a string", lambda value: isinstance(value, str))
    _require(config, _CONV_TUPLES, "a list of positive integers", _is_sizes)
    _require(config, ("pad_token_id", "bos_token_id"), "an integer or null", _is_id)
    _require(
        config,
        ("eos_token_id",),
        "an integer, a list of integers or null",
        lambda value: _is_id(value) or (isinstance(value, tuple) and all(map(_is_int, value))),
    )
    _require(config, ("id2label",), "a non-empty object from class numbers to names", _is_labels)


def _check_ranges(config: SEWDConfig) -> None:
    for name, number in (("num_hidden_layers", config.num_hidden_layers), ("conv_dim", len(config.conv_dim))):
        if number > _MAX_LAYERS:
            msg = f"{name}: {number} layers are more than the {_MAX_LAYERS} that are supported"
            raise ValueError(msg)
    _require(config, _POSITIVE, "positive", lambda value: value >= 1)
    _require(config, (*_NOT_NEGATIVE, "initializer_range"), "0 or more", lambda value: value >= 0)
    _require(config, ("layer_norm_eps", "feature_layer_norm_eps"), "positive", lambda value: value > 0)
    _require(config, _PROBABILITIES, "between 0 and 1", lambda value: 0 <= value <= 1)
    for name, choices in _CHOICES.items():
        _require(config, (name,), f"one of {', '.join(sorted(choices))}", choices.__contains__)
    _require(
        config,
        ("pos_att_type",),
        'a list of "c2p" and "p2c"',
        lambda value: isinstance(value, tuple) and all(word in ("c2p", "p2c") for word in value),
    )
    _require(
        config,
        ("pad_token_id",),
        f"in the vocabulary, below vocab_size {config.vocab_size},",
        lambda value: value is None or 0 <= value < config.vocab_size,
    )
    _require(
        config,
        ("id2label",),
        f"numbered from 0 to num_labels - 1 = {config.num_labels - 1}",
        lambda value: sorted(value) == list(range(len(value))),
    )


def _check_agreement(config: SEWDConfig) -> None:
    lengths = {name: len(getattr(config, name)) for name in _CONV_TUPLES}
    if len(set(lengths.values())) > 1:
        msg = "conv_dim, conv_stride and conv_kernel must have one entry a layer each, but have " + ", ".join(
            map(str, lengths.values())
        )
        raise ValueError(msg)
    if config.relative_attention and config.position_buckets > 0:
        # The logarithmic buckets range from offset `linear` to max_distance - 1. Otherwise the reference would compute
        # log(0), or the log of a ratio below 1, and use the result as an index.
        linear = config.position_buckets // 2
        source = "max_relative_positions" if config.max_relative_positions > 0 else "max_position_embeddings"
        if linear < 1 or config.max_distance - 1 <= linear:
            msg = (
                f"position_buckets {config.position_buckets} does not fit {source} {config.max_distance}: "
                f"it must be at least 2, and half of it less than {source} - 1 (or -1: no buckets)"
            )
            raise ValueError(msg)


def _check_extra(config: SEWDConfig) -> None:
    """Reject keys that the reference, or its ancestor, would compute with and this code would not."""
    extra = config.extra
    rejected = {
        "add_adapter": bool(extra.get("add_adapter")),
        "conv_kernel_size": extra.get("conv_kernel_size") not in (None, 0, -1),
        "attention_head_size": extra.get("attention_head_size", config.head_size) != config.head_size,
        "num_feat_extract_layers": extra.get("num_feat_extract_layers", len(config.conv_dim)) != len(config.conv_dim),
        "quantization_config": extra.get("quantization_config") is not None,
    }
    for name, unsupported in rejected.items():
        if unsupported:
            msg = f"{name} = {extra[name]!r} is not supported"
            raise ValueError(msg)
