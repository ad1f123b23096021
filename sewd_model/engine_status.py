"""What computes a model: the status of an engine, as runs record it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatus:
    """The engine of a backbone.

    In one dtype, texts are equal except for near-ties, whichever engine computes them. The status is recorded for
    comparisons of dtypes or bytes, and to explain why a run was slow.

    Attributes:
        batching: `packed`: clips in batches without padding; or with the unmodified model `padded`: in padded batches
            of similar lengths; or `clip by clip`.
        dtype: data type of its matrix products.
        device: the name of the GPU; or `cpu`, with the instruction set that torch's kernels use.
        budget_s: most audio in a batch, in seconds, unless a single clip is longer; None without batches.
        fallback: why it is not the requested or the fastest engine; None if it is.
    """

    batching: str
    dtype: str
    device: str
    budget_s: float | None
    fallback: str | None

    def __str__(self) -> str:
        batches = "" if self.budget_s is None else f", batches of {self.budget_s:g} s"
        return f"{self.batching} {self.dtype} on {self.device}{batches}"
