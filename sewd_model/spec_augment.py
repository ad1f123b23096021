"""The masks of SpecAugment (Park et al., arXiv 1904.08779), drawn as wav2vec-style models draw them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_mask(
    lengths: Sequence[int],
    width: int,
    *,
    probability: float,
    span: int,
    min_spans: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw spans of `span` neighbouring positions to mask in each row.

    A row of n positions gets `probability * n / span` spans (rounded up or down at random, so that the mean is exact),
    at least `min_spans`, and at most as many as fit side by side. Starts are drawn without replacement. Spans may
    overlap, so `probability` is an upper bound of the masked share. Two things differ from transformers: a row shorter
    than `span` gets a shorter span, where transformers raises an error; and the masks of a row depend on its own length
    alone, where transformers' depend on the padding.

    Args:
        lengths: positions of each row that may be masked.
        width: columns of the mask; at least `max(lengths)`.
        probability: upper bound of the masked share, 0 to 1.
        span: positions masked together.
        min_spans: fewest spans per row.
        generator: a CPU generator; None uses torch's global one, which `torch.manual_seed` makes repeatable.

    Returns:
        Bool `(len(lengths), width)` on the CPU; True is masked.
    """
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        if length < 1:
            continue
        row_span = min(span, length)
        rounding = torch.rand(1, generator=generator).item()
        num_spans = max(int(probability * length / row_span + rounding), min_spans)
        num_starts = length - row_span + 1
        num_spans = min(num_spans, length // row_span, num_starts)
        starts = torch.randperm(num_starts, generator=generator)[:num_spans]
        masked = starts[:, None] + torch.arange(row_span)  # (num_spans, row_span)
        mask[row, masked.flatten()] = True
    return mask
