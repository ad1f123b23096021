"""From decoded samples to greedy paths or posteriors, with nothing between that the processor would do for each sample.

The device gets samples as they were decoded, int16 or float32. It computes the input of the model, the model, and the
best tokens of each frame. The processor collapses, or keeps, the tokens of a batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sewd_model.ctc import GreedyPath, greedy_paths
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_batches import DeviceRunner
from sewd_model.packed.gpu_layout import Batch, lay_out_samples
from sewd_model.packed.layers import CTCHead
from sewd_model.posteriors import MOST_TOKENS, Posteriors, keep_best, split
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
            best_tokens(head_logits, self._tokens(head)) if isinstance(head, CTCHead) else head_logits
            for head, head_logits in zip(self.model.heads, self.model.by_head(batch, logits), strict=True)
        ]
        return torch.cat([part.flatten() for part in numbers])

    def _tokens(self, head: CTCHead) -> int:
        """How many tokens of a frame come to the processor."""
        return min(MOST_TOKENS, head.num_outputs) if self.decoding.posteriors else 1

    def results(self, batch: Batch, numbers: Tensor) -> list[Recognized]:
        """See `DeviceRunner.results`."""
        values, frames = numbers.numpy(), np.array(batch.num_frames_list)
        clips, total = len(frames), int(frames.sum())
        is_bad = np.zeros(clips, bool)
        columns: list[Sequence[Any]] = []
        for head in self.model.heads:
            if isinstance(head, CTCHead):
                count = self._tokens(head)
                of_head, values = np.split(values, [2 * total * count])
                tokens, log_probabilities = of_head.reshape(2, total, count)
                is_bad |= np.logical_or.reduceat(~np.isfinite(log_probabilities[:, 0]), frames.cumsum() - frames)
                columns.append(self._of_ctc_head(tokens.astype(np.int64), log_probabilities, frames))
            else:
                logits, values = np.split(values, [clips * head.num_outputs])
                logits = logits.reshape(clips, -1).copy()
                is_bad |= ~np.isfinite(logits).all(axis=1)
                columns.append(torch.from_numpy(logits).unbind(0))
        results = zip(is_bad, zip(*columns, strict=True), strict=True)
        return [Failure.BAD_OUTPUT if bad else result for bad, result in results]

    def _of_ctc_head(
        self, tokens: NDArray[np.int64], log_probabilities: NDArray[np.float32], frames: NDArray[np.int64]
    ) -> Sequence[GreedyPath | Posteriors]:
        """Of each clip its path or its posteriors, from the best tokens of all frames, `(frames, tokens)`."""
        blank, drop = self.decoding.blank, self.decoding.drop
        if self.decoding.posteriors:
            return split(keep_best(tokens, log_probabilities, blank), frames)
        return greedy_paths(tokens[:, 0], log_probabilities[:, 0], frames, blank, drop)

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


def best_tokens(logits: Tensor, count: int) -> Tensor:
    """The best tokens of each frame, the lowest id of equal best ones, and their log-softmax: `(2, frames, count)`.

    In float32, which holds each id: vocabularies have far fewer than 2**24. The log-softmax of the best token is NaN
    where a logit is not finite.
    """
    top, best = logits.max(-1, keepdim=True)
    total = (logits - top).exp().sum(-1, keepdim=True).log()
    total = total.masked_fill(~logits.isfinite().all(-1, keepdim=True), torch.nan)
    if count == 1:
        return torch.stack([best.float(), -total])
    # `topk` gives any of equal tokens first: the best one is made better than all.
    tokens = logits.scatter(-1, best, torch.inf).topk(count, -1).indices
    return torch.stack([tokens.float(), logits.gather(-1, tokens) - top - total])
