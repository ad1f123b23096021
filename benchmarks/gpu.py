"""How fast the model reads on this machine's CUDA device: packed batches against transformers.

    python -m benchmarks.gpu [--dtype float32|bfloat16|float16] [--model DIR] [--seconds N] [--rounds N] [--output FILE]

transformers runs clip by clip, and in padded batches of clips of like length, with an attention mask. Lengths are
spread like LibriSpeech's, waveforms are noise, which does not change the time. The ways take turns. Needs torch, numpy
and transformers; without a CUDA device it says so and exits with 2.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from sewd_model import SEWDForCTC
from sewd_model.device_batches import TOLERANCES, checked_model, in_batches

BUNDLED = Path(__file__).parents[1] / "sewd_model" / "bundled"
RATE = 16_000
PADDED = (8, 16, 32, 64)
MEDIAN_S, SIGMA, SHORTEST_S, LONGEST_S = 6.2, 0.65, 2.0, 30.0  # log-normal; the mean is 7.7 s

Way = Callable[[list[Tensor]], Any]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--dtype", choices=[str(dtype).removeprefix("torch.") for dtype in TOLERANCES], default="float32"
    )
    parser.add_argument("--model", type=Path, default=BUNDLED, help="checkpoint with a CTC head")
    parser.add_argument("--seconds", type=float, default=1200.0, help="of audio")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("gpu-benchmark.json"))
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("this benchmark needs a CUDA device, and torch finds none\n")
        raise SystemExit(2)
    device = torch.device("cuda")
    figures = measure(
        make_ways(given.model, device, getattr(torch, given.dtype)), waveforms(given.seconds), given.rounds
    )
    about = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "dtype": given.dtype}
    given.output.write_text(json.dumps({**about, "model": str(given.model), "ways": figures}, indent=1))
    sys.stdout.write(f"{about}\n")
    for name, of_way in figures.items():
        sys.stdout.write(f"{name:>20} {of_way['seconds']:9.3f} s {of_way['times_real_time']:9.0f} times real time\n")


def waveforms(seconds: float) -> list[Tensor]:
    """Clips of about so many seconds in all, in random order."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(max(1, round(seconds / 7.7)), generator=generator)
    durations = (MEDIAN_S * torch.exp(SIGMA * normal)).clamp(SHORTEST_S, LONGEST_S)
    return [torch.randn(round(RATE * duration), generator=generator) for duration in durations.tolist()]


def make_ways(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Way]:
    """The ways to run one model over clips; the packed one is missing where it fails its check."""
    theirs = transformers.SEWDForCTC.from_pretrained(path).eval().to(device, dtype)

    def padded(size: int) -> Way:
        def run(clips: list[Tensor]) -> None:
            ordered = sorted(clips, key=len)
            for start in range(0, len(ordered), size):
                batch = ordered[start : start + size]
                values = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
                mask = (torch.arange(values.shape[1]) < torch.tensor([len(clip) for clip in batch])[:, None]).long()
                theirs(values.to(device, dtype), attention_mask=mask.to(device)).logits.float().cpu()

        return run

    ways: dict[str, Way] = {
        "one by one": lambda clips: [theirs(clip[None].to(device, dtype)).logits.float().cpu() for clip in clips],
        **{f"padded by {size}": padded(size) for size in PADDED},
    }
    checked = checked_model([SEWDForCTC.from_pretrained(path).eval()], device, dtype, RATE)
    if checked is not None:
        model, budget = checked
        ways["packed"] = lambda clips: list(in_batches(model, clips, budget))
    return ways


@torch.inference_mode()
def measure(ways: dict[str, Way], clips: list[Tensor], rounds: int) -> dict[str, dict[str, Any]]:
    """Let the ways take turns. Each ends with its results on the host, so the clock needs no synchronisation."""
    audio_s = sum(map(len, clips)) / RATE
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            began = time.perf_counter()
            way(clips)
            if turn > 0:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(of_way) for name, of_way in seconds.items()}
    return {
        name: {"seconds": median, "times_real_time": audio_s / median, "rounds_s": seconds[name]}
        for name, median in medians.items()
    }


if __name__ == "__main__":
    main()
