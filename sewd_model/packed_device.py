"""Packed inference on one device: whole-batch matrix products, and FlexAttention; made for GPUs, runs on any.

Clips lie end to end on the time axis, each in a slot that starts at a multiple of the total stride, so that each
convolution keeps all slots on its grid. Frames whose window straddles two slots are computed and dropped.
GroupNorm is folded into the first convolution clip by clip, from float64 moments, as in `packed_convolutions`; the
moments are sums over hops, added up by clip.

Attention is one FlexAttention call a layer, masked by clip. Squeezed lengths are filled up to a power of two for it, so
that its kernel is compiled for a few shapes only. The position terms are read from tables that one product a layer
makes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sewd_model.activations import Activation
from sewd_model.checkpoint import backbone_digest
from sewd_model.config import InputTooShortError, SEWDConfig
from sewd_model.model import (
    ConvLayer,
    FeatureEncoder,
    Layer,
    PositionalConv,
    SelfAttention,
    SEWDForCTC,
    SEWDForSequenceClassification,
    SEWDModel,
    position_buckets,
)
from sewd_model.packed import Packable, PackedOutput
from sewd_model.packed_products import fast_activation

BLOCK = 128  # positions in a block of the mask, FlexAttention's default
LEAST = 1024  # positions that attention is compiled for at least


class DevicePackedModel:
    """A backbone and its heads on one device, for packed batches."""

    def __init__(self, models: Sequence[Packable], *, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Prepare the weights.

        Args:
            models: any number of heads, or a bare backbone, in float32. Not modified.
            device: where to compute. On CUDA, attention is compiled.
            dtype: of weights and activations: float32, bfloat16 or float16. Moments, norm statistics and softmax are
                in float32 or better.

        Raises:
            ValueError: There is no model, or their backbones differ.
        """
        if len({backbone_digest(model) for model in models}) != 1:
            msg = "the models to pack must share one backbone"
            raise ValueError(msg)
        backbone = models[0] if isinstance(models[0], SEWDModel) else models[0].sew_d
        self.config, self.device, self.dtype = backbone.config, device, dtype
        with torch.inference_mode():
            self._prepare(backbone, [model for model in models if not isinstance(model, SEWDModel)])

    def _prepare(self, backbone: SEWDModel, heads: Sequence[SEWDForCTC | SEWDForSequenceClassification]) -> None:
        config, place = self.config, _Place(self.device, self.dtype)
        transformer = backbone.encoder.encoder
        table = transformer.position_table() if config.relative_attention else None
        self.features = _Features(backbone.feature_extractor, place)
        self.norm = _norm(backbone.layer_norm, place)
        self.projection = (
            _linear(backbone.feature_projection, place) if hasattr(backbone, "feature_projection") else None
        )
        self.squeeze = _Squeeze(backbone.encoder.pos_conv_embed, config, place)
        self.layers = [_layer(cast(Layer, layer), table, config, place) for layer in transformer.layer]
        self.upsample = _linear(backbone.encoder.upsample.projection, place)
        self.activation = fast_activation(config.feat_extract_activation)
        self.heads = [_head(model, place) for model in heads]
        self.attend = _flex_attention(self.device)

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[PackedOutput]:
        """Encode clips in one batch.

        Args:
            waveforms: `(N,)` float32 each, at the model's rate, prepared by `FeatureExtractor`, at least one, on the
                CPU or the device.

        Returns:
            One output a clip, in order, float32 on the CPU.

        Raises:
            InputTooShortError: A clip has fewer than `config.min_samples` samples.
        """
        config, device = self.config, self.device
        for waveform in waveforms:
            if len(waveform) < config.min_samples:
                raise InputTooShortError(len(waveform), config.min_samples)
        squeeze = config.squeeze_factor
        frames = [config.num_frames(len(waveform)) for waveform in waveforms]
        lengths = [count // squeeze for count in frames]
        hidden = self.norm(self.features(waveforms, frames))  # (total T, conv_dim[-1])
        if self.projection is not None:
            hidden = self.projection(hidden)
        hidden = self.squeeze(hidden, frames)  # (total S, hidden)

        batch = _AttentionBatch(lengths, config, device)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, batch, self.attend)
            states.append(hidden)
        spread = self.activation(self.upsample(hidden)).view(-1, config.hidden_size)  # (total S * squeeze, hidden)
        last = spread.new_zeros(sum(frames), config.hidden_size)  # an odd last frame stays 0
        last[_ranges(_starts(frames), [length * squeeze for length in lengths], device)] = spread

        encoded = _Encoded(last, frames, states, lengths)
        logits = [head(encoded).float().cpu() for head in self.heads]
        clips = zip(
            torch.split(last.float().cpu(), frames),
            *(
                torch.split(of_head, frames) if isinstance(head, _CTC) else of_head.unbind(0)
                for head, of_head in zip(self.heads, logits, strict=True)
            ),
            strict=True,
        )
        return [PackedOutput(own, tuple(of_heads)) for own, *of_heads in clips]


# ------------------------------------------------------------------------------------------------------ layouts
def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each of the pieces begins when they are laid end to end."""
    starts = [0]
    for size in sizes[:-1]:
        starts.append(starts[-1] + size)
    return starts


def _ranges(starts: Sequence[int], sizes: Sequence[int], device: torch.device) -> Tensor:
    """The positions from each start on, as many as its size, one after the other."""
    counts = torch.tensor(sizes)
    shifts = torch.tensor(starts) - torch.tensor(_starts(sizes))
    return (torch.arange(int(counts.sum())) + shifts.repeat_interleave(counts)).to(device)


def _owners(sizes: Sequence[int], device: torch.device) -> Tensor:
    """The number of the piece that each position belongs to."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)


# ------------------------------------------------------------------------------------------------------ the parts
@dataclass(frozen=True)
class _Place:
    device: torch.device
    dtype: torch.dtype

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype)


def _affine(weight: Tensor, bias: Tensor | None, place: _Place) -> Callable[[Tensor], Tensor]:
    weight, bias = place(weight), None if bias is None else place(bias)
    return lambda hidden: functional.linear(hidden, weight, bias)


def _linear(module: nn.Linear, place: _Place) -> Callable[[Tensor], Tensor]:
    return _affine(module.weight, module.bias, place)


def _norm(module: nn.LayerNorm, place: _Place) -> Callable[[Tensor], Tensor]:
    weight, bias, eps = place(module.weight), place(module.bias), module.eps
    return lambda hidden: functional.layer_norm(hidden, hidden.shape[-1:], weight, bias, eps)


class _Features:
    """What `FeatureEncoder` computes for each clip alone."""

    def __init__(self, encoder: FeatureEncoder, place: _Place) -> None:
        self.config, self.place = encoder.config, place
        first, *others = (cast(ConvLayer, layer) for layer in encoder.conv_layers)
        self.activation = fast_activation(self.config.feat_extract_activation)
        exact = _Place(place.device, torch.float64)
        self.weight = exact(first.conv.weight)[:, 0]  # (C, kernel)
        self.bias = None if first.conv.bias is None else exact(first.conv.bias)
        norm = cast(nn.GroupNorm | nn.LayerNorm, first.layer_norm)
        self.scale, self.shift, self.eps = exact(norm.weight), exact(norm.bias), norm.eps
        self.others = [_convolution(layer, self.activation, place) for layer in others]

    def __call__(self, waveforms: Sequence[Tensor], frames: Sequence[int]) -> Tensor:
        """Map waveforms to `(total T, conv_dim[-1])`."""
        config, device = self.config, self.place.device
        hop, kernel, stride = config.hop_length, config.conv_kernel[0], config.conv_stride[0]
        hops = [-(-len(waveform) // hop) for waveform in waveforms]
        total = sum(hops)
        samples = torch.zeros(total * hop + kernel, pin_memory=device.type == "cuda")
        starts = _starts(hops)
        for waveform, start in zip(waveforms, starts, strict=True):
            samples[start * hop : start * hop + len(waveform)] = waveform
        samples = samples.to(device, non_blocking=True)
        owners = _owners(hops, device)  # of each hop

        if config.feat_extract_norm == "layer":
            windows = samples.as_strided((total * hop // stride, kernel), (stride, 1))
            bias = None if self.bias is None else self.bias.float()
            hidden = functional.linear(windows, self.weight.float(), bias)
            hidden = functional.layer_norm(hidden, hidden.shape[-1:], self.scale.float(), self.shift.float(), self.eps)
        else:
            counts = torch.tensor([(len(waveform) - kernel) // stride + 1 for waveform in waveforms])
            hidden = self._group_norm(samples, waveforms, hops, owners, counts).flatten(0, 1)
        hidden = self.activation(hidden).to(self.place.dtype)
        for convolution in self.others:
            hidden = convolution(hidden)
        return hidden[_ranges(starts, frames, device)]

    def _group_norm(
        self, samples: Tensor, waveforms: Sequence[Tensor], hops: list[int], owners: Tensor, counts: Tensor
    ) -> Tensor:
        """The first convolution and its GroupNorm, `(total hops, frames a hop, C)`.

        The convolution's own bias is not in it: GroupNorm takes it away again.
        """
        config, device = self.config, self.place.device
        hop, kernel, stride = config.hop_length, config.conv_kernel[0], config.conv_stride[0]
        total, clips, per_hop = sum(hops), len(hops), hop // stride
        sizes = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.float64).to(device)
        body = samples[: total * hop].view(total, hop)
        means = sizes.new_zeros(clips).index_add_(0, owners, body.sum(1, dtype=torch.float64)) / sizes
        # Padding is no longer 0 then, but no window of a clip's own reads it.
        samples = samples.clone()
        samples[: total * hop] = (body.double() - means[owners][:, None]).float().flatten()

        windows = samples.as_strided((total, per_hop, kernel), (hop, stride, 1))
        own = torch.zeros(total * per_hop, dtype=torch.bool, device=device)
        own[_ranges([start * per_hop for start in _starts(hops)], counts.tolist(), device)] = True
        exact = windows.double() * own.view(total, per_hop, 1)
        number = counts.to(device)[:, None]
        mean = sizes.new_zeros(clips, kernel).index_add_(0, owners, exact.sum(1)) / number
        second = sizes.new_zeros(clips, kernel, kernel).index_add_(0, owners, exact.transpose(1, 2) @ exact)
        covariance = second / number[:, :, None] - mean[:, :, None] * mean[:, None, :]
        variance = ((self.weight @ covariance) * self.weight).sum(-1).clamp_min(0)  # (clips, C)
        scale = self.scale * torch.rsqrt(variance + self.eps)
        weight = (self.weight * scale[:, :, None]).float().transpose(1, 2)  # (clips, kernel, C)
        bias = (self.shift - mean @ self.weight.T * scale).float()  # (clips, C)
        return torch.baddbmm(bias[owners][:, None], windows, weight[owners])


def _convolution(layer: ConvLayer, activation: Activation, place: _Place) -> Callable[[Tensor], Tensor]:
    """A convolution after the first, `(T, C_in)` to `(T', C_out)`, as one product for every `stride` taps."""
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    taps = place(layer.conv.weight).transpose(1, 2)  # (C_out, kernel, C_in)
    weights = [part.flatten(1).T.contiguous() for part in torch.split(taps, stride, dim=1)]
    bias = place(layer.conv.weight.new_zeros(len(taps)) if layer.conv.bias is None else layer.conv.bias)
    norm = None if layer.layer_norm is None else _norm(cast(nn.LayerNorm, layer.layer_norm), place)

    def apply(hidden: Tensor) -> Tensor:
        channels = hidden.shape[1]
        frames = hidden.shape[0] // stride
        # What the last windows read beyond the end; they straddle, and are dropped.
        hidden = functional.pad(hidden, (0, 0, 0, max(0, kernel - stride))) if kernel > stride else hidden
        output = bias.expand(frames, -1)
        for index, weight in enumerate(weights):
            offset = index * stride * channels
            rows = hidden.as_strided((frames, len(weight)), (stride * channels, 1), hidden.storage_offset() + offset)
            output = torch.addmm(output, rows, weight)
        return activation(output if norm is None else norm(output))

    return apply


class _Squeeze:
    """Average pooling plus the positional convolution, of each clip alone."""

    def __init__(self, module: PositionalConv, config: SEWDConfig, place: _Place) -> None:
        conv = module.conv
        self.stride, self.halo, self.groups = conv.stride[0], conv.kernel_size[0] // 2, conv.groups
        self.kernel = conv.kernel_size[0]
        self.weight, self.bias = place(conv.weight), place(cast(Tensor, conv.bias))
        self.activation = fast_activation(config.feat_extract_activation)

    def __call__(self, hidden: Tensor, frames: Sequence[int]) -> Tensor:
        """Map `(total T, hidden)` to `(total S, hidden)`."""
        stride, device = self.stride, hidden.device
        lengths = [count // stride for count in frames]
        whole = hidden[_ranges(_starts(frames), [length * stride for length in lengths], device)]
        pooled = whole.view(sum(lengths), stride, -1).mean(1)

        halo = -(-self.halo // stride)  # squeezed frames between clips
        slots = [-(-count // stride) + halo for count in frames]
        starts = _starts(slots)
        wide = hidden.new_zeros(sum(slots) * stride + self.halo + self.kernel, hidden.shape[1])
        wide[_ranges([self.halo + start * stride for start in starts], frames, device)] = hidden
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            output = functional.conv1d(
                wide.T[None].contiguous(), self.weight, self.bias, stride=stride, groups=self.groups
            )[0].T
        return pooled + self.activation(output[_ranges(starts, lengths, device)])


# ------------------------------------------------------------------------------------------------------ attention
def _flex_attention(device: torch.device) -> Callable[..., Any]:
    """FlexAttention, compiled on CUDA. Imported here: the package works without it."""
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415

    return cast(
        "Callable[..., Any]", torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention
    )


class _AttentionBatch:
    """What attention knows of a batch: its clips as documents, and the bucket of each offset."""

    def __init__(self, lengths: Sequence[int], config: SEWDConfig, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import BlockMask  # noqa: PLC0415

        total = sum(lengths)
        self.size = size = max(LEAST, 1 << (total - 1).bit_length())
        # Filling attends to its own block: no row is without a key.
        firsts = torch.arange(size) // BLOCK * BLOCK
        lasts = firsts + BLOCK - 1
        documents = -1 - firsts
        owners = _owners(lengths, torch.device("cpu"))
        starts, counts = torch.tensor(_starts(lengths)), torch.tensor(lengths)
        documents[:total], firsts[:total] = owners, starts[owners]
        lasts[:total] = (starts + counts - 1)[owners]
        least = firsts.view(-1, BLOCK).amin(1) // BLOCK  # of each block of queries, the blocks of keys
        most = lasts.view(-1, BLOCK).amax(1) // BLOCK
        indices = (least[:, None] + torch.arange(size // BLOCK)).clamp_max(size // BLOCK - 1)
        own = documents.to(device)

        def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return own[query] == own[key]

        self.mask = BlockMask.from_kv_blocks(
            (most - least + 1).to(device, torch.int32)[None, None],
            indices.to(device, torch.int32)[None, None],
            BLOCK_SIZE=BLOCK,
            mask_mod=same,
        )
        self.rows = position_buckets(size, config).to(device)


def _attention(
    module: SelfAttention, table: Tensor | None, place: _Place
) -> Callable[[Tensor, _AttentionBatch, Callable[..., Any]], Tensor]:
    heads, scale = module.num_heads, module.scale
    weight = torch.cat([module.query_proj.weight * scale, module.key_proj.weight, module.value_proj.weight])
    bias = torch.cat([module.query_proj.bias * scale, module.key_proj.bias, module.value_proj.bias])
    project = _affine(weight, bias, place)

    def by_head(rows: Tensor) -> Tensor:  # (d, R) a head
        return place(rows).view(len(rows), heads, -1).permute(1, 2, 0).contiguous()

    position_keys = position_queries = None
    if table is not None and module.uses_c2p:
        position_keys = by_head((module.key_proj if module.share_att_key else module.pos_key_proj)(table))
    if table is not None and module.uses_p2c:
        own = module.query_proj if module.share_att_key else module.pos_query_proj
        position_queries = by_head(own(table) * scale)

    def apply(hidden: Tensor, batch: _AttentionBatch, attend: Callable[..., Any]) -> Tensor:
        total, last = len(hidden), batch.size - 1
        parts = functional.pad(project(hidden), (0, 0, 0, batch.size - total)).view(batch.size, 3, heads, -1)
        query, key, value = parts.permute(1, 2, 0, 3).contiguous().unbind(0)  # (heads, size, d)
        c2p = None if position_keys is None else query @ position_keys  # (heads, size, R)
        p2c = None if position_queries is None else key @ position_queries
        rows = batch.rows

        def position(score: Tensor, _: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            row = rows[q - k + last]
            if c2p is not None:
                score = score + c2p[head, q, row]
            if p2c is not None:
                score = score + p2c[head, k, row]
            return score

        context = attend(
            query[None],
            key[None],
            value[None],
            score_mod=None if c2p is None and p2c is None else position,
            block_mask=batch.mask,
            scale=1.0,
        )[0]
        return cast(Tensor, context.transpose(0, 1).flatten(1)[:total])

    return apply


def _layer(
    layer: Layer, table: Tensor | None, config: SEWDConfig, place: _Place
) -> Callable[[Tensor, _AttentionBatch, Callable[..., Any]], Tensor]:
    attention = _attention(layer.attention.self, table, place)
    halves = [
        (_linear(part.dense, place), _norm(part.LayerNorm, place)) for part in (layer.attention.output, layer.output)
    ]
    (dense, norm), (outer, outer_norm) = halves
    inner, activation = _linear(layer.intermediate.dense, place), fast_activation(config.hidden_act)

    def apply(hidden: Tensor, batch: _AttentionBatch, attend: Callable[..., Any]) -> Tensor:
        attended = norm(dense(attention(hidden, batch, attend)) + hidden)
        return outer_norm(outer(activation(inner(attended))) + attended)

    return apply


# ------------------------------------------------------------------------------------------------------ the heads
@dataclass(frozen=True)
class _Encoded:
    last: Tensor  # (total T, hidden)
    frames: list[int]
    states: list[Tensor]  # (total S, hidden): the transformer's input and each layer's output
    lengths: list[int]


@dataclass(frozen=True)
class _CTC:
    lm_head: Callable[[Tensor], Tensor]

    def __call__(self, encoded: _Encoded) -> Tensor:
        return self.lm_head(encoded.last)  # (total T, vocab_size)


@dataclass(frozen=True)
class _Classifier:
    layer_weights: Tensor | None  # float32, after softmax; None: the last hidden state alone
    projector: Callable[[Tensor], Tensor]
    classifier: Callable[[Tensor], Tensor]

    def __call__(self, encoded: _Encoded) -> Tensor:
        """`(clips, num_labels)`; the mean comes before the projection, with which it commutes."""
        if self.layer_weights is None:
            frames, sizes = encoded.last.float(), encoded.frames
        else:
            frames, sizes = torch.zeros_like(encoded.states[0], dtype=torch.float32), encoded.lengths
            for weight, state in zip(self.layer_weights, encoded.states, strict=True):
                frames += weight * state
        sums = frames.new_zeros(len(sizes), frames.shape[1]).index_add_(0, _owners(sizes, frames.device), frames)
        means = sums / torch.tensor(sizes, device=frames.device)[:, None]
        return self.classifier(self.projector(means))


def _head(model: SEWDForCTC | SEWDForSequenceClassification, place: _Place) -> _CTC | _Classifier:
    if isinstance(model, SEWDForCTC):
        return _CTC(_linear(model.lm_head, place))
    exact = _Place(place.device, torch.float32)  # one row a clip: costs nothing
    weights = exact(model.layer_weights.softmax(-1)) if model.config.use_weighted_layer_sum else None
    return _Classifier(weights, _linear(model.projector, exact), _linear(model.classifier, exact))
