"""Inference on processors over many clips at once, each with exactly the result it has alone.

`SEWDModel` takes a padded batch. Here clips of any lengths are laid end to end instead, time before channels,
`(total frames, channels)`: nothing is computed for padding, and every linear layer is one matrix product over all
clips. Only what looks across frames goes clip by clip: the feature extractor, the positional convolution and
attention. All that depends on weights alone is computed when the model is packed: weight norm, scales, and the
projections of the relative position table.

**Threads.** Clips are independent, so several packs of them can be worked off at a time, each in a thread of its own
that waits for nobody; at the end, threads without a pack take parts of the others' (see `sewd_model.packed.crew`).
torch's own threads share each single operation instead and meet after it, thousands of times a second. Those that wait
keep their processor busy, so on a machine with other work they stand in the way of the one they wait for: a tenth of
the speed, or less, measured with 2 threads on 2 busy processors. OMP_WAIT_POLICY=PASSIVE in the environment, before
torch is imported, lets them sleep.

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

from sewd_model.checkpoint import backbone_digest
from sewd_model.config import InputTooShortError
from sewd_model.model import (
    Layer,
    ResidualOutput,
    SEWDForCTC,
    SEWDForSequenceClassification,
    SEWDModel,
    position_buckets,
)
from sewd_model.packed import int8
from sewd_model.packed.cpu_attention import PackedAttention
from sewd_model.packed.cpu_convolutions import Norm, PackedFeatures, PackedSqueeze
from sewd_model.packed.crew import Crew, Share
from sewd_model.packed.products import Linear, fast_activation

# Frames that go through the layers at a time: 20 s at the published strides. The matrix products gain nothing from
# more, and tensors of many megabytes are given back to the system and taken from it anew, page by page, all the time.
PACK_FRAMES = 1000
# Squeezed frames that go through what a layer does frame by frame at a time, about equal blocks: what idle threads can
# take. The products gain nothing from more.
BLOCK_ROWS = 384

Packable = SEWDModel | SEWDForCTC | SEWDForSequenceClassification


@dataclass(frozen=True)
class PackedOutput:
    """What one clip gives.

    Attributes:
        last_hidden_state: `(T, hidden)`, zeros in the frames beyond the last whole squeezed one.
        logits: of each head, in the order that they were given: `(T, vocab_size)` or `(num_labels,)`.
    """

    last_hidden_state: Tensor
    logits: tuple[Tensor, ...]


class PackedModel:
    """A backbone and its heads, for clips in packed batches, on the CPU.

    Its weights are prepared when it is made, and some are the models' own: after more training, pack them anew.

    Attributes:
        dtype: in what it computes the products with weights: `float32`, or `int8` and what the convolutions are in.
        fallback: why that is not the dtype that was asked for; None where it is.
        pack_frames: of clips that go through together, at most, where no single one is longer; 0 where each is alone.
    """

    def __init__(self, models: Sequence[Packable], *, dtype: str = "float32", threads: int = 1) -> None:
        """Pack the models.

        Args:
            models: any number of heads, or a bare backbone, in float32 on the CPU.
            dtype: in what the products with weights are computed: `float32`, or `int8` (see `packed_int8`), where a
                clip's result is the same to the bit in any batch.
            threads: packs that are worked off at a time. With 2 or more, torch's own threads are set to 1, in the
                whole process.

        Raises:
            ValueError: There is none, their backbones differ, they are not in float32 on the CPU, or the dtype is none
                that they can be packed in.
        """
        if dtype not in ("float32", "int8"):
            msg = f"models are packed in float32 or int8, not in {dtype}"
            raise ValueError(msg)
        if len({backbone_digest(model) for model in models}) != 1:
            msg = "the models to pack must share one backbone"
            raise ValueError(msg)
        if any(p.dtype != torch.float32 or p.device.type != "cpu" for model in models for p in model.parameters()):
            msg = "the models to pack must be in float32 on the CPU"
            raise ValueError(msg)
        convolution, linear = int8.kinds() if dtype == "int8" else (Linear, Linear)
        self.dtype = " and ".join(dict.fromkeys((linear.dtype, convolution.dtype)))
        self.fallback = int8.MISSING if dtype == "int8" and linear is Linear else None
        self.pack_frames = PACK_FRAMES if linear.own_rows else 0
        if threads > 1:
            torch.set_num_threads(1)
        self.crew = Crew(threads)
        with torch.inference_mode():
            self._prepare(models, convolution, linear)

    def _prepare(self, models: Sequence[Packable], convolution: type[Linear], linear: type[Linear]) -> None:
        backbone = models[0] if isinstance(models[0], SEWDModel) else models[0].sew_d
        encoder = backbone.encoder
        transformer = encoder.encoder
        table = transformer.position_table() if backbone.config.relative_attention else None
        self.config = backbone.config
        self.features = PackedFeatures(backbone.feature_extractor, convolution)
        self.norm = Norm.of(backbone.layer_norm)
        self.projection = linear.of(backbone.feature_projection) if hasattr(backbone, "feature_projection") else None
        activation = self.config.feat_extract_activation
        self.squeeze = PackedSqueeze.of(encoder.pos_conv_embed, fast_activation(activation))
        self.layers = [
            _Layer.of(cast(Layer, layer), table, self.config.hidden_act, linear) for layer in transformer.layer
        ]
        self.upsample = linear.of(encoder.upsample.projection, activation=activation)
        heads = [model for model in models if not isinstance(model, SEWDModel)]
        self.heads = [_head(model) for model in heads]
        self.keeps_states = any(model.needs_hidden_states for model in heads)

    def __call__(self, waveforms: Sequence[Tensor]) -> list[PackedOutput]:
        """Encode clips.

        Args:
            waveforms: `(N,)` float32 each, at the model's rate, prepared by `FeatureExtractor`. Not modified.

        Returns:
            One output a clip, in order: what the models give for it in a batch of one.

        Raises:
            InputTooShortError: A clip has fewer than `config.min_samples` samples.
            ValueError: A clip is not one-dimensional float32 on the CPU.
        """
        return list(self.stream(waveforms))

    def stream(self, waveforms: Sequence[Tensor]) -> Iterator[PackedOutput]:
        """Yield what `__call__` returns, pack by pack as they are done."""
        config = self.config
        for waveform in waveforms:
            if waveform.dim() != 1 or waveform.dtype != torch.float32 or waveform.device.type != "cpu":
                found = f"{waveform.dtype} {tuple(waveform.shape)} on {waveform.device}"
                msg = f"a waveform must be float32 (N,) on the CPU, not {found}"
                raise ValueError(msg)
            if len(waveform) < config.min_samples:
                raise InputTooShortError(len(waveform), config.min_samples)
        for outputs in self.crew.map(self._encode, self._packs(waveforms)):
            yield from outputs

    def _packs(self, waveforms: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Runs of neighbours of up to `pack_frames` frames, or one longer clip; or clips one by one."""
        pack: list[Tensor] = []
        room = 0
        for waveform in waveforms:
            frames = self.config.num_frames(len(waveform))
            if pack and frames > room:
                yield pack
                pack = []
            room = (room if pack else self.pack_frames) - frames
            pack.append(waveform)
        if pack:
            yield pack

    def _encode(self, waveforms: list[Tensor]) -> list[PackedOutput]:
        config = self.config
        num_frames = [config.num_frames(len(waveform)) for waveform in waveforms]
        lengths = [frames // config.squeeze_factor for frames in num_frames]
        share = self.crew.share
        hidden = torch.cat([tile for waveform in waveforms for tile in self.features(waveform, share)])
        hidden = self.norm(hidden)  # (total T, conv_dim[-1])
        if self.projection is not None:
            hidden = self.projection(hidden)
        hidden = torch.cat([self.squeeze(clip) for clip in torch.split(hidden, num_frames)])  # (total S, hidden)

        buckets = position_buckets(max(lengths), config)
        states = [hidden] if self.keeps_states else []
        size = math.ceil(len(hidden) / math.ceil(len(hidden) / BLOCK_ROWS))
        blocks = list(torch.split(hidden, size))
        for layer in self.layers:
            blocks = layer(blocks, lengths, buckets, share)
            if self.keeps_states:
                states.append(torch.cat(blocks))
        hidden = torch.cat(blocks)
        spread = self.upsample(hidden).view(-1, config.hidden_size)  # (total S * squeeze, hidden)
        last = _with_zero_frames(spread, num_frames, config.squeeze_factor)  # (total T, hidden)

        encoded = _Encoded(last, num_frames, states, lengths)
        logits = [head(encoded) for head in self.heads]
        clips = zip(torch.split(last, num_frames), *logits, strict=True)
        return [PackedOutput(frames, tuple(of_heads)) for frames, *of_heads in clips]


def _with_zero_frames(spread: Tensor, num_frames: list[int], squeeze: int) -> Tensor:
    """Bring each clip of `spread` to its number of frames, zeros at its end, as the reference does."""
    clips = torch.split(spread, [frames - frames % squeeze for frames in num_frames])
    return torch.cat(
        [functional.pad(clip, (0, 0, 0, frames % squeeze)) for clip, frames in zip(clips, num_frames, strict=True)]
    )


# --------------------------------------------------------------------------------------------------- the parts
@dataclass(frozen=True)
class _Residual:
    """The end of each half of a layer."""

    dense: Linear
    norm: Norm

    @classmethod
    def of(cls, module: ResidualOutput, linear: type[Linear]) -> Self:
        return cls(linear.of(module.dense), Norm.of(module.LayerNorm))

    def __call__(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.dense(hidden).add_(residual))


@dataclass(frozen=True)
class _Layer:
    """A transformer layer."""

    attention: PackedAttention
    attention_output: _Residual
    intermediate: Linear
    output: _Residual

    @classmethod
    def of(cls, layer: Layer, table: Tensor | None, activation: str, linear: type[Linear]) -> Self:
        return cls(
            attention=PackedAttention.of(layer.attention.self, table, linear),
            attention_output=_Residual.of(layer.attention.output, linear),
            intermediate=linear.of(layer.intermediate.dense, activation=activation),
            output=_Residual.of(layer.output, linear),
        )

    def __call__(self, blocks: list[Tensor], lengths: list[int], buckets: Tensor, share: Share) -> list[Tensor]:
        """Map blocks of `(rows, hidden)` to the same; see `PackedAttention.__call__`."""
        context = torch.split(self.attention(blocks, lengths, buckets, share), [len(rows) for rows in blocks])

        def finish(block: tuple[Tensor, Tensor]) -> Tensor:
            attended = self.attention_output(*block)
            return self.output(self.intermediate(attended), attended)

        return share(finish, list(zip(context, blocks, strict=True)))


# --------------------------------------------------------------------------------------------------- the heads
@dataclass(frozen=True)
class _Encoded:
    """What the heads see of a batch."""

    last: Tensor  # (total T, hidden)
    num_frames: list[int]  # T of each clip
    states: list[Tensor]  # (total S, hidden): the transformer's input and each layer's output, if a head needs them
    lengths: list[int]  # S of each clip


@dataclass(frozen=True)
class _CTC:
    lm_head: Linear

    def __call__(self, encoded: _Encoded) -> tuple[Tensor, ...]:
        return torch.split(self.lm_head(encoded.last), encoded.num_frames)


@dataclass(frozen=True)
class _Classifier:
    """Classification; the mean over time comes before the projection, with which it commutes."""

    layer_weights: Tensor | None  # (layers + 1,), after softmax; None: the last hidden state alone
    projector: Linear
    classifier: Linear

    def __call__(self, encoded: _Encoded) -> tuple[Tensor, ...]:
        if self.layer_weights is None:
            clips = torch.split(encoded.last, encoded.num_frames)
        else:
            mixed = torch.tensordot(self.layer_weights, torch.stack(encoded.states), 1)  # (total S, hidden)
            clips = torch.split(mixed, encoded.lengths)
        means = torch.stack([clip.mean(0) for clip in clips])  # (clips, hidden)
        return self.classifier(self.projector(means)).unbind(0)


def _head(model: SEWDForCTC | SEWDForSequenceClassification) -> _CTC | _Classifier:
    if isinstance(model, SEWDForCTC):
        return _CTC(Linear.of(model.lm_head))
    weights = model.layer_weights.softmax(-1) if model.config.use_weighted_layer_sum else None
    return _Classifier(weights, Linear.of(model.projector), Linear.of(model.classifier))
