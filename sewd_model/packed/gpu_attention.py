"""Disentangled attention within each clip of a packed batch, by FlexAttention (arXiv 2412.05496).

A mask by blocks of 128 frames keeps clips apart: only blocks in which queries and keys of one clip meet are computed. A
position term is a read from a table: queries, and keys, times the vectors of all buckets that the batch can reach, one
product a layer. Where both lie in one clip, the offset of query and key is that of their places in the batch.

On CUDA the kernel is made by torch.compile, once for all sizes. Elsewhere FlexAttention computes whole matrices, which
serves tests. It needs torch 2.5.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sewd_model.config import SEWDConfig
from sewd_model.model import SelfAttention, position_buckets

BLOCK = 128
LEAST_REACH = 128


@dataclass(frozen=True)
class Clips:
    """What attention has to know of a batch.

    Attributes:
        mask: which blocks, and which frames in them, meet.
        buckets: `(2 * reach,)` int32, the column of a table for each offset of query and key, modulo `2 * reach`, a
            power of two.
        wrap: `()` int32, `2 * reach - 1`: the bits of an offset that count.
        columns: the rows of the relative position table that the columns are.
        clip: `(S,)` int32, the clip that a frame is of, which the mask reads.
    """

    mask: BlockMask
    buckets: Tensor
    wrap: Tensor
    columns: slice
    clip: Tensor

    def tensors(self) -> list[Tensor]:
        """All that lie on the device."""
        of_mask = [value for value in vars(self.mask).values() if isinstance(value, Tensor)]
        return [*of_mask, self.buckets, self.wrap, self.clip]

    @classmethod
    def of(cls, lengths: Sequence[int], config: SEWDConfig, device: torch.device) -> Self:
        """Of clips of so many squeezed frames, laid end to end and filled up to `padded_length`."""
        reach, columns = max(LEAST_REACH, 1 << (max(lengths) - 1).bit_length()), slice(0, 0)
        buckets = torch.zeros(2 * reach, dtype=torch.int32)
        if config.relative_attention:
            of_offsets = position_buckets(reach, config)  # from 1 - reach
            columns = slice(int(of_offsets[0]), int(of_offsets[-1]) + 1)
            buckets[1:] = of_offsets - columns.start
        mask, clip = _document_mask(lengths, device)
        return cls(
            mask=mask,
            buckets=bring(buckets.roll(-reach), device),
            wrap=bring(torch.tensor(2 * reach - 1, dtype=torch.int32), device),
            columns=columns,
            clip=clip,
        )


def bring(array: Tensor, device: torch.device) -> Tensor:
    """Copy an array of the CPU to a device; to CUDA from pinned memory, without waiting for it."""
    if device.type == "cuda" and not array.is_pinned():
        array = array.pin_memory()
    return array.to(device, non_blocking=True)


def padded_length(lengths: Sequence[int]) -> int:
    """Frames that a batch takes, a multiple of `BLOCK`; those of no clip attend to each other."""
    return -(-sum(lengths) // BLOCK) * BLOCK


def _document_mask(lengths: Sequence[int], device: torch.device) -> tuple[BlockMask, Tensor]:
    """The block mask and `Clips.clip`, made from the borders of the clips: no matrix of frames by frames is needed."""
    padding = padded_length(lengths) - sum(lengths)
    sizes = torch.tensor([*lengths, *([padding] if padding else [])])
    ends = sizes.cumsum(0)
    clip = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    blocks = clip.view(-1, BLOCK)
    first, last = blocks[:, 0], blocks[:, -1]  # clips at a block's borders
    low = (ends - sizes)[first] // BLOCK  # the first block, and the last, that a block of queries meets
    high = (ends[last] - 1) // BLOCK
    whole = first == last
    places = torch.arange(len(blocks))
    near = (low[:, None] <= places) & (places <= high[:, None])
    full = near & (whole[:, None] & whole & (first[:, None] == first))
    some, whole_ones = (_ordered(meets, device) for meets in (near & ~full, full))
    on_device = bring(clip.int(), device)

    def same_clip(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return on_device[query] == on_device[key]

    return BlockMask.from_kv_blocks(*some, *whole_ones, BLOCK, same_clip), on_device


def _ordered(meets: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many columns of each row are true, and which: the form that BlockMask takes, `(1, 1, rows[, columns])`."""
    order = meets.int().argsort(dim=1, descending=True, stable=True)
    return bring(meets.sum(1, dtype=torch.int32)[None, None], device), bring(order.int()[None, None], device)


@dataclass(frozen=True)
class FlexSelfAttention:
    """What `SelfAttention` computes for clips alone.

    Attributes:
        weight: `(3 * hidden, hidden)`, of queries, keys and values; 1 / sqrt(d * terms) is in the queries.
        bias: `(3 * hidden,)`.
        positions: `(heads of the terms, d, 2 * span)`, to multiply queries with, for "c2p", and then keys, for "p2c",
            where the scale is in it; None without either.
    """

    num_heads: int
    weight: Tensor
    bias: Tensor
    positions: Tensor | None
    uses_c2p: bool
    uses_p2c: bool

    @classmethod
    def of(cls, attention: SelfAttention, table: Tensor | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Prepare the weights; `table` (2 * span, hidden) is the relative position table, in float32 on the CPU."""
        scaled = ((attention.query_proj, attention.scale), (attention.key_proj, 1.0), (attention.value_proj, 1.0))
        weight = torch.cat([layer.weight.detach() * scale for layer, scale in scaled])
        bias = torch.cat([layer.bias.detach() * scale for layer, scale in scaled])
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
            weight=weight.to(device, dtype),
            bias=bias.to(device, dtype),
            positions=torch.cat(positions).to(device, dtype).contiguous() if positions else None,
            uses_c2p=uses_c2p,
            uses_p2c=uses_p2c,
        )

    def __call__(self, hidden: Tensor, clips: Clips) -> Tensor:
        """Attend within each clip, `(S, hidden)` to the same."""
        length, heads = len(hidden), self.num_heads
        parts = functional.linear(hidden, self.weight, self.bias).view(length, 3 * heads, -1).transpose(0, 1)
        query, key, value = (part[None] for part in torch.split(parts, heads))  # (1, heads, S, d)
        c2p = p2c = None
        if self.positions is not None:
            # Queries' heads and keys' lie side by side: one product for both terms.
            start = 0 if self.uses_c2p else heads
            products = torch.bmm(parts[start : start + len(self.positions)], self.positions[:, :, clips.columns])
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
    """FlexAttention over `(1, heads, S, d)` with position terms `(heads, S, columns)`: of queries, and of keys."""

    # torch.compile takes each number that a function captures for one that may change, which FlexAttention is not
    # ready for (torch 2.13): only tensors are captured.
    def add_positions(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Of frames of two clips, whose score the mask takes away, any column will do.
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
    # Whole or not at all: outside of a compiled graph it would fill memory with whole matrices.
    return torch.compile(_attend, fullgraph=True, dynamic=True)
