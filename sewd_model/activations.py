"""The activation functions that a `config.json` may name, as transformers' ACT2FN defines them."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]


def _gelu_erf(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3.0))))


def _gelu_fast(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def _gelu_clipped(x: Tensor) -> Tensor:
    return functional.gelu(x).clip(-10.0, 10.0)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def _identity(x: Tensor) -> Tensor:
    return x


def _relu_squared(x: Tensor) -> Tensor:
    return functional.relu(x).square()


def _sqrt_softplus(x: Tensor) -> Tensor:
    return functional.softplus(x).sqrt()


ACTIVATIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_10": _gelu_clipped,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_fast,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu_erf,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "hardswish": functional.hardswish,
    "laplace": _laplace,
    "leaky_relu": functional.leaky_relu,
    "linear": _identity,
    "mish": functional.mish,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "relu2": _relu_squared,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "sqrtsoftplus": _sqrt_softplus,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
