"""Disentangled attention within each clip of a packed batch, by FlexAttention (arXiv 2412.05496).

A mask of blocks of 128 frames keeps clips apart: only blocks in which queries and keys of one clip meet are computed. A
position term is read from a table: queries, and keys, times the vectors of all buckets that the batch can reach, one
product per layer. For a query and a key of one clip, the offset is the difference of their places in the batch.

On CUDA torch.compile builds the kernel, once for all sizes. Elsewhere FlexAttention computes whole matrices, which is
enough for tests.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sewd_model.config import SEWDConfig
from sewd_model.model import SelfAttention, position_buckets
from sewd_model.packed.layers import Linear

BLOCK = 128  # frames in a block of the mask
LEAST_REACH = 128  # smallest range of offsets in a table, so that small batches share one size


@dataclass(frozen=True)
class Clips:
    """The tables that attention reads of a batch.

    Attributes:
        mask: which blocks, and which frames in them, attend to each other.
        buckets: `(2 * reach,)` int32, the column of a table for each offset of query and key, modulo `2 * reach`, a
            power of two.
        wrap: `()` int32, `2 * reach - 1`: the bits of an offset that are used.
        columns: the rows of the relative position table that correspond to the columns.
        clip: `(S,)` int32, the clip of each frame, which the mask reads.
    """

    mask: BlockMask
    buckets: Tensor
    wrap: Tensor
    columns: slice
    clip: Tensor

    def tensors(self) -> list[Tensor]:
        """Return all tensors that are on the device."""
        mask_tensors = [value for value in vars(self.mask).values() if isinstance(value, Tensor)]
        return [*mask_tensors, self.buckets, self.wrap, self.clip]

    @classmethod
    def lay_out(cls, lengths: Sequence[int], config: SEWDConfig, device: torch.device) -> Self:
        """Make the tables for clips of `lengths` squeezed frames, laid end to end and padded to `padded_length`."""
        reach, columns = max(LEAST_REACH, 1 << (max(lengths) - 1).bit_length()), slice(0, 0)
        buckets = torch.zeros(2 * reach, dtype=torch.int32)
        if config.relative_attention:
            by_offset = position_buckets(reach, config)  # from offset 1 - reach
            columns = slice(int(by_offset[0]), int(by_offset[-1]) + 1)
            buckets[1:] = by_offset - columns.start
        mask, clip = _document_mask(lengths, device)
        return cls(
            mask=mask,
            buckets=copy_to(buckets.roll(-reach), device),
            wrap=copy_to(torch.tensor(2 * reach - 1, dtype=torch.int32), device),
            columns=columns,
            clip=clip,
        )


def copy_to(array: Tensor, device: torch.device) -> Tensor:
    """Copy an array from the CPU to a device; to CUDA from pinned memory, without waiting."""
    if device.type == "cuda" and not array.is_pinned():
        array = array.pin_memory()
    return array.to(device, non_blocking=True)


def padded_length(lengths: Sequence[int]) -> int:
    """Return the number of squeezed frames of a batch with padding, a multiple of `BLOCK`.

    The frames of the padding attend to each other.
    """
    return -(-sum(lengths) // BLOCK) * BLOCK


def _document_mask(lengths: Sequence[int], device: torch.device) -> tuple[BlockMask, Tensor]:
    """Return the block mask and `Clips.clip`, from the borders of the clips, without a matrix of frames by frames."""
    padding = padded_length(lengths) - sum(lengths)
    sizes = torch.tensor([*lengths, *([padding] if padding else [])])
    ends = sizes.cumsum(0)
    clip = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    blocks = clip.view(-1, BLOCK)
    first, last = blocks[:, 0], blocks[:, -1]  # clips at a block's borders
    low = (ends - sizes)[first] // BLOCK  # first and last block that a block of queries attends to
    high = (ends[last] - 1) // BLOCK
    one_clip = first == last
    places = torch.arange(len(blocks))
    near = (low[:, None] <= places) & (places <= high[:, None])
    full = near & (one_clip[:, None] & one_clip & (first[:, None] == first))
    partial_blocks, full_blocks = (_sparse_rows(blocks, device) for blocks in (near & ~full, full))
    clip_on_device = copy_to(clip.int(), device)

    def same_clip(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return clip_on_device[query] == clip_on_device[key]

    return BlockMask.from_kv_blocks(*partial_blocks, *full_blocks, BLOCK, same_clip), clip_on_device


def _sparse_rows(matrix: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many columns of each row are true, and which: what BlockMask expects, `(1, 1, rows[, columns])`."""
    order = matrix.int().argsort(dim=1, descending=True, stable=True)
    return copy_to(matrix.sum(1, dtype=torch.int32)[None, None], device), copy_to(order.int()[None, None], device)


@dataclass(frozen=True)
class FlexSelfAttention:
    """What `SelfAttention` computes, for clips laid end to end.

    Attributes:
        num_heads: attention heads.
        projection: to queries, keys and values side by side; queries are scaled by 1 / sqrt(d * terms).
        positions: `(heads of the terms, d, 2 * span)`, factors for the queries, for "c2p", and then for the keys, for
            "p2c", with the scale applied; None without either.
        uses_c2p: whether there is a content-to-position term.
        uses_p2c: whether there is a position-to-content term.
    """

    num_heads: int
    projection: Linear
    positions: Tensor | None
    uses_c2p: bool
    uses_p2c: bool

    @classmethod
    def from_module(
        cls, attention: SelfAttention, table: Tensor | None, device: torch.device, dtype: torch.dtype
    ) -> Self:
        """Prepare the weights.

        Args:
            attention: of the reference model.
            table: `(2 * span, hidden)`, the relative position table, in float32 on the CPU; None without relative
                attention.
            device: where the weights are put.
            dtype: what they are converted to.
        """
        projection = Linear.from_modules(
            *(attention.query_proj, attention.key_proj, attention.value_proj),
            scales=(attention.scale, 1.0, 1.0),
            device=device,
            dtype=dtype,
        )
        uses_c2p = table is not None and attention.uses_c2p
        uses_p2c = table is not None and attention.uses_p2c
        terms = []
        if table is not None and uses_c2p:
            terms.append((attention.key_proj if attention.share_att_key else attention.pos_key_proj)(table))
        if table is not None and uses_p2c:
            project = attention.query_proj if attention.share_att_key else attention.pos_query_proj
            terms.append(project(table) * attention.scale)
        heads = attention.num_heads
        positions = [term.detach().view(len(term), heads, -1).permute(1, 2, 0) for term in terms]
        return cls(
            num_heads=heads,
            projection=projection,
            positions=torch.cat(positions).to(device, dtype).contiguous() if positions else None,
            uses_c2p=uses_c2p,
            uses_p2c=uses_p2c,
        )

    def __call__(self, hidden: Tensor, clips: Clips) -> Tensor:
        """Attend within each clip, `(S, hidden)` to the same shape."""
        length, heads = len(hidden), self.num_heads
        projected = self.projection(hidden).view(length, 3 * heads, -1).transpose(0, 1)
        query, key, value = (part[None] for part in torch.split(projected, heads))  # (1, heads, S, d)
        c2p = p2c = None
        if self.positions is not None:
            # The heads of queries and keys are neighbours: one product for both terms.
            start = 0 if self.uses_c2p else heads
            products = torch.bmm(projected[start : start + len(self.positions)], self.positions[:, :, clips.columns])
            c2p = products[:heads] if self.uses_c2p else None
            p2c = products[-heads:] if self.uses_p2c else None
        attend = _compiled() if hidden.is_cuda else _attend
        context = attend(query, key, value, c2p, p2c, clips.buckets, clips.wrap, clips.mask)
        return context[0].transpose(0, 1).reshape(length, -1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    c2p: Tensor | None,
    p2c: Tensor | None,
    buckets: Tensor,
    wrap: Tensor,
    mask: BlockMask,
) -> Tensor:
    """Apply FlexAttention to `(1, heads, S, d)` with position terms `(heads, S, columns)` of queries and of keys."""

    # torch.compile treats each number that a function captures as one that may change, which FlexAttention does not
    # support (torch 2.13): capture tensors only.
    def add_positions(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # For frames of two clips, whose score the mask removes, any column will do.
        column = buckets[(query - key) & wrap]
        if c2p is not None:
            score = score + c2p[head, query, column]
        if p2c is not None:
            score = score + p2c[head, key, column]
        return score

    score_mod = None if c2p is None and p2c is None else add_positions
    context: Any = flex_attention(query, key, value, score_mod=score_mod, block_mask=mask, scale=1.0)
    result: Tensor = context
    return result


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    # fullgraph: outside a compiled graph, FlexAttention would fill memory with whole matrices.
    return torch.compile(_attend, fullgraph=True, dynamic=True)
