"""From decoded samples to greedy paths, with nothing between that the processor would do for each sample or frame.

The device gets samples as they were decoded, int16 or float32. It computes the input of the model, the model, and the
best token of each frame. The processor collapses the tokens of a batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sewd_model.ctc import greedy_paths
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_batches import DeviceRunner
from sewd_model.packed.gpu_layout import Batch, lay_out_samples
from sewd_model.packed.layers import CTCHead
from sewd_model.recognition import FULL_SCALE, Decoding, Failure, Recognized, Samples


class RecognitionRunner(DeviceRunner[Samples, Recognized]):
    """Results of decoded samples."""

    def __init__(self, model: PackedDeviceModel, decoding: Decoding) -> None:
        super().__init__(model)
        self.decoding = decoding

    def lay_out(self, clips: Sequence[Samples]) -> Batch:
        """See `DeviceRunner.lay_out`."""
        return lay_out_samples(clips, self.model.config, self.model.device)

    @torch.inference_mode()
    def compute(self, batch: Batch) -> Tensor:
        """See `DeviceRunner.compute`: for a CTC head `best_tokens`, for a classifier its logits, end to end."""
        samples = model_input(batch, do_normalize=self.decoding.features.do_normalize)
        logits = self.model.compute(replace(batch, samples=samples))
        numbers = [
            best_tokens(head_logits) if isinstance(head, CTCHead) else head_logits
            for head, head_logits in zip(self.model.heads, self.model.by_head(batch, logits), strict=True)
        ]
        return torch.cat([part.flatten() for part in numbers])

    def results(self, batch: Batch, numbers: Tensor) -> list[Recognized]:
        """See `DeviceRunner.results`."""
        values, frames = numbers.numpy(), np.array(batch.num_frames_list)
        clips, total = len(frames), int(frames.sum())
        is_bad = np.zeros(clips, bool)
        columns: list[Sequence[Any]] = []
        for head in self.model.heads:
            if isinstance(head, CTCHead):
                (best, log_probabilities), values = values[: 2 * total].reshape(2, total), values[2 * total :]
                is_bad |= np.logical_or.reduceat(~np.isfinite(log_probabilities), frames.cumsum() - frames)
                blank, drop = self.decoding.blank, self.decoding.drop
                columns.append(greedy_paths(best.astype(np.int64), log_probabilities, frames, blank, drop))
            else:
                logits, values = np.split(values, [clips * head.num_outputs])
                logits = logits.reshape(clips, -1).copy()
                is_bad |= ~np.isfinite(logits).all(axis=1)
                columns.append(torch.from_numpy(logits).unbind(0))
        results = zip(is_bad, zip(*columns, strict=True), strict=True)
        return [Failure.BAD_OUTPUT if bad else result for bad, result in results]

    def is_finite(self, results: Sequence[Recognized]) -> bool:
        """See `BatchRunner.is_finite`."""
        return all(result is not Failure.BAD_OUTPUT for result in results)


@torch.inference_mode()
def model_input(batch: Batch, *, do_normalize: bool) -> Tensor:
    """What `FeatureExtractor.prepare` makes of each clip: `(slots, hop)` float32, zeros after the samples of each clip.

    Moments are computed in float64: those of int16 are exact, and those of float32 do not depend on other clips, up to
    the rounding of float64. Sums that overflow in float32 are infinite, as on the processor.
    """
    samples = batch.samples.double()
    if batch.samples.dtype == torch.int16:
        samples = samples / FULL_SCALE
    if not do_normalize:
        return samples.float()
    sums = samples.new_zeros(len(batch.first), 2)
    sums.index_add_(0, batch.clip, torch.stack([samples.sum(1), samples.square().sum(1)], dim=1))
    mean, mean_square = (sums / batch.num_samples[:, None]).unbind(1)  # (clips,)
    variance = (mean_square - mean.square()).clamp_min(0.0)
    mean = mean.masked_fill(~sums[:, 0].float().isfinite(), torch.nan)
    variance = variance.masked_fill((variance * batch.num_samples).float().isinf(), torch.inf)
    deviation = variance.add(1e-7).sqrt()
    normalised = (samples - mean[batch.clip][:, None]) / deviation[batch.clip][:, None]
    slots, hop = samples.shape
    place = torch.arange(slots, device=samples.device) - batch.first[batch.clip]  # of the slot, in its clip
    place = place[:, None] * hop + torch.arange(hop, device=samples.device)
    return torch.where(place < batch.num_samples[batch.clip][:, None], normalised.float(), 0.0)


def best_tokens(logits: Tensor) -> Tensor:
    """The best token of each frame, the lowest id of equal ones, and its log-softmax: `(2, frames)` float32.

    The log-softmax is NaN where a logit is not finite. (float32 holds each id: vocabularies have far fewer than 2**24.)
    """
    top, best = logits.max(-1)
    log_probabilities = -(logits - top[:, None]).exp().sum(-1).log()
    log_probabilities = log_probabilities.masked_fill(~logits.isfinite().all(-1), torch.nan)
    return torch.stack([best.float(), log_probabilities])
