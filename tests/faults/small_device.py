"""A recogniser that packs its batches on the CPU as on a GPU, one of little memory."""

from __future__ import annotations

import torch

from pipeline import recognize
from pipeline.recognize import Recognizer
from sewd_model import packed_batches, packed_device

SAMPLES = 40_000  # that there is room for


class SmallDevice(Recognizer):
    """Of few samples at a time it gives what the model gives."""

    def _load(self):
        recognize._packed = lambda heads, dtype, *_: recognize._on_device(heads, dtype, torch.device("cpu"))
        packed_batches.DeviceEngine.lay_out = _lay_out
        super()._load()


class Disagreeing(SmallDevice):
    """One whose packed batches come out wrong."""

    def _load(self):
        packed_device.PackedDeviceModel.split = _negated
        super()._load()


_split = packed_device.PackedDeviceModel.split


def _negated(model, batch, logits):
    return _split(model, batch, -logits)


def _lay_out(engine, waveforms):
    if sum(map(len, waveforms)) > SAMPLES:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    return packed_device.lay_out(waveforms, engine.model.config, engine.model.device)
