"""Inference on processors over many clips at once; each clip gets exactly the result that it has alone.

`SEWDModel` takes a padded batch. Here clips of any length are laid end to end, time before channels, `(total frames,
channels)`: nothing is computed for padding, and every linear layer is one matrix product over all clips. Only what
looks across frames is computed clip by clip: the feature extractor, the positional convolution and attention. All that
depends on weights alone is computed when the model is packed: weight norm, scales, and the projections of the relative
position table.

**Threads.** Clips are independent, so several packs of clips can be computed at the same time, each in a thread of its
own that waits for no other; at the end, threads without a pack take parts of the others' (see
`sewd_model.packed.thread_pool`). torch's own threads share each single operation instead and synchronise after it,
thousands of times a second. While they wait they keep their processor busy, so on a machine with other work they hold
up the very thread that they wait for: measured with 2 threads on 2 busy processors, a tenth of the speed or less.
OMP_WAIT_POLICY=PASSIVE in the environment, before torch is imported, lets them sleep.

    packed = PackedModel([ctc, classifier], threads=4)  # heads of one backbone
    for output in packed([waveform, ...]):
        ctc_logits, class_logits = output.logits
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from sewd_model.grouping import grouped
from sewd_model.model import Layer, SEWDForCTC, SEWDForSequenceClassification, SEWDModel, position_buckets
from sewd_model.packed import int8
from sewd_model.packed.cpu_attention import PackedAttention
from sewd_model.packed.cpu_convolutions import PackedFeatures, PackedSqueeze
from sewd_model.packed.inputs import check_models, check_waveforms
from sewd_model.packed.layers import AfterAttention, ClassifierHead, CTCHead, Head, Linear, Norm, fast_activation
from sewd_model.packed.products import OneDNNLinear
from sewd_model.packed.thread_pool import MapParts, WorkSharingPool

# Most frames in a pack: 20 s at the published strides. The matrix products gain nothing from more, and tensors of many
# megabytes are returned to the system and requested again, page by page, all the time.
PACK_FRAMES = 1000
# Most squeezed frames in a block of what a layer computes row by row; blocks are about equal, and idle threads take
# them. The products gain nothing from more.
BLOCK_ROWS = 384

Packable = SEWDModel | Head


@dataclass(frozen=True)
class PackedOutput:
    """The result of one clip.

    Attributes:
        last_hidden_state: `(T, hidden)` float32, zeros in the frames after the last whole squeezed frame.
        logits: of each head, in the order in which the heads were given: `(T, vocab_size)` or `(num_labels,)` float32.
    """

    last_hidden_state: Tensor
    logits: tuple[Tensor, ...]


class PackedModel:
    """A backbone and its heads, for clips in packed batches, on the CPU.

    The weights are prepared at construction, and some are shared with the models: pack them again after more training.

    Attributes:
        config: of the backbone.
        dtype: data type of the products with weights: `float32`, or `int8 and` that of the convolutions.
        fallback: why `dtype` is not the requested one; None if it is.
        pack_frames: most frames of the clips in a pack, unless a single clip is longer; 0: each clip is a pack.
    """

    def __init__(self, models: Sequence[Packable], *, dtype: str = "float32", threads: int = 1) -> None:
        """Pack the models.

        Args:
            models: any number of heads, or a bare backbone, in float32 on the CPU.
            dtype: data type of the products with weights: `float32`, or `int8` (see `sewd_model.packed.int8`), where
                the result of a clip is the same bit for bit in any batch.
            threads: packs that are computed at the same time. With 2 or more, torch's own threads are set to 1, in the
                whole process.

        Raises:
            ValueError: there is no model, their backbones differ, they are not in float32 on the CPU, or the dtype is
                not supported.
        """
        if dtype not in ("float32", "int8"):
            msg = f"models are packed in float32 or int8, not in {dtype}"
            raise ValueError(msg)
        check_models(models)
        types = int8.linear_types() if dtype == "int8" else int8.LinearTypes(OneDNNLinear, OneDNNLinear)
        self.dtype = " and ".join(dict.fromkeys((types.linear.dtype, types.convolution.dtype)))
        self.fallback = int8.FALLBACK_REASON if dtype == "int8" and types.linear is OneDNNLinear else None
        self.pack_frames = PACK_FRAMES if types.linear.rows_independent else 0
        if threads > 1:
            torch.set_num_threads(1)
        self._pool = WorkSharingPool(threads)
        with torch.inference_mode():
            self._prepare(models, types)

    def _prepare(self, models: Sequence[Packable], types: int8.LinearTypes) -> None:
        backbone = models[0] if isinstance(models[0], SEWDModel) else models[0].sew_d
        encoder = backbone.encoder
        transformer = encoder.encoder
        linear = types.linear.from_modules
        table = transformer.position_table() if backbone.config.relative_attention else None
        self.config = backbone.config
        self._features = PackedFeatures(backbone.feature_extractor, types.convolution)
        self._norm = Norm.from_module(backbone.layer_norm)
        self._projection = linear(backbone.feature_projection) if hasattr(backbone, "feature_projection") else None
        activation = self.config.feat_extract_activation
        self._squeeze = PackedSqueeze.from_module(encoder.pos_conv_embed, fast_activation(activation))
        self._layers = [
            _Layer.from_module(cast(Layer, layer), table, self.config.hidden_act, types.linear)
            for layer in transformer.layer
        ]
        self._upsample = linear(encoder.upsample.projection, activation=activation)
        heads = [model for model in models if not isinstance(model, SEWDModel)]
        self._heads = [_pack_head(model) for model in heads]
        self._keeps_states = any(model.needs_hidden_states for model in heads)

    def __call__(self, waveforms: Sequence[Tensor]) -> list[PackedOutput]:
        """Encode clips.

        Args:
            waveforms: `(N,)` float32 each, at the model's rate, prepared by `FeatureExtractor`. Not modified.

        Returns:
            One output per clip, in order: what the models give for it in a batch of one.

        Raises:
            InputTooShortError: a clip has fewer than `config.min_samples` samples.
            ValueError: a clip is not one-dimensional float32 on the CPU.
        """
        return list(self.stream(waveforms))

    def stream(self, waveforms: Sequence[Tensor]) -> Iterator[PackedOutput]:
        """Yield what `__call__` returns, pack by pack as they are ready.

        Raises:
            InputTooShortError, ValueError: as `__call__`.
        """
        check_waveforms(waveforms, self.config)
        for outputs in self._pool.map(self._encode, self._packs(waveforms)):
            yield from outputs

    def _packs(self, waveforms: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        return grouped(waveforms, lambda waveform: self.config.num_frames(len(waveform)), at_most=self.pack_frames)

    def _encode(self, waveforms: list[Tensor]) -> list[PackedOutput]:
        config = self.config
        num_frames = [config.num_frames(len(waveform)) for waveform in waveforms]
        lengths = [frames // config.squeeze_factor for frames in num_frames]
        map_parts = self._pool.map_parts
        hidden = torch.cat([tile for waveform in waveforms for tile in self._features(waveform, map_parts)])
        hidden = self._norm(hidden)  # (total T, conv_dim[-1])
        if self._projection is not None:
            hidden = self._projection(hidden)
        hidden = torch.cat([self._squeeze(clip) for clip in torch.split(hidden, num_frames)])  # (total S, hidden)

        buckets = position_buckets(max(lengths), config)
        states = [hidden] if self._keeps_states else []
        size = math.ceil(len(hidden) / math.ceil(len(hidden) / BLOCK_ROWS))
        blocks = list(torch.split(hidden, size))
        for layer in self._layers:
            blocks = layer(blocks, lengths, buckets, map_parts)
            if self._keeps_states:
                states.append(torch.cat(blocks))
        hidden = torch.cat(blocks)
        upsampled = self._upsample(hidden).view(-1, config.hidden_size)  # (total S * squeeze, hidden)
        last = _pad_clips(upsampled, num_frames, config.squeeze_factor)  # (total T, hidden)

        encoded = _Encoded(last, num_frames, states, lengths)
        logits = [_logits(head, encoded) for head in self._heads]
        clips = zip(torch.split(last, num_frames), *logits, strict=True)
        return [PackedOutput(frames, tuple(clip_logits)) for frames, *clip_logits in clips]


def _pad_clips(upsampled: Tensor, num_frames: list[int], squeeze: int) -> Tensor:
    """Bring each clip to its number of frames, with zeros at its end, as the reference does."""
    clips = torch.split(upsampled, [frames - frames % squeeze for frames in num_frames])
    return torch.cat(
        [functional.pad(clip, (0, 0, 0, frames % squeeze)) for clip, frames in zip(clips, num_frames, strict=True)]
    )


# ------------------------------------------------------------------------------------------------ transformer layer
@dataclass(frozen=True)
class _Layer:
    """A transformer layer."""

    attention: PackedAttention
    after_attention: AfterAttention

    @classmethod
    def from_module(cls, layer: Layer, table: Tensor | None, activation: str, linear: type[Linear]) -> Self:
        return cls(
            attention=PackedAttention.from_module(layer.attention.self, table, linear),
            after_attention=AfterAttention.from_layer(layer, activation, linear.from_modules, Norm.from_module),
        )

    def __call__(self, blocks: list[Tensor], lengths: list[int], buckets: Tensor, map_parts: MapParts) -> list[Tensor]:
        """Map blocks of `(rows, hidden)` to blocks of the same shapes; see `PackedAttention.__call__`."""
        context = torch.split(self.attention(blocks, lengths, buckets, map_parts), [len(rows) for rows in blocks])

        def finish(block: tuple[Tensor, Tensor]) -> Tensor:
            return self.after_attention(*block)

        return map_parts(finish, list(zip(context, blocks, strict=True)))


# ------------------------------------------------------------------------------------------------------------ heads
@dataclass(frozen=True)
class _Encoded:
    """What the heads read of a pack."""

    last: Tensor  # (total T, hidden)
    num_frames: list[int]  # T of each clip
    states: list[Tensor]  # (total S, hidden): the transformer's input and each layer's output, if a head needs them
    lengths: list[int]  # S of each clip


def _pack_head(model: SEWDForCTC | SEWDForSequenceClassification) -> CTCHead | ClassifierHead:
    linear = OneDNNLinear.from_modules  # heads are little work: float32 for every dtype
    return CTCHead(linear(model.lm_head)) if isinstance(model, SEWDForCTC) else ClassifierHead.from_model(model, linear)


def _logits(head: CTCHead | ClassifierHead, encoded: _Encoded) -> tuple[Tensor, ...]:
    """Return the logits of each clip."""
    if isinstance(head, CTCHead):
        return torch.split(head(encoded.last), encoded.num_frames)
    if head.layer_weights is None:
        clips = torch.split(encoded.last, encoded.num_frames)
    else:
        clips = torch.split(head.mix_layers(encoded.states), encoded.lengths)  # of (total S, hidden)
    means = torch.stack([clip.mean(0) for clip in clips])  # (clips, hidden)
    return head(means).unbind(0)
