"""The convolutions for inference on processors, one clip at a time: each is a matrix product.

Time comes before channels, `(T, C)`. Then the windows of a convolution are the rows of a strided view of its input, and
it is one matrix product. The feature extractor works a clip off in tiles of time that stay in the processor's cache; a
tile reads the few samples that its neighbour reads too, so no seam shows.

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

from sewd_model.activations import Activation
from sewd_model.config import SEWDConfig
from sewd_model.model import ConvLayer, FeatureEncoder, PositionalConv
from sewd_model.packed.crew import Share
from sewd_model.packed.products import Linear, fast_activation, product

# Frames of output that are computed at a time: 1 s at the published strides, where the widest activations take 0.8 MB
# and their windows 1.2 MB. Twice as many, and memory that goes back to the system after each product costs a fifth.
TILE_FRAMES = 50


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
        linear: from a window, tap by tap, with the activation, unless a norm comes between.
        norm: over the channels of each frame, or None.
    """

    kernel: int
    stride: int
    linear: Linear
    norm: Norm | None
    activation: Activation

    @classmethod
    def of(cls, layer: ConvLayer, activation: str, linear: type[Linear]) -> Self:
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        weight = layer.conv.weight.detach().transpose(1, 2).flatten(1)  # (C_out, kernel * C_in)
        bias = None if layer.conv.bias is None else layer.conv.bias.detach()
        if layer.layer_norm is None:
            return cls(kernel, stride, linear.pack(weight, bias, activation), None, fast_activation("linear"))
        norm = Norm.of(layer.layer_norm)
        return cls(kernel, stride, linear.pack(weight, bias), norm, fast_activation(activation))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `(T, C_in)`, contiguous, to `(T', C_out)`."""
        output = self.linear(_windows(hidden, self.kernel, self.stride))
        return output if self.norm is None else self.activation(self.norm(output.float()))


def _windows(hidden: Tensor, kernel: int, stride: int) -> Tensor:
    """View `(T, C)`, contiguous, as `(T', kernel * C)`: what each frame of a convolution reads."""
    frames, channels = (hidden.shape[0] - kernel) // stride + 1, hidden.shape[1]
    return hidden.as_strided((frames, kernel * channels), (stride * channels, 1))


class PackedFeatures:
    """What `FeatureEncoder` computes for a clip alone."""

    def __init__(self, encoder: FeatureEncoder, linear: type[Linear]) -> None:
        config: SEWDConfig = encoder.config
        first, *others = (cast(ConvLayer, layer) for layer in encoder.conv_layers)
        self.config = config
        self.kernel, self.stride = config.conv_kernel[0], config.conv_stride[0]
        self.weight = first.conv.weight.detach()[:, 0]  # (C, kernel)
        self.bias = self.weight.new_zeros(len(self.weight)) if first.conv.bias is None else first.conv.bias.detach()
        self.norm = Norm.of(cast(nn.GroupNorm | nn.LayerNorm, first.layer_norm))
        self.others = [_Convolution.of(layer, config.feat_extract_activation, linear) for layer in others]
        self.activation = fast_activation(config.feat_extract_activation)
        self.receptive_field = 1  # samples that one frame reads
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel

    def __call__(self, waveform: Tensor, share: Share) -> list[Tensor]:
        """Map `(N,)` float32, at least one receptive field of it, to frames: tiles of `(t, conv_dim[-1])`, in order."""
        hop, num_frames = self.config.hop_length, self.config.num_frames(len(waveform))
        per_frame = self.config.feat_extract_norm == "layer"
        weight, bias = self.weight, self.bias
        if not per_frame:
            waveform = (waveform - waveform.mean(dtype=torch.float64)).float()
            weight, bias = self._fold_group_norm(waveform)
        size = math.ceil(num_frames / math.ceil(num_frames / TILE_FRAMES))  # about equal, none of a frame or two

        def tile(frame: int) -> Tensor:
            last = min(frame + size, num_frames) - 1
            samples = waveform[frame * hop : last * hop + self.receptive_field]
            windows = samples.unfold(0, self.kernel, self.stride)  # (T, kernel)
            if per_frame:
                hidden = self.activation(self.norm(product(windows, weight, bias)))  # (T, C)
            else:
                hidden = product(windows, weight, bias, self.config.feat_extract_activation)  # (T, C)
            for convolution in self.others:
                hidden = convolution(hidden)
            return hidden.float()

        return share(tile, range(0, num_frames, size))

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
