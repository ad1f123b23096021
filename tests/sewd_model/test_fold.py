"""The first convolution and its GroupNorm in one linear map: equal to torch's two modules, in results and gradients."""

import pytest
import torch

from sewd_model.fold import WindowMoments, fold_group_norm, moments_of_sums

CHANNELS, KERNEL, STRIDE, EPS = 6, 10, 5, 1e-5


@pytest.fixture
def modules():
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(1, CHANNELS, KERNEL, stride=STRIDE).double()
    norm = torch.nn.GroupNorm(CHANNELS, CHANNELS, EPS).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return conv, norm


def moments_of(windows):
    """Moments of windows `(utterances, frames, kernel)`, by two passes."""
    mean = windows.mean(1)
    centred = windows - mean[:, None]
    return WindowMoments(mean, centred.transpose(1, 2) @ centred / windows.shape[1])


def test_folded_map_equals_convolution_and_group_norm_with_gradients(modules):
    conv, norm = modules
    waveforms = torch.randn(3, 400, dtype=torch.float64) * torch.tensor([[1.0], [1e-3], [100.0]])
    expected = norm(conv(waveforms[:, None])).transpose(1, 2)  # (utterances, frames, channels)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), [conv.weight, norm.weight, norm.bias])
    windows = waveforms.unfold(1, KERNEL, STRIDE)
    weight, bias = fold_group_norm(conv.weight[:, 0], norm.weight, norm.bias, EPS, moments_of(windows))
    actual = windows @ weight.transpose(1, 2) + bias[:, None]
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad((actual * weights).sum(), [conv.weight, norm.weight, norm.bias])
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other)


def test_one_utterance_needs_no_leading_dimension(modules):
    conv, norm = modules
    windows = torch.randn(2, 50, KERNEL, dtype=torch.float64)
    moments = moments_of(windows)
    weights, biases = fold_group_norm(conv.weight[:, 0], norm.weight, norm.bias, EPS, moments)
    for row in range(2):
        one = WindowMoments(moments.mean[row], moments.covariance[row])
        weight, bias = fold_group_norm(conv.weight[:, 0], norm.weight, norm.bias, EPS, one)
        torch.testing.assert_close(weight, weights[row])
        torch.testing.assert_close(bias, biases[row])


def test_moments_of_sums_equal_those_of_the_windows():
    windows = torch.randn(2, 70, KERNEL, dtype=torch.float64)
    products = windows.transpose(1, 2) @ windows
    actual = moments_of_sums(windows.sum(1), products, torch.full((2, 1), 70))
    for moment, expected in zip(actual, moments_of(windows), strict=True):
        torch.testing.assert_close(moment, expected)


def test_rounding_below_a_variance_of_zero_gives_no_nan(modules):
    conv, norm = modules
    moments = WindowMoments(torch.zeros(KERNEL).double(), -1e-4 * torch.eye(KERNEL).double())
    weight, bias = fold_group_norm(conv.weight[:, 0], norm.weight, norm.bias, EPS, moments)
    assert weight.isfinite().all()
    torch.testing.assert_close(bias, norm.bias)
