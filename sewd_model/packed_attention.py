"""Disentangled attention over one clip without index tables.

A position term needs, for query q and key k, a product with the vector of the offset q - k. Products with all offsets
are one matrix product; in its rows the wanted entries of the next row start one column earlier, so they are a strided
view of it: a row stride one less than the width. Bucketed offsets change nothing but the vectors, which are laid out
offset by offset first.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from sewd_model.model import SelfAttention


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
class PositionVectors:
    """Position keys and queries offset by offset, for clips of up to `longest` squeezed frames.

    Attributes:
        keys: `(heads, d, 2 * longest - 1)`, of the offsets q - k from `longest - 1` *down*; None without "c2p".
        queries: `(heads, d, 2 * longest - 1)`, of the offsets from `1 - longest` *up*; None without "p2c".
    """

    longest: int
    keys: Tensor | None
    queries: Tensor | None

    def scores(self, query: Tensor, key: Tensor) -> Tensor | None:
        """The sum of the position terms, `(heads, S, S)`, of queries and keys `(heads, S, d)`; None if there is none.

        The queries are scaled; the position queries are, in place of the keys.
        """
        length = query.shape[1]
        reached = slice(self.longest - length, self.longest + length - 1)  # the 2 S - 1 offsets of this clip
        scores = None
        if self.keys is not None:
            scores = _skew(query @ self.keys[..., reached])  # (heads, query, key)
        if self.queries is not None:
            by_key = _skew(key @ self.queries[..., reached]).transpose(1, 2)  # (heads, query, key)
            scores = by_key if scores is None else scores + by_key
        return scores


def _skew(products: Tensor) -> Tensor:
    """The view `(heads, S, S)` of contiguous `(heads, S, 2 S - 1)` with entry (i, j) at column j - i + S - 1."""
    heads, length, width = products.shape
    return products.as_strided((heads, length, length), (length * width, width - 1, 1), length - 1)


@dataclass(frozen=True)
class PackedAttention:
    """What `SelfAttention` computes for clips alone, from projections of all of them at once.

    Attributes:
        projection: to queries, keys and values side by side; 1 / sqrt(d * terms) is in the queries.
        position_keys: `(2 * span, hidden)`, a row a bucket; None without "c2p".
        position_queries: the same of "p2c", scaled.
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

    def positions(self, buckets: Tensor) -> PositionVectors:
        """Lay the position vectors out by offset; `buckets` (2 * longest - 1,) are the offsets' rows, upwards."""
        keys, queries = self.position_keys, self.position_queries
        return PositionVectors(
            longest=(len(buckets) + 1) // 2,
            keys=None if keys is None else self._split(keys[buckets.flip(0)]).transpose(1, 2),
            queries=None if queries is None else self._split(queries[buckets]).transpose(1, 2),
        )

    def __call__(self, hidden: Tensor, lengths: list[int], buckets: Tensor | None) -> Tensor:
        """Attend within each clip.

        Args:
            hidden: `(sum(lengths), hidden)`, clip after clip.
            lengths: squeezed frames of each clip.
            buckets: see `positions`, for the longest clip; None without relative attention.

        Returns:
            The context, `(sum(lengths), hidden)`.
        """
        vectors = PositionVectors(0, None, None) if buckets is None else self.positions(buckets)
        contexts = []
        for clip in self.projection(hidden).split(lengths):  # (S, 3 * hidden)
            query, key, value = (self._split(part) for part in clip.chunk(3, dim=1))  # (heads, S, d)
            bias = vectors.scores(query, key)
            context = functional.scaled_dot_product_attention(
                query[None], key[None], value[None], None if bias is None else bias[None], scale=1.0
            )[0]
            contexts.append(context.transpose(0, 1).flatten(1))  # (S, hidden)
        return torch.cat(contexts)

    def _split(self, rows: Tensor) -> Tensor:
        """View `(L, hidden)` as `(heads, L, d)`."""
        return rows.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
