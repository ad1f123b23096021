"""How fast the model reads on this machine's processor: packed clips against transformers.

    python -m benchmarks.model [--threads N] [--rounds N] [--output FILE]

transformers runs clip by clip, and in padded batches of clips of like length, with an attention mask. Weights and
waveforms are random (neither changes the time), the sizes are those of sew-d-tiny, and the lengths are spread like
LibriSpeech's. The ways take turns, and all ratios are taken within a round, so that other load on the machine weighs on
all alike. transformers gets torch's threads, which sleep where they wait, or other load would slow it tenfold; packed
clips get as many threads of their own. Needs the development dependencies.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded

import numpy as np
import scipy.stats
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

from sewd_model import FeatureExtractor, SEWDConfig, SEWDForCTC
from sewd_model.packed import PackedModel

SIZES = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "num_conv_pos_embeddings": 31,
}
RATE = 16_000
CLIPS = 16
PADDED = 8
MEDIAN_S, SIGMA, SHORTEST_S, LONGEST_S = 6.2, 0.65, 2.0, 30.0  # log-normal; the mean is 7.7 s

Logits = list[torch.Tensor]  # (T, vocab_size) a clip


def main(
    threads: Annotated[int, typer.Option(help="Torch threads; 0: all.")] = 0,
    rounds: Annotated[int, typer.Option(help="Turns that each way gets.")] = 3,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("model-benchmark.json"),
) -> None:
    """Measure, print a table, write JSON."""
    threads = threads or torch.get_num_threads()
    clips = waveforms()
    audio_s = sum(map(len, clips)) / RATE
    ways = make_ways(clips, threads)
    with torch.inference_mode():
        logits = {name: way() for name, way in ways.items()}  # also warms up
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        peaks = []
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(timed(way))
            peaks.append(sgemm_peak(threads))
    config = SEWDConfig(**SIZES)
    work = sum(flops(config, len(clip)) for clip in clips)
    base, *_ = ways
    figures = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "times_real_time": audio_s / statistics.median(seconds[name]),
            "times_as_fast": statistics.median(a / b for a, b in zip(seconds[base], seconds[name], strict=True)),
            "share_of_sgemm_peak": statistics.median(
                work / s / peak for s, peak in zip(seconds[name], peaks, strict=True)
            ),
            "frames_unlike_alone": unlike(logits[name], logits[base]),
        }
        for name in ways
    }
    about = {
        "machine": f"{os.cpu_count()} processors, {platform.machine()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": threads,
        "clips": len(clips),
        "audio_s": audio_s,
        "gflop_per_audio_s": work / audio_s / 1e9,
        "sgemm_peak_gflop_per_s": statistics.median(peaks) / 1e9,
    }
    output.write_text(json.dumps({**about, "ways": figures, "rounds_s": seconds}, indent=1))
    show(about, figures)


def waveforms() -> list[np.ndarray]:
    """Clips whose lengths are the quantiles of their distribution, in random order; prepared for the model."""
    rng = np.random.default_rng(0)
    quantiles = rng.permutation((np.arange(CLIPS) + 0.5) / CLIPS)
    durations = scipy.stats.lognorm(SIGMA, scale=MEDIAN_S).ppf(quantiles).clip(SHORTEST_S, LONGEST_S)
    features = FeatureExtractor()
    return [features(rng.standard_normal(round(RATE * duration), np.float32)) for duration in durations]


def make_ways(clips: list[np.ndarray], threads: int) -> dict[str, Callable[[], Logits]]:
    """The ways to run one model over the clips; the first is what the others are compared with."""
    torch.manual_seed(0)
    theirs = transformers.SEWDForCTC(transformers.SEWDConfig(**SIZES)).eval()
    ours = SEWDForCTC(SEWDConfig(**SIZES)).eval()
    ours.load_state_dict(theirs.state_dict())
    packed = PackedModel([ours], threads=threads)
    tensors = [torch.from_numpy(clip) for clip in clips]
    by_length = sorted(range(len(clips)), key=lambda row: len(clips[row]))
    batches = [by_length[start : start + PADDED] for start in range(0, len(clips), PADDED)]

    def one_by_one() -> Logits:
        torch.set_num_threads(threads)
        return [theirs(tensor[None]).logits[0] for tensor in tensors]

    def in_padded_batches() -> Logits:
        torch.set_num_threads(threads)
        logits: dict[int, torch.Tensor] = {}
        for batch in batches:
            values = torch.nn.utils.rnn.pad_sequence([tensors[row] for row in batch], batch_first=True)
            lengths = torch.tensor([len(clips[row]) for row in batch])
            mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
            logits |= zip(batch, theirs(values, attention_mask=mask).logits, strict=True)
        return [logits[row][: ours.config.num_frames(len(clip))] for row, clip in enumerate(clips)]

    def in_packs() -> Logits:
        torch.set_num_threads(1)
        return [output.logits[0] for output in packed(tensors)]

    return {"transformers": one_by_one, f"padded by {PADDED}": in_padded_batches, "packed": in_packs}


def flops(config: SEWDConfig, num_samples: int) -> float:
    """Floating point operations of the matrix products that a clip needs, with no waste (2 a multiply-add)."""
    operations, frames, channels = 0, num_samples, 1
    for size, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        operations += frames * kernel * channels * size
        channels = size
    hidden, squeezed = config.hidden_size, frames // config.squeeze_factor
    operations += frames * channels * hidden  # projection
    taps = config.num_conv_pos_embeddings * hidden // config.num_conv_pos_embedding_groups
    operations += squeezed * taps * hidden
    # Content products: keys and values with each query; position products: one for each key and each term.
    a_layer = squeezed * hidden * (4 * hidden + 2 * config.intermediate_size) + 4 * squeezed**2 * hidden
    operations += config.num_hidden_layers * a_layer
    operations += squeezed * hidden * hidden * config.squeeze_factor + frames * hidden * config.vocab_size
    return 2.0 * operations


def timed(function: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def sgemm_peak(threads: int, size: int = 1536) -> float:
    """Operations a second of a large float32 product, the best of five."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size)
    return 2.0 * size**3 / min(timed(lambda: a @ b) for _ in range(5))


def unlike(logits: Logits, alone: Logits) -> float:
    """Share of frames whose best label is not that of the clip alone."""
    differ = [one.argmax(-1) != other.argmax(-1) for one, other in zip(logits, alone, strict=True)]
    return torch.cat(differ).double().mean().item()


def show(about: dict[str, object], figures: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in about.items()}
    table = Table(title=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items()))
    table.add_column("", no_wrap=True)
    for name in next(iter(figures.values())):
        table.add_column(name.replace("_", " "), justify="right")
    for name, values in figures.items():
        cells = [
            f"{value:.1%}" if "unlike" in key or "share" in key else f"{value:.2f}" for key, value in values.items()
        ]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
