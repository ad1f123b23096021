"""Chooses what computes the heads of a backbone on a device: the packed engine, or a fallback.

Every engine gives each clip what the reference model gives for that clip alone.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor

from sewd_model.engine_status import EngineStatus
from sewd_model.features import FeatureExtractor
from sewd_model.model import SEWDForCTC
from sewd_model.packed.cpu import PackedModel
from sewd_model.packed.gpu_memory import device_failed, out_of_memory, used_by_other_processes
from sewd_model.packed.layers import Head
from sewd_model.recognition import Decoding, Failure, Logits, Recognized, Samples, recognize

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_FEATURES: Final = FeatureExtractor()
DEVICE_DTYPES: Final = ("float32", "bfloat16", "float16")  # on devices; those of CPUs are `PackedModel`'s


class Engine(Protocol):
    """Computes the heads of a backbone for clips."""

    def recognize(self, clips: Sequence[Samples]) -> Iterator[Recognized]:
        """Yield the result of each clip, in order.

        Args:
            clips: as they were decoded, not prepared: (num_samples,) int16, or float32 with full scale at 1, at the
                rate of the `FeatureExtractor` that `load_engine` was called with.

        Raises:
            InputTooShortError: a clip has fewer samples than one frame needs.
            ValueError: a clip is of another type or shape, or has no sample.
            RuntimeError: the device failed, or a clip does not fit in the memory that other processes leave free.
        """

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        """Yield the logits of each clip, in order; None for a clip that does not fit in the memory of the device.

        Args:
            waveforms: (num_samples,) float32 each, as `FeatureExtractor` makes them, on the CPU.

        Raises:
            InputTooShortError, RuntimeError: as `recognize`.
            ValueError: a clip is not (num_samples,) float32 on the CPU.
        """

    def status(self) -> EngineStatus:
        """What computes now: an engine may fall back while it works."""

    @property
    def splits(self) -> int:
        """Number of batches so far that were halved for lack of memory."""


def load_engine(
    heads: Sequence[Head],
    device: torch.device | str,
    dtype: str = "auto",
    threads: int = 1,
    features: FeatureExtractor = _FEATURES,
    drop: Sequence[int] = (),
    *,
    posteriors: bool = False,
) -> Engine:
    """Choose the engine for a device.

    On CPUs, packed batches (`PackedModel`). On GPUs the first of these that agrees with the reference model: packed
    batches, whose kernels must compile too; padded batches of the reference model; the reference model clip by clip.

    Args:
        heads: heads with equal backbones, in eval mode, in float32 on the CPU. The engine uses the backbone of the
            first.
        device: `cpu`, or a device of torch.
        dtype: data type of the matrix products: float32; int8 on CPUs; bfloat16 or float16 on GPUs; `auto`: bfloat16 on
            GPUs that have instructions for it, else float32.
        threads: on CPUs, packs that are computed at the same time.
        features: how waveforms are prepared, and their rate.
        drop: ids that are dropped from the paths of a CTC head, see `greedy_path`.
        posteriors: give the posteriors of a CTC head instead of its path.

    Raises:
        ValueError: there is no head, the backbones differ, a head is not in float32 on the CPU, or the device has no
            engine of this dtype.
    """
    device = torch.device(device)
    dtype = _default_dtype(device) if dtype == "auto" else dtype
    blank = next((head.blank for head in heads if isinstance(head, SEWDForCTC)), 0)
    decoding = Decoding(features, blank, tuple(drop), posteriors)
    if device.type == "cpu":
        return _PackedOnCpu(PackedModel(heads, dtype=dtype, threads=threads), decoding)
    if dtype not in DEVICE_DTYPES:
        msg = f"models run on {device.type} in {', '.join(DEVICE_DTYPES)}, not in {dtype}"
        raise ValueError(msg)
    return _OnDevice(heads, device, dtype, decoding)


def _default_dtype(device: torch.device) -> str:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return "bfloat16"
    return "float32"


class _OfLogits(ABC):
    """An engine that computes logits of prepared waveforms; the processor does the rest."""

    splits = 0

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding

    @abstractmethod
    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        """See `Engine.encode`."""

    def recognize(self, clips: Sequence[Samples]) -> Iterator[Recognized]:
        """See `Engine.recognize`."""
        return recognize(self.encode, clips, self._decoding)


class _PackedOnCpu(_OfLogits):
    def __init__(self, model: PackedModel, decoding: Decoding) -> None:
        super().__init__(decoding)
        self._model = model
        # A pack is bounded in frames; without packs the budget is 0.
        self._budget_s = model.pack_frames * model.config.hop_length / decoding.features.sampling_rate or None

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        return (output.logits for output in self._model.stream(waveforms))

    def status(self) -> EngineStatus:
        name = _device_name(torch.device("cpu"))
        return EngineStatus("packed", self._model.dtype, name, self._budget_s, self._model.fallback)


# ----------------------------------------------------------------------------------------------------------- devices
class _OnDevice:
    """The first of `_FASTEST_FIRST` that works on a device.

    One that does not work is not tried again, unless memory ran out, which other processes may have held: then it is
    tried again with the first call of `recognize`, and after 2, 4, 8, ... more.
    """

    def __init__(self, heads: Sequence[Head], device: torch.device, dtype: str, decoding: Decoding) -> None:
        self._heads, self._device, self._dtype, self._decoding = heads, device, dtype, decoding
        self._splits = 0  # of engines that were replaced
        self._reasons: list[str] = []  # why each faster engine does not work
        self._lacked_memory: set[int] = set()  # positions of these in `_FASTEST_FIRST`
        self._calls, self._wait = 0, 1  # since they were tried, and until they are tried again
        self._engine = self._load()

    def _load(self) -> _DeviceChoice:
        """The first engine that works, of those that were not tried."""
        from sewd_model.packed import gpu_check  # noqa: PLC0415 - loads the compiler, which takes seconds

        while True:
            try:
                return self._made(len(self._reasons))
            except gpu_check.CHECK_ERRORS as error:
                self._step_down(error)

    def _made(self, position: int) -> _DeviceChoice:
        return _FASTEST_FIRST[position](self._heads, self._device, self._dtype, self._decoding)

    def _step_down(self, error: Exception) -> None:
        """Note and log why the next engine is used.

        Raises:
            Exception: `error`, if it is no reason to, or if there is no other engine.
        """
        position = len(self._reasons)
        if position + 1 == len(_FASTEST_FIRST):
            raise error
        self._reasons.append(self._reason(position, error))
        log.warning("%s: the model runs %s on %s", self._reasons[-1], _FASTEST_FIRST[position + 1].name, self._device)

    def _reason(self, position: int, error: Exception) -> str:
        """Why an engine does not work; raises the error if the device does not."""
        if device_failed(error):
            raise error
        cause = getattr(error, "inner_exception", error)  # the compiler wraps the error that explains it
        reason = f"{type(cause).__name__}: {(str(cause).strip() or 'no reason given').splitlines()[0]}"
        self._lacked_memory.discard(position)
        if isinstance(error, RuntimeError) and out_of_memory(error):  # its text has other numbers each time
            reason = "the model and one batch do not fit in its memory"
            self._lacked_memory.add(position)
        return f"no {_FASTEST_FIRST[position].batching} batches: {reason}"

    def _try_again_if_due(self) -> None:
        from sewd_model.packed import gpu_check  # noqa: PLC0415 - as above

        self._calls += 1
        if not self._lacked_memory or self._calls < self._wait:
            return
        self._calls, self._wait = 0, 2 * self._wait
        for position in sorted(self._lacked_memory):
            try:
                engine = self._made(position)
            except gpu_check.CHECK_ERRORS as error:
                self._reasons[position] = self._reason(position, error)
                continue
            log.warning("there is memory now: the model runs %s on %s", engine.name, self._device)
            self._splits += self._engine.splits
            self._engine = engine
            del self._reasons[position:]
            self._lacked_memory = {other for other in self._lacked_memory if other < position}
            return

    def recognize(self, clips: Sequence[Samples]) -> Iterator[Recognized]:
        self._try_again_if_due()
        return self._continued(lambda engine, done: engine.recognize(clips[done:]))

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        return self._continued(lambda engine, done: engine.encode(waveforms[done:]))

    def _continued(self, results_from: Callable[[_DeviceChoice, int], Iterator[_T]]) -> Iterator[_T]:
        """Yield the results of the engine; if its kernels fail to compile for some shape, the rest by the next one."""
        from sewd_model.packed import gpu_check  # noqa: PLC0415 - as above

        done = 0
        while True:
            try:
                for result in results_from(self._engine, done):
                    yield result
                    done += 1
                return
            except gpu_check.COMPILER_ERRORS as error:
                self._splits += self._engine.splits
                self._step_down(error)
            self._engine = self._load()  # after the handler: the traceback keeps tensors alive

    def status(self) -> EngineStatus:
        engine = self._engine
        reasons = "; ".join(self._reasons) or None
        return EngineStatus(engine.batching, self._dtype, _device_name(self._device), engine.budget_s, reasons)

    @property
    def splits(self) -> int:
        return self._splits + self._engine.splits


class _PackedOnDevice:
    """Packed batches: samples in, the best token of each frame out."""

    name = "in packed batches"
    batching = "packed"

    def __init__(self, heads: Sequence[Head], device: torch.device, dtype: str, decoding: Decoding) -> None:
        from sewd_model.packed import gpu, gpu_batches, gpu_check, gpu_recognition  # noqa: PLC0415 - as above

        model = gpu.PackedDeviceModel(heads, device=device, dtype=dtype)
        gpu_check.check(model, _ClipByClip(heads, device, "float32", decoding).encode, dtype)
        self._rate = decoding.features.sampling_rate
        self._logits = gpu_batches.DeviceEngine(model)
        self._recognition = gpu_recognition.RecognitionRunner(model, decoding)
        is_cuda = device.type == "cuda"
        self.budget_s = gpu_batches.probed_budget_s(self._logits, self._rate) if is_cuda else gpu_batches.BUDGET_S

    def recognize(self, clips: Sequence[Samples]) -> Iterator[Recognized]:
        from sewd_model.packed import gpu_batches  # noqa: PLC0415 - as above

        for result in gpu_batches.stream(self._recognition, clips, self.budget_s, self._rate):
            yield Failure.TOO_LARGE if result is None else result

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        from sewd_model.packed import gpu_batches  # noqa: PLC0415 - as above

        return gpu_batches.stream(self._logits, waveforms, self.budget_s, self._rate)

    @property
    def splits(self) -> int:
        return self._logits.splits + self._recognition.splits


class _Reference(_OfLogits):
    """The reference model on a device, through the backbone of the first head."""

    def __init__(self, heads: Sequence[Head], device: torch.device, dtype: str, decoding: Decoding) -> None:
        super().__init__(decoding)
        self._device, self._kind = device, getattr(torch, dtype)
        self._models = [copy.deepcopy(head).to(device, self._kind) for head in heads]
        self._hidden_states = any(head.needs_hidden_states for head in heads)

    @torch.inference_mode()
    def _forward(self, inputs: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The logits of each head, on the device, for (clips, samples) on the CPU."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            inputs = inputs.to(self._device, self._kind)
            mask = None if mask is None else mask.to(self._device)
            outputs = self._models[0].sew_d(inputs, mask, output_hidden_states=self._hidden_states)
            return [model.head(outputs).float() for model in self._models]


class _Padded(_Reference):
    """Batches of the reference model, of clips of similar length: what is padded does not count."""

    name = "in padded batches"
    batching = "padded"

    def __init__(self, heads: Sequence[Head], device: torch.device, dtype: str, decoding: Decoding) -> None:
        from sewd_model.packed import gpu_batches, gpu_check  # noqa: PLC0415 - as above

        super().__init__(heads, device, dtype, decoding)
        self.config = heads[0].config
        self.budget_s = gpu_batches.BUDGET_S
        self._rate = decoding.features.sampling_rate
        gpu_check.check(self, _ClipByClip(heads, device, "float32", decoding).encode, dtype)

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        from sewd_model.packed import gpu_batches  # noqa: PLC0415 - as above

        order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
        ordered = [waveforms[index] for index in order]
        results = gpu_batches.stream(self, ordered, self.budget_s, self._rate, padded=True)
        by_index = dict(zip(order, results, strict=True))
        return (by_index[index] for index in range(len(waveforms)))

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Logits]:
        """The logits of each clip, by one batch."""
        return self.launch(waveforms)()

    def launch(self, waveforms: Sequence[Tensor]) -> Callable[[], list[Logits]]:
        """See `gpu_batches.BatchRunner`."""
        sizes = torch.tensor([len(waveform) for waveform in waveforms])
        inputs = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        by_head = self._forward(inputs, (torch.arange(inputs.shape[1]) < sizes[:, None]).long())
        frames = [self.config.num_frames(size) for size in sizes.tolist()]

        def wait() -> list[Logits]:
            on_cpu = [logits.cpu() for logits in by_head]
            rows = zip(frames, zip(*on_cpu, strict=True), strict=True)
            return [tuple(head[:count] if head.dim() == 2 else head for head in row) for count, row in rows]

        return wait

    def is_finite(self, results: Sequence[Logits]) -> bool:
        """See `gpu_batches.BatchRunner`."""
        return all(bool(head.isfinite().all()) for logits in results for head in logits)


class _ClipByClip(_Reference):
    """The reference model, one clip at a time."""

    name = batching = "clip by clip"
    budget_s = None

    def encode(self, waveforms: Sequence[Tensor]) -> Iterator[Logits | None]:
        return map(self._logits, waveforms)

    def _logits(self, waveform: Tensor) -> Logits | None:
        try:
            return tuple(logits[0].cpu() for logits in self._forward(waveform[None]))
        except RuntimeError as error:
            if not out_of_memory(error) or used_by_other_processes():
                raise
            return None


_DeviceChoice = _PackedOnDevice | _Padded | _ClipByClip
# Each raises an error of `gpu_check.CHECK_ERRORS` when it is made and does not work.
_FASTEST_FIRST: Final[tuple[type[_DeviceChoice], ...]] = (_PackedOnDevice, _Padded, _ClipByClip)


def _device_name(device: torch.device) -> str:
    """`cpu` with the instruction set that torch's kernels use, or the name of the GPU."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)
