"""Inference on GPUs over many clips at once, each with the result that it has alone.

`PackedModel` is for processors: it goes clip by clip wherever frames meet. Here a few large operations do everything
for all clips at once, on any one device of torch. Clips lie end to end in slots that start at multiples of the hop, so
that in every layer of the feature extractor each starts at a whole frame, and a convolution is a few matrix products
over all clips; the frames that straddle two of them are computed, and dropped after the last layer.

Moments are taken in float64, the first convolution and the heads' means in float32, and the rest in the dtype asked
for, where torch's LayerNorm, softmax and sums are of float32 inside.

A value that is not finite (an overflow in float16) may reach the clips beside it, where it meets weights of zero: who
wants each clip's own result then runs it alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

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
    ResidualOutput,
    SEWDForCTC,
    SEWDForSequenceClassification,
)
from sewd_model.packed.gpu_attention import Clips, FlexSelfAttention, bring, padded_length
from sewd_model.packed.products import fast_activation

POSITIONAL_FRAMES = 32  # that one product of the positional convolution reads at a time, if it need not be more

Head = SEWDForCTC | SEWDForSequenceClassification


# ------------------------------------------------------------------------------------------------------ a batch
@dataclass(frozen=True)
class Batch:
    """Clips end to end on a device, and where their frames go.

    Attributes:
        samples: `(slots, hop)` float32, zeros after each clip's own; a slot is the time of one frame.
        clip: `(slots,)` int64, the clip that a slot is of.
        first: `(clips,)` int64, each clip's first slot.
        num_samples: `(clips,)` int64; `slots`, `num_frames` and `lengths` (squeezed frames) are for each clip, too.
        spaced: `(W,)` int64, the frame in each place of a layout with zeros between clips, -1 for a zero.
        squeezed: `(S,)` int64, the place of each squeezed frame after the positional convolution; S is padded.
        spread: `(sum(num_frames),)` int64, the place of each frame after spreading, the last for a frame of zeros.
        clips: what attention has to know.
        frames_of: `num_frames`, on the CPU.
    """

    samples: Tensor
    clip: Tensor
    first: Tensor
    num_samples: Tensor
    spaced: Tensor
    squeezed: Tensor
    spread: Tensor
    slots: Tensor
    num_frames: Tensor
    lengths: Tensor
    clips: Clips
    frames_of: list[int]

    def tensors(self) -> list[Tensor]:
        """All that lie on the device."""
        own = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return own + self.clips.tensors()


def lay_out(waveforms: Sequence[Tensor], config: SEWDConfig, device: torch.device) -> Batch:
    """Lay clips end to end and bring them to the device; from pinned memory, without waiting, where it is CUDA.

    Raises:
        InputTooShortError: A clip has fewer than `config.min_samples` samples.
        ValueError: A clip is not one-dimensional float32 on the CPU, or there is none.
    """
    if not waveforms:
        msg = "there is no clip in the batch"
        raise ValueError(msg)
    for waveform in waveforms:
        if waveform.dim() != 1 or waveform.dtype != torch.float32 or waveform.device.type != "cpu":
            found = f"{waveform.dtype} {tuple(waveform.shape)} on {waveform.device}"
            msg = f"a waveform must be float32 (N,) on the CPU, not {found}"
            raise ValueError(msg)
        if len(waveform) < config.min_samples:
            raise InputTooShortError(len(waveform), config.min_samples)
    hop, squeeze, halo = config.hop_length, config.squeeze_factor, config.num_conv_pos_embeddings // 2
    num_samples = torch.tensor([len(waveform) for waveform in waveforms])
    num_frames = torch.tensor([config.num_frames(len(waveform)) for waveform in waveforms])
    lengths = num_frames // squeeze
    slots = -(-num_samples // hop)
    first = slots.cumsum(0) - slots

    samples = torch.zeros(int(slots.sum()) * hop, pin_memory=device.type == "cuda")
    for start, waveform in zip((first * hop).tolist(), waveforms, strict=True):
        samples[start : start + len(waveform)] = waveform

    # With a halo of zeros between neighbours; a clip's first frame comes `halo` after a multiple of the squeeze factor.
    rooms = -(-(num_frames + halo) // squeeze) * squeeze
    starts = rooms.cumsum(0) - rooms
    spaced = torch.full((int(rooms.sum()) + halo,), -1)
    spaced[_ranges(starts + halo, num_frames)] = _ranges(first, num_frames)
    squeezed = torch.zeros(padded_length(lengths.tolist()), dtype=torch.long)
    squeezed[: int(lengths.sum())] = _ranges(starts // squeeze, lengths)

    own = lengths * squeeze
    place = _ranges(torch.zeros_like(num_frames), num_frames)
    spread = place + (own.cumsum(0) - own).repeat_interleave(num_frames)
    spread[place >= own.repeat_interleave(num_frames)] = len(squeezed) * squeeze

    return Batch(
        samples=bring(samples, device).view(-1, hop),
        clip=bring(torch.arange(len(waveforms)).repeat_interleave(slots), device),
        first=bring(first, device),
        num_samples=bring(num_samples, device),
        spaced=bring(spaced, device),
        squeezed=bring(squeezed, device),
        spread=bring(spread, device),
        slots=bring(slots, device),
        num_frames=bring(num_frames, device),
        lengths=bring(lengths, device),
        clips=Clips.of(lengths.tolist(), config, device),
        frames_of=num_frames.tolist(),
    )


def _ranges(starts: Tensor, sizes: Tensor) -> Tensor:
    """`start, start + 1, ...` for each of the starts, so many as its size, end to end."""
    before = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum())) + (starts - before).repeat_interleave(sizes)


def _sums(values: Tensor, sizes: Tensor) -> Tensor:
    """Sum `(n, ...)` over runs of neighbours of the given sizes, to `(runs, ...)`; no run shows in another's."""
    # Unsafe: it would look at the lengths, and wait for the device to do so.
    flat: Tensor = torch.segment_reduce(values.flatten(1), "sum", lengths=sizes, axis=0, unsafe=True)
    return flat.view(len(sizes), *values.shape[1:])


# --------------------------------------------------------------------------------------------- feature extraction
@dataclass(frozen=True)
class _Linear:
    """A linear map of rows, and an activation: weight `(out, in)`, bias `(out,)` or None."""

    weight: Tensor
    bias: Tensor | None
    activation: Activation

    @classmethod
    def of(cls, layer: nn.Linear, device: torch.device, dtype: torch.dtype, activation: str = "linear") -> Self:
        weight, bias = (parameter.detach().to(device, dtype) for parameter in (layer.weight, layer.bias))
        return cls(weight, bias, fast_activation(activation))

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.activation(functional.linear(hidden, self.weight, self.bias))


@dataclass(frozen=True)
class _Norm:
    """A LayerNorm's weight and bias `(C,)`."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm | nn.GroupNorm, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(norm.weight.detach().to(device, dtype), norm.bias.detach().to(device, dtype), norm.eps)

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.layer_norm(hidden, hidden.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class _Convolution:
    """A convolution of the feature extractor as products: of each `stride` taps, the rows of a strided view.

    No row reaches beyond the next one's start, which is what the libraries of matrix products ask for.
    """

    kernel: int
    stride: int
    weights: tuple[Tensor, ...]  # for every `stride` taps, (taps * C_in, C_out)
    bias: Tensor | None
    norm: _Norm | None
    activation: Activation

    @classmethod
    def of(cls, layer: ConvLayer, activation: str, device: torch.device, dtype: torch.dtype) -> Self:
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        taps = layer.conv.weight.detach().permute(2, 1, 0)  # (kernel, C_in, C_out)
        return cls(
            kernel=kernel,
            stride=stride,
            weights=tuple(part.flatten(0, 1).to(device, dtype).contiguous() for part in torch.split(taps, stride)),
            bias=None if layer.conv.bias is None else layer.conv.bias.detach().to(device, dtype),
            norm=None if layer.layer_norm is None else _Norm.of(layer.layer_norm, device, dtype),
            activation=fast_activation(activation),
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `(T, C_in)`, contiguous, to `(T', C_out)`."""
        channels = hidden.shape[1]
        frames, step = (len(hidden) - self.kernel) // self.stride + 1, self.stride * channels
        output = self.bias
        for index, weight in enumerate(self.weights):
            rows = hidden.as_strided((frames, len(weight)), (step, 1), index * step)
            output = rows @ weight if output is None else torch.addmm(output, rows, weight)
        output = cast(Tensor, output)
        return self.activation(output if self.norm is None else self.norm(output))


class _Features:
    """What `FeatureEncoder` computes for clips alone."""

    def __init__(self, encoder: FeatureEncoder, device: torch.device, dtype: torch.dtype) -> None:
        config: SEWDConfig = encoder.config
        first, *others = (cast(ConvLayer, layer) for layer in encoder.conv_layers)
        self.config, self.dtype = config, dtype
        self.kernel, self.stride = config.conv_kernel[0], config.conv_stride[0]
        self.weight = first.conv.weight.detach()[:, 0].to(device, torch.float32)  # (C, kernel)
        self.bias = None if first.conv.bias is None else first.conv.bias.detach().to(device, torch.float32)
        self.norm = _Norm.of(cast(nn.GroupNorm | nn.LayerNorm, first.layer_norm), device, torch.float32)
        self.activation = fast_activation(config.feat_extract_activation)
        self.others = [_Convolution.of(layer, config.feat_extract_activation, device, dtype) for layer in others]

    def __call__(self, batch: Batch) -> Tensor:
        """Frames `(F, conv_dim[-1])`, a slot's at its place; those that straddle two clips mean nothing."""
        if self.config.feat_extract_norm == "layer":
            hidden = functional.linear(self._windows(batch.samples).flatten(0, 1), self.weight, self.bias)
            hidden = self.norm(hidden)
        else:
            sums = _sums(batch.samples.sum(1, dtype=torch.float64)[:, None], batch.slots)[:, 0]
            mean = sums / batch.num_samples  # (clips,)
            centred = (batch.samples - mean[batch.clip][:, None]).float()
            windows = self._windows(centred)
            weight, bias = self._fold_group_norm(windows, batch)
            hidden = torch.baddbmm(bias[batch.clip][:, None], windows, weight[batch.clip]).flatten(0, 1)
        hidden = self.activation(hidden).to(self.dtype)
        for convolution in self.others:
            hidden = convolution(hidden)
        return hidden

    def _windows(self, samples: Tensor) -> Tensor:
        """What each frame of the first convolution reads, `(slots, frames a slot, kernel)`."""
        slots, hop = samples.shape
        wide = functional.pad(samples.flatten(), (0, self.kernel))
        return wide.unfold(0, self.kernel, self.stride)[: slots * hop // self.stride].view(
            slots, hop // self.stride, self.kernel
        )

    def _fold_group_norm(self, windows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weight `(clips, kernel, C)` and bias `(clips, C)` that are the first convolution and its GroupNorm in one.

        As `packed_convolutions` does it, but by moments about 0: clips are centred, and float64 has digits to spare.
        The convolution's own bias is not in it: GroupNorm takes it away again.
        """
        slots, frames, _ = windows.shape
        count = torch.div(batch.num_samples - self.kernel, self.stride, rounding_mode="floor") + 1  # (clips,)
        place = torch.arange(slots, device=windows.device) - batch.first[batch.clip]
        place = place[:, None] * frames + torch.arange(frames, device=windows.device)  # (slots, frames), in the clip
        own = (place < count[batch.clip][:, None])[:, :, None]
        values = torch.where(own, windows, 0.0).double()
        mean = _sums(values.sum(1), batch.slots) / count[:, None]  # (clips, kernel)
        second = _sums(values.transpose(1, 2) @ values, batch.slots) / count[:, None, None]
        covariance = second - mean[:, :, None] * mean[:, None]
        weight = self.weight.double()  # (C, kernel)
        variance = ((weight @ covariance) * weight).sum(-1).clamp_min(0.0)  # (clips, C)
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        folded = (weight * scale[:, :, None]).float().transpose(1, 2)
        return folded, (self.norm.bias - mean @ weight.T * scale).float()


# ------------------------------------------------------------------------------------------------------- squeeze
@dataclass(frozen=True)
class _Squeeze:
    """Average pooling plus the positional convolution, over clips with zeros between them.

    A product yields several neighbours at a time, from all the frames that they read: its weight holds the taps once
    for each of them, moved on, and zeros. That is twice the work of what is needed, in products of a size that pays.

    Attributes:
        outputs: squeezed frames that a row of a product yields.
        weights: `(groups, outputs * stride * C, outputs * C)` each, C = hidden / groups; weight norm is in them.
        bias: `(groups, 1, outputs * C)`.
    """

    kernel: int
    stride: int
    outputs: int
    weights: tuple[Tensor, ...]
    bias: Tensor
    activation: Activation

    @classmethod
    def of(cls, module: PositionalConv, activation: str, device: torch.device, dtype: torch.dtype) -> Self:
        conv = module.conv
        kernel, stride, groups = conv.kernel_size[0], conv.stride[0], conv.groups
        taps = conv.weight.detach().view(groups, -1, conv.weight.shape[1], kernel)  # (groups, C out, C in, kernel)
        taps = functional.pad(taps.permute(0, 3, 2, 1), (0, 0, 0, 0, 0, 1))  # (groups, kernel + 1, C in, C out)
        outputs = max(1, min(POSITIONAL_FRAMES, kernel) // stride)
        width = outputs * stride  # frames that a product reads
        count = math.ceil((kernel + width - stride) / width)
        tap = torch.arange(count * width)[:, None] - torch.arange(outputs) * stride  # (frames, outputs)
        tap = torch.where((tap >= 0) & (tap < kernel), tap, kernel)
        wide = taps[:, tap].transpose(2, 3).flatten(3).flatten(1, 2)  # (groups, frames * C in, outputs * C out)
        weights = torch.split(wide, width * conv.weight.shape[1], dim=1)
        bias = cast(Tensor, conv.bias).detach().view(groups, 1, -1).repeat(1, 1, outputs)
        return cls(
            kernel=kernel,
            stride=stride,
            outputs=outputs,
            weights=tuple(weight.to(device, dtype).contiguous() for weight in weights),
            bias=bias.to(device, dtype),
            activation=fast_activation(activation),
        )

    def __call__(self, frames: Tensor, batch: Batch) -> Tensor:
        """Map frames `(F, hidden)` to squeezed ones, `(S, hidden)`."""
        groups, width, halo = len(self.bias), self.outputs * self.stride, self.kernel // 2
        rows = math.ceil(len(batch.spaced) / width)
        short = (rows + max(len(self.weights) - 1, math.ceil(halo / width))) * width - len(batch.spaced)
        spaced = functional.pad(batch.spaced, (0, short), value=-1)
        wide = frames.index_select(0, spaced.clamp_min(0)).masked_fill_((spaced < 0)[:, None], 0.0)
        pooled = wide[halo : halo + rows * width].view(rows * self.outputs, self.stride, -1).mean(1)
        of_groups = wide.view(len(wide), groups, -1).transpose(0, 1).reshape(groups, len(wide) // width, -1)
        output = self.bias
        for index, weight in enumerate(self.weights):
            output = torch.baddbmm(output, of_groups[:, index : index + rows], weight)  # (groups, rows, outputs * C)
        output = output.view(groups, rows * self.outputs, -1).transpose(0, 1).flatten(1)
        return (pooled + self.activation(output)).index_select(0, batch.squeezed)


# --------------------------------------------------------------------------------------------------------- layers
@dataclass(frozen=True)
class _Residual:
    """The end of each half of a layer."""

    dense: _Linear
    norm: _Norm

    @classmethod
    def of(cls, module: ResidualOutput, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(_Linear.of(module.dense, device, dtype), _Norm.of(module.LayerNorm, device, dtype))

    def __call__(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.dense(hidden).add_(residual))


@dataclass(frozen=True)
class _Layer:
    """A transformer layer."""

    attention: FlexSelfAttention
    attention_output: _Residual
    intermediate: _Linear
    output: _Residual

    @classmethod
    def of(cls, layer: Layer, table: Tensor | None, activation: str, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(
            attention=FlexSelfAttention.of(layer.attention.self, table, device, dtype),
            attention_output=_Residual.of(layer.attention.output, device, dtype),
            intermediate=_Linear.of(layer.intermediate.dense, device, dtype, activation),
            output=_Residual.of(layer.output, device, dtype),
        )

    def __call__(self, hidden: Tensor, clips: Clips) -> Tensor:
        attended = self.attention_output(self.attention(hidden, clips), hidden)
        return self.output(self.intermediate(attended), attended)


# ---------------------------------------------------------------------------------------------------------- heads
@dataclass(frozen=True)
class _CTC:
    lm_head: _Linear

    def __call__(self, spread: Tensor, batch: Batch) -> Tensor:
        """Logits of all clips' frames, `(sum(num_frames), vocab_size)` float32."""
        of_zeros = cast(Tensor, self.lm_head.bias)[None]
        return torch.cat([self.lm_head(spread), of_zeros]).index_select(0, batch.spread).float()


@dataclass(frozen=True)
class _Classifier:
    """Classification in float32; the mean over time comes before the projection, with which it commutes."""

    layer_weights: Tensor | None  # (layers + 1,), after softmax; None: the last hidden state alone
    projector: _Linear
    classifier: _Linear

    def __call__(self, last: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Logits `(clips, num_labels)` from means over the clips, `(clips, hidden)`: of the last frames, and of
        the layers' squeezed ones."""
        mean = last
        if self.layer_weights is not None:
            mean = torch.tensordot(self.layer_weights, torch.stack(list(states)), 1)
        return self.classifier(self.projector(mean))


def _head(model: Head, device: torch.device, dtype: torch.dtype) -> _CTC | _Classifier:
    if isinstance(model, SEWDForCTC):
        return _CTC(_Linear.of(model.lm_head, device, dtype))
    weights = model.layer_weights.detach().softmax(-1).to(device) if model.config.use_weighted_layer_sum else None
    projector, classifier = (_Linear.of(layer, device, torch.float32) for layer in (model.projector, model.classifier))
    return _Classifier(weights, projector, classifier)


# -------------------------------------------------------------------------------------------------------- a model
class PackedDeviceModel:
    """A backbone and its heads, for packed batches on one device.

    Its weights are prepared when it is made: after more training, pack them anew.
    """

    def __init__(self, models: Sequence[Head], *, device: torch.device, dtype: str = "float32") -> None:
        """Pack the models.

        Args:
            models: heads of one backbone, in float32 on the CPU.
            device: where they shall run.
            dtype: `float32`, `bfloat16` or `float16`.

        Raises:
            ValueError: There is no model, their backbones differ, or they are not in float32 on the CPU.
        """
        if len({backbone_digest(model) for model in models}) != 1:
            msg = "the models to pack must share one backbone"
            raise ValueError(msg)
        if any(p.dtype != torch.float32 or p.device.type != "cpu" for model in models for p in model.parameters()):
            msg = "the models to pack must be in float32 on the CPU"
            raise ValueError(msg)
        self.device, kind = device, getattr(torch, dtype)
        with torch.inference_mode():
            self._prepare(models, kind)

    def _prepare(self, models: Sequence[Head], dtype: torch.dtype) -> None:
        backbone, device = models[0].sew_d, self.device
        transformer = backbone.encoder.encoder
        table = transformer.position_table() if backbone.config.relative_attention else None
        self.config = config = backbone.config
        self.features = _Features(backbone.feature_extractor, device, dtype)
        self.norm = _Norm.of(backbone.layer_norm, device, dtype)
        self.projection = None
        if hasattr(backbone, "feature_projection"):
            self.projection = _Linear.of(backbone.feature_projection, device, dtype)
        activation = config.feat_extract_activation
        self.squeeze = _Squeeze.of(backbone.encoder.pos_conv_embed, activation, device, dtype)
        self.layers = [
            _Layer.of(cast(Layer, layer), table, config.hidden_act, device, dtype) for layer in transformer.layer
        ]
        self.upsample = _Linear.of(backbone.encoder.upsample.projection, device, dtype, activation)
        self.heads = [_head(model, device, dtype) for model in models]
        self.classifies = any(isinstance(head, _Classifier) for head in self.heads)
        self.keeps_states = any(model.needs_hidden_states for model in models)

    def __call__(self, waveforms: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Encode clips, in one batch.

        Args:
            waveforms: `(N,)` float32 each, at the model's rate, prepared by `FeatureExtractor`. Not modified.

        Returns:
            For each clip, in order, the logits of each head, in the order that they were given, float32 on the CPU:
            `(T, vocab_size)` or `(num_labels,)`.

        Raises:
            InputTooShortError, ValueError: see `lay_out`.
        """
        batch = lay_out(waveforms, self.config, self.device)
        return self.split(batch, self.compute(batch).cpu())

    @torch.inference_mode()
    def compute(self, batch: Batch) -> Tensor:
        """The logits of all heads end to end, one dimension, float32, on the device, which may still be at work."""
        config = self.config
        hidden = self.norm(self.features(batch))  # (F, conv_dim[-1])
        if self.projection is not None:
            hidden = self.projection(hidden)
        hidden = self.squeeze(hidden, batch)  # (S, hidden)
        own = sum(frames // config.squeeze_factor for frames in batch.frames_of)

        def state(hidden: Tensor) -> Tensor:
            return _sums(hidden[:own].float(), batch.lengths) / batch.lengths[:, None]

        states = [state(hidden)] if self.keeps_states else []
        for layer in self.layers:
            hidden = layer(hidden, batch.clips)
            if self.keeps_states:
                states.append(state(hidden))
        spread = self.upsample(hidden).view(-1, config.hidden_size)  # (S * squeeze, hidden)
        last = hidden.new_empty(0)
        if self.classifies:
            squeeze = config.squeeze_factor
            last = _sums(spread[: own * squeeze].float(), batch.lengths * squeeze) / batch.num_frames[:, None]
        logits = [head(spread, batch) if isinstance(head, _CTC) else head(last, states) for head in self.heads]
        return torch.cat([one.flatten() for one in logits])

    def split(self, batch: Batch, logits: Tensor) -> list[tuple[Tensor, ...]]:
        """What `__call__` returns, from what `compute` gave, on the CPU."""
        clips, frames = len(batch.frames_of), sum(batch.frames_of)
        of_heads: list[Sequence[Tensor]] = []
        for head in self.heads:
            if isinstance(head, _CTC):
                size = len(head.lm_head.weight)
                of_head = torch.split(logits[: frames * size].view(frames, size), batch.frames_of)
                logits = logits[frames * size :]
            else:
                size = len(head.classifier.weight)
                of_head = logits[: clips * size].view(clips, size).unbind(0)
                logits = logits[clips * size :]
            of_heads.append(of_head)
        return list(zip(*of_heads, strict=True))
