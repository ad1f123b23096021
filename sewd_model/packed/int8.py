"""Matrix products in int8 for inference on processors: one scale per output channel, and one for the rows of a call.

Weights are quantized to int8 when they are packed, rows to uint8 in each call, between their minimum and their maximum.
The sums are exact; oneDNN scales them, adds the bias and applies the activation in float32. With AVX-512 VNNI it
computes three to four times as many products a second as in float32; quantization costs a tenth of what that saves. The
rows of one call share a scale, so a clip keeps its result bit for bit only if it is alone in the call. For clips of a
second that cancels the gain.

The heads, the position tables, the first and the positional convolution, and attention within a clip stay in float32.
All but the last are little work; for attention both factors would have to be quantized for each clip, head and layer.

The other convolutions stay in float32 too, or use bfloat16. In recordings, the features of one clip's frames differ in
size by a factor of 500: one scale for all of them leaves nothing of the quiet frames, and the LayerNorm that follows
makes those as loud as the rest. A single convolution in int8 changes the bundled model's logits by a third of their
spread, and all of them raise its word error rate from 4 to 15 %; all other products together change logits by a
hundredth. With a scale per frame oneDNN could not apply the activation, and the convolutions would take 0.7 of their
time in float32. bfloat16, where the processor has such products, takes 0.5, and changes logits by a thousandth.
"""

import functools
import logging
import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from sewd_model.packed.layers import Linear
from sewd_model.packed.products import OneDNNLinear, fused_activation

log = logging.getLogger(__name__)

# The float32 of 1.5 * 2**23 + n has n in its lowest bits, if |n| < 2**22: the addition rounds, and a view as integers
# reads n.
_TO_BITS = 1.5 * 2**23
_TINY = torch.finfo(torch.float32).tiny

FALLBACK_REASON = "this machine has no int8 products, or none that are exact: computing in float32"


class LinearTypes(NamedTuple):
    """The types of linear maps that a model in int8 uses.

    Attributes:
        convolution: for the convolutions of the feature extractor after the first.
        linear: for the projections and the transformer layers.
    """

    convolution: type[Linear]
    linear: type[Linear]


def linear_types() -> LinearTypes:
    """Return the best types for this machine; float32 for all, with a warning in the log, without exact int8."""
    if not _is_exact():
        log.warning(FALLBACK_REASON)
        return LinearTypes(OneDNNLinear, OneDNNLinear)
    has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # not in every torch
    return LinearTypes(BFloat16Linear if has_bfloat16() else OneDNNLinear, Int8Linear)


@functools.cache
def _is_exact() -> bool:
    """Whether int8 products exist and large sums are right: processors without VNNI add pairs in 16 bits."""
    rows = torch.full((16, 64), 2.0)
    try:
        result = Int8Linear.pack(torch.ones(32, 64), None)(rows)
    except (AttributeError, RuntimeError):  # torch is built without the operators, or oneDNN has no kernel for them
        return False
    return bool(((result - 128.0).abs() < 1e-3).all())


@dataclass(frozen=True)
class Int8Linear(Linear):
    """A linear map of rows by products in int8, and an activation; the result is float32.

    Attributes:
        scales: of the output channels, `(out,)`.
    """

    rows_independent: ClassVar[bool] = False
    dtype: ClassVar[str] = "int8"
    scales: Tensor = field(kw_only=True)

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, activation: str = "linear") -> Self:
        """Quantize the weight, and convert it to the layout that is fastest for many products."""
        scales = weight.abs().amax(1).clamp(min=_TINY) / 127
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        return cls(torch.ops.onednn.qlinear_prepack(rounded, None), bias, activation, scales=scales)

    def __call__(self, rows: Tensor) -> Tensor:
        """Map `(rows, in)`, of any strides, to `(rows, out)`."""
        quantized, scale, zero = _quantize(rows)
        zeros = torch.zeros(len(self.scales), dtype=torch.int32)
        to_float32 = (1.0, 0, torch.float32)
        fused, variant, remaining = fused_activation(self.activation)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(quantized, scale, zero), *(self.weight, self.scales, zeros), self.bias, *to_float32, *(fused, [], variant)
        )
        return remaining(result)


def _quantize(rows: Tensor) -> tuple[Tensor, float, int]:
    """Return rows as uint8, a scale and a zero point: `(uint8 - zero) * scale` is within half a scale of the input.

    Zeros stay zeros. If a value is not finite, the scale is NaN.
    """
    least, greatest = (bound.item() for bound in torch.aminmax(rows))
    if not math.isfinite(greatest - least):
        return torch.zeros(rows.shape, dtype=torch.uint8), math.nan, 0
    least, greatest = min(least, 0.0), max(greatest, 0.0)
    scale = max((greatest - least) / 254, _TINY)
    zero = math.floor(-least / scale) + 1  # maps least to 0 or 1, greatest to 254 or 255: nothing wraps around
    bits = torch.add(torch.tensor(_TO_BITS + zero), rows, alpha=1 / scale)
    return bits.view(torch.int32).to(torch.uint8), scale, zero


class BFloat16Linear(OneDNNLinear):
    """A linear map of rows by products in bfloat16, summed in float32; the result is bfloat16."""

    dtype: ClassVar[str] = "bfloat16"

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, activation: str = "linear") -> Self:
        """Convert the weight to bfloat16, and to the layout that is fastest for many products."""
        return super().pack(weight.bfloat16(), None if bias is None else bias.bfloat16(), activation)

    def __call__(self, rows: Tensor) -> Tensor:
        """Map `(rows, in)`, of any strides, to `(rows, out)`."""
        return super().__call__(rows.bfloat16())
