"""Matrix products in float32 for inference on processors, by oneDNN, which is part of torch.

`torch.mm` calls MKL, which uses an AMD processor by half: 110 GFLOP/s on one core with AVX-512 where oneDNN reaches
245. oneDNN also adds the bias and applies the activation while a result is still in the cache. It builds a kernel when
it first meets a shape (a third of a millisecond) and keeps it.

torch reaches oneDNN through operators that its compiler emits, `torch.ops.mkldnn`. In builds of torch without them, the
same functions are computed by torch's ordinary operators.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from sewd_model.activations import ACTIVATIONS, Activation
from sewd_model.packed.layers import SAME_ACTIVATION, Linear, fast_activation

# Activations that oneDNN applies itself: its name and the variant.
_FUSED = {"gelu": ("gelu", "none"), "relu": ("relu", "")}

_HAS_ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def fused_activation(name: str) -> tuple[str, str, Activation]:
    """Return oneDNN's name and variant of the part of an activation that it applies, and the function that remains."""
    fused = _FUSED.get(SAME_ACTIVATION.get(name, name))
    return (*fused, ACTIVATIONS["linear"]) if fused else ("none", "", fast_activation(name))


def product(rows: Tensor, columns: Tensor, bias: Tensor | None = None, activation: str = "linear") -> Tensor:
    """Return the activation of the products of all rows with all columns, plus a bias.

    Args:
        rows: `(n, k)`.
        columns: `(m, k)`, contiguous or the transpose of a contiguous tensor: with other strides oneDNN is a thousand
            times slower. Or the weight of an `OneDNNLinear`.
        bias: `(m,)`, or None.
        activation: name of the activation function.

    Returns:
        `(n, m)`, contiguous.
    """
    if not _HAS_ONEDNN:
        return fast_activation(activation)(functional.linear(rows, columns, bias))
    fused, variant, remaining = fused_activation(activation)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, columns, bias, fused, [], variant)
    return remaining(result)


@dataclass(frozen=True)
class OneDNNLinear(Linear):
    """A linear map of rows and an activation, by oneDNN; the weight is opaque, in oneDNN's own layout."""

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, activation: str = "linear") -> Self:
        """Convert the weight to the layout that is fastest for many products."""
        weight = weight.contiguous()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight) if _HAS_ONEDNN else weight
        return cls(packed, bias, activation)

    def __call__(self, rows: Tensor) -> Tensor:
        """Map `(rows, in)`, of any strides, to `(rows, out)`."""
        return product(rows, self.weight, self.bias, self.activation)
