"""Disentangled attention over one clip without index tables.

A position term needs, for query q and key k, a product with the vector of the offset q - k. Products with all offsets
are one matrix product; in its rows the wanted entries of the next row start one column earlier, so they are a strided
view of it: a row stride one less than the width. Bucketed offsets change nothing but the vectors, which are laid out
offset by offset first. Queries go in tiles: the fewer at a time, the fewer of the products are not wanted.

Heads go one by one: a head's matrices stay in the processor's cache from the first product to the last.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sewd_model.model import SelfAttention
from sewd_model.packed_products import Linear, product

# Queries that are worked off at a time. With fewer, less is computed in vain, in more products, each of which costs
# 20 microseconds beside its work: for clips of 750, 384 take two thirds of the time that 128 take.
TILE = 384


@dataclass(frozen=True)
class PackedAttention:
    """What `SelfAttention` computes for clips alone, from projections of all of them at once.

    Attributes:
        projection: to queries, keys and values side by side; 1 / sqrt(d * terms) is in the queries.
        position_keys: `(heads, 2 * span, d)`, a row a bucket; None without "c2p".
        position_queries: the same of "p2c", scaled in place of the keys; None without "p2c".
    """

    num_heads: int
    projection: Linear
    position_keys: Tensor | None
    position_queries: Tensor | None

    @classmethod
    def of(cls, attention: SelfAttention, table: Tensor | None, linear: type[Linear]) -> Self:
        """Prepare the weights; `table` (2 * span, hidden) is the relative position table."""
        projection = linear.of(
            attention.query_proj, attention.key_proj, attention.value_proj, scales=(attention.scale, 1.0, 1.0)
        )
        keys = queries = None
        if table is not None and attention.uses_c2p:
            keys = Linear.of(attention.key_proj if attention.share_att_key else attention.pos_key_proj)(table)
            keys = _split(keys, attention.num_heads)
        if table is not None and attention.uses_p2c:
            project = attention.query_proj if attention.share_att_key else attention.pos_query_proj
            queries = _split(Linear.of(project, scales=(attention.scale,))(table), attention.num_heads)
        return cls(attention.num_heads, projection, keys, queries)

    def __call__(self, hidden: Tensor, lengths: list[int], buckets: Tensor) -> Tensor:
        """Attend within each clip.

        Args:
            hidden: `(sum(lengths), hidden)`, clip after clip.
            lengths: squeezed frames of each clip.
            buckets: `(2 * longest - 1,)`, what `position_buckets` gives for the longest clip; not read without
                relative attention.

        Returns:
            The context, `(sum(lengths), hidden)`.
        """
        keys, queries = self.position_keys, self.position_queries
        # Offset by offset, a tensor (2 * longest - 1, d) a head: the keys' from longest - 1 downwards, the queries'
        # upwards.
        downwards = None if keys is None else [torch.index_select(own, 0, buckets.flip(0)) for own in keys]
        upwards = None if queries is None else [torch.index_select(own, 0, buckets) for own in queries]
        parts = _split(self.projection(hidden), 3 * self.num_heads)  # (3 * heads, sum(lengths), d)
        context = torch.empty_like(hidden)
        clips = zip(torch.split(context, lengths), torch.split(parts, lengths, dim=1), strict=True)
        for of_clip, own in clips:
            of_heads = of_clip.view(len(of_clip), self.num_heads, -1).unbind(1)  # (S, d) each
            for head, of_head in enumerate(of_heads):
                query, key, value = own[head :: self.num_heads]
                _attend(
                    query,
                    key,
                    value,
                    None if downwards is None else downwards[head],
                    None if upwards is None else upwards[head],
                    of_head,
                )
        return context


def _split(rows: Tensor, num_parts: int) -> Tensor:
    """Lay `(L, parts * d)` out as `(parts, L, d)`, contiguous."""
    return rows.view(len(rows), num_parts, -1).transpose(0, 1).contiguous()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_keys: Tensor | None,
    position_queries: Tensor | None,
    context: Tensor,
) -> None:
    """Attention of one head in one clip.

    Args:
        query: `(S, d)`, contiguous, and so are `key` and `value`.
        position_keys: `(offsets, d)`, from the greatest offset `query - key` downwards, or None.
        position_queries: `(offsets, d)`, from the least offset upwards, or None.
        context: `(S, d)`, where the result goes.
    """
    length = len(query)
    size = math.ceil(length / math.ceil(length / TILE))  # about equal, none of a frame or two
    for start in range(0, length, size):
        stop = min(start + size, length)
        rows, height = query[start:stop], stop - start
        scores = product(rows, key)  # (rows of the tile, S)
        width = length + height - 1  # offsets between the tile and the clip
        if position_keys is not None:
            first = len(position_keys) // 2 + 1 - stop  # of the tile's last query and the first key
            products = product(rows, position_keys[first : first + width])
            scores += products.as_strided((height, length), (width - 1, 1), height - 1)
        if position_queries is not None:
            first = len(position_queries) // 2 + start - length + 1  # of the tile's first query and the last key
            products = product(key, position_queries[first : first + width])
            scores += products.as_strided((length, height), (width - 1, 1), length - 1).T
        torch.softmax(scores, dim=1, out=scores)
        context[start:stop] = product(scores, value.T)
