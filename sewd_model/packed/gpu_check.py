"""Whether batches work on this machine: compare them with the reference model before they are used."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch._dynamo import exc

from sewd_model.config import SEWDConfig
from sewd_model.recognition import Logits

# Largest difference from the reference, as a share of the spread of its logits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.03}
# Samples of the clips in the two batches of the check: several blocks of attention, one of them within one clip; and a
# single short clip. Both run the one compiled graph that later batches run.
CHECK_SAMPLES = ((17_003, 192_080, 4_777, 90_001), (4_777,))


class DisagreementError(Exception):
    """A model in batches does not compute what the reference computes."""


class BatchModel(Protocol):
    """A model that computes several clips at once, such as `PackedDeviceModel`."""

    @property
    def config(self) -> SEWDConfig:
        """The configuration of its backbone."""

    def __call__(self, waveforms: Sequence[Tensor]) -> Sequence[Logits]:
        """The logits of each head for each clip, by one batch."""


# The errors of torch.compile. The second is no subclass of the first, and had another name before torch 2.6.
COMPILER_ERRORS: tuple[type[Exception], ...] = (
    exc.TorchDynamoException,
    getattr(exc, "FailOnRecompileLimitHit", exc.TorchDynamoException),
)

# What can show at the start that packed batches do not work on this machine. torch's own operations raise RuntimeError
# where a GPU or a library lacks something.
CHECK_ERRORS: tuple[type[Exception], ...] = (DisagreementError, RuntimeError, *COMPILER_ERRORS)


def check(model: BatchModel, reference: Callable[[Sequence[Tensor]], Iterable[Logits | None]], dtype: str) -> None:
    """Compare clips of different lengths, in two batches, with the reference in float32.

    Args:
        model: the model in batches.
        reference: yields the logits of each clip, in float32, None for a clip that does not fit in memory.
        dtype: data type that `model` computes in.

    Raises:
        DisagreementError: they differ by more than `TOLERANCE`.
        RuntimeError: memory ran out, also that of the reference; or the device lacks something.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [
        [torch.randn(max(model.config.min_samples, size), generator=generator) for size in sizes]
        for sizes in CHECK_SAMPLES
    ]
    packed_logits = [logits for waveforms in batches for logits in model(waveforms)]
    reference_logits = [
        logits for logits in reference([waveform for waveforms in batches for waveform in waveforms]) if logits
    ]
    if len(reference_logits) < len(packed_logits):
        msg = "the reference does not fit in memory"
        raise torch.cuda.OutOfMemoryError(msg)
    for head in range(len(packed_logits[0])):
        actual, expected = (
            torch.cat([logits[head] for logits in clips]) for clips in (packed_logits, reference_logits)
        )
        spread = float(expected.max() - expected.min()) or float(expected.abs().max())
        difference = float((actual - expected).abs().max()) / max(spread, 1e-6)
        if not difference <= TOLERANCE[dtype]:  # a NaN does not pass either
            msg = f"logits differ from those of the reference by {difference:.2g} of their spread"
            raise DisagreementError(msg)
