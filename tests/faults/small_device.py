"""A recogniser that uses the GPU engine on the CPU, with little memory."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from pipeline.stages import heads as recognizer_heads
from pipeline.stages.recognize import ChunkRecognizer
from sewd_model import engines
from sewd_model.packed import gpu, gpu_recognition
from sewd_model.recognition import Decoding

SAMPLES = 40_000  # that fit in its memory


class SmallDevice(ChunkRecognizer):
    """Works like the model, for few samples at a time."""

    def _load(self):
        recognizer_heads.load_engine = _load_engine
        gpu_recognition.RecognitionRunner.lay_out = _lay_out
        super()._load()


class Disagreeing(SmallDevice):
    """A device whose packed batches give wrong results."""

    def _load(self):
        gpu.PackedDeviceModel.split = _negated
        super()._load()


def fails_once(failed: Path) -> type[SmallDevice]:
    """A device that fails at the first batch of a run: then there is a file `failed`."""

    class FailsOnce(SmallDevice):
        def _load(self):
            gpu_recognition.RecognitionRunner.compute = functools.partialmethod(_compute_unless, failed=failed)
            super()._load()

    return FailsOnce


def _load_engine(heads, device, dtype, _threads, features, drop, *, posteriors):
    return engines._OnDevice(heads, torch.device(device), "float32", Decoding(features, 0, tuple(drop), posteriors))


_compute = gpu_recognition.RecognitionRunner.compute


def _compute_unless(runner, batch, failed):
    if not failed.exists():
        failed.touch()
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    return _compute(runner, batch)


_split = gpu.PackedDeviceModel.split


def _negated(model, batch, logits):
    return _split(model, batch, -logits)


_lay_out_samples = gpu_recognition.RecognitionRunner.lay_out


def _lay_out(runner, clips):
    if sum(map(len, clips)) > SAMPLES:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    return _lay_out_samples(runner, clips)
