"""Inference on processors over many clips at once, each with exactly the result it has alone.

`SEWDModel` takes a padded batch. Here clips of any lengths are laid end to end instead, time before channels,
`(total frames, channels)`: nothing is computed for padding, and every linear layer is one matrix product over all
clips. Only what looks across frames goes clip by clip: the feature extractor, the positional convolution and
attention. All that depends on weights alone is computed when the model is packed: weight norm, scales, and the
projections of the relative position table.

**Threads.** Clips are independent, so several packs of them can be worked off at a time, each in a thread of its own
that waits for nobody. torch's own threads share each single operation instead and meet after it, thousands of times a
second. Those that wait keep their processor busy, so on a machine with other work they stand in the way of the one they
wait for: a tenth of the speed, or less, measured with 2 threads on 2 busy processors. OMP_WAIT_POLICY=PASSIVE in the
environment, before torch is imported, lets them sleep.

    packed = PackedModel([ctc, classifier], threads=4)  # heads of one backbone
    for output in packed([waveform, ...]):
        ctc_logits, class_logits = output.logits
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from sewd_model.packed_attention import PackedAttention
from sewd_model.packed_convolutions import Norm, PackedFeatures, PackedSqueeze
from sewd_model.packed_products import Linear, fast_activation

# Frames that go through the layers at a time: 20 s at the published strides. The matrix products gain nothing from
# more, and tensors of many megabytes are given back to the system and taken from it anew, page by page, all the time.
PACK_FRAMES = 1000

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
    """

    def __init__(self, models: Sequence[Packable], *, dtype: str = "float32", threads: int = 1) -> None:
        """Pack the models.

        Args:
            models: any number of heads, or a bare backbone, in float32 on the CPU.
            dtype: in what the large products are computed; `float32` so far.
            threads: packs that are worked off at a time. With 2 or more, torch's own threads are set to 1, in the
                whole process.

        Raises:
            ValueError: There is none, their backbones differ, they are not in float32 on the CPU, or the dtype is none
                that they can be packed in.
        """
        if dtype != "float32":
            msg = f"models are packed in float32, not in {dtype}"
            raise ValueError(msg)
        if len({backbone_digest(model) for model in models}) != 1:
            msg = "the models to pack must share one backbone"
            raise ValueError(msg)
        if any(p.dtype != torch.float32 or p.device.type != "cpu" for model in models for p in model.parameters()):
            msg = "the models to pack must be in float32 on the CPU"
            raise ValueError(msg)
        self.pool = None
        if threads > 1:
            torch.set_num_threads(1)
            # Said in each thread again: how many threads a product may use is a thread's own setting.
            self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        with torch.inference_mode():
            self._prepare(models)

    def _prepare(self, models: Sequence[Packable]) -> None:
        backbone = models[0] if isinstance(models[0], SEWDModel) else models[0].sew_d
        encoder = backbone.encoder
        transformer = encoder.encoder
        table = transformer.position_table() if backbone.config.relative_attention else None
        self.config = backbone.config
        self.features = PackedFeatures(backbone.feature_extractor)
        self.norm = Norm.of(backbone.layer_norm)
        self.projection = Linear.of(backbone.feature_projection) if hasattr(backbone, "feature_projection") else None
        activation = self.config.feat_extract_activation
        self.squeeze = PackedSqueeze.of(encoder.pos_conv_embed, fast_activation(activation))
        self.layers = [_Layer.of(cast(Layer, layer), table, self.config.hidden_act) for layer in transformer.layer]
        self.upsample = Linear.of(encoder.upsample.projection, activation=activation)
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
        run = map if self.pool is None else self.pool.map
        for outputs in run(self._encode, self._packs(waveforms)):
            yield from outputs

    def _packs(self, waveforms: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Runs of neighbours of up to `PACK_FRAMES` frames, or one longer clip."""
        pack: list[Tensor] = []
        room = 0
        for waveform in waveforms:
            frames = self.config.num_frames(len(waveform))
            if pack and frames > room:
                yield pack
                pack = []
            room = (room if pack else PACK_FRAMES) - frames
            pack.append(waveform)
        if pack:
            yield pack

    @torch.inference_mode()  # a setting of the thread
    def _encode(self, waveforms: list[Tensor]) -> list[PackedOutput]:
        config = self.config
        num_frames = [config.num_frames(len(waveform)) for waveform in waveforms]
        lengths = [frames // config.squeeze_factor for frames in num_frames]
        hidden = torch.cat([tile for waveform in waveforms for tile in self.features(waveform)])
        hidden = self.norm(hidden)  # (total T, conv_dim[-1])
        if self.projection is not None:
            hidden = self.projection(hidden)
        hidden = torch.cat([self.squeeze(clip) for clip in torch.split(hidden, num_frames)])  # (total S, hidden)

        buckets = position_buckets(max(lengths), config)
        states = [hidden] if self.keeps_states else []
        for layer in self.layers:
            hidden = layer(hidden, lengths, buckets)
            if self.keeps_states:
                states.append(hidden)
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
    def of(cls, module: ResidualOutput) -> Self:
        return cls(Linear.of(module.dense), Norm.of(module.LayerNorm))

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
    def of(cls, layer: Layer, table: Tensor | None, activation: str) -> Self:
        return cls(
            attention=PackedAttention.of(layer.attention.self, table),
            attention_output=_Residual.of(layer.attention.output),
            intermediate=Linear.of(layer.intermediate.dense, activation=activation),
            output=_Residual.of(layer.output),
        )

    def __call__(self, hidden: Tensor, lengths: list[int], buckets: Tensor) -> Tensor:
        """Map `(total S, hidden)` to the same; see `PackedAttention.__call__`."""
        attended = self.attention_output(self.attention(hidden, lengths, buckets), hidden)
        return self.output(self.intermediate(attended), attended)


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
