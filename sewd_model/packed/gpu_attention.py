"""Disentangled attention within each clip of a packed batch, by FlexAttention (arXiv 2412.05496).

A mask of blocks of 128 frames keeps clips apart: only blocks in which queries and keys of one clip meet are computed. A
position term is read from a table: queries, and keys, times the vectors of all buckets that the batch can reach, one
product per layer. For a query and a key of one clip, the offset is the difference of their places in the batch.

On CUDA, torch.compile builds the kernel (see `sewd_model.packed.gpu_layers`). Elsewhere FlexAttention computes whole
matrices, which is enough for tests.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sewd_model.config import SEWDConfig
from sewd_model.model import SelfAttention, position_buckets
from sewd_model.packed.layers import Linear

BLOCK = 128  # frames in a block of the mask
LEAST_BLOCKS = 2  # in a batch: torch.compile would make another graph for one block
LEAST_REACH = 128  # smallest range of offsets in a table, so that small batches share one size
COLUMNS = 8  # the number of columns is a multiple of it: rows of 16 bytes in half precision, for the tensor cores

KERNEL_HEAD_SIZE = 64  # largest to which `KERNEL` applies; torch chooses for larger ones
# The shape of FlexAttention's kernel: one without register spills on compute capability 9.0 at head size 64 (`make
# gpu-codegen` measures them). torch's own choice spills, since it does not expect tables of positions. Every frame
# attends to itself, and the number of frames is a multiple of BLOCK, so the kernel need not check for empty rows or for
# the end.
KERNEL: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2, "FLOAT32_PRECISION": "'tf32x3'"},
    torch.bfloat16: {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
    torch.float16: {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
}
GUARANTEES = {"ROWS_GUARANTEED_SAFE": True, "IS_DIVISIBLE": True}
# Blocks by key serve gradients only. torch before 2.9 always computes them.
NO_BLOCKS_BY_KEY: dict[str, Any] = (
    {"compute_q_blocks": False} if "compute_q_blocks" in inspect.signature(BlockMask.from_kv_blocks).parameters else {}
)


@dataclass(frozen=True)
class Clips:
    """The tables that attention reads of a batch of S squeezed frames in B blocks.

    Attributes:
        clip: `(S,)` int32, the clip of each frame.
        num_blocks: `(1, 1, B)` int32, how many blocks of keys each block of queries meets, some frames of which are of
            other clips.
        blocks: `(1, 1, B, B)` int32, which: the first `num_blocks` of each row.
        num_full_blocks: the same for blocks all of whose frames are of the clip of all the queries.
        full_blocks: the same.
        buckets: `(2 * reach,)` int32, the column of a table for each offset of query and key, modulo `2 * reach`, a
            power of two.
        wrap: `()` int32, `2 * reach - 1`: the bits of an offset that are used.
        columns: `(columns,)` int64, the rows of the relative position table that correspond to the columns.
    """

    clip: Tensor
    num_blocks: Tensor
    blocks: Tensor
    num_full_blocks: Tensor
    full_blocks: Tensor
    buckets: Tensor
    wrap: Tensor
    columns: Tensor

    def tensors(self) -> list[Tensor]:
        """Return all tensors, which are on the device."""
        return [*vars(self).values()]

    @classmethod
    def lay_out(cls, lengths: Sequence[int], config: SEWDConfig, device: torch.device) -> Self:
        """Make the tables for clips of `lengths` squeezed frames, laid end to end and padded to `padded_length`."""
        reach = max(LEAST_REACH, 1 << (max(lengths) - 1).bit_length())
        buckets, columns = torch.zeros(2 * reach, dtype=torch.int32), torch.zeros(COLUMNS, dtype=torch.long)
        if config.relative_attention:
            by_offset = position_buckets(reach, config)  # from offset 1 - reach
            first, last = int(by_offset[0]), int(by_offset[-1])
            buckets[1:] = by_offset - first
            columns = torch.arange(first, first + _round_up(last + 1 - first, COLUMNS)).clamp_max(last)
        tables = (
            *_block_tables(lengths),
            buckets.roll(-reach),
            torch.tensor(2 * reach - 1, dtype=torch.int32),
            columns,
        )
        return cls(*(copy_to(table, device) for table in tables))

    def mask(self) -> BlockMask:
        """Return which blocks, and which frames in them, attend to each other."""
        clip = self.clip

        def same_clip(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return clip[query] == clip[key]

        tables = (self.num_blocks, self.blocks, self.num_full_blocks, self.full_blocks)
        return BlockMask.from_kv_blocks(*tables, BLOCK, same_clip, **NO_BLOCKS_BY_KEY)


def copy_to(array: Tensor, device: torch.device) -> Tensor:
    """Copy an array from the CPU to a device; to CUDA from pinned memory, without waiting."""
    if device.type == "cuda" and not array.is_pinned():
        array = array.pin_memory()
    return array.to(device, non_blocking=True)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def padded_length(lengths: Sequence[int]) -> int:
    """Return the number of squeezed frames of a batch with padding: a multiple of `BLOCK`, at least `LEAST_BLOCKS`.

    The frames of the padding attend to each other.
    """
    return max(LEAST_BLOCKS * BLOCK, _round_up(sum(lengths), BLOCK))


def _block_tables(lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the first five tables of `Clips`, from the borders of the clips, without a matrix of frames by frames."""
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
    return clip.int(), *_sparse_rows(near & ~full), *_sparse_rows(full)


def _sparse_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many columns of each row are true, and which: what BlockMask expects, `(1, 1, rows[, columns])`."""
    order = matrix.int().argsort(dim=1, descending=True, stable=True)
    return matrix.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]


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
        # Contiguous: the kernel then knows all strides and loads 16 bytes at a time.
        projected = self.projection(hidden).view(length, 3 * heads, -1).transpose(0, 1).contiguous()
        query, key, value = (part[None] for part in torch.split(projected, heads))  # (1, heads, S, d)
        c2p = p2c = None
        if self.positions is not None:
            # The heads of queries and keys are neighbours: one product for both terms.
            start = 0 if self.uses_c2p else heads
            table = self.positions.index_select(2, clips.columns)
            products = torch.bmm(projected[start : start + len(table)], table)  # (heads of the terms, S, columns)
            c2p = products[:heads] if self.uses_c2p else None
            p2c = products[-heads:] if self.uses_p2c else None
        context = _attend(query, key, value, c2p, p2c, clips)
        return context[0].transpose(0, 1).reshape(length, -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, c2p: Tensor | None, p2c: Tensor | None, clips: Clips) -> Tensor:
    """Apply FlexAttention to `(1, heads, S, d)` with position terms `(heads, S, columns)` of queries and of keys."""
    buckets, wrap = clips.buckets, clips.wrap

    # FlexAttention does not support captured numbers that may change (torch 2.13): capture tensors only.
    def add_positions(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # For frames of two clips, whose score the mask removes, any column will do.
        column = buckets[(query - key) & wrap]
        if c2p is not None:
            score = score + c2p[head, query, column]
        if p2c is not None:
            score = score + p2c[head, key, column]
        return score

    score_mod = None if c2p is None and p2c is None else add_positions
    options: Any = {**GUARANTEES, **(KERNEL[query.dtype] if query.shape[-1] <= KERNEL_HEAD_SIZE else {})}
    context: Any = flex_attention(
        query, key, value, score_mod=score_mod, block_mask=clips.mask(), scale=1.0, kernel_options=options
    )
    result: Tensor = context
    return result
