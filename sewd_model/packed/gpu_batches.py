"""A stream of clips through `PackedDeviceModel`: batches of bounded memory, copies beside the computing, nothing lost.

A batch holds so many seconds of audio. On CUDA the number is found by running one batch of known length. Where memory
runs out all the same, the batch is halved, and again, down to a clip; the halves are the same wherever it happens. Of
a batch that yields values that are not finite the clips go one by one: such values may come from a clip beside.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch._dynamo import exc

from sewd_model.packed.gpu import Batch, PackedDeviceModel, lay_out
from sewd_model.packed.gpu_memory import out_of_memory, taken_by_others

log = logging.getLogger(__name__)

Logits = tuple[Tensor, ...]  # of each head, for one clip, float32 on the CPU

RATE = 16_000
PROBE_S, PROBE_CLIP_S = 120, 20
BUDGET_S = 60.0  # of a batch where memory is not probed
MOST_S = 300.0  # so that a chunk is more than one batch, and the next is copied while one is computed; not measured
SHARE = 0.7  # of the free memory; the rest is for what the allocator cannot join

# Largest difference from the reference, as a share of the spread of its logits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.03}
# Clips of the check, two batches: several blocks of attention, one of them whole, and a block alone.
CHECK_SAMPLES = ((17_003, 192_080, 4_777, 90_001), (4_777,))


class DisagreementError(Exception):
    """The packed model does not compute what the reference computes."""


# torch.compile's own; the second is no subclass of the first, and had another name before torch 2.6.
COMPILER_ERRORS: tuple[type[Exception], ...] = (
    exc.TorchDynamoException,
    getattr(exc, "FailOnRecompileLimitHit", exc.TorchDynamoException),
)


# What shows at the start that packed batches are not for this machine: a RuntimeError is what torch's own operations
# raise where a card or a library lacks something.
CHECK_ERRORS: tuple[type[Exception], ...] = (DisagreementError, RuntimeError, *COMPILER_ERRORS)


class Engine(Protocol):
    """What `stream` asks of a model: the two halves of a batch's way, see `PackedDeviceModel`.

    Attributes:
        splits: how many batches were halved for want of memory; `stream` counts them.
    """

    splits: int

    def lay_out(self, waveforms: Sequence[Tensor]) -> Batch:
        """Bring clips to the device."""

    def encode(self, batch: Batch) -> Callable[[], list[Logits]]:
        """Start to compute, and give a function that waits for the results."""


class DeviceEngine:
    """An `Engine` of a `PackedDeviceModel`; on CUDA, copies have a stream of their own."""

    splits = 0

    def __init__(self, model: PackedDeviceModel) -> None:
        self.model = model
        self.copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def lay_out(self, waveforms: Sequence[Tensor]) -> Batch:
        """See `Engine`."""
        if self.copies is None:
            return lay_out(waveforms, self.model.config, self.model.device)
        with torch.cuda.stream(self.copies):
            return lay_out(waveforms, self.model.config, self.model.device)

    def encode(self, batch: Batch) -> Callable[[], list[Logits]]:
        """See `Engine`; on CUDA one copy brings back the numbers of all heads."""
        if self.copies is None:
            logits = self.model.compute(batch)
            return lambda: self.model.split(batch, logits.cpu())
        present = torch.cuda.current_stream(self.model.device)
        present.wait_stream(self.copies)
        for tensor in batch.tensors():  # their memory is the other stream's, and must not be given away before
            tensor.record_stream(present)
        logits = self.model.compute(batch)
        numbers = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        numbers.copy_(logits, non_blocking=True)
        done = present.record_event()

        def wait() -> list[Logits]:
            done.synchronize()
            return self.model.split(batch, numbers.clone())  # pinned memory is scarce: not for keeping

        return wait


def stream(engine: Engine, waveforms: Sequence[Tensor], budget_s: float = BUDGET_S) -> Iterator[Logits | None]:
    """Yield the logits of each clip, in order; None for one that does not fit in memory alone.

    While a batch is computed, the next one is laid out and on its way.
    """
    batches = list(_batches(waveforms, int(budget_s * RATE)))
    ahead: Batch | None = None
    for clips, following in itertools.zip_longest(batches, batches[1:]):
        results: list[Logits | None] = []
        try:
            wait = engine.encode(engine.lay_out(clips) if ahead is None else ahead)
            ahead = _if_it_fits(engine, following)
            results += wait()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            ahead = None
        yield from _settle(engine, clips, results)


def _if_it_fits(engine: Engine, clips: Sequence[Tensor] | None) -> Batch | None:
    try:
        return None if clips is None else engine.lay_out(clips)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def _batches(waveforms: Sequence[Tensor], budget: int) -> Iterator[list[Tensor]]:
    """Runs of neighbours of up to `budget` samples, or one longer clip."""
    batch: list[Tensor] = []
    room = budget
    for waveform in waveforms:
        if batch and len(waveform) > room:
            yield batch
            batch, room = [], budget
        batch.append(waveform)
        room -= len(waveform)
    if batch:
        yield batch


def _settle(engine: Engine, clips: Sequence[Tensor], results: list[Logits | None]) -> list[Logits | None]:
    """The results of a batch if there are any, and they hold; else those of its halves, or of its clips alone."""
    if results and (len(clips) == 1 or _finite(results)):
        return results
    if len(clips) == 1:
        if taken_by_others():
            msg = f"a clip of {len(clips[0])} samples does not fit in what others leave of the device's memory"
            raise RuntimeError(msg)
        log.warning("a clip of %d samples does not fit in the memory of the device", len(clips[0]))
        return [None]
    if not results:
        torch.cuda.empty_cache()
        engine.splits += 1
    half = len(clips) // 2
    parts = [[clip] for clip in clips] if results else [clips[:half], clips[half:]]
    return [result for part in parts for result in _settle(engine, part, _attempt(engine, part))]


def _attempt(engine: Engine, clips: Sequence[Tensor]) -> list[Logits | None]:
    try:
        return [*engine.encode(engine.lay_out(clips))()]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return []  # what is done about it comes after the handler: the traceback keeps tensors alive


def _finite(results: Sequence[Logits | None]) -> bool:
    return all(bool(logits.isfinite().all()) for result in results for logits in result or ())


# --------------------------------------------------------------------------------------------------- at the start
def check(model: PackedDeviceModel, alone: Callable[[Sequence[Tensor]], Iterable[Logits | None]], dtype: str) -> None:
    """Compare clips of unlike lengths with the reference in float32.

    Two batches go through: what is compiled for one block of attention is not what is for several.

    Args:
        model: the packed one.
        alone: the reference in float32, clip by clip.
        dtype: what `model` computes in.

    Raises:
        DisagreementError: They differ by more than `TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [
        [torch.randn(max(model.config.min_samples, size), generator=generator) for size in sizes]
        for sizes in CHECK_SAMPLES
    ]
    found = [logits for waveforms in batches for logits in model(waveforms)]
    expected = [*alone([waveform for waveforms in batches for waveform in waveforms])]
    for head in range(len(model.heads)):
        ours, theirs = (torch.cat([logits[head] for logits in clips if logits]) for clips in (found, expected))
        if ours.shape != theirs.shape:
            msg = "the reference does not fit in memory"
            raise DisagreementError(msg)
        spread = float(theirs.max() - theirs.min()) or float(theirs.abs().max())
        differs = float((ours - theirs).abs().max()) / max(spread, 1e-6)
        if not differs <= TOLERANCE[dtype]:  # nor is NaN
            msg = f"logits differ from those of the reference by {differs:.2g} of their spread"
            raise DisagreementError(msg)


def probed_budget_s(engine: DeviceEngine) -> float:
    """Seconds of audio that a batch may hold on a CUDA device: what is free by what a second takes, with a margin."""
    device = engine.model.device
    clips = [torch.randn(PROBE_CLIP_S * RATE)] * (PROBE_S // PROBE_CLIP_S)
    engine.encode(engine.lay_out(clips[:1]))()  # libraries take memory of their own once
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    engine.encode(engine.lay_out(clips))()
    a_second = (torch.cuda.max_memory_allocated(device) - before) / PROBE_S
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return budget_s(free, a_second)


def budget_s(free: float, a_second: float) -> float:
    """Seconds of audio that fit in `SHARE` of the free bytes, at most `MOST_S`; whole ones, at least one."""
    return float(max(1, math.floor(min(MOST_S, SHARE * free / a_second))))
