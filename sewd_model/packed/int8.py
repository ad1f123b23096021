"""Matrix products in int8 for inference on processors: a scale for each output channel, and one for the rows at hand.

Weights are rounded to int8 when they are packed, rows to uint8 when they come, between their least and their greatest
value. The sums are exact, and oneDNN scales them, adds the bias and applies the activation in float32. With AVX-512
VNNI it does three to four times as many products a second as in float32; rounding costs a tenth of what that saves.
Rows that go through one call share a scale, so a clip keeps its own result only where no other is in the call. For
clips of a second that undoes what is gained.

Heads, position tables, the first and the positional convolution, and attention within a clip stay in float32: all but
the last are little work, and of that both factors would have to be rounded anew for each clip, head and layer.

The convolutions do too, or are in bfloat16. In recordings, the features of one clip's frames differ in size by a factor
of 500: a scale for all of them leaves nothing of the quiet ones, and the LayerNorm behind makes that as loud as the
rest. A single convolution in int8 changes the bundled model's logits by a third of their spread, and all of them its
word error rate from 4 to 15 %; all other products together change logits by a hundredth. With a scale for each frame
oneDNN could not apply the activation, and they would take 0.7 of their time in float32; in bfloat16, where the
processor has such products, it is 0.5, and logits change by a thousandth.
"""

import functools
import logging
import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from sewd_model.packed.products import Linear, fused_activation

log = logging.getLogger(__name__)

# The float32 of 1.5 * 2**23 + n has n in its lowest bits, if |n| < 2**22: adding rounds, and a view takes the integer.
_TO_BITS = 1.5 * 2**23
_TINY = torch.finfo(torch.float32).tiny

MISSING = "this machine has no int8 products, or none that are exact: computing in float32"


def kinds() -> tuple[type[Linear], type[Linear]]:
    """The products of the convolutions and of all that follows, as far as this machine has them; else in float32."""
    if not _exact():
        log.warning(MISSING)
        return Linear, Linear
    has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return (BFloat16Linear if has_bfloat16() else Linear), Int8Linear


@functools.cache
def _exact() -> bool:
    """Whether int8 products are here, and large ones come out right: processors without VNNI sum pairs in 16 bits."""
    rows = torch.full((16, 64), 2.0)
    try:
        found = Int8Linear.pack(torch.ones(32, 64), None)(rows)
    except (AttributeError, RuntimeError):  # torch is built without the operators, or oneDNN has no kernel for them
        return False
    return bool(((found - 128.0).abs() < 1e-3).all())


@dataclass(frozen=True)
class Int8Linear(Linear):
    """A linear map of rows by products in int8, and an activation.

    Attributes:
        scales: of the output channels, `(out,)`.
    """

    own_rows: ClassVar[bool] = False
    dtype: ClassVar[str] = "int8"
    scales: Tensor = field(kw_only=True)

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, activation: str = "linear") -> Self:
        """Round the weight, and lay it out for many products."""
        scales = weight.abs().amax(1).clamp(min=_TINY) / 127
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        return cls(torch.ops.onednn.qlinear_prepack(rounded, None), bias, activation, scales=scales)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `(T, in)`, of any strides, to `(T, out)`."""
        rows, scale, zero = _round(hidden)
        zeros = torch.zeros(len(self.scales), dtype=torch.int32)
        to_float32 = (1.0, 0, torch.float32)
        fused, variant, rest = fused_activation(self.activation)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rows, scale, zero), *(self.weight, self.scales, zeros), self.bias, *to_float32, *(fused, [], variant)
        )
        return rest(result)


def _round(rows: Tensor) -> tuple[Tensor, float, int]:
    """Rows in uint8, a scale and a zero point: `(uint8 - zero) * scale` is within half a scale of what they were.

    Zeros stay zeros. Where there is a number that is none, the scale is none.
    """
    least, greatest = (bound.item() for bound in torch.aminmax(rows))
    if not math.isfinite(greatest - least):
        return torch.zeros(rows.shape, dtype=torch.uint8), math.nan, 0
    least, greatest = min(least, 0.0), max(greatest, 0.0)
    scale = max((greatest - least) / 254, _TINY)
    zero = math.floor(-least / scale) + 1  # then least comes to 0 or 1, greatest to 254 or 255: nothing wraps
    bits = torch.add(torch.tensor(_TO_BITS + zero), rows, alpha=1 / scale)
    return bits.view(torch.int32).to(torch.uint8), scale, zero


class BFloat16Linear(Linear):
    """A linear map of rows by products in bfloat16, which are summed in float32; gives bfloat16."""

    dtype: ClassVar[str] = "bfloat16"

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, activation: str = "linear") -> Self:
        """Convert the weight, and lay it out for many products."""
        return super().pack(weight.bfloat16(), None if bias is None else bias.bfloat16(), activation)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `(T, in)`, of any strides, to `(T, out)`."""
        return super().__call__(hidden.bfloat16())
