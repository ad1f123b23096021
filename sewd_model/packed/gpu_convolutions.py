"""The convolutions for inference on one device: each is a few matrix products over all clips of a packed batch.

Moments and the first convolution are computed in float64 and float32, the others in the model's dtype.
"""

import math
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sewd_model.activations import Activation
from sewd_model.config import SEWDConfig
from sewd_model.fold import fold_group_norm, moments_of_sums
from sewd_model.model import ConvLayer, FeatureEncoder, PositionalConv
from sewd_model.packed.gpu_layout import Batch, membership, segment_sums
from sewd_model.packed.layers import Norm, fast_activation

POSITIONAL_FRAMES = 32  # that one product of the positional convolution reads, unless the squeeze factor needs more


@dataclass(frozen=True)
class _Convolution:
    """A convolution of the feature extractor as products: one for every `stride` taps, over rows of a strided view.

    No row reaches beyond the start of the next one, which the libraries of matrix products require.
    """

    kernel: int
    stride: int
    weights: tuple[Tensor, ...]  # for every `stride` taps, (taps * C_in, C_out)
    bias: Tensor | None
    norm: Norm | None
    activation: Activation

    @classmethod
    def from_layer(cls, layer: ConvLayer, activation: str, device: torch.device, dtype: torch.dtype) -> Self:
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        taps = layer.conv.weight.detach().permute(2, 1, 0)  # (kernel, C_in, C_out)
        return cls(
            kernel=kernel,
            stride=stride,
            weights=tuple(part.flatten(0, 1).to(device, dtype).contiguous() for part in torch.split(taps, stride)),
            bias=None if layer.conv.bias is None else layer.conv.bias.detach().to(device, dtype),
            norm=None if layer.layer_norm is None else Norm.from_module(layer.layer_norm, device, dtype),
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


class DeviceFeatures:
    """What `FeatureEncoder` computes, for the clips of a batch."""

    def __init__(self, encoder: FeatureEncoder, device: torch.device, dtype: torch.dtype) -> None:
        """Prepare the weights; `dtype` is that of the convolutions after the first."""
        config: SEWDConfig = encoder.config
        first, *others = (cast(ConvLayer, layer) for layer in encoder.conv_layers)
        self.config, self.dtype = config, dtype
        self.kernel, self.stride = config.conv_kernel[0], config.conv_stride[0]
        self.weight = first.conv.weight.detach()[:, 0].to(device, torch.float32)  # (C, kernel)
        self.bias = None if first.conv.bias is None else first.conv.bias.detach().to(device, torch.float32)
        self.norm = Norm.from_module(cast(nn.GroupNorm | nn.LayerNorm, first.layer_norm), device, torch.float32)
        self.activation = fast_activation(config.feat_extract_activation)
        self.others = [
            _Convolution.from_layer(layer, config.feat_extract_activation, device, dtype) for layer in others
        ]

    def __call__(self, batch: Batch) -> Tensor:
        """Return frames `(F, conv_dim[-1])`; frame i is of slot i, and meaningless if it straddles two clips."""
        if self.config.feat_extract_norm == "layer":
            hidden = functional.linear(self._windows(batch.samples).flatten(0, 1), self.weight, self.bias)
            hidden = self.norm(hidden)
        else:
            members = membership(batch.clip, len(batch.first), torch.float64)
            sums = segment_sums(batch.samples.sum(1, dtype=torch.float64)[:, None], members)[:, 0]
            mean = sums / batch.num_samples  # (clips,)
            centred = (batch.samples - mean[batch.clip][:, None]).float()
            windows = self._windows(centred)
            weight, bias = self._fold_group_norm(windows, batch, members)
            hidden = torch.baddbmm(bias[batch.clip][:, None], windows, weight[batch.clip]).flatten(0, 1)
        hidden = self.activation(hidden).to(self.dtype)
        for convolution in self.others:
            hidden = convolution(hidden)
        return hidden

    def _windows(self, samples: Tensor) -> Tensor:
        """Return what each frame of the first convolution reads, `(slots, frames per slot, kernel)`."""
        slots, hop = samples.shape
        padded = functional.pad(samples.flatten(), (0, self.kernel))
        return padded.unfold(0, self.kernel, self.stride)[: slots * hop // self.stride].view(
            slots, hop // self.stride, self.kernel
        )

    def _fold_group_norm(self, windows: Tensor, batch: Batch, members: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight `(clips, kernel, C)` and bias `(clips, C)` of convolution and GroupNorm, float32."""
        slots, frames, _ = windows.shape
        count = torch.div(batch.num_samples - self.kernel, self.stride, rounding_mode="floor") + 1  # (clips,)
        place = torch.arange(slots, device=windows.device) - batch.first[batch.clip]
        place = place[:, None] * frames + torch.arange(frames, device=windows.device)  # (slots, frames), in the clip
        own = (place < count[batch.clip][:, None])[:, :, None]
        values = torch.where(own, windows, 0.0).double()
        moments = moments_of_sums(
            segment_sums(values.sum(1), members),
            segment_sums(values.transpose(1, 2) @ values, members),
            count[:, None],
        )
        weight, bias = fold_group_norm(self.weight, self.norm.weight, self.norm.bias, self.norm.eps, moments)
        return weight.float().transpose(1, 2), bias.float()


@dataclass(frozen=True)
class DeviceSqueeze:
    """Average pooling plus the positional convolution, over clips with zeros between them.

    One product computes several neighbouring outputs, from all the frames that they read: its weight holds the taps
    once per output, shifted, and zeros. That is twice the necessary work, in products large enough to be faster.

    Attributes:
        kernel: taps of the convolution.
        stride: frames that are squeezed into one.
        outputs: squeezed frames that a row of a product computes.
        weights: `(groups, outputs * stride * C, outputs * C)` each, C = hidden / groups; weight norm is applied.
        bias: `(groups, 1, outputs * C)`.
        activation: of the convolution.
    """

    kernel: int
    stride: int
    outputs: int
    weights: tuple[Tensor, ...]
    bias: Tensor
    activation: Activation

    @classmethod
    def from_module(cls, module: PositionalConv, activation: str, device: torch.device, dtype: torch.dtype) -> Self:
        """Prepare the weights."""
        conv = module.conv
        kernel, stride, groups = conv.kernel_size[0], conv.stride[0], conv.groups
        taps = conv.weight.detach().view(groups, -1, conv.weight.shape[1], kernel)  # (groups, C out, C in, kernel)
        taps = functional.pad(taps.permute(0, 3, 2, 1), (0, 0, 0, 0, 0, 1))  # (groups, kernel + 1, C in, C out)
        outputs = max(1, min(POSITIONAL_FRAMES, kernel) // stride)
        width = outputs * stride  # frames that a product reads
        count = math.ceil((kernel + width - stride) / width)
        tap = torch.arange(count * width)[:, None] - torch.arange(outputs) * stride  # (frames, outputs)
        tap = torch.where((tap >= 0) & (tap < kernel), tap, kernel)
        shifted = taps[:, tap].transpose(2, 3).flatten(3).flatten(1, 2)  # (groups, frames * C in, outputs * C out)
        weights = torch.split(shifted, width * conv.weight.shape[1], dim=1)
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
        """Map frames `(F, hidden)` to squeezed frames `(S, hidden)`."""
        groups, width, halo = len(self.bias), self.outputs * self.stride, self.kernel // 2
        rows = math.ceil(len(batch.spaced) / width)
        missing = (rows + max(len(self.weights) - 1, math.ceil(halo / width))) * width - len(batch.spaced)
        spaced = functional.pad(batch.spaced, (0, missing), value=-1)
        padded = frames.index_select(0, spaced.clamp_min(0)).masked_fill_((spaced < 0)[:, None], 0.0)
        pooled = padded[halo : halo + rows * width].view(rows * self.outputs, self.stride, -1).mean(1)
        grouped = padded.view(len(padded), groups, -1).transpose(0, 1).reshape(groups, len(padded) // width, -1)
        output = self.bias
        for index, weight in enumerate(self.weights):
            output = torch.baddbmm(output, grouped[:, index : index + rows], weight)  # (groups, rows, outputs * C)
        output = output.view(groups, rows * self.outputs, -1).transpose(0, 1).flatten(1)
        return (pooled + self.activation(output)).index_select(0, batch.squeezed)
