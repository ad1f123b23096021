"""Inference on GPUs over many clips at once; each clip gets the result that it has alone.

`PackedModel` is for processors: it computes clip by clip wherever frames meet. Here a few large operations compute
everything for all clips at once, on any one device of torch (see `sewd_model.packed.gpu_layout`).

Moments are computed in float64, the first convolution and the means for the classifier in float32, and the rest in the
requested dtype; torch's LayerNorm, softmax and sums use float32 internally.

A value that is not finite (an overflow in float16) can spread to neighbouring clips, where it meets weights of zero.
Callers that need each clip's own result then run the clips alone, as `sewd_model.packed.gpu_batches` does.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from sewd_model.model import Layer, SEWDForCTC
from sewd_model.packed.gpu_convolutions import DeviceFeatures, DeviceSqueeze
from sewd_model.packed.gpu_layers import DeviceLayer, run_layers
from sewd_model.packed.gpu_layout import Batch, lay_out, membership, segment_sums
from sewd_model.packed.inputs import check_models
from sewd_model.packed.layers import ClassifierHead, CTCHead, Head, Linear, Norm


class PackedDeviceModel:
    """A backbone and its heads, for packed batches on one device.

    The weights are prepared at construction: pack the models again after more training.

    Attributes:
        config: of the backbone.
        device: where it computes.
        heads: in the order in which they were given.
    """

    def __init__(self, models: Sequence[Head], *, device: torch.device, dtype: str = "float32") -> None:
        """Pack the models.

        Args:
            models: heads of one backbone, in float32 on the CPU.
            device: where they are to run.
            dtype: `float32`, `bfloat16` or `float16`.

        Raises:
            ValueError: there is no model, their backbones differ, or they are not in float32 on the CPU.
        """
        check_models(models)
        self.device = device
        with torch.inference_mode():
            self._prepare(models, getattr(torch, dtype))

    def _prepare(self, models: Sequence[Head], dtype: torch.dtype) -> None:
        backbone, device = models[0].sew_d, self.device
        linear = partial(Linear.from_modules, device=device, dtype=dtype)
        transformer = backbone.encoder.encoder
        table = transformer.position_table() if backbone.config.relative_attention else None
        self.config = config = backbone.config
        self._features = DeviceFeatures(backbone.feature_extractor, device, dtype)
        self._norm = Norm.from_module(backbone.layer_norm, device, dtype)
        self._projection = linear(backbone.feature_projection) if hasattr(backbone, "feature_projection") else None
        activation = config.feat_extract_activation
        self._squeeze = DeviceSqueeze.from_module(backbone.encoder.pos_conv_embed, activation, device, dtype)
        self._layers = [
            DeviceLayer.from_module(cast(Layer, layer), table, config.hidden_act, device, dtype)
            for layer in transformer.layer
        ]
        self._upsample = linear(backbone.encoder.upsample.projection, activation=activation)
        self.heads = [_pack_head(model, device, dtype) for model in models]
        self._classifies = any(isinstance(head, ClassifierHead) for head in self.heads)
        self._keeps_states = any(model.needs_hidden_states for model in models)

    def __call__(self, waveforms: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Encode clips, in one batch.

        Args:
            waveforms: `(N,)` float32 each, at the model's rate, prepared by `FeatureExtractor`. Not modified.

        Returns:
            For each clip, in order, the logits of each head, in the order in which the heads were given, float32 on the
            CPU: `(T, vocab_size)` or `(num_labels,)`.

        Raises:
            InputTooShortError, ValueError: as `lay_out`.
        """
        batch = lay_out(waveforms, self.config, self.device)
        return self.split(batch, self.compute(batch).cpu())

    @torch.inference_mode()
    def compute(self, batch: Batch) -> Tensor:
        """Start computing a batch.

        Returns:
            The logits of all heads end to end, `(n,)` float32 on the device, which may still be computing.
        """
        config = self.config
        hidden = self._norm(self._features(batch))  # (F, conv_dim[-1])
        if self._projection is not None:
            hidden = self._projection(hidden)
        hidden = self._squeeze(hidden, batch)  # (S, hidden)
        # The frames of the padding are of no clip, but of one group more.
        clips = len(batch.lengths)
        members = membership(batch.clips.clip, clips + 1, torch.float32) if self._classifies else None
        hidden, sums = run_layers(self._layers, hidden, batch.clips, members if self._keeps_states else None)
        states = [group_sums[:clips] / batch.lengths[:, None] for group_sums in sums]
        upsampled = self._upsample(hidden).view(-1, config.hidden_size)  # (S * squeeze, hidden)
        last = hidden.new_empty(0)
        if members is not None:
            by_squeezed = upsampled.view(len(hidden), config.squeeze_factor, -1).sum(1, dtype=torch.float32)
            last = segment_sums(by_squeezed, members)[:clips] / batch.num_frames[:, None]  # (clips, hidden)
        logits = [
            _ctc_logits(head, upsampled, batch) if isinstance(head, CTCHead) else _class_logits(head, last, states)
            for head in self.heads
        ]
        return torch.cat([head_logits.flatten() for head_logits in logits])

    def split(self, batch: Batch, logits: Tensor) -> list[tuple[Tensor, ...]]:
        """Return what `__call__` returns, from the result of `compute`, on the CPU."""
        by_head = [
            torch.split(head_logits, batch.num_frames_list) if isinstance(head, CTCHead) else head_logits.unbind(0)
            for head, head_logits in zip(self.heads, self.by_head(batch, logits), strict=True)
        ]
        return list(zip(*by_head, strict=True))

    def by_head(self, batch: Batch, logits: Tensor) -> list[Tensor]:
        """Return the logits of each head, `(frames, vocab_size)` or `(clips, labels)`, from the result of `compute`."""
        rows = [
            sum(batch.num_frames_list) if isinstance(head, CTCHead) else len(batch.num_frames_list)
            for head in self.heads
        ]
        sizes = [number * head.num_outputs for number, head in zip(rows, self.heads, strict=True)]
        return [part.view(number, -1) for part, number in zip(torch.split(logits, sizes), rows, strict=True)]


# ------------------------------------------------------------------------------------------------------------ heads
def _pack_head(model: Head, device: torch.device, dtype: torch.dtype) -> CTCHead | ClassifierHead:
    if isinstance(model, SEWDForCTC):
        return CTCHead(Linear.from_modules(model.lm_head, device=device, dtype=dtype))
    linear = partial(Linear.from_modules, device=device, dtype=torch.float32)
    return ClassifierHead.from_model(model, linear, device)


def _ctc_logits(head: CTCHead, upsampled: Tensor, batch: Batch) -> Tensor:
    """Return the logits of all clips' frames, `(sum(num_frames), vocab_size)` float32."""
    logits_of_zeros = cast(Tensor, head.lm_head.bias)[None]
    return torch.cat([head(upsampled), logits_of_zeros]).index_select(0, batch.spread).float()


def _class_logits(head: ClassifierHead, last: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Return logits `(clips, num_labels)` from means over each clip, `(clips, hidden)`.

    Args:
        head: the classifier.
        last: means of the last hidden state.
        states: means of each layer's squeezed frames.
    """
    return head(last if head.layer_weights is None else head.mix_layers(states))
