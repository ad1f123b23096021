"""Disentangled attention (DeBERTa, arXiv 2006.03654) within one clip, without index tables.

A position term needs, for query q and key k, a product with the vector of the offset q - k. The products of all queries
with all offsets are one matrix product. In its rows, the entries that the next query needs start one column earlier, so
the needed entries are a strided view: its row stride is one less than the width. Buckets of offsets only change the
vectors, which are first laid out offset by offset. Queries (of one term) and keys (of the other) are processed in
strips: the fewer at a time, the fewer products are computed that no entry needs.

Heads are processed one by one: the matrices of a head stay in the processor's cache from the first product to the last.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sewd_model.model import SelfAttention
from sewd_model.packed.layers import Linear
from sewd_model.packed.products import OneDNNLinear, product
from sewd_model.packed.thread_pool import MapParts

# Queries whose scores are in memory at the same time: 2.4 MB a head for clips of 30 s.
TILE = 768
# Queries or keys whose products with offsets are computed together. Fewer waste less, but in more products, each of
# which costs 20 microseconds besides its work. For clips of 750 squeezed frames, all at once costs a twentieth of the
# whole model's time, and 128 saves nothing over 256.
STRIP = 256


@dataclass(frozen=True)
class PackedAttention:
    """What `SelfAttention` computes, for clips laid end to end.

    Attributes:
        num_heads: attention heads.
        projection: to queries, keys and values side by side; queries are scaled by 1 / sqrt(d * terms).
        position_keys: `(heads, 2 * span, d)`, one row per bucket; None without "c2p".
        position_queries: the same for "p2c", scaled in place of the keys; None without "p2c".
    """

    num_heads: int
    projection: Linear
    position_keys: Tensor | None
    position_queries: Tensor | None

    @classmethod
    def from_module(cls, attention: SelfAttention, table: Tensor | None, linear: type[Linear]) -> Self:
        """Prepare the weights.

        Args:
            attention: of the reference model.
            table: `(2 * span, hidden)`, the relative position table; None without relative attention.
            linear: the type of the projection.
        """
        projection = linear.from_modules(
            attention.query_proj, attention.key_proj, attention.value_proj, scales=(attention.scale, 1.0, 1.0)
        )
        keys = queries = None
        if table is not None and attention.uses_c2p:
            project_key = attention.key_proj if attention.share_att_key else attention.pos_key_proj
            keys = _split_heads(OneDNNLinear.from_modules(project_key)(table), attention.num_heads)
        if table is not None and attention.uses_p2c:
            project_query = attention.query_proj if attention.share_att_key else attention.pos_query_proj
            scaled = OneDNNLinear.from_modules(project_query, scales=(attention.scale,))
            queries = _split_heads(scaled(table), attention.num_heads)
        return cls(attention.num_heads, projection, keys, queries)

    def __call__(self, blocks: list[Tensor], lengths: list[int], buckets: Tensor, map_parts: MapParts) -> Tensor:
        """Attend within each clip.

        Args:
            blocks: `(rows, hidden)` each; together the frames of all clips, clip after clip.
            lengths: squeezed frames of each clip.
            buckets: `(2 * longest - 1,)`, from `position_buckets` for the longest clip; not read without relative
                attention.
            map_parts: runs the blocks, then the heads.

        Returns:
            The context, `(sum(lengths), hidden)`.
        """
        total, heads = sum(lengths), self.num_heads
        depth = blocks[0].shape[1] // heads
        projected = blocks[0].new_empty(3 * heads, total, depth)
        context = blocks[0].new_empty(total, heads, depth)

        def project(block: tuple[Tensor, Tensor]) -> None:
            rows, output = block
            output.copy_(self.projection(rows).view(len(rows), 3 * heads, depth).transpose(0, 1))

        outputs = torch.split(projected, [len(rows) for rows in blocks], dim=1)
        map_parts(project, list(zip(blocks, outputs, strict=True)))

        def attend(head: int) -> None:
            keys, queries = self.position_keys, self.position_queries
            # One row per offset: keys from offset longest - 1 down, queries up to it.
            keys_down = None if keys is None else torch.index_select(keys[head], 0, buckets.flip(0))
            queries_up = None if queries is None else torch.index_select(queries[head], 0, buckets)
            clips = torch.split(projected[head::heads], lengths, dim=1)
            contexts = torch.split(context[:, head], lengths)
            for (query, key, value), clip_context in zip(clips, contexts, strict=True):
                _attend(query, key, value, keys_down, queries_up, clip_context)

        map_parts(attend, range(heads))
        return context.flatten(1)


def _split_heads(rows: Tensor, num_heads: int) -> Tensor:
    """Lay `(L, heads * d)` out as `(heads, L, d)`, contiguous."""
    return rows.view(len(rows), num_heads, -1).transpose(0, 1).contiguous()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_keys: Tensor | None,
    position_queries: Tensor | None,
    context: Tensor,
) -> None:
    """Compute one head in one clip.

    Args:
        query: `(S, d)`, contiguous, as are `key` and `value`.
        key: `(S, d)`.
        value: `(S, d)`.
        position_keys: `(offsets, d)`, from the greatest offset `query - key` down, or None.
        position_queries: `(offsets, d)`, from the least offset up, or None.
        context: `(S, d)`, where the result is written.
    """
    length = len(query)
    for start, height in _cut(length, TILE):
        rows = query[start : start + height]
        scores = product(rows, key)  # (rows of the tile, S)
        if position_keys is not None:
            for top, number in _cut(height, STRIP):
                offsets = number + length - 1
                first = len(position_keys) // 2 + 1 - (start + top + number)  # of the last query and the first key
                products = product(rows[top : top + number], position_keys[first : first + offsets])
                scores[top : top + number] += products.as_strided((number, length), (offsets - 1, 1), number - 1)
        if position_queries is not None:
            for left, number in _cut(length, STRIP):
                offsets = number + height - 1
                first = len(position_queries) // 2 + start + 1 - (left + number)  # of the first query and the last key
                products = product(key[left : left + number], position_queries[first : first + offsets])
                scores[:, left : left + number] += products.as_strided((number, height), (offsets - 1, 1), number - 1).T
        torch.softmax(scores, dim=1, out=scores)
        context[start : start + height] = product(scores, value.T)


def _cut(length: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield start and length of pieces of at most `most`, of about equal size, so that none is tiny."""
    size = math.ceil(length / math.ceil(length / most))
    for start in range(0, length, size):
        yield start, min(size, length - start)
