"""A recogniser that uses the GPU engine on the CPU, with little memory."""

from __future__ import annotations

import torch

from pipeline.stages import heads as recognizer_heads
from pipeline.stages.recognize import RecognizerActor
from sewd_model import engines
from sewd_model.packed import gpu, gpu_batches, gpu_layout

SAMPLES = 40_000  # that fit in its memory


class SmallDevice(RecognizerActor):
    """Works like the model, for few samples at a time."""

    def _load(self):
        recognizer_heads.load_engine = lambda heads, device, dtype, *_: engines._load_on_device(heads, device, dtype)
        gpu_batches.DeviceEngine.lay_out = _lay_out
        super()._load()


class Disagreeing(SmallDevice):
    """A device whose packed batches give wrong results."""

    def _load(self):
        gpu.PackedDeviceModel.split = _negated
        super()._load()


_split = gpu.PackedDeviceModel.split


def _negated(model, batch, logits):
    return _split(model, batch, -logits)


def _lay_out(engine, waveforms):
    if sum(map(len, waveforms)) > SAMPLES:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    return gpu_layout.lay_out(waveforms, engine.model.config, engine.model.device)
