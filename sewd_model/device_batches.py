"""Batches of clips that fit a device's memory, and whether the packed engine may be used there."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sewd_model.model import SEWDForCTC, SEWDForSequenceClassification
from sewd_model.packed import PackedOutput
from sewd_model.packed_device import DevicePackedModel

Output = TypeVar("Output")

# Matrix products gain nothing from more; and attention is compiled for the powers of two up to its squeezed frames.
MOST_SECONDS = 640
MEMORY_SHARE = 0.7  # of what is free: fragments, and batches a little unlike the probe
# Largest difference from the reference in float32, of its logits' spread, by which an engine passes.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_log = logging.getLogger(__name__)


def in_batches(
    run: Callable[[Sequence[Tensor]], Sequence[Output]], waveforms: Sequence[Tensor], budget: int
) -> Iterator[Output | None]:
    """Yield a result a clip, in order, from batches of neighbours.

    Args:
        run: maps clips to their results.
        waveforms: `(N,)` each.
        budget: samples a batch, unless one clip alone has more. A batch that does not fit the memory all the same is
            split in halves until it does.

    Returns:
        Results; None for a clip that does not fit alone.
    """
    batch: list[Tensor] = []
    for waveform in waveforms:
        if batch and sum(map(len, batch)) + len(waveform) > budget:
            yield from _halved(run, batch)
            batch = []
        batch.append(waveform)
    if batch:
        yield from _halved(run, batch)


def _halved(run: Callable[[Sequence[Tensor]], Sequence[Output]], batch: Sequence[Tensor]) -> Iterator[Output | None]:
    try:
        outputs = run(batch)
    except torch.cuda.OutOfMemoryError:
        outputs = None
    # Outside of the handler, whose traceback keeps the failed batch's tensors alive.
    if outputs is not None:
        yield from outputs
    elif len(batch) == 1:
        yield None
    else:
        middle = len(batch) // 2
        yield from _halved(run, batch[:middle])
        yield from _halved(run, batch[middle:])


def measured_budget(model: DevicePackedModel, rate: int) -> int:
    """Samples a batch, from the memory that a batch takes on the model's CUDA device and what is free there.

    The probe has just more squeezed frames than a power of two, which costs attention the most for its size. Where it
    does not fit, a smaller one is tried; where none does, clips go one by one.
    """
    device = model.device
    squeezed = model.config.hop_length * model.config.squeeze_factor
    before = torch.cuda.memory_allocated(device)
    for count in (64, 32, 16):
        clips = [torch.zeros(66 * squeezed + model.config.min_samples)] * count
        torch.cuda.reset_peak_memory_stats(device)
        try:
            model(clips)
        except torch.cuda.OutOfMemoryError:
            continue
        break
    else:
        return 1
    peak = torch.cuda.max_memory_allocated(device) - before
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = MEMORY_SHARE * (torch.cuda.mem_get_info(device)[0] + cached)
    return min(MOST_SECONDS * rate, max(1, int(room * sum(map(len, clips)) / peak)))


def checked_model(
    models: Sequence[SEWDForCTC | SEWDForSequenceClassification], device: torch.device, dtype: torch.dtype, rate: int
) -> tuple[DevicePackedModel, int] | None:
    """The packed engine and its samples a batch, if it can be compiled there and agrees with the reference in float32;
    else None, and why is logged.

    Args:
        models: heads of one backbone in float32; moved to the device.
        device: where to compute.
        dtype: in what.
        rate: samples a second.
    """
    try:
        packed = DevicePackedModel(models, device=device, dtype=dtype)
        reason = disagreement(packed, [model.to(device) for model in models])
        budget = measured_budget(packed, rate) if device.type == "cuda" else MOST_SECONDS * rate
    # ImportError: a torch without FlexAttention. RuntimeError: all that torch.compile raises, the allocator and the
    # driver too; torch has no other class that they share. ValueError: shapes that FlexAttention does not take.
    except (ImportError, RuntimeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if reason is None:
            return packed, budget
    _log.warning("the packed engine is not used on %s in %s, clips go one by one: %s", device, dtype, reason)
    return None


def disagreement(
    packed: Callable[[Sequence[Tensor]], Sequence[PackedOutput]],
    models: Sequence[SEWDForCTC | SEWDForSequenceClassification],
) -> str | None:
    """What is wrong with an engine's logits for three synthetic clips by the reference's, or None.

    Args:
        packed: has the attribute `dtype`, which sets the tolerance (`TOLERANCES`).
        models: the same heads, in float32 on the device.
    """
    tolerance = TOLERANCES[getattr(packed, "dtype", torch.float32)]
    config, device = models[0].config, next(models[0].parameters()).device
    generator = torch.Generator().manual_seed(0)
    least = config.min_samples
    clips = [torch.randn(length, generator=generator) for length in (least, 7 * least + 3, 40 * least + 11)]
    outputs = packed(clips)
    backbone = models[0].sew_d
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        states = any(model.needs_hidden_states for model in models)
        encoded = [backbone.encode(clip[None].to(device), output_hidden_states=states) for clip in clips]
        for head, model in enumerate(models):
            expected = torch.cat([model.head(output)[0].float().cpu().flatten() for output in encoded])
            found = torch.cat([output.logits[head].flatten() for output in outputs])
            spread = (expected.max() - expected.min()).item()
            difference = (found - expected).abs().max().item()
            if not math.isfinite(difference) or difference > tolerance * spread:
                return f"the logits of head {head} differ from the reference's by {difference:g}, spread {spread:g}"
    return None
