"""A stream of clips through `PackedDeviceModel`: batches of bounded memory, copies that overlap with computing.

A batch holds a number of seconds of audio. On CUDA that number is found by running one batch of known length. If memory
runs out all the same, the batch is halved, and again, down to single clips; the halves are the same on every machine.
If a batch yields values that are not finite, its clips are run one by one: such a value may come from a neighbouring
clip.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sewd_model.grouping import grouped
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_layout import Batch, lay_out
from sewd_model.packed.gpu_memory import out_of_memory, used_by_other_processes
from sewd_model.recognition import Logits

log = logging.getLogger(__name__)

PROBE_S, PROBE_CLIP_S = 120, 20  # audio of the batch that is run to measure memory, and of each of its clips
BUDGET_S = 60.0  # audio in a batch where memory is not measured
MAX_BUDGET_S = 300.0  # so that a chunk is several batches, and the next is copied while one is computed; not measured
MEMORY_SHARE = 0.7  # of the free memory; the rest is for fragmentation

Clip = TypeVar("Clip", bound=Sized)
Clip_contra = TypeVar("Clip_contra", bound=Sized, contravariant=True)
Result = TypeVar("Result")


class BatchRunner(Protocol[Clip_contra, Result]):
    """What `stream` needs to compute batches.

    Attributes:
        splits: how many batches were halved because memory ran out; `stream` counts them.
    """

    splits: int

    def launch(self, clips: Sequence[Clip_contra]) -> Callable[[], list[Result]]:
        """Copy clips to the device and start computing; returns a function that waits for the results."""

    def is_finite(self, results: Sequence[Result]) -> bool:
        """Whether all numbers of a batch's results are finite."""


class DeviceRunner(ABC, Generic[Clip, Result]):
    """A `BatchRunner` of a `PackedDeviceModel`; on CUDA, copies have a stream of their own."""

    splits = 0

    def __init__(self, model: PackedDeviceModel) -> None:
        self.model = model
        self.copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @abstractmethod
    def lay_out(self, clips: Sequence[Clip]) -> Batch:
        """Copy clips to the device."""

    @abstractmethod
    def compute(self, batch: Batch) -> Tensor:
        """Start computing; returns numbers on the device, `(n,)` float32."""

    @abstractmethod
    def results(self, batch: Batch, numbers: Tensor) -> list[Result]:
        """The result of each clip, from what `compute` returned, on the CPU, where it may be overwritten later."""

    @abstractmethod
    def is_finite(self, results: Sequence[Result]) -> bool:
        """See `BatchRunner.is_finite`."""

    def launch(self, clips: Sequence[Clip]) -> Callable[[], list[Result]]:
        """See `BatchRunner.launch`; on CUDA one copy brings back the numbers of all heads."""
        if self.copies is None:
            batch = self.lay_out(clips)
            on_cpu = self.compute(batch).cpu()
            return lambda: self.results(batch, on_cpu)
        with torch.cuda.stream(self.copies):
            batch = self.lay_out(clips)
        stream = torch.cuda.current_stream(self.model.device)
        stream.wait_stream(self.copies)
        for tensor in batch.tensors():  # allocated on the other stream: keep the memory until this one has read it
            tensor.record_stream(stream)
        numbers = self.compute(batch)
        pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        pinned.copy_(numbers, non_blocking=True)
        done = stream.record_event()

        def wait() -> list[Result]:
            done.synchronize()
            return self.results(batch, pinned)

        return wait


class DeviceEngine(DeviceRunner[Tensor, Logits]):
    """Logits of prepared waveforms, `(N,)` float32 on the CPU."""

    def lay_out(self, clips: Sequence[Tensor]) -> Batch:
        """See `DeviceRunner.lay_out` and `gpu_layout.lay_out`."""
        return lay_out(clips, self.model.config, self.model.device)

    def compute(self, batch: Batch) -> Tensor:
        """See `DeviceRunner.compute`."""
        return self.model.compute(batch)

    def results(self, batch: Batch, numbers: Tensor) -> list[Logits]:
        """See `DeviceRunner.results`."""
        return self.model.split(batch, numbers.clone())  # a copy: pinned memory is scarce

    def is_finite(self, results: Sequence[Logits]) -> bool:
        """See `BatchRunner.is_finite`."""
        return all(bool(head.isfinite().all()) for logits in results for head in logits)


def stream(
    engine: BatchRunner[Clip, Result],
    clips: Sequence[Clip],
    budget_s: float = BUDGET_S,
    rate: int = 16_000,
    *,
    padded: bool = False,
) -> Iterator[Result | None]:
    """Yield the result of each clip, in order; None for a clip that does not fit in memory even alone.

    Each batch is launched before the results of the one before it are waited for and yielded, so that the device has
    work while the processor makes something of the results and lays out the batch after it.

    Args:
        engine: computes the batches.
        clips: their lengths are numbers of samples.
        budget_s: most seconds of audio in a batch, unless a single clip is longer.
        rate: sample rate of the clips, in Hz.
        padded: the engine pads the clips of a batch to the longest, and padding counts as audio.

    Raises:
        InputTooShortError, ValueError: as `gpu_layout.lay_out`.
        RuntimeError: a clip does not fit because other processes hold the device's memory; or any other error of the
            device.
    """
    launched: tuple[Sequence[Clip], Callable[[], list[Result]]] | None = None
    for batch in grouped(clips, len, at_most=int(budget_s * rate), padded=padded):
        wait = _launch(engine, batch)
        if launched is not None:
            results = _accept_or_retry(engine, launched[0], _wait(launched[1]))
            wait = wait or _launch(engine, batch)  # if it did not fit beside the one before it
            yield from results
        if wait is None:
            yield from _accept_or_retry(engine, batch, [])
        launched = None if wait is None else (batch, wait)
    if launched is not None:
        yield from _accept_or_retry(engine, launched[0], _wait(launched[1]))


def _launch(engine: BatchRunner[Clip, Result], clips: Sequence[Clip]) -> Callable[[], list[Result]] | None:
    """Launch a batch; None if memory runs out."""
    try:
        return engine.launch(clips)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None  # what comes next comes after this handler: the traceback keeps tensors alive


def _attempt(engine: BatchRunner[Clip, Result], clips: Sequence[Clip]) -> list[Result]:
    wait = _launch(engine, clips)
    return [] if wait is None else _wait(wait)


def _wait(wait: Callable[[], list[Result]]) -> list[Result]:
    try:
        return wait()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return []


def _accept_or_retry(
    engine: BatchRunner[Clip, Result], clips: Sequence[Clip], results: list[Result]
) -> list[Result | None]:
    """Return the results of a batch if there are any and they are finite.

    Without results, memory ran out: return those of its halves. If they are not finite: those of its clips alone.
    """
    if results and (len(clips) == 1 or engine.is_finite(results)):
        return [*results]
    if len(clips) == 1:
        if used_by_other_processes():
            msg = f"a clip of {len(clips[0])} samples does not fit in the device memory that other processes leave free"
            raise RuntimeError(msg)
        log.warning("a clip of %d samples does not fit in the memory of the device", len(clips[0]))
        return [None]
    if not results:
        torch.cuda.empty_cache()
        engine.splits += 1
    half = len(clips) // 2
    parts = [[clip] for clip in clips] if results else [clips[:half], clips[half:]]
    return [result for part in parts for result in _accept_or_retry(engine, part, _attempt(engine, part))]


# ------------------------------------------------------------------------------------------------- memory budget
def probed_budget_s(engine: DeviceEngine, rate: int = 16_000) -> float:
    """Measure how many seconds of audio a batch may hold on a CUDA device, with a margin.

    Args:
        engine: of the device.
        rate: sample rate of the waveforms, in Hz.
    """
    device = engine.model.device
    clips = [torch.randn(PROBE_CLIP_S * rate)] * (PROBE_S // PROBE_CLIP_S)
    engine.launch(clips[:1])()  # libraries allocate memory of their own in the first call
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    engine.launch(clips)()
    bytes_per_second = (torch.cuda.max_memory_allocated(device) - before) / PROBE_S
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return budget_s(free, bytes_per_second)


def budget_s(free: float, bytes_per_second: float) -> float:
    """Return the seconds of audio that fit in `MEMORY_SHARE` of the free bytes, whole seconds from 1 to `MAX_BUDGET_S`.

    Args:
        free: free memory of the device, in bytes.
        bytes_per_second: memory that a second of audio needs, in bytes.
    """
    return float(max(1, math.floor(min(MAX_BUDGET_S, MEMORY_SHARE * free / bytes_per_second))))
