"""Which frames or channels SpecAugment hides (Park et al., arXiv 1904.08779), as wav2vec-style models draw
them."""

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
    """Draw, for each row, spans of `span` neighbouring positions to hide.

    A row of n positions gets `probability * n / span` spans (rounded up or down by chance, so that the mean
    is exact), at least `min_spans`, at most as many as would fit side by side. Starts are drawn without
    replacement; spans may overlap, so `probability` bounds the hidden share from above. A row shorter than
    `span` gets a shorter span, where transformers raises; each row's draw depends on its own length alone,
    where transformers' depends on the padding.

    Args:
        lengths: Positions of each row that may be hidden.
        width: Columns of the mask to return; at least `max(lengths)`.
        probability: Upper bound of the hidden share, 0 to 1.
        span: Positions hidden together.
        min_spans: Fewest spans a row.
        generator: A CPU generator; None uses torch's global one, so `torch.manual_seed` makes the masks
            repeatable.

    Returns:
        Boolean `(len(lengths), width)` on the CPU; True hides.
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
        hidden = starts[:, None] + torch.arange(row_span)  # (num_spans, row_span)
        mask[row, hidden.flatten()] = True
    return mask
