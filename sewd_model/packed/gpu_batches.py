"""A stream of clips through `PackedDeviceModel`: batches of bounded memory, copies that overlap with computing.

A batch holds a number of seconds of audio. On CUDA that number is found by running one batch of known length. If memory
runs out all the same, the batch is halved, and again, down to single clips; the halves are the same on every machine.
If a batch yields values that are not finite, its clips are run one by one: such a value may come from a neighbouring
clip.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sewd_model.grouping import grouped
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_layout import Batch, lay_out
from sewd_model.packed.gpu_memory import out_of_memory, used_by_other_processes

log = logging.getLogger(__name__)

Logits = tuple[Tensor, ...]  # of each head, for one clip, float32 on the CPU

PROBE_S, PROBE_CLIP_S = 120, 20  # audio of the batch that is run to measure memory, and of each of its clips
BUDGET_S = 60.0  # audio in a batch where memory is not measured
MAX_BUDGET_S = 300.0  # so that a chunk is several batches, and the next is copied while one is computed; not measured
MEMORY_SHARE = 0.7  # of the free memory; the rest is for fragmentation


class BatchRunner(Protocol):
    """What `stream` needs from a model: the two steps of a batch, see `PackedDeviceModel`.

    Attributes:
        splits: how many batches were halved because memory ran out; `stream` counts them.
    """

    splits: int

    def lay_out(self, waveforms: Sequence[Tensor]) -> Batch:
        """Copy clips to the device."""

    def encode(self, batch: Batch) -> Callable[[], list[Logits]]:
        """Start computing, and return a function that waits for the results."""


class DeviceEngine:
    """A `BatchRunner` of a `PackedDeviceModel`; on CUDA, copies have a stream of their own."""

    splits = 0

    def __init__(self, model: PackedDeviceModel) -> None:
        self.model = model
        self.copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def lay_out(self, waveforms: Sequence[Tensor]) -> Batch:
        """See `BatchRunner.lay_out` and `gpu_layout.lay_out`."""
        if self.copies is None:
            return lay_out(waveforms, self.model.config, self.model.device)
        with torch.cuda.stream(self.copies):
            return lay_out(waveforms, self.model.config, self.model.device)

    def encode(self, batch: Batch) -> Callable[[], list[Logits]]:
        """See `BatchRunner.encode`; on CUDA one copy brings back the numbers of all heads."""
        if self.copies is None:
            logits = self.model.compute(batch)
            return lambda: self.model.split(batch, logits.cpu())
        stream = torch.cuda.current_stream(self.model.device)
        stream.wait_stream(self.copies)
        for tensor in batch.tensors():  # allocated on the other stream: keep the memory until this one has read it
            tensor.record_stream(stream)
        logits = self.model.compute(batch)
        numbers = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        numbers.copy_(logits, non_blocking=True)
        done = stream.record_event()

        def wait() -> list[Logits]:
            done.synchronize()
            return self.model.split(batch, numbers.clone())  # a copy: pinned memory is scarce

        return wait


def stream(
    engine: BatchRunner, waveforms: Sequence[Tensor], budget_s: float = BUDGET_S, rate: int = 16_000
) -> Iterator[Logits | None]:
    """Yield the logits of each clip, in order; None for a clip that does not fit in memory even alone.

    While a batch is computed, the next one is laid out and copied.

    Args:
        engine: computes the batches.
        waveforms: `(N,)` float32 each, on the CPU.
        budget_s: most seconds of audio in a batch, unless a single clip is longer.
        rate: sample rate of the waveforms, in Hz.

    Raises:
        InputTooShortError, ValueError: as `gpu_layout.lay_out`.
        RuntimeError: a clip does not fit because other processes hold the device's memory; or any other error of the
            device.
    """
    batches = list(grouped(waveforms, len, at_most=int(budget_s * rate)))
    next_batch: Batch | None = None
    for clips, following in itertools.zip_longest(batches, batches[1:]):
        results: list[Logits | None] = []
        try:
            wait = engine.encode(engine.lay_out(clips) if next_batch is None else next_batch)
            next_batch = _lay_out_if_it_fits(engine, following)
            results += wait()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            next_batch = None
        yield from _accept_or_retry(engine, clips, results)


def _lay_out_if_it_fits(engine: BatchRunner, clips: Sequence[Tensor] | None) -> Batch | None:
    try:
        return None if clips is None else engine.lay_out(clips)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def _accept_or_retry(engine: BatchRunner, clips: Sequence[Tensor], results: list[Logits | None]) -> list[Logits | None]:
    """Return the results of a batch if there are any and they are finite.

    Without results, memory ran out: return those of its halves. If they are not finite: those of its clips alone.
    """
    if results and (len(clips) == 1 or _all_finite(results)):
        return results
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


def _attempt(engine: BatchRunner, clips: Sequence[Tensor]) -> list[Logits | None]:
    try:
        return [*engine.encode(engine.lay_out(clips))()]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return []  # the retry comes after this handler: the traceback keeps tensors alive


def _all_finite(results: Sequence[Logits | None]) -> bool:
    return all(bool(logits.isfinite().all()) for result in results for logits in result or ())


# ------------------------------------------------------------------------------------------------- memory budget
def probed_budget_s(engine: DeviceEngine, rate: int = 16_000) -> float:
    """Measure how many seconds of audio a batch may hold on a CUDA device, with a margin.

    Args:
        engine: of the device.
        rate: sample rate of the waveforms, in Hz.
    """
    device = engine.model.device
    clips = [torch.randn(PROBE_CLIP_S * rate)] * (PROBE_S // PROBE_CLIP_S)
    engine.encode(engine.lay_out(clips[:1]))()  # libraries allocate memory of their own in the first call
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    engine.encode(engine.lay_out(clips))()
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
