"""Disentangled attention over one clip without index tables.

A position term needs, for query q and key k, a product with the vector of the offset q - k. Products with all offsets
are one matrix product; in its rows the wanted entries of the next row start one column earlier, so they are a strided
view of it: a row stride one less than the width. Bucketed offsets change nothing but the vectors, which are laid out
offset by offset first. Rows go in tiles: the fewer at a time, the fewer of the products are not wanted.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from sewd_model.model import SelfAttention

# Squeezed frames that are worked off at a time: for clips of 400, two thirds of the time of all at once; between 64 and
# 160 it hardly matters.
TILE = 96


@dataclass(frozen=True)
class Linear:
    """A linear map of rows: weight `(in, out)`, bias `(out,)`."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, *layers: torch.nn.Linear, scales: tuple[float, ...] | None = None) -> Self:
        """The maps of the modules side by side in one, each times its scale (default: 1)."""
        scales = scales or (1.0,) * len(layers)
        pairs = list(zip(layers, scales, strict=True))
        weight = torch.cat([layer.weight.detach() * scale for layer, scale in pairs])
        bias = torch.cat([layer.bias.detach() * scale for layer, scale in pairs])
        return cls(weight.T.contiguous(), bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map `(T, in)` to `(T, out)`."""
        return torch.addmm(self.bias, hidden, self.weight)


@dataclass(frozen=True)
class PackedAttention:
    """What `SelfAttention` computes for clips alone, from projections of all of them at once.

    Attributes:
        projection: to queries, keys and values side by side; 1 / sqrt(d * terms) is in the queries.
        position_keys: `(2 * span, hidden)`, a row a bucket; None without "c2p".
        position_queries: the same of "p2c", scaled in place of the keys; None without "p2c".
    """

    num_heads: int
    projection: Linear
    position_keys: Tensor | None
    position_queries: Tensor | None

    @classmethod
    def of(cls, attention: SelfAttention, table: Tensor | None) -> Self:
        """Prepare the weights; `table` (2 * span, hidden) is the relative position table."""
        projection = Linear.of(
            attention.query_proj, attention.key_proj, attention.value_proj, scales=(attention.scale, 1.0, 1.0)
        )
        keys = queries = None
        if table is not None and attention.uses_c2p:
            keys = Linear.of(attention.key_proj if attention.share_att_key else attention.pos_key_proj)(table)
        if table is not None and attention.uses_p2c:
            project = attention.query_proj if attention.share_att_key else attention.pos_query_proj
            queries = Linear.of(project, scales=(attention.scale,))(table)
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
        # Offset by offset, (heads, d, 2 * longest - 1): the keys' from longest - 1 downwards, the queries' upwards.
        by_offset = None if keys is None else self._split(keys[buckets.flip(0)]).transpose(1, 2)
        by_offset_up = None if queries is None else self._split(queries[buckets]).transpose(1, 2)
        contexts = []
        for clip in torch.split(self.projection(hidden), lengths):  # (S, 3 * hidden)
            query, key, value = (self._split(part) for part in clip.chunk(3, dim=1))  # (heads, S, d)
            context = _attend(query, key, value, by_offset, by_offset_up)  # (heads, S, d)
            contexts.append(context.transpose(0, 1).flatten(1))
        return torch.cat(contexts)

    def _split(self, rows: Tensor) -> Tensor:
        """View `(L, hidden)` as `(heads, L, d)`."""
        return rows.view(len(rows), self.num_heads, -1).transpose(0, 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, position_keys: Tensor | None, position_queries: Tensor | None
) -> Tensor:
    """Attention of one clip, `(heads, S, d)` to the same; position vectors `(heads, d, offsets)` or None."""
    heads, length, _ = query.shape
    size = math.ceil(length / math.ceil(length / TILE))  # about equal, none of a frame or two
    tiles = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    bias = None
    if position_queries is not None:
        bias = query.new_empty(heads, length, length)
        for tile in tiles:
            bias[..., tile] = _position_products(key, position_queries, tile).transpose(1, 2)
    contexts = []
    for tile in tiles:
        own = None if bias is None else bias[:, tile]  # (heads, rows of the tile, S)
        if position_keys is not None:
            by_query = _position_products(query, position_keys, tile)
            own = by_query if own is None else own.add_(by_query)
        contexts.append(
            functional.scaled_dot_product_attention(
                query[None, :, tile], key[None], value[None], None if own is None else own[None], scale=1.0
            )[0]
        )
    return torch.cat(contexts, dim=1)


def _position_products(rows: Tensor, vectors: Tensor, tile: slice) -> Tensor:
    """Products of the tile's rows with the vectors of their offsets to all columns.

    Args:
        rows: `(heads, S, d)`.
        vectors: `(heads, d, 2 * longest - 1)`; the one of row i and column j is at `j - i + longest - 1`.
        tile: the rows wanted.

    Returns:
        `(heads, rows of the tile, S)`, a view.
    """
    length, middle = rows.shape[1], vectors.shape[2] // 2
    products = rows[:, tile] @ vectors[..., middle - tile.stop + 1 : middle - tile.start + length]
    heads, height, width = products.shape  # width = S + height - 1
    return products.as_strided((heads, height, length), (height * width, width - 1, 1), height - 1)
