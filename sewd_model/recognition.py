"""What engines give of a clip: of a CTC head its greedy path or its posteriors, of classifiers their logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sewd_model.ctc import GreedyPath, greedy_path
from sewd_model.features import FeatureExtractor
from sewd_model.posteriors import Posteriors, keep

Logits = tuple[Tensor, ...]  # of each head, for one clip: float32 on the CPU, (frames, vocabulary) or (labels,)
Samples = NDArray[Any]  # (num_samples,) int16, or float32 with full scale at 1

FULL_SCALE = 32768  # of int16


class Failure(Enum):
    """Why a clip has no result.

    Attributes:
        TOO_LARGE: it does not fit in the memory of the device, even alone.
        BAD_OUTPUT: a number is not finite. In company, it may come from a clip that was computed in the same batch;
            alone, the samples are too large to be normalised, or the values of the model overflow.
    """

    TOO_LARGE = auto()
    BAD_OUTPUT = auto()


Recognized = tuple[GreedyPath | Posteriors | Tensor, ...] | Failure
"""Of each head: the greedy path or the posteriors of a CTC head, or the logits `(labels,)` of a classifier, float32 on
the CPU."""


@dataclass(frozen=True)
class Decoding:
    """What comes before and after the model.

    Attributes:
        features: how waveforms are prepared.
        blank: id of the CTC blank; 0 without a CTC head.
        drop: ids that `greedy_path` drops.
        posteriors: the result of a CTC head is its posteriors, from which any decoder makes tokens, the greedy one too.
    """

    features: FeatureExtractor
    blank: int = 0
    drop: tuple[int, ...] = ()
    posteriors: bool = False


def check_samples(clip: Samples) -> None:
    """Check the type and the shape of a clip: the scale of others is not known.

    Raises:
        ValueError: it is not `(num_samples,)` int16 or float32.
    """
    if clip.ndim != 1 or clip.dtype not in (np.int16, np.float32):
        msg = f"a clip must be int16 or float32 (num_samples,), not {clip.dtype} {clip.shape}"
        raise ValueError(msg)


def prepared(clip: Samples, features: FeatureExtractor) -> Tensor | None:
    """The input of the model, `(num_samples,)` float32; None if it is not finite.

    Raises:
        ValueError: the clip is not `(num_samples,)` int16 or float32, or has no sample.
    """
    check_samples(clip)
    with np.errstate(over="ignore", invalid="ignore"):
        values = features.prepare(_as_float32(clip))
    return torch.from_numpy(values) if np.isfinite(values).all() else None


def _as_float32(clip: Samples) -> Samples:
    if clip.dtype != np.int16:
        return clip
    floats = clip.astype(np.float32)
    floats *= np.float32(1 / FULL_SCALE)  # a power of two: exact
    return floats


def recognize(
    encode: Callable[[list[Tensor]], Iterator[Logits | None]], clips: Sequence[Samples], decoding: Decoding
) -> Iterator[Recognized]:
    """Yield the result of each clip, in order, by an engine that computes logits of prepared waveforms.

    Args:
        encode: yields the logits of each waveform; None for one that does not fit in memory.
        clips: the clips.
        decoding: what comes before and after the model.
    """
    waveforms = [prepared(clip, decoding.features) for clip in clips]
    outputs = encode([waveform for waveform in waveforms if waveform is not None])
    for waveform in waveforms:
        yield Failure.BAD_OUTPUT if waveform is None else _recognized(next(outputs), decoding)


def _recognized(logits: Logits | None, decoding: Decoding) -> Recognized:
    if logits is None:
        return Failure.TOO_LARGE
    if not all(np.isfinite(head.numpy()).all() for head in logits):
        return Failure.BAD_OUTPUT
    return tuple(_of_ctc_head(head, decoding) if head.dim() == 2 else head for head in logits)


def _of_ctc_head(logits: Tensor, decoding: Decoding) -> GreedyPath | Posteriors:
    if decoding.posteriors:
        return keep(logits.numpy(), decoding.blank)
    return greedy_path(logits, decoding.blank, decoding.drop)
