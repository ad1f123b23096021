"""What both packed engines check about the models and the clips that they are given."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sewd_model.checkpoint import backbone_digest
from sewd_model.config import InputTooShortError, SEWDConfig


def check_models(models: Sequence[nn.Module]) -> None:
    """Check that models can be packed together.

    Raises:
        ValueError: there is no model, their backbones differ, or a model is not in float32 on the CPU.
    """
    if len({backbone_digest(model) for model in models}) != 1:
        msg = "the models to pack must share one backbone"
        raise ValueError(msg)
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for model in models for p in model.parameters()):
        msg = "the models to pack must be in float32 on the CPU"
        raise ValueError(msg)


def check_waveforms(waveforms: Sequence[Tensor], config: SEWDConfig) -> None:
    """Check that each clip is a waveform that the model can read.

    Raises:
        InputTooShortError: a clip has fewer than `config.min_samples` samples.
        ValueError: a clip is not `(N,)` float32 on the CPU.
    """
    for waveform in waveforms:
        if waveform.dim() != 1 or waveform.dtype != torch.float32 or waveform.device.type != "cpu":
            actual = f"{waveform.dtype} {tuple(waveform.shape)} on {waveform.device}"
            msg = f"a waveform must be float32 (N,) on the CPU, not {actual}"
            raise ValueError(msg)
        if len(waveform) < config.min_samples:
            raise InputTooShortError(len(waveform), config.min_samples)
