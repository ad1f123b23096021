"""SEW-D, the readable reference: a speech encoder and two heads, for training and for inference.

The steps of a batch, with the paper's shapes (arXiv 2109.06870; B clips of N samples, T frames, S = T //
squeeze_factor):

    waveform (B, N)
      -> 13 convolutions (`FeatureEncoder`)                                    (B, conv_dim[-1], T)
      -> LayerNorm, projection, SpecAugment in training                        (B, T, hidden)
      -> squeeze: average pooling + strided positional convolution             (B, S, hidden)
      -> transformer layers with disentangled attention (arXiv 2006.03654)     (B, S, hidden)
      -> upsampling: one squeezed frame becomes squeeze_factor frames          (B, T, hidden)
      -> head: CTC logits per frame, or class logits per clip

Attribute names are those of the Hugging Face layout (even `self.self` and `LayerNorm`), so that the keys of a state
dict are those of a checkpoint.

**Padded batches.** The keyword `padding` chooses what `attention_mask` means:

* `"exact"` (default): each row equals transformers' model on that clip alone, whichever clips share the batch. This
  needs three masks that transformers lacks: GroupNorm statistics over a row's own frames, a squeezed length rounded
  *down*, and zeros in the output after it (of a clip alone, an odd last frame is zeros).
* `"transformers"`: what transformers computes for the padded batch. GroupNorm averages over the padding, and a
  half-filled squeezed frame takes part in attention; a row then depends on the width of the batch.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils import checkpoint as activations

from sewd_model import checkpoint, hub
from sewd_model.activations import ACTIVATIONS
from sewd_model.config import InputTooShortError, SEWDConfig
from sewd_model.files import CONFIG_FILE, CheckpointError, Location, shown
from sewd_model.spec_augment import draw_mask

Padding = Literal["exact", "transformers"]

IGNORED_LABEL = -100


# ---------------------------------------------------------------------------------------------------- outputs
class _Output:
    """What the two outputs share: like transformers' `ModelOutput`, they are read by name, by key and by index.

    Keys are the fields in transformers' order, without those that are None; `output[0]` is the first of these.
    """

    tuple_fields: ClassVar[tuple[str, ...]]

    def keys(self) -> list[str]:
        """Return the names of the fields that are not None."""
        return [name for name in self.tuple_fields if getattr(self, name) is not None]

    def values(self) -> list[Any]:
        """Return the fields that are not None."""
        return list(self.to_tuple())

    def items(self) -> list[tuple[str, Any]]:
        """Return names and fields that are not None."""
        return list(zip(self.keys(), self.to_tuple(), strict=True))

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None: what `return_dict=False` returns."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclass
class BaseOutput(_Output):
    """The output of the backbone, and the input of a head.

    Attributes:
        last_hidden_state: `(B, T, hidden)`. In exact mode, zeros from frame `floor(num_frames / squeeze) * squeeze` on.
        num_frames: `(B,)` int64, frames of each row's own clip, before squeezing. Not part of the tuple.
        padding: the meaning of the mask in this computation. Not part of the tuple.
        squeeze_factor: frames per squeezed frame, of `hidden_states`. Not part of the tuple.
        hidden_states: if requested, the transformer's input and each layer's output, `(B, S, hidden)` each. In exact
            mode, zeros after a row's own squeezed frames.
        attentions: if requested, each layer's probabilities `(B, heads, S, S)`, after softmax (and, in training,
            dropout). In exact mode, zeros after a row's own squeezed frames.
    """

    tuple_fields: ClassVar[tuple[str, ...]] = ("last_hidden_state", "hidden_states", "attentions")

    last_hidden_state: Tensor
    num_frames: Tensor
    padding: Padding
    squeeze_factor: int
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class HeadOutput(_Output):
    """The output of a head.

    Attributes:
        logits: `(B, T, vocab_size)` from the CTC head, `(B, num_labels)` from the classifier.
        num_frames: `(B,)` int64, frames of each row's own clip: the rest of its CTC logits is padding. Not part of the
            tuple.
        loss: if labels were given. A scalar, or `(B,)` if `ctc_loss_reduction` is "none".
        hidden_states: see `BaseOutput`.
        attentions: see `BaseOutput`.
    """

    tuple_fields: ClassVar[tuple[str, ...]] = ("loss", "logits", "hidden_states", "attentions")

    logits: Tensor
    num_frames: Tensor
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class _Recorder:
    """Collects the requested hidden states and attentions, with zeros for padding in exact mode."""

    wants_hidden_states: bool
    wants_attentions: bool
    own: Tensor | None  # (B, S) bool, True on a row's own squeezed frames; None: keep the padding
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)

    def hidden_state(self, hidden: Tensor) -> None:
        if self.wants_hidden_states:
            self.hidden_states.append(hidden if self.own is None else hidden * self.own[:, :, None])

    def attention(self, probabilities: Tensor) -> None:
        if self.wants_attentions:
            own = None if self.own is None else self.own[:, None, :, None]
            self.attentions.append(probabilities if own is None else probabilities * own)


# ---------------------------------------------------------------------------------------------------- lengths
def conv_lengths(lengths: Tensor, config: SEWDConfig, num_layers: int | None = None) -> Tensor:
    """Return the frames of clips after convolutions.

    Args:
        lengths: int64 of any shape, samples of each clip.
        config: of the model.
        num_layers: how many of the convolutions, from the first; None: all.

    Returns:
        int64 of the same shape; 0 for a clip that is too short.
    """
    layers = list(zip(config.conv_kernel, config.conv_stride, strict=True))
    for kernel, stride in layers[:num_layers]:
        lengths = (torch.div(lengths - kernel, stride, rounding_mode="floor") + 1).clamp_min(0)
    return lengths


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """Return `(B, width)` bool, True in the first `lengths[b]` columns of row b."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def position_buckets(num_positions: int, config: SEWDConfig) -> Tensor:
    """Return the bucket of each offset `query - key`, from `-(num_positions - 1)` to `num_positions - 1`.

    Buckets hold one offset up to half of `position_buckets` and are logarithmic from there (DeBERTa v2). They are
    computed on the CPU in float32, in the reference's order of operations, because `ceil` turns a difference in the
    last bit into a different bucket; on the CPU they are the same on whichever device the model runs.

    Args:
        num_positions: squeezed frames of the longest clip.
        config: of the model.

    Returns:
        int64 `(2 * num_positions - 1,)` on the CPU, rows of the relative position table: non-decreasing, from 0 to
        2 * span - 1.
    """
    offsets = torch.arange(1 - num_positions, num_positions)
    span = config.position_span
    if config.position_buckets > 0:
        linear = config.position_buckets // 2
        distance = offsets.abs().clamp_min(linear)
        scale = torch.log(torch.tensor((config.max_distance - 1) / linear))
        beyond = torch.ceil(torch.log(distance / linear) / scale * (linear - 1)) + linear
        offsets = torch.where(offsets.abs() <= linear, offsets, (beyond * offsets.sign()).long())
    return (offsets + span).clamp(0, 2 * span - 1)


# ----------------------------------------------------------------------------------------- feature extraction
class ConvLayer(nn.Module):
    """One convolution of the feature extractor, with its norm, if it has one, and the activation.

    `feat_extract_norm` "group" normalises each channel over time, in the first layer only; "layer" normalises each
    frame, in every layer.
    """

    def __init__(self, config: SEWDConfig, index: int) -> None:
        super().__init__()
        in_channels = config.conv_dim[index - 1] if index > 0 else 1
        out_channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            in_channels,
            out_channels,
            config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.layer_norm: nn.GroupNorm | nn.LayerNorm | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(out_channels)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(out_channels, out_channels)
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """Map `(B, C_in, T_in)` to `(B, C_out, T_out)`; `lengths` (B,) are each row's own output frames, None: all."""
        hidden = self.conv(hidden)
        if isinstance(self.layer_norm, nn.LayerNorm):
            hidden = self.layer_norm(hidden.transpose(1, 2)).transpose(1, 2)
        elif isinstance(self.layer_norm, nn.GroupNorm):
            hidden = (
                self.layer_norm(hidden) if lengths is None else _masked_group_norm(hidden, lengths, self.layer_norm)
            )
        return self.activation(hidden)


def _masked_group_norm(hidden: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Apply GroupNorm, one channel per group, over each row's first `lengths[b]` frames: `(B, C, T)` to the same."""
    own = length_mask(lengths, hidden.shape[-1])[:, None]  # (B, 1, T)
    count = lengths[:, None, None]
    values = hidden.float()  # sums over 10^5 frames exceed half precision
    mean = values.masked_fill(~own, 0.0).sum(-1, keepdim=True) / count  # (B, C, 1)
    centred = (values - mean).masked_fill(~own, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / count
    normalised = (centred * torch.rsqrt(variance + norm.eps)).to(hidden.dtype)
    return normalised * norm.weight[:, None] + norm.bias[:, None]


class FeatureEncoder(nn.Module):
    """The convolutions from waveform to frames."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_layers = nn.ModuleList(ConvLayer(config, index) for index in range(len(config.conv_dim)))

    def forward(self, input_values: Tensor, num_samples: Tensor | None) -> Tensor:
        """Map `(B, N)` to `(B, conv_dim[-1], T)`; `num_samples` (B,) are each row's own samples, None: all."""
        hidden = input_values[:, None]  # (B, 1, N)
        for index, layer in enumerate(self.conv_layers):
            # Only the first layer's GroupNorm looks across frames, so only it needs the lengths.
            lengths = None
            if index == 0 and num_samples is not None:
                lengths = conv_lengths(num_samples, self.config, 1)
            hidden = layer(hidden, lengths)
        return hidden


# ------------------------------------------------------------------------------------------------ transformer
class SelfAttention(nn.Module):
    """Disentangled self-attention: content to content, plus content to position and position to content.

    The score of query q and key k is `(Q_q . K_k + Q_q . PK_b + K_k . PQ_b) / sqrt(d * terms)`, where b is the bucket
    of q - k, and PK and PQ are projections of the relative position table (DeBERTa, arXiv 2006.03654, section 3.1).
    """

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query_proj = nn.Linear(size, size)
        self.key_proj = nn.Linear(size, size)
        self.value_proj = nn.Linear(size, size)
        self.share_att_key = config.share_att_key
        self.uses_c2p = config.relative_attention and "c2p" in config.pos_att_type
        self.uses_p2c = config.relative_attention and "p2c" in config.pos_att_type
        if not self.share_att_key and self.uses_c2p:
            self.pos_key_proj = nn.Linear(size, size)
        if not self.share_att_key and self.uses_p2c:
            self.pos_query_proj = nn.Linear(size, size)
        # The reference counts the terms in pos_att_type, even if relative_attention switches them off.
        terms = 1 + ("c2p" in config.pos_att_type) + ("p2c" in config.pos_att_type)
        self.scale = 1.0 / math.sqrt(config.head_size * terms)
        self.pos_dropout = nn.Dropout(config.activation_dropout)
        self.dropout = nn.Dropout(config.attention_dropout)

    def _split_heads(self, x: Tensor) -> Tensor:
        x = x.reshape(*x.shape[:-1], self.num_heads, -1)  # (..., L, heads, d)
        return x.transpose(-3, -2)  # (..., heads, L, d)

    def _position_scores(self, query: Tensor, key: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        """Return the sum of the position terms, `(B, heads, S, S)`, from `table` (R, hidden) and its `rows` (S, S)."""
        table = self.pos_dropout(table)
        shape = (*query.shape[:-1], rows.shape[-1])
        scores = query.new_zeros(())
        if self.uses_c2p:
            project = self.key_proj if self.share_att_key else self.pos_key_proj
            by_row = query @ self._split_heads(project(table)).transpose(-1, -2)  # (B, heads, S, R)
            scores = scores + by_row.gather(-1, rows.expand(shape))  # (B, heads, query, key)
        if self.uses_p2c:
            project = self.query_proj if self.share_att_key else self.pos_query_proj
            by_row = key @ self._split_heads(project(table)).transpose(-1, -2)  # (B, heads, S, R)
            scores = scores + by_row.gather(-1, rows.T.expand(shape)).transpose(-1, -2)  # (B, heads, query, key)
        return scores

    def forward(
        self, hidden: Tensor, key_mask: Tensor | None, table: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            hidden: `(B, S, hidden)`.
            key_mask: `(B, S)` bool, True where a frame may be attended to; None: everywhere.
            table: `(R, hidden)` relative position vectors, or None without relative attention.
            rows: `(S, S)` int64, the table's row for query q (first axis) and key k.

        Returns:
            The context `(B, S, hidden)` and the probabilities `(B, heads, S, S)`.
        """
        query = self._split_heads(self.query_proj(hidden)) * self.scale  # (B, heads, S, d)
        key = self._split_heads(self.key_proj(hidden))
        value = self._split_heads(self.value_proj(hidden))
        scores = query @ key.transpose(-1, -2)  # (B, heads, S, S)
        if table is not None and (self.uses_c2p or self.uses_p2c):
            scores = scores + self._position_scores(query, key * self.scale, table, rows)
        if key_mask is not None:  # every row has at least one key, so masked keys get exactly 0
            scores = scores.masked_fill(~key_mask[:, None, None, :], torch.finfo(scores.dtype).min)
        probabilities = self.dropout(scores.softmax(-1))
        context = (probabilities @ value).transpose(1, 2).flatten(2)  # (B, S, hidden)
        return context, probabilities


class ResidualOutput(nn.Module):
    """Linear, dropout, residual and LayerNorm: the end of each half of a layer."""

    def __init__(self, in_size: int, config: SEWDConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Map `(B, S, in_size)` and the residual `(B, S, hidden)` to `(B, S, hidden)`."""
        output: Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + residual)
        return output


class Attention(nn.Module):
    """Self-attention and its residual output."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualOutput(config.hidden_size, config)

    def forward(
        self, hidden: Tensor, key_mask: Tensor | None, table: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map as `SelfAttention.forward` does; the first result is the output instead of the context."""
        context, probabilities = self.self(hidden, key_mask, table, rows)
        return self.output(context, hidden), probabilities


class Intermediate(nn.Module):
    """The first half of the feed-forward block."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, S, hidden)` to `(B, S, intermediate_size)`."""
        return self.activation(self.dense(hidden))


class Layer(nn.Module):
    """One transformer layer, with the norms after the residuals."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config)

    def forward(
        self, hidden: Tensor, key_mask: Tensor | None, table: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map as `SelfAttention.forward` does; the first result is the output instead of the context."""
        attended, probabilities = self.attention(hidden, key_mask, table, rows)
        return self.output(self.intermediate(attended), attended), probabilities


@dataclass(frozen=True)
class _Checkpointing:
    """Which layers are computed again for their gradients, and the options of torch's function that does it."""

    every_n_layers: int
    options: Mapping[str, Any]


class Transformer(nn.Module):
    """The layers, and the relative position table that they share."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.checkpointing: _Checkpointing | None = None
        if config.relative_attention:
            self.rel_embeddings = nn.Embedding(2 * config.position_span, config.hidden_size)
        if config.normalizes_positions:
            # Made even if relative_attention is off and nothing uses it: checkpoints contain it.
            self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def position_table(self) -> Tensor:
        """Return the relative position vectors, `(2 * span, hidden)`, normalised if `config.normalizes_positions`."""
        table: Tensor = self.rel_embeddings.weight
        return self.LayerNorm(table) if self.config.normalizes_positions else table

    def forward(self, hidden: Tensor, key_mask: Tensor | None, recorder: _Recorder) -> Tensor:
        """Map `(B, S, hidden)` to the same shape; `key_mask` (B, S) is True where a frame may be attended to."""
        length = hidden.shape[1]
        table, rows = None, hidden.new_empty(0, dtype=torch.long)
        if self.config.relative_attention:
            by_offset = position_buckets(length, self.config)  # (2S - 1,)
            first, last = int(by_offset[0]), int(by_offset[-1])
            table = self.position_table()[first : last + 1]  # the rows that a clip of this length can reach
            positions = torch.arange(length, device=hidden.device)
            offsets = positions[:, None] - positions + length - 1  # (S, S)
            rows = (by_offset - first).to(hidden.device)[offsets]
        recorder.hidden_state(hidden)
        for number, layer in enumerate(self.layer):
            if self.training and self.checkpointing is not None and number % self.checkpointing.every_n_layers == 0:
                options = self.checkpointing.options
                hidden, probabilities = activations.checkpoint(layer, hidden, key_mask, table, rows, **options)
            else:
                hidden, probabilities = layer(hidden, key_mask, table, rows)
            recorder.hidden_state(hidden)
            recorder.attention(probabilities)
        return hidden


class PositionalConv(nn.Module):
    """A wide grouped convolution that encodes positions; its stride is the squeeze factor."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        kernel = config.num_conv_pos_embeddings
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel,
            padding=kernel // 2,
            groups=config.num_conv_pos_embedding_groups,
            stride=config.squeeze_factor,
        )
        nn.init.normal_(conv.weight, std=2 * math.sqrt(1 / (kernel * config.hidden_size)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.conv = parametrizations.weight_norm(conv, dim=2)
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, hidden: Tensor, length: int) -> Tensor:
        """Map `(B, hidden, T)` to `(B, hidden, length)`; a further frame of the convolution is dropped."""
        return self.activation(self.conv(hidden)[..., :length])


class Upsampling(nn.Module):
    """Turn each squeezed frame into `squeeze_factor` frames."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.hidden_size, config.hidden_size * config.squeeze_factor)
        self.activation = ACTIVATIONS[config.feat_extract_activation]
        self.hidden_size = config.hidden_size

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, S, hidden)` to `(B, S * squeeze_factor, hidden)`."""
        projected = self.activation(self.projection(hidden))  # (B, S, squeeze * hidden)
        return projected.reshape(projected.shape[0], -1, self.hidden_size)


class Encoder(nn.Module):
    """Squeeze, transformer, upsampling."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        self.squeeze_factor = config.squeeze_factor
        self.pos_conv_embed = PositionalConv(config)
        self.encoder = Transformer(config)
        self.upsample = Upsampling(config)

    def forward(self, hidden: Tensor, key_mask: Tensor | None, recorder: _Recorder) -> Tensor:
        """Map `(B, T, hidden)` to the same shape, with zeros in the frames after the last whole squeezed frame.

        `key_mask` (B, S) is True where a squeezed frame may be attended to; None: everywhere.
        """
        num_frames = hidden.shape[1]
        num_squeezed = num_frames // self.squeeze_factor
        hidden = hidden.transpose(1, 2)  # (B, hidden, T)
        pooled = functional.avg_pool1d(hidden, self.squeeze_factor)  # (B, hidden, S)
        squeezed = (pooled + self.pos_conv_embed(hidden, num_squeezed)).transpose(1, 2)  # (B, S, hidden)
        upsampled: Tensor = self.upsample(self.encoder(squeezed, key_mask, recorder))
        return functional.pad(upsampled, (0, 0, 0, num_frames - upsampled.shape[1]))


# ------------------------------------------------------------------------------------------------- the models
# Arguments of transformers' `from_pretrained` that are no values of a configuration, and that nothing here reads.
_LOADING_OPTIONS = frozenset(
    {
        *("device_map", "ignore_mismatched_sizes", "output_loading_info", "quantization_config", "attn_implementation"),
        *("low_cpu_mem_usage", "use_safetensors", "subfolder"),
    }
)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        msg = f"dtype must be a data type of torch or its name, such as 'float16', not {dtype!r}"
        raise TypeError(msg)
    return found


class _PreTrained(nn.Module):
    """What the three models share: initialisation, loading and saving."""

    head_keys: ClassVar[tuple[str, ...]] = ()  # first parts of the state dict's keys that are not the backbone's

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__()
        config.check_sizes()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the first of the weights is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the first of the weights."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of weights.

        Args:
            only_trainable: count those that are being trained.
            exclude_embeddings: leave out the table of relative positions.
        """
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        return sum(
            weight.numel()
            for weight in self.parameters()
            if (weight.requires_grad or not only_trainable) and not (exclude_embeddings and id(weight) in tables)
        )

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """In training, compute transformer layers again for their gradients instead of keeping what they computed.

        Args:
            activation_checkpointing_kwargs: arguments of `torch.utils.checkpoint.checkpoint`; None:
                `use_reentrant=False`.
            every_n_layers: only every n-th layer, from the first.
            offload: not supported: there is nothing to move on a CPU, and layers on a GPU are small.

        Raises:
            ValueError: `offload` is set.
        """
        if offload:
            msg = "offload is not supported: leave it out"
            raise ValueError(msg)
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        self._transformer().checkpointing = _Checkpointing(every_n_layers, options)

    def activation_checkpointing_disable(self) -> None:
        """Keep what each layer computes again: more memory, less time."""
        self._transformer().checkpointing = None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """`activation_checkpointing_enable`, by its name before transformers 5.20."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """`activation_checkpointing_disable`, by its earlier name."""
        self.activation_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are computed again for their gradients."""
        return self._transformer().checkpointing is not None

    def _transformer(self) -> Transformer:
        return next(module for module in self.modules() if isinstance(module, Transformer))

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor | int) -> Tensor:
        """Return `conv_lengths` of a number of samples, or of many; the name is that of transformers."""
        return conv_lengths(torch.as_tensor(input_lengths), self.config)

    def _initialize(self, module: nn.Module) -> None:
        """Initialise the weights of one module as the reference does.

        The positional convolution initialises itself. The reference intends to initialise it here too, but writes into
        the weight that weight norm computes, and so keeps torch's default.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range or 0.02)
        elif isinstance(module, nn.Conv1d) and not torch.nn.utils.parametrize.is_parametrized(module):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def _head_weights(cls, config: SEWDConfig) -> int:
        """Return the number of weights of the matrices outside the backbone."""
        return 0

    @classmethod
    def from_pretrained(
        cls,
        location: Location,
        *,
        config: SEWDConfig | None = None,
        dtype: torch.dtype | str = torch.float32,
        new_head: bool = False,
        revision: str | None = None,
        token: hub.Token = None,
        cache_dir: Location | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Self:
        """Load a checkpoint in the Hugging Face layout, in eval mode, on the CPU.

        Args:
            location: a directory, any fsspec URI of one, or a name on the hub (`ORG/NAME`, `ORG/NAME@REVISION`).
            config: used instead of the checkpoint's `config.json`, e.g. with other labels and `new_head`.
            dtype: data type that the weights are converted to and the model computes in, whatever that of the file; or
                its name.
            new_head: load the backbone only, and initialise the head from torch's random generator.
            revision: of a checkpoint on the hub, see `sewd_model.hub.directory`, and so for the next three.
            token: see `revision`.
            cache_dir: see `revision`.
            local_files_only: see `revision`.
            changes: values of the configuration that replace those of the checkpoint, e.g. `num_labels=3`.

        Raises:
            CheckpointError: files are missing or malformed, or keys or shapes do not fit; the message names them.
            OSError: the store or the hub cannot be read.
        """
        if unknown := _LOADING_OPTIONS & changes.keys():
            msg = f"{', '.join(sorted(unknown))}: not an option of this package; a model is loaded whole, on the CPU"
            raise TypeError(msg)
        dtype = _dtype(changes.pop("torch_dtype", dtype))
        location = hub.directory(
            location,
            (),
            weights=True,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        config = SEWDConfig.from_pretrained(location) if config is None else config
        try:
            config = config.changed(changes)
            config.check_sizes()
        except ValueError as error:
            msg = f"the configuration ({CONFIG_FILE}) of {shown(location)}: {error}"
            raise CheckpointError(msg) from error
        checkpoint.check_size(config, 0 if new_head else cls._head_weights(config), location)
        model = cls(config)
        checkpoint.load_into(model, location, head_keys=cls.head_keys, new_head=new_head)
        return model.to(dtype).eval()

    def save_pretrained(self, location: Location, *, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors` into a directory or under any fsspec URI.

        transformers loads the result with no missing and no unexpected key.

        Args:
            location: a directory, or any fsspec URI of one.
            dtype: data type of the weights in the file; None: that of the model.

        Raises:
            CheckpointError: a weight is not finite in `dtype`; or `location` is the name of the bundled model.
            OSError: the store cannot be written.
        """
        checkpoint.save(self, self.config, type(self).__name__, location, dtype=dtype)


class SEWDModel(_PreTrained):
    """The backbone: waveforms to frames.

    Attributes:
        spec_augment_generator: CPU generator that SpecAugment draws from in training; None: torch's global one.
    """

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__(config)
        self.feature_extractor = FeatureEncoder(config)
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.feature_layer_norm_eps)
        if config.conv_dim[-1] != config.hidden_size:
            self.feature_projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.feature_dropout = nn.Dropout(config.feat_proj_dropout)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.rand(config.hidden_size))
        self.encoder = Encoder(config)
        self.spec_augment_generator: torch.Generator | None = None
        self.apply(self._initialize)

    def freeze_feature_encoder(self) -> None:
        """Stop training the convolutions of the feature extractor."""
        self.feature_extractor.requires_grad_(False)

    def _spec_augment(self, hidden: Tensor, num_frames: Tensor, mask_time_indices: Tensor | None) -> Tensor:
        """Mask frames and channels of `(B, T, hidden)` in training, or the frames in `mask_time_indices`."""
        config = self.config
        if not config.apply_spec_augment:
            return hidden
        rows, width, channels = hidden.shape
        if mask_time_indices is None and config.mask_time_prob > 0 and self.training:
            mask_time_indices = draw_mask(
                num_frames.tolist(),
                width,
                probability=config.mask_time_prob,
                span=config.mask_time_length,
                min_spans=config.mask_time_min_masks,
                generator=self.spec_augment_generator,
            )
        if mask_time_indices is not None:
            if not hasattr(self, "masked_spec_embed"):
                msg = "mask_time_indices needs a model made with mask_time_prob or mask_feature_prob above 0"
                raise ValueError(msg)
            hide = mask_time_indices.to(hidden.device, torch.bool)[:, :, None]  # (B, T, 1)
            hidden = torch.where(hide, self.masked_spec_embed.to(hidden.dtype), hidden)
        if config.mask_feature_prob > 0 and self.training:
            hide = draw_mask(
                [channels] * rows,
                channels,
                probability=config.mask_feature_prob,
                span=config.mask_feature_length,
                min_spans=config.mask_feature_min_masks,
                generator=self.spec_augment_generator,
            )
            hidden = hidden.masked_fill(hide.to(hidden.device)[:, None, :], 0.0)  # (B, 1, hidden)
        return hidden

    def encode(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mask_time_indices: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        padding: Padding = "exact",
    ) -> BaseOutput:
        """Compute what `forward` returns, always as a `BaseOutput`; `forward` documents arguments and errors."""
        num_samples = _check_input(input_values, attention_mask, padding, self.config)
        padded = bool((num_samples < input_values.shape[1]).any())
        exact = padded and padding == "exact"
        if exact:
            input_values = input_values.masked_fill(~length_mask(num_samples, input_values.shape[1]), 0.0)
        features = self.feature_extractor(input_values, num_samples if exact else None)
        hidden = self.layer_norm(features.transpose(1, 2))  # (B, T, conv_dim[-1])
        if hasattr(self, "feature_projection"):
            hidden = self.feature_projection(hidden)  # (B, T, hidden)
        hidden = self.feature_dropout(hidden)

        num_frames = conv_lengths(num_samples, self.config)
        width, squeeze = hidden.shape[1], self.config.squeeze_factor
        if mask_time_indices is not None and mask_time_indices.shape != hidden.shape[:2]:
            msg = f"mask_time_indices must be {tuple(hidden.shape[:2])}, not {tuple(mask_time_indices.shape)}"
            raise ValueError(msg)
        hidden = self._spec_augment(hidden, num_frames, mask_time_indices)

        key_mask = None
        if padded:
            hidden = hidden.masked_fill(~length_mask(num_frames, width)[:, :, None], 0.0)
            half_full = 0 if exact else squeeze - 1  # the reference's pooled mask keeps a half-filled squeezed frame
            num_squeezed = torch.div(num_frames + half_full, squeeze, rounding_mode="floor")
            key_mask = length_mask(num_squeezed, width // squeeze)
        recorder = _Recorder(output_hidden_states, output_attentions, key_mask if exact else None)
        last = self.encoder(hidden, key_mask, recorder)
        if exact:
            own = num_frames - num_frames % squeeze
            last = last.masked_fill(~length_mask(own, width)[:, :, None], 0.0)
        return BaseOutput(
            last_hidden_state=last,
            num_frames=num_frames,
            padding=padding,
            squeeze_factor=squeeze,
            hidden_states=tuple(recorder.hidden_states) if output_hidden_states else None,
            attentions=tuple(recorder.attentions) if output_attentions else None,
        )

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        padding: Padding = "exact",
    ) -> BaseOutput | tuple[Any, ...]:
        """Encode clips.

        Args:
            input_values: `(B, N)` waveforms at the model's rate, normalised by `FeatureExtractor`. Not modified.
            attention_mask: `(B, N)`, 1 on samples and 0 on padding, which is on the right. None: no padding. As in
                transformers only the number of ones of each row counts; a zero before a one gives a warning.
            mask_time_indices: `(B, T)` bool, frames to replace by the mask vector, instead of those that SpecAugment
                draws; also in eval mode, but not if `apply_spec_augment` is off.
            output_hidden_states: return the transformer's input and each layer's output; None: as the configuration
                says, and so for the next two.
            output_attentions: return the attention probabilities.
            return_dict: False returns a tuple, without the fields that are None.
            padding: see the module's docstring.

        Raises:
            InputTooShortError: a clip has fewer than `config.min_samples` samples.
            ValueError: shapes or dtypes are wrong.
        """
        output = self.encode(
            input_values,
            attention_mask,
            mask_time_indices=mask_time_indices,
            output_hidden_states=_chosen(output_hidden_states, self.config.output_hidden_states),
            output_attentions=_chosen(output_attentions, self.config.output_attentions),
            padding=padding,
        )
        return output if _chosen(return_dict, self.config.return_dict) else output.to_tuple()


def _chosen(argument: bool | None, configured: bool) -> bool:
    return configured if argument is None else argument


def _check_input(input_values: Tensor, attention_mask: Tensor | None, padding: Padding, config: SEWDConfig) -> Tensor:
    """Return each row's own samples, `(B,)` int64, or raise an error that says what is wrong with the input."""
    if padding not in ("exact", "transformers"):
        msg = f'padding must be "exact" or "transformers", not {padding!r}'
        raise ValueError(msg)
    if input_values.dim() != 2 or not input_values.is_floating_point() or input_values.shape[0] == 0:
        actual = f"{input_values.dtype} {tuple(input_values.shape)}"
        msg = f"input_values must be floating point (B, N), not {actual}"
        raise ValueError(msg)
    rows, width = input_values.shape
    if attention_mask is None:
        num_samples = torch.full((rows,), width, dtype=torch.long, device=input_values.device)
        shortest = width
    else:
        if attention_mask.shape != input_values.shape:
            msg = f"attention_mask must be {tuple(input_values.shape)}, not {tuple(attention_mask.shape)}"
            raise ValueError(msg)
        own = attention_mask.to(input_values.device, torch.bool)
        if bool((own[:, 1:] & ~own[:, :-1]).any()):
            # transformers takes such masks without a word, and its tests draw them at random.
            warnings.warn(
                "attention_mask has zeros before ones; only the number of ones counts: padding is on the right",
                stacklevel=6,
            )
        num_samples = own.sum(-1)
        shortest = int(num_samples.min())
    if shortest < config.min_samples:
        raise InputTooShortError(shortest, config.min_samples)
    return num_samples


class _Head(_PreTrained):
    """A backbone, and what both heads do with it."""

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__(config)
        self.sew_d = SEWDModel(config)

    @property
    def needs_hidden_states(self) -> bool:
        """Whether `head` needs a backbone output that was made with `output_hidden_states=True`."""
        return False

    def head(self, outputs: BaseOutput) -> Tensor:
        """Return the logits for the backbone's output."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor, num_frames: Tensor) -> Tensor:
        """Return the loss for the logits."""
        raise NotImplementedError

    def freeze_feature_encoder(self) -> None:
        """Stop training the convolutions of the feature extractor."""
        self.sew_d.freeze_feature_encoder()

    def freeze_base_model(self) -> None:
        """Stop training the backbone: only the head learns."""
        self.sew_d.requires_grad_(False)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        mask_time_indices: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        padding: Padding = "exact",
    ) -> HeadOutput | tuple[Any, ...]:
        """Encode clips and apply the head; with `labels`, compute the loss too (see `loss`).

        The other arguments and the errors are those of `SEWDModel.forward`.

        Raises:
            ValueError: the labels have the wrong shape or are out of range.
        """
        output_hidden_states = _chosen(output_hidden_states, self.config.output_hidden_states)
        if labels is not None:
            self._check_labels(labels, input_values.shape[0])
        outputs = self.sew_d.encode(
            input_values,
            attention_mask,
            mask_time_indices=mask_time_indices,
            output_hidden_states=output_hidden_states or self.needs_hidden_states,
            output_attentions=_chosen(output_attentions, self.config.output_attentions),
            padding=padding,
        )
        logits = self.head(outputs)
        output = HeadOutput(
            logits=logits,
            num_frames=outputs.num_frames,
            loss=None if labels is None else self.loss(logits, labels.to(logits.device), outputs.num_frames),
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )
        return output if _chosen(return_dict, self.config.return_dict) else output.to_tuple()

    def _check_labels(self, labels: Tensor, rows: int) -> None:
        raise NotImplementedError


class SEWDForCTC(_Head):
    """The backbone and a linear layer that scores each vocabulary entry in each frame.

    Attributes:
        blank: id of the CTC blank, `config.pad_token_id`.
    """

    head_keys: ClassVar[tuple[str, ...]] = ("lm_head",)

    def __init__(self, config: SEWDConfig, target_lang: str | None = None) -> None:
        """Initialise the weights.

        Args:
            config: of the model.
            target_lang: must be None: no SEW-D checkpoint has adapters for languages.

        Raises:
            ValueError: the configuration has no `pad_token_id`, which is the CTC blank; or a language is given.
        """
        super().__init__(config)
        if target_lang is not None:
            msg = f"target_lang {target_lang!r}: the model has no adapter for a language (adapter_attn_dim is not set)"
            raise ValueError(msg)
        if config.pad_token_id is None:
            msg = "pad_token_id is null, but it is the CTC blank: set it to a token id"
            raise ValueError(msg)
        self.blank = config.pad_token_id
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self._initialize(self.lm_head)

    @classmethod
    def _head_weights(cls, config: SEWDConfig) -> int:
        return config.hidden_size * config.vocab_size

    def head(self, outputs: BaseOutput) -> Tensor:
        """Return logits `(B, T, vocab_size)`; the first `outputs.num_frames[b]` frames of row b are its own."""
        logits: Tensor = self.lm_head(self.dropout(outputs.last_hidden_state))
        return logits

    def _check_labels(self, labels: Tensor, rows: int) -> None:
        if labels.dim() != 2 or labels.shape[0] != rows:
            msg = f"labels must be (B, L) with B = {rows}, not {tuple(labels.shape)}"
            raise ValueError(msg)
        if bool(((labels >= self.config.vocab_size) | ((labels < 0) & (labels != IGNORED_LABEL))).any()):
            msg = f"labels must be {IGNORED_LABEL}, or from 0 to below vocab_size {self.config.vocab_size}"
            raise ValueError(msg)

    def loss(self, logits: Tensor, labels: Tensor, num_frames: Tensor) -> Tensor:
        """Return the CTC loss (Graves et al. 2006) over each row's own frames, computed in float32.

        Args:
            logits: `(B, T, vocab_size)`.
            labels: `(B, L)` token ids; -100 and the blank are padding.
            num_frames: `(B,)` int64, frames of each row's own clip.

        Returns:
            Reduced by `ctc_loss_reduction`: "mean" divides each row's loss by its number of labels and averages over
            rows, `()`; "sum" adds the rows, `()`; "none" is `(B,)`. The loss of labels that do not fit into the frames
            is infinite, or 0 with `ctc_zero_infinity`.
        """
        counted = (labels != IGNORED_LABEL) & (labels != self.blank)
        log_probabilities = functional.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)  # (T, B, V)
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's CTC loss requires blank = 0
            return functional.ctc_loss(
                log_probabilities,
                labels.masked_select(counted),
                num_frames,
                counted.sum(-1),
                blank=self.blank,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )


class SEWDForSequenceClassification(_Head):
    """The backbone, a projection, the mean over time, and a linear layer that scores each class."""

    head_keys: ClassVar[tuple[str, ...]] = ("layer_weights", "projector", "classifier")

    def __init__(self, config: SEWDConfig) -> None:
        super().__init__(config)
        if config.use_weighted_layer_sum:
            num_states = config.num_hidden_layers + 1
            self.layer_weights = nn.Parameter(torch.ones(num_states) / num_states)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self._initialize(self.projector)
        self._initialize(self.classifier)

    @classmethod
    def _head_weights(cls, config: SEWDConfig) -> int:
        return config.classifier_proj_size * (config.hidden_size + config.num_labels)

    @property
    def needs_hidden_states(self) -> bool:
        """True with `use_weighted_layer_sum`: the head then reads all layers."""
        return self.config.use_weighted_layer_sum

    def head(self, outputs: BaseOutput) -> Tensor:
        """Return logits `(B, num_labels)`.

        The mean is over a row's own frames; a last frame of zeros counts, with the projector's bias. With
        `use_weighted_layer_sum` it is over the row's own squeezed frames.

        Raises:
            ValueError: `needs_hidden_states`, but the backbone's output has none.
        """
        counted = outputs.num_frames
        if self.config.use_weighted_layer_sum:
            if outputs.hidden_states is None:
                msg = "use_weighted_layer_sum needs a backbone output made with output_hidden_states=True"
                raise ValueError(msg)
            states = torch.stack(outputs.hidden_states, dim=1)  # (B, layers + 1, S, hidden)
            hidden = (states * self.layer_weights.softmax(-1)[:, None, None]).sum(dim=1)  # (B, S, hidden)
            if outputs.padding == "exact":  # the reference compares squeezed positions with unsqueezed lengths
                counted = torch.div(counted, outputs.squeeze_factor, rounding_mode="floor")
        else:
            hidden = outputs.last_hidden_state  # (B, T, hidden)
        own = length_mask(counted, hidden.shape[1])[:, :, None]
        projected = self.projector(hidden).masked_fill(~own, 0.0)
        mean = projected.sum(dim=1, dtype=torch.float32) / own.sum(dim=1)  # (B, classifier_proj_size)
        logits: Tensor = self.classifier(mean.to(projected.dtype))
        return logits

    def _check_labels(self, labels: Tensor, rows: int) -> None:
        if labels.numel() != rows:
            msg = f"labels must be one per clip, {rows}, not {tuple(labels.shape)}"
            raise ValueError(msg)
        classes = self.config.num_labels
        if classes > 1 and bool(((labels >= classes) | ((labels < 0) & (labels != IGNORED_LABEL))).any()):
            msg = f"labels must be {IGNORED_LABEL}, or from 0 to below num_labels {classes}"
            raise ValueError(msg)

    def loss(self, logits: Tensor, labels: Tensor, num_frames: Tensor) -> Tensor:
        """Return the cross-entropy, or the mean square error if `num_labels` is 1, averaged over the clips, `()`.

        Args:
            logits: `(B, num_labels)`.
            labels: `(B,)` class numbers, -100 to leave a clip out; with `num_labels` 1, the values to predict.
            num_frames: not used.
        """
        if self.config.num_labels == 1:
            return functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        return functional.cross_entropy(logits.float(), labels.flatten())
