"""What computed a chunk's numbers, as its commit tells it.

In one dtype texts are equal but for near-ties, whatever computes them. Who compares dtypes or bytes, or asks why a run
was slow, has to know.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """What computes the numbers of a backbone.

    Attributes:
        way: `packed`, clips end to end; or `clip by clip`, through the model as it is.
        dtype: what its products are in.
        device: the GPU's name; or `cpu`, and the instructions that torch's kernels use there.
        budget_s: audio in a batch, at most, where no single clip is longer; None where each clip is by itself.
        fallback: why it is not what was asked for, or not the fast one; None where it is.
    """

    way: str
    dtype: str
    device: str
    budget_s: float | None
    fallback: str | None

    def __str__(self) -> str:
        batches = "" if self.budget_s is None else f", batches of {self.budget_s:g} s"
        return f"{self.way} {self.dtype} on {self.device}{batches}"
