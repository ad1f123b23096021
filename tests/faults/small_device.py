"""A recogniser that packs its batches on the CPU as on a GPU, one of little memory."""

from __future__ import annotations

import torch

from pipeline.stages import recognize
from pipeline.stages.recognize import Recognizer
from sewd_model.packed import gpu, gpu_batches

SAMPLES = 40_000  # that there is room for


class SmallDevice(Recognizer):
    """Of few samples at a time it gives what the model gives."""

    def _load(self):
        recognize._packed = lambda heads, dtype, *_: recognize._on_device(heads, dtype, torch.device("cpu"))
        gpu_batches.DeviceEngine.lay_out = _lay_out
        super()._load()


class Disagreeing(SmallDevice):
    """One whose packed batches come out wrong."""

    def _load(self):
        gpu.PackedDeviceModel.split = _negated
        super()._load()


_split = gpu.PackedDeviceModel.split


def _negated(model, batch, logits):
    return _split(model, batch, -logits)


def _lay_out(engine, waveforms):
    if sum(map(len, waveforms)) > SAMPLES:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    return gpu.lay_out(waveforms, engine.model.config, engine.model.device)
