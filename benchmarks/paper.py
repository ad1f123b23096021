"""Speed of SEW-D against wav2vec 2.0 at pairs of sizes, on the same audio and this machine's CPU: the paper's claim.

    python -m benchmarks.paper [--sizes tiny,small,mid,base+] [--clips librispeech,10] [--number N] [--threads N]
        [--rounds N] [--output FILE]

The paper (Wu et al. 2021, "Performance-Efficiency Trade-offs in Unsupervised Pre-training for Speech Recognition",
arXiv:2109.06870) pairs sizes of both families with similar inference times, where SEW makes fewer errors, and reports
that SEW is 1.9 times as fast as wav2vec 2.0 with 13.5 % fewer errors. Both figures are in its abstract, which does not
name the sizes. The sizes of SEW-D, as in `benchmarks.model`, are those of the authors' scripts (asappresearch/sew,
scripts/pt-sew-d.sh). wav2vec 2.0 base is the published model: hidden size 768, 12 layers, convolutions with 512
channels. The paper's smaller wav2vec 2.0 models are not published with their sizes, and its table was not available:
tiny, small and mid are here base with hidden sizes 256, 384 and 512 and heads of 64. The "narrow" variants have
convolutions as wide as the hidden size, which makes them much faster. SEW-D mid is compared with base too, on the
assumption that the 1.9 is for this pair.

Both families run in transformers clip by clip: for wav2vec 2.0 tiny that was faster than padded batches of similar
lengths (larger sizes were not tried). Each uses its default attention in transformers, which is torch's fused attention
for wav2vec 2.0. SEW-D also runs in packed batches. The methods take turns, and ratios are computed within a round.
Weights and waveforms are random. Needs the development dependencies.
"""

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.model import Method
from benchmarks.workload import RATE, SIZES, Logits, timed, waveforms
from sewd_model import SEWDConfig, SEWDForCTC
from sewd_model.packed.cpu import PackedModel

BASE = {"wav2vec 2.0 base": (768, 512)}
# The wav2vec 2.0 models for each size of SEW-D: hidden size and channels of the convolutions.
PEERS = {
    "tiny": {"wav2vec 2.0 tiny": (256, 512), "wav2vec 2.0 tiny, narrow": (256, 256)},
    "small": {"wav2vec 2.0 small": (384, 512), "wav2vec 2.0 small, narrow": (384, 384)},
    "mid": {"wav2vec 2.0 mid": (512, 512), **BASE},
    "base+": BASE,
}


def main(
    sizes: Annotated[str, typer.Option(help="Sizes of SEW-D, separated by commas.")] = ",".join(PEERS),
    clips: Annotated[
        str, typer.Option(help="Lengths of the clips: librispeech, or seconds; separate several by commas.")
    ] = "librispeech,10",
    number: Annotated[
        int, typer.Option(help="Number of clips with LibriSpeech's lengths; other sets have as much audio.")
    ] = 10,
    threads: Annotated[int, typer.Option(help="Number of threads; 0 for all.")] = 0,
    rounds: Annotated[int, typer.Option(help="Measurements of each method.")] = 3,
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("paper-benchmark.json"),
) -> None:
    """Time SEW-D against wav2vec 2.0 on this machine's CPU; print tables and write JSON."""
    threads = threads or torch.get_num_threads()
    setup = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": threads,
        "rounds": rounds,
    }
    Console().print(setup)
    figures: dict[str, dict[str, Any]] = {lengths: {} for lengths in clips.split(",")}
    for size in sizes.split(","):
        methods = make_methods(SIZES[size], PEERS[size], threads)
        for lengths, by_size in figures.items():
            by_size[size] = measure(methods, list(PEERS[size]), waveforms(lengths, number), rounds)
            print_table(f"{size}, {lengths}", by_size[size])
    output.write_text(json.dumps({**setup, "clips": figures}, indent=1))


def make_methods(sizes: dict[str, Any], peers: dict[str, tuple[int, int]], threads: int) -> dict[str, Method]:
    """The methods of running both families over clips, by name.

    Args:
        sizes: options of the SEW-D configuration.
        peers: hidden size and convolution channels of each wav2vec 2.0 model, by name.
        threads: number of threads.
    """
    torch.manual_seed(0)
    reference = transformers.SEWDForCTC(transformers.SEWDConfig(**sizes)).eval()
    model = SEWDForCTC(SEWDConfig(**sizes)).eval()
    model.load_state_dict(reference.state_dict())
    packed = PackedModel([model], threads=threads)

    def clip_by_clip(model: torch.nn.Module) -> Method:
        def run(clips: list[torch.Tensor]) -> Logits:
            torch.set_num_threads(threads)
            return [model(clip[None]).logits[0] for clip in clips]

        return run

    def in_packs(clips: list[torch.Tensor]) -> Logits:
        torch.set_num_threads(1)
        return [output.logits[0] for output in packed(clips)]

    return {
        **{name: clip_by_clip(wav2vec2(hidden, channels)) for name, (hidden, channels) in peers.items()},
        "SEW-D": clip_by_clip(reference),
        "SEW-D, packed": in_packs,
    }


def wav2vec2(hidden: int, channels: int) -> torch.nn.Module:
    """wav2vec 2.0 base with another hidden size and other convolution channels."""
    config = transformers.Wav2Vec2Config(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        conv_dim=7 * (channels,),
    )
    return transformers.Wav2Vec2ForCTC(config).eval()


def measure(methods: dict[str, Method], peers: list[str], clips: list[torch.Tensor], rounds: int) -> dict[str, Any]:
    """Time the methods in turns over the clips, and compare each with the methods named in `peers`."""
    audio_s = sum(map(len, clips)) / RATE
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with torch.inference_mode():
        for method in methods.values():
            method(clips)  # warms up
        for _ in range(rounds):
            for name, method in methods.items():
                seconds[name].append(timed(lambda method=method: method(clips)))  # type: ignore[misc]
    return {
        "number": len(clips),
        "audio_s": audio_s,
        "methods": {
            name: {
                "seconds": statistics.median(seconds[name]),
                "times_real_time": audio_s / statistics.median(seconds[name]),
                "times_as_fast_as": {
                    peer: statistics.median(a / b for a, b in zip(seconds[peer], seconds[name], strict=True))
                    for peer in peers
                },
            }
            for name in methods
        },
        "rounds_s": seconds,
    }


def print_table(title: str, figures: dict[str, Any]) -> None:
    """Print the figures of one size and one set of clips."""
    by_method = figures["methods"]
    table = Table(title=f"{title}: {figures['number']} clips, {figures['audio_s']:.0f} s")
    table.add_column("", no_wrap=True)
    table.add_column("times real time", justify="right")
    for peer in next(iter(by_method.values()))["times_as_fast_as"]:
        table.add_column(f"times as fast as {peer}", justify="right")
    for name, values in by_method.items():
        cells = [values["times_real_time"], *values["times_as_fast_as"].values()]
        table.add_row(name, *(f"{value:.2f}" for value in cells))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
