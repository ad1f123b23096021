"""Matrix products of float32 for inference on processors: oneDNN's, which torch carries.

`torch.mm` goes to MKL, which leaves half of an AMD processor unused: 110 GFLOP/s on one core with AVX-512 where oneDNN
reaches 245. oneDNN also adds the bias and applies the activation while a result is still in the cache. Its
kernels are made for a shape when it is first met (a third of a millisecond) and kept.

torch reaches them through the operators that its compiler writes, `torch.ops.mkldnn`. Where torch is built without
them, the same functions are computed by its ordinary operators.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from sewd_model.activations import ACTIVATIONS, Activation

# The same function as "gelu", of which the reference computes each step by itself.
_SAME = {"gelu_python": "gelu"}
# What oneDNN applies by itself: its name and the variant.
_FUSED = {"gelu": ("gelu", "none"), "relu": ("relu", "")}


def fast_activation(name: str) -> Activation:
    """The activation that `name` means, equal to the reference's up to rounding."""
    return ACTIVATIONS[_SAME.get(name, name)]


def fused_activation(name: str) -> tuple[str, str, Activation]:
    """What oneDNN applies of an activation, by its name and variant, and what is left to do."""
    fused = _FUSED.get(_SAME.get(name, name))
    return (*fused, ACTIVATIONS["linear"]) if fused else ("none", "", fast_activation(name))


_ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(rows: Tensor, columns: Tensor, bias: Tensor | None = None, activation: str = "linear") -> Tensor:
    """The activation of the products of all rows with all columns, plus a bias.

    Args:
        rows: `(n, k)`.
        columns: `(m, k)`, contiguous, or its transpose is: with other strides oneDNN is a thousand times slower. Or a
            weight that `Linear` has laid out.
        bias: `(m,)`, or None.
        activation: its name.

    Returns:
        `(n, m)`, contiguous.
    """
    if not _ONEDNN:
        return fast_activation(activation)(functional.linear(rows, columns, bias))
    fused, variant, rest = fused_activation(activation)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, columns, bias, fused, [], variant)
    return rest(result)


@dataclass(frozen=True)
class Linear:
    """A linear map of rows, and an activation.

    Attributes:
        weight: `(out, in)`; opaque where oneDNN has laid it out.
        bias: `(out,)`, or None.
        activation: its name.
        own_rows: whether a row's result is the same whatever the others are.
        dtype: in what the products are.
    """

    own_rows: ClassVar[bool] = True
    dtype: ClassVar[str] = "float32"
    weight: Tensor
    bias: Tensor | None
    activation: str = "linear"

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, activation: str = "linear") -> Self:
        """Lay the weight out for many products."""
        weight = weight.contiguous()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight) if _ONEDNN else weight
        return cls(packed, bias, activation)

    @classmethod
    def of(cls, *layers: nn.Linear, scales: tuple[float, ...] | None = None, activation: str = "linear") -> Self:
        """The maps of the modules side by side in one, each times its scale (default: 1)."""
        scales = scales or (1.0,) * len(layers)
        pairs = list(zip(layers, scales, strict=True))
        weight = torch.cat([layer.weight.detach() * scale for layer, scale in pairs])
        bias = torch.cat([layer.bias.detach() * scale for layer, scale in pairs])
        return cls.pack(weight, bias, activation)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `(T, in)`, of any strides, to `(T, out)`."""
        return product(hidden, self.weight, self.bias, self.activation)
