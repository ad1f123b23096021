"""The first convolution and its GroupNorm, folded into one linear map per utterance.

A channel of the convolution is a linear function `w . x` of a window x of the waveform. Its mean and variance over an
utterance's frames therefore follow from the mean m and the covariance C of the windows: `w . m` and `w . C w`. With
them, convolution and GroupNorm (one channel a group) are one product with weights of the utterance's own; the norm
costs no pass over the activations, forward or backward.

Moments are computed in float64, from a waveform without its mean, which GroupNorm subtracts anyway: then a large offset
loses no precision.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class WindowMoments(NamedTuple):
    """Moments of the windows that the first convolution reads, over the frames of each utterance.

    Attributes:
        mean: `(..., kernel)` float64.
        covariance: `(..., kernel, kernel)` float64.
    """

    mean: Tensor
    covariance: Tensor


def moments_of_sums(sums: Tensor, products: Tensor, num_frames: Tensor) -> WindowMoments:
    """Return the moments of utterances from sums over their frames.

    Args:
        sums: `(utterances, kernel)` float64, the sum of the windows x.
        products: `(utterances, kernel, kernel)` float64, the sum of their outer products `x x^T`.
        num_frames: `(utterances, 1)`, the number of windows.
    """
    mean = sums / num_frames
    covariance = products / num_frames[:, :, None] - mean[:, :, None] * mean[:, None]
    return WindowMoments(mean, covariance)


def fold_group_norm(
    weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, moments: WindowMoments
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of the map from windows to normalised channels.

    The bias of the convolution takes no part: GroupNorm subtracts it again.

    Args:
        weight: `(channels, kernel)`, of the convolution.
        norm_weight: `(channels,)`, of the GroupNorm.
        norm_bias: `(channels,)`, of the GroupNorm.
        eps: of the GroupNorm.
        moments: of the utterances' windows, with any leading dimensions.

    Returns:
        Weight `(..., channels, kernel)` and bias `(..., channels)`, float64. Differentiable.
    """
    weight = weight.double()
    # The difference of two moments can come out just below 0 where a channel is constant.
    variance = ((weight @ moments.covariance) * weight).sum(-1).clamp_min(0.0)  # (..., channels)
    scale = norm_weight * torch.rsqrt(variance + eps)
    return weight * scale[..., None], norm_bias - (moments.mean @ weight.T) * scale
