"""The transformer layers on one device; on CUDA they are compiled, all of them as one graph for all batches.

One graph: the sizes that differ between batches are marked as dynamic, and no two of them are taken for the same symbol
because they are equal in the first batch. A batch therefore never runs a graph that no check has seen, nor waits for a
compiler. What is static: everything that the weights determine.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.fx.experimental import _config as shape_options

from sewd_model.model import Layer
from sewd_model.packed.gpu_attention import Clips, FlexSelfAttention
from sewd_model.packed.layers import AfterAttention, Linear, Norm


@dataclass(frozen=True)
class DeviceLayer:
    """A transformer layer."""

    attention: FlexSelfAttention
    after_attention: AfterAttention

    @classmethod
    def from_module(
        cls, layer: Layer, table: Tensor | None, activation: str, device: torch.device, dtype: torch.dtype
    ) -> Self:
        """Prepare the weights; `table` as `FlexSelfAttention.from_module`."""
        linear = partial(Linear.from_modules, device=device, dtype=dtype)
        norm = partial(Norm.from_module, device=device, dtype=dtype)
        return cls(
            attention=FlexSelfAttention.from_module(layer.attention.self, table, device, dtype),
            after_attention=AfterAttention.from_layer(layer, activation, linear, norm),
        )

    def __call__(self, hidden: Tensor, clips: Clips) -> Tensor:
        """Map `(S, hidden)` to the same shape."""
        return self.after_attention(self.attention(hidden, clips), hidden)


def run_layers(
    layers: Sequence[DeviceLayer], hidden: Tensor, clips: Clips, members: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Run the layers over the squeezed frames of a batch.

    Args:
        layers: in order.
        hidden: `(S, hidden)`.
        clips: the tables of the batch.
        members: `(groups, S)` float32, see `gpu_layout.membership`; None if no sums are needed.

    Returns:
        The last layer's frames, `(S, hidden)`, and the sums over each group of the frames before the first layer and
        after each one, `(groups, hidden)` float32; no sums without `members`.
    """
    if _is_compiled(hidden):
        dynamic = [(hidden, 0), *_dynamic_sizes(clips), *([] if members is None else [(members, 0), (members, 1)])]
        for tensor, dimension in dynamic:
            torch._dynamo.mark_dynamic(tensor, dimension)
        before = shape_options.use_duck_shape
        shape_options.use_duck_shape = False  # its `patch` takes 0.1 ms
        try:
            result: tuple[Tensor, list[Tensor]] = _compiled()(layers, hidden, clips, members)
        finally:
            shape_options.use_duck_shape = before
        return result
    return _run_layers(layers, hidden, clips, members)


def _is_compiled(hidden: Tensor) -> bool:
    return hidden.is_cuda


def _dynamic_sizes(clips: Clips) -> list[tuple[Tensor, int]]:
    """Return the tensors and dimensions whose size depends on the batch."""
    one_size = [(clips.clip, 0), (clips.buckets, 0), (clips.columns, 0)]
    rows = [(table, 2) for table in (clips.num_blocks, clips.blocks, clips.num_full_blocks, clips.full_blocks)]
    return [*one_size, *rows, (clips.blocks, 3), (clips.full_blocks, 3)]


def _run_layers(
    layers: Sequence[DeviceLayer], hidden: Tensor, clips: Clips, members: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    sums = [] if members is None else [members @ hidden.float()]
    for layer in layers:
        hidden = layer(hidden, clips)
        if members is not None:
            sums.append(members @ hidden.float())
    return hidden, sums


@functools.cache
def _compiled() -> Callable[..., Any]:
    # fullgraph: outside a compiled graph, FlexAttention would fill memory with whole matrices.
    return torch.compile(_run_layers, fullgraph=True, dynamic=False)
