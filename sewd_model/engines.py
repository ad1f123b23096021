"""Chooses what computes the heads of a backbone on a device: the packed engine, or a fallback.

Every engine gives each clip what the reference model gives for that clip alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from sewd_model.engine_status import EngineStatus
from sewd_model.packed.cpu import PackedModel
from sewd_model.packed.gpu_memory import out_of_memory, used_by_other_processes
from sewd_model.packed.layers import Head

if TYPE_CHECKING:
    from sewd_model.packed import gpu_batches

log = logging.getLogger(__name__)

DEVICE_DTYPES: Final = ("float32", "bfloat16", "float16")  # on devices; those of CPUs are `PackedModel`'s
Logits = tuple[Tensor, ...]  # of each head: float32 on the CPU, (frames, vocabulary) or (labels,)


class Engine(Protocol):
    """Computes the logits of clips."""

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        """Yield the logits of each clip, in order; None for a clip that does not fit in the memory of the device.

        Args:
            waveforms: (num_samples,) float32 each, as `FeatureExtractor` makes them, on the CPU, at the rate that
                `load_engine` was called with.

        Raises:
            InputTooShortError: a clip has fewer samples than one frame needs.
            ValueError: a clip is not (num_samples,) float32 on the CPU.
            RuntimeError: the device failed, or a clip does not fit in the memory that other processes leave free.
        """

    def status(self) -> EngineStatus:
        """What computes now: an engine may fall back while it works."""

    @property
    def splits(self) -> int:
        """Number of batches so far that were halved for lack of memory."""


def load_engine(
    heads: Sequence[Head], device: torch.device | str, dtype: str = "float32", threads: int = 1, rate: int = 16_000
) -> Engine:
    """Choose the engine for a device.

    On CPUs, packed batches (`PackedModel`). On GPUs, packed batches if they agree with the reference model at the start
    and their kernels compile; otherwise the reference model clip by clip.

    Args:
        heads: heads with equal backbones, in eval mode, in float32 on the CPU. The engine uses the backbone of the
            first.
        device: `cpu`, or a device of torch.
        dtype: data type of the matrix products: float32; int8 on CPUs; bfloat16 or float16 on GPUs.
        threads: on CPUs, packs that are computed at the same time.
        rate: sample rate of the waveforms, in Hz.

    Raises:
        ValueError: there is no head, the backbones differ, a head is not in float32 on the CPU, or the device has no
            engine of this dtype.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _PackedOnCpu(PackedModel(heads, dtype=dtype, threads=threads), rate)
    if dtype not in DEVICE_DTYPES:
        msg = f"models run on {device.type} in {', '.join(DEVICE_DTYPES)}, not in {dtype}"
        raise ValueError(msg)
    return _load_on_device(heads, device, dtype, rate)


def _load_on_device(heads: Sequence[Head], device: torch.device, dtype: str, rate: int = 16_000) -> Engine:
    """Packed batches on a device, or clip by clip."""
    from sewd_model.packed import gpu, gpu_batches, gpu_check  # noqa: PLC0415 - loads the compiler, which takes seconds

    try:
        model = gpu.PackedDeviceModel(heads, device=device, dtype=dtype)
        gpu_check.check(model, _ClipByClip(heads, "float32", device, None).encode, dtype)
        engine = gpu_batches.DeviceEngine(model)
        budget_s = gpu_batches.probed_budget_s(engine, rate) if device.type == "cuda" else gpu_batches.BUDGET_S
    except gpu_check.CHECK_ERRORS as error:
        return _fall_back(heads, dtype, device, error)
    return _PackedOnDevice([head.cpu() for head in heads], dtype, device, engine, budget_s, rate)


class _PackedOnCpu:
    splits = 0

    def __init__(self, model: PackedModel, rate: int) -> None:
        self._model = model
        # A pack is bounded in frames; without packs the budget is 0.
        self._budget_s = model.pack_frames * model.config.hop_length / rate or None

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        return (output.logits for output in self._model.stream(waveforms))

    def status(self) -> EngineStatus:
        name = _device_name(torch.device("cpu"))
        return EngineStatus("packed", self._model.dtype, name, self._budget_s, self._model.fallback)


class _PackedOnDevice:
    """Packed batches, until their kernels fail to compile for some shape; from then on clip by clip."""

    def __init__(
        self,
        heads: Sequence[Head],
        dtype: str,
        device: torch.device,
        engine: gpu_batches.DeviceEngine,
        budget_s: float,
        rate: int,
    ) -> None:
        self._heads, self._dtype, self._device = heads, dtype, device
        self._engine, self._budget_s, self._rate = engine, budget_s, rate
        self._fallback: Engine | None = None

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        from sewd_model.packed import gpu_batches, gpu_check  # noqa: PLC0415 - as above

        done = 0
        if self._fallback is None:
            try:
                for logits in gpu_batches.stream(self._engine, waveforms, self._budget_s, self._rate):
                    yield logits
                    done += 1
            except gpu_check.COMPILER_ERRORS as error:
                self._fallback = _fall_back(self._heads, self._dtype, self._device, error)
        if self._fallback is not None:
            yield from self._fallback.encode(waveforms[done:])

    def status(self) -> EngineStatus:
        if self._fallback is not None:
            return self._fallback.status()
        return EngineStatus("packed", self._dtype, _device_name(self._device), self._budget_s, None)

    @property
    def splits(self) -> int:
        return self._engine.splits


class _ClipByClip:
    """The reference model on any device, one clip at a time, through the backbone of the first head."""

    splits = 0

    def __init__(self, heads: Sequence[Head], dtype: str, device: torch.device, fallback: str | None) -> None:
        self._dtype, self._device, self._fallback = dtype, device, fallback
        self._kind: torch.dtype = getattr(torch, dtype)
        self._heads = [head.to(device, self._kind) for head in heads]
        self._hidden_states = any(head.needs_hidden_states for head in heads)

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        return map(self._logits, waveforms)

    def status(self) -> EngineStatus:
        return EngineStatus("clip by clip", self._dtype, _device_name(self._device), None, self._fallback)

    @torch.inference_mode()
    def _logits(self, waveform: Tensor) -> Logits | None:
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                inputs = waveform[None].to(self._device, self._kind)
                outputs = self._heads[0].sew_d(inputs, output_hidden_states=self._hidden_states)
                return tuple(head.head(outputs)[0].float().cpu() for head in self._heads)
        except RuntimeError as error:
            if not out_of_memory(error) or used_by_other_processes():
                raise
            return None


def _fall_back(heads: Sequence[Head], dtype: str, device: torch.device, error: Exception) -> Engine:
    cause = getattr(error, "inner_exception", error)  # the compiler wraps the error that explains it
    reason = f"{type(cause).__name__}: {(str(cause).strip() or 'no reason given').splitlines()[0]}"
    if isinstance(error, RuntimeError) and out_of_memory(error):  # its text has other numbers each time
        reason = "the model and one batch do not fit in its memory"
    log.warning("no packed batches on %s, the model runs clip by clip: %s", device, reason)
    return _ClipByClip(heads, dtype, device, f"no packed batches: {reason}")


def _device_name(device: torch.device) -> str:
    """`cpu` with the instruction set that torch's kernels use, or the name of the GPU."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)
