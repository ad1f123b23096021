"""The convolutions for inference on processors, one clip at a time: each is a matrix product.

Time comes before channels, `(T, C)`. Then the windows of a convolution are the rows of a strided view of its input, and
the convolution is one matrix product. The feature extractor computes a clip in tiles of time that fit in the
processor's cache; each tile also reads the few samples that it shares with its neighbour, so tiles change no result.

The GroupNorm after the first convolution is folded into it, see `sewd_model.fold`.
"""

import math
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from sewd_model.activations import Activation
from sewd_model.config import SEWDConfig
from sewd_model.fold import WindowMoments, fold_group_norm
from sewd_model.model import ConvLayer, FeatureEncoder, PositionalConv
from sewd_model.packed.layers import Linear, Norm, fast_activation
from sewd_model.packed.products import product
from sewd_model.packed.thread_pool import MapParts

# Output frames per tile: 1 s at the published strides, where the widest activations take 0.8 MB and their windows
# 1.2 MB. With twice as many, allocations are so large that each is returned to the system and requested again, which
# costs a fifth of the speed.
TILE_FRAMES = 50


@dataclass(frozen=True)
class _Convolution:
    """A convolution after the first.

    Attributes:
        linear: maps a window, tap by tap, to the output channels; it applies the activation, unless a norm comes first.
        norm: over the channels of each frame, or None.
        activation: what remains to apply after the norm.
    """

    kernel: int
    stride: int
    linear: Linear
    norm: Norm | None
    activation: Activation

    @classmethod
    def from_layer(cls, layer: ConvLayer, activation: str, linear: type[Linear]) -> Self:
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        weight = layer.conv.weight.detach().transpose(1, 2).flatten(1)  # (C_out, kernel * C_in)
        bias = None if layer.conv.bias is None else layer.conv.bias.detach()
        if layer.layer_norm is None:
            return cls(kernel, stride, linear.pack(weight, bias, activation), None, fast_activation("linear"))
        norm = Norm.from_module(layer.layer_norm)
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
    """What `FeatureEncoder` computes, for one clip at a time."""

    def __init__(self, encoder: FeatureEncoder, linear: type[Linear]) -> None:
        """Prepare the weights; `linear` is the type of the convolutions after the first."""
        config: SEWDConfig = encoder.config
        first, *others = (cast(ConvLayer, layer) for layer in encoder.conv_layers)
        self.config = config
        self.kernel, self.stride = config.conv_kernel[0], config.conv_stride[0]
        self.weight = first.conv.weight.detach()[:, 0]  # (C, kernel)
        self.bias = self.weight.new_zeros(len(self.weight)) if first.conv.bias is None else first.conv.bias.detach()
        self.norm = Norm.from_module(cast(nn.GroupNorm | nn.LayerNorm, first.layer_norm))
        self.others = [_Convolution.from_layer(layer, config.feat_extract_activation, linear) for layer in others]
        self.activation = fast_activation(config.feat_extract_activation)

    def __call__(self, waveform: Tensor, map_parts: MapParts) -> list[Tensor]:
        """Compute the frames of a clip.

        Args:
            waveform: `(N,)` float32, at least one receptive field long.
            map_parts: runs the tiles.

        Returns:
            Tiles of frames `(t, conv_dim[-1])` float32, in order.
        """
        hop, num_frames = self.config.hop_length, self.config.num_frames(len(waveform))
        has_layer_norm = self.config.feat_extract_norm == "layer"
        weight, bias = self.weight, self.bias
        if not has_layer_norm:
            waveform = (waveform - waveform.mean(dtype=torch.float64)).float()
            weight, bias = self._fold_group_norm(waveform)
        size = math.ceil(num_frames / math.ceil(num_frames / TILE_FRAMES))  # tiles of about equal size, none tiny

        def compute_tile(start: int) -> Tensor:
            last = min(start + size, num_frames) - 1
            samples = waveform[start * hop : last * hop + self.config.receptive_field]
            windows = samples.unfold(0, self.kernel, self.stride)  # (T, kernel)
            if has_layer_norm:
                hidden = self.activation(self.norm(product(windows, weight, bias)))  # (T, C)
            else:
                hidden = product(windows, weight, bias, self.config.feat_extract_activation)  # (T, C)
            for convolution in self.others:
                hidden = convolution(hidden)
            return hidden.float()

        return map_parts(compute_tile, range(0, num_frames, size))

    def _fold_group_norm(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight `(C, kernel)` and bias `(C,)` float32 of this clip's first convolution and its GroupNorm."""
        windows = waveform.unfold(0, self.kernel, self.stride).double()  # (T, kernel)
        mean = windows.mean(0)
        windows -= mean
        moments = WindowMoments(mean, windows.T @ windows / len(windows))
        weight, bias = fold_group_norm(self.weight, self.norm.weight, self.norm.bias, self.norm.eps, moments)
        return weight.float(), bias.float()


@dataclass(frozen=True)
class PackedSqueeze:
    """Average pooling plus the positional convolution, for one clip at a time.

    Attributes:
        kernel: taps of the convolution.
        stride: frames that are squeezed into one.
        weights: for every `stride` taps, `(groups, taps * C, C)` with C = hidden / groups; weight norm is applied.
        bias: `(groups, 1, C)`.
        activation: of the convolution.
    """

    kernel: int
    stride: int
    weights: tuple[Tensor, ...]
    bias: Tensor
    activation: Activation

    @classmethod
    def from_module(cls, module: PositionalConv, activation: Activation) -> Self:
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
        padded = hidden.new_zeros(groups, hidden.shape[0] + 2 * halo, hidden.shape[1] // groups)  # (groups, frames, C)
        padded[:, halo : halo + hidden.shape[0]] = hidden.view(len(hidden), groups, -1).transpose(0, 1)
        _, frames, channels = padded.shape
        step = self.stride * channels
        output = self.bias.repeat(1, length, 1)  # (groups, S, C)
        for index, weight in enumerate(self.weights):
            rows = padded.as_strided((groups, length, weight.shape[1]), (frames * channels, step, 1), index * step)
            output.baddbmm_(rows, weight)
        return pooled + self.activation(output).transpose(0, 1).flatten(1)
