"""Disentangled attention over one clip without index tables.

A position term needs, for query q and key k, a product with the vector of the offset q - k. Products with all offsets
are one matrix product; in its rows the wanted entries of the next row start one column earlier, so they are a strided
view of it: a row stride one less than the width. Bucketed offsets change nothing but the vectors, which are laid out
offset by offset first. Queries of the one term, keys of the other, go in strips: the fewer at a time, the fewer of the
products are not wanted.

Heads go one by one: a head's matrices stay in the processor's cache from the first product to the last.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sewd_model.model import SelfAttention
from sewd_model.packed.crew import Share
from sewd_model.packed.products import Linear, product

# Queries whose scores are in memory at a time: 2.4 MB a head for clips of 30 s.
TILE = 768
# Queries or keys whose products with offsets are computed at a time. With fewer, less is computed in vain, in more
# products, each of which costs 20 microseconds beside its work: for clips of 750, all at once cost a twentieth more of
# the whole model's time, 128 no less.
STRIP = 256


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

    def __call__(self, blocks: list[Tensor], lengths: list[int], buckets: Tensor, share: Share) -> Tensor:
        """Attend within each clip.

        Args:
            blocks: `(rows, hidden)` each, together all clips' frames, clip after clip.
            lengths: squeezed frames of each clip.
            buckets: `(2 * longest - 1,)`, what `position_buckets` gives for the longest clip; not read without
                relative attention.
            share: works off the blocks, then the heads.

        Returns:
            The context, `(sum(lengths), hidden)`.
        """
        total, heads = sum(lengths), self.num_heads
        depth = blocks[0].shape[1] // heads
        parts = blocks[0].new_empty(3 * heads, total, depth)
        context = blocks[0].new_empty(total, heads, depth)

        def project(block: tuple[Tensor, Tensor]) -> None:
            rows, of_rows = block
            of_rows.copy_(self.projection(rows).view(len(rows), 3 * heads, depth).transpose(0, 1))

        share(project, list(zip(blocks, torch.split(parts, [len(rows) for rows in blocks], dim=1), strict=True)))

        def attend(head: int) -> None:
            keys, queries = self.position_keys, self.position_queries
            # Offset by offset, from longest - 1 downwards or to it upwards.
            downwards = None if keys is None else torch.index_select(keys[head], 0, buckets.flip(0))
            upwards = None if queries is None else torch.index_select(queries[head], 0, buckets)
            own = torch.split(parts[head::heads], lengths, dim=1)
            for (query, key, value), of_clip in zip(own, torch.split(context[:, head], lengths), strict=True):
                _attend(query, key, value, downwards, upwards, of_clip)

        share(attend, range(heads))
        return context.flatten(1)


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
    """Start and length of pieces of at most so many, about equal: none of a frame or two."""
    size = math.ceil(length / math.ceil(length / most))
    for start in range(0, length, size):
        yield start, min(size, length - start)
