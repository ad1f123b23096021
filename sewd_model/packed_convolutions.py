"""The convolutions for inference on processors, one clip at a time: each is a few matrix products.

Time comes before channels, `(T, C)`. Then the windows of a convolution of stride s, s taps of them at a time, are the
rows of a strided view of its input, so that each product reads the activations where they lie: a kernel of 1 or of 2
with stride 2 is one product, a kernel of 3 with stride 2 is two. The feature extractor works a clip off in tiles of
time that stay in the processor's cache; a tile reads the few samples that its neighbour reads too, so no seam shows.

The GroupNorm behind the first convolution is folded into it. Its mean and variance are those of a linear function of
the waveform's windows, `w . x`, and so follow from the windows' mean m and covariance C: `w . m` and `w . C w`. Taken
in float64, of the waveform less its mean, which GroupNorm takes away anyway, they lose no digits to an offset.
"""

import math
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sewd_model.activations import ACTIVATIONS, Activation
from sewd_model.config import SEWDConfig
from sewd_model.model import ConvLayer, FeatureEncoder, PositionalConv

# Frames of output that are computed at a time: 2 s at the published strides, where the widest activations take 1.6 MB.
TILE_FRAMES = 100

# The same function as "gelu", of which the reference computes each step by itself.
_SAME = {"gelu_python": "gelu"}


def fast_activation(name: str) -> Activation:
    """The activation that `name` means, equal to the reference's up to rounding."""
    return ACTIVATIONS[_SAME.get(name, name)]


@dataclass(frozen=True)
class Norm:
    """A LayerNorm's numbers: weight and bias `(C,)`."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm | nn.GroupNorm) -> Self:
        """The numbers of a module."""
        return cls(norm.weight.detach(), norm.bias.detach(), norm.eps)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Normalise each row of `(T, C)`."""
        return functional.layer_norm(hidden, hidden.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class _Convolution:
    """A convolution after the first.

    Attributes:
        weights: for every `stride` taps of the kernel (fewer at its end), `(taps * C_in, C_out)`.
        bias: `(C_out,)`, or None.
        norm: over the channels of each frame, or None.
    """

    kernel: int
    stride: int
    weights: tuple[Tensor, ...]
    bias: Tensor | None
    norm: Norm | None

    @classmethod
    def of(cls, layer: ConvLayer) -> Self:
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        taps = layer.conv.weight.detach().permute(2, 1, 0)  # (kernel, C_in, C_out)
        weights = tuple(part.flatten(0, 1).contiguous() for part in torch.split(taps, stride))
        bias = None if layer.conv.bias is None else layer.conv.bias.detach()
        norm = None if layer.layer_norm is None else Norm.of(layer.layer_norm)
        return cls(kernel, stride, weights, bias, norm)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `(T, C_in)`, contiguous, to `(T', C_out)`; the activation is the caller's."""
        frames = (hidden.shape[0] - self.kernel) // self.stride + 1
        step = self.stride * hidden.shape[1]
        output = None
        for index, weight in enumerate(self.weights):
            start = hidden.storage_offset() + index * step
            rows = hidden.as_strided((frames, weight.shape[0]), (step, 1), start)  # (T', taps * C_in)
            if output is not None:
                output.addmm_(rows, weight)
            else:
                output = rows @ weight if self.bias is None else torch.addmm(self.bias, rows, weight)
        output = cast(Tensor, output)
        return output if self.norm is None else self.norm(output)


class PackedFeatures:
    """What `FeatureEncoder` computes for a clip alone."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        config: SEWDConfig = encoder.config
        first, *others = (cast(ConvLayer, layer) for layer in encoder.conv_layers)
        self.config = config
        self.kernel, self.stride = config.conv_kernel[0], config.conv_stride[0]
        self.weight = first.conv.weight.detach()[:, 0]  # (C, kernel)
        self.bias = self.weight.new_zeros(len(self.weight)) if first.conv.bias is None else first.conv.bias.detach()
        self.norm = Norm.of(cast(nn.GroupNorm | nn.LayerNorm, first.layer_norm))
        self.others = [_Convolution.of(layer) for layer in others]
        self.activation = fast_activation(config.feat_extract_activation)
        self.receptive_field = 1  # samples that one frame reads
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel

    def __call__(self, waveform: Tensor) -> list[Tensor]:
        """Map `(N,)` float32, at least one receptive field of it, to frames: tiles of `(t, conv_dim[-1])`, in order."""
        hop, num_frames = self.config.hop_length, self.config.num_frames(len(waveform))
        per_frame = self.config.feat_extract_norm == "layer"
        weight, bias = self.weight, self.bias
        if not per_frame:
            waveform = (waveform - waveform.mean(dtype=torch.float64)).float()
            weight, bias = self._fold_group_norm(waveform)
        size = math.ceil(num_frames / math.ceil(num_frames / TILE_FRAMES))  # about equal, none of a frame or two
        tiles = []
        for frame in range(0, num_frames, size):
            last = min(frame + size, num_frames) - 1
            samples = waveform[frame * hop : last * hop + self.receptive_field]
            windows = samples.unfold(0, self.kernel, self.stride)  # (T, kernel)
            hidden = torch.addmm(bias, windows, weight.T)  # (T, C)
            hidden = self.activation(self.norm(hidden) if per_frame else hidden)
            for convolution in self.others:
                hidden = self.activation(convolution(hidden))
            tiles.append(hidden)
        return tiles

    def _fold_group_norm(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Weight `(C, kernel)` and bias `(C,)` that give this clip's first convolution and its GroupNorm in one.

        The convolution's own bias is not in it: GroupNorm takes it away again.
        """
        windows = waveform.unfold(0, self.kernel, self.stride).double()  # (T, kernel)
        mean = windows.mean(0)
        windows -= mean
        covariance = windows.T @ windows / len(windows)
        weight = self.weight.double()
        variance = ((weight @ covariance) * weight).sum(-1)  # (C,)
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        return (weight * scale[:, None]).float(), (self.norm.bias - (weight @ mean) * scale).float()


@dataclass(frozen=True)
class PackedSqueeze:
    """Average pooling plus the positional convolution, of a clip alone.

    Attributes:
        kernel: taps of the convolution.
        stride: frames that are squeezed into one.
        weights: for every `stride` taps, `(groups, taps * C, C)` with C = hidden / groups; weight norm is in them.
        bias: `(groups, 1, C)`.
    """

    kernel: int
    stride: int
    weights: tuple[Tensor, ...]
    bias: Tensor
    activation: Activation

    @classmethod
    def of(cls, module: PositionalConv, activation: Activation) -> Self:
        """Prepare the weights."""
        conv = module.conv
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        taps = conv.weight.detach().view(conv.groups, -1, conv.weight.shape[1], kernel)  # (groups, C out, C in, kernel)
        parts = torch.split(taps.permute(0, 3, 2, 1), stride, dim=1)
        bias = cast(Tensor, conv.bias).detach().view(conv.groups, 1, -1)
        return cls(kernel, stride, tuple(part.flatten(1, 2).contiguous() for part in parts), bias, activation)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `(T, hidden)`, contiguous, to `(S, hidden)`."""
        length, groups = hidden.shape[0] // self.stride, len(self.bias)
        pooled = hidden[: length * self.stride].view(length, self.stride, -1).mean(1)  # (S, hidden)

        halo = self.kernel // 2
        wide = hidden.new_zeros(groups, hidden.shape[0] + 2 * halo, hidden.shape[1] // groups)  # (groups, frames, C)
        wide[:, halo : halo + hidden.shape[0]] = hidden.view(len(hidden), groups, -1).transpose(0, 1)
        _, frames, channels = wide.shape
        step = self.stride * channels
        output = self.bias.repeat(1, length, 1)  # (groups, S, C)
        for index, weight in enumerate(self.weights):
            rows = wide.as_strided((groups, length, weight.shape[1]), (frames * channels, step, 1), index * step)
            output.baddbmm_(rows, weight)
        return pooled + self.activation(output).transpose(0, 1).flatten(1)
