"""SEW-D against wav2vec 2.0 at pairs of sizes, on the same audio: the claim of the paper, on this machine's processor.

    python -m benchmarks.paper [--sizes tiny,small,mid,base+] [--clips librispeech,10] [--number N] [--threads N]
        [--rounds N] [--output FILE]

The paper (Wu et al. 2021, "Performance-Efficiency Trade-offs in Unsupervised Pre-training for Speech Recognition",
arXiv:2109.06870) pairs sizes of both families that take about as long as each other, SEW making fewer errors, and finds
SEW 1.9 times as fast as wav2vec 2.0 at 13.5 % fewer errors: both are in its abstract, which does not name the sizes.
SEW-D's sizes, those of `benchmarks.model`, are those of the authors' scripts (asappresearch/sew, scripts/pt-sew-d.sh).
wav2vec 2.0 base is the published one: hidden size 768, 12 layers, convolutions of 512 channels. The paper's smaller
ones are not published with their sizes, and its table was not at hand: tiny, small and mid are here base with hidden
sizes 256, 384 and 512, heads of 64; "narrow" ones have convolutions as wide as the hidden size, which makes them a good
deal faster. Mid meets base too, as the 1.9 is taken to be theirs.

Both families run in transformers clip by clip, which was faster for wav2vec 2.0 tiny than padded batches of like length
(larger ones were not tried), with the attention that it takes by default, torch's fused one for wav2vec 2.0; SEW-D runs
in packs as well. All ways take
turns, and ratios are taken within a round. Weights and waveforms are random. Needs the development dependencies.
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

from benchmarks.model import Way
from benchmarks.workload import RATE, SIZES, Logits, timed, waveforms
from sewd_model import SEWDConfig, SEWDForCTC
from sewd_model.packed.cpu import PackedModel

BASE = {"wav2vec 2.0 base": (768, 512)}
PEERS = {  # wav2vec 2.0 for each size of SEW-D: hidden size and channels of the convolutions
    "tiny": {"wav2vec 2.0 tiny": (256, 512), "wav2vec 2.0 tiny, narrow": (256, 256)},
    "small": {"wav2vec 2.0 small": (384, 512), "wav2vec 2.0 small, narrow": (384, 384)},
    "mid": {"wav2vec 2.0 mid": (512, 512), **BASE},
    "base+": BASE,
}


def main(
    sizes: Annotated[str, typer.Option(help="Of SEW-D, with commas.")] = ",".join(PEERS),
    clips: Annotated[str, typer.Option(help="Lengths: librispeech, or seconds; several with commas.")] = (
        "librispeech,10"
    ),
    number: Annotated[int, typer.Option(help="Of clips of LibriSpeech's lengths; as much audio of others.")] = 10,
    threads: Annotated[int, typer.Option(help="Threads; 0: all.")] = 0,
    rounds: Annotated[int, typer.Option(help="Turns that each way gets.")] = 3,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("paper-benchmark.json"),
) -> None:
    """Measure, print a table, write JSON."""
    threads = threads or torch.get_num_threads()
    about = {
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": threads,
        "rounds": rounds,
    }
    Console().print(about)
    found: dict[str, dict[str, Any]] = {lengths: {} for lengths in clips.split(",")}
    for size in sizes.split(","):
        ways = make_ways(SIZES[size], PEERS[size], threads)
        for lengths, figures in found.items():
            figures[size] = measure(ways, list(PEERS[size]), waveforms(lengths, number), rounds)
            show(f"{size}, {lengths}", figures[size])
    output.write_text(json.dumps({**about, "clips": found}, indent=1))


def make_ways(sizes: dict[str, Any], peers: dict[str, tuple[int, int]], threads: int) -> dict[str, Way]:
    """The ways to run SEW-D of `sizes`, and wav2vec 2.0 of each pair of hidden size and channels, by name."""
    torch.manual_seed(0)
    theirs = transformers.SEWDForCTC(transformers.SEWDConfig(**sizes)).eval()
    ours = SEWDForCTC(SEWDConfig(**sizes)).eval()
    ours.load_state_dict(theirs.state_dict())
    packed = PackedModel([ours], threads=threads)

    def clip_by_clip(model: torch.nn.Module) -> Way:
        def run(clips: list[torch.Tensor]) -> Logits:
            torch.set_num_threads(threads)
            return [model(clip[None]).logits[0] for clip in clips]

        return run

    def in_packs(clips: list[torch.Tensor]) -> Logits:
        torch.set_num_threads(1)
        return [output.logits[0] for output in packed(clips)]

    return {
        **{name: clip_by_clip(wav2vec2(hidden, channels)) for name, (hidden, channels) in peers.items()},
        "SEW-D": clip_by_clip(theirs),
        "SEW-D, packed": in_packs,
    }


def wav2vec2(hidden: int, channels: int) -> torch.nn.Module:
    """wav2vec 2.0 base with another hidden size and other channels."""
    config = transformers.Wav2Vec2Config(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        conv_dim=7 * (channels,),
    )
    return transformers.Wav2Vec2ForCTC(config).eval()


def measure(ways: dict[str, Way], peers: list[str], clips: list[torch.Tensor], rounds: int) -> dict[str, Any]:
    """Let the ways take turns over the clips; each is compared with those named in `peers`."""
    audio_s = sum(map(len, clips)) / RATE
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for way in ways.values():
            way(clips)  # warms up
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(timed(lambda way=way: way(clips)))  # type: ignore[misc]
    return {
        "number": len(clips),
        "audio_s": audio_s,
        "ways": {
            name: {
                "seconds": statistics.median(seconds[name]),
                "times_real_time": audio_s / statistics.median(seconds[name]),
                "times_as_fast_as": {
                    peer: statistics.median(a / b for a, b in zip(seconds[peer], seconds[name], strict=True))
                    for peer in peers
                },
            }
            for name in ways
        },
        "rounds_s": seconds,
    }


def show(title: str, found: dict[str, Any]) -> None:
    """Print the table of one size and one set of clips."""
    figures = found["ways"]
    table = Table(title=f"{title}: {found['number']} clips, {found['audio_s']:.0f} s")
    table.add_column("", no_wrap=True)
    table.add_column("times real time", justify="right")
    for peer in next(iter(figures.values()))["times_as_fast_as"]:
        table.add_column(f"times as fast as {peer}", justify="right")
    for name, values in figures.items():
        cells = [values["times_real_time"], *values["times_as_fast_as"].values()]
        table.add_row(name, *(f"{value:.2f}" for value in cells))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
