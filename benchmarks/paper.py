"""SEW-D against wav2vec 2.0 at pairs of sizes, on the same audio: the claim of the paper, on this machine's processor.

    python -m benchmarks.paper [--sizes tiny,small,mid,base+] [--clips librispeech,10] [--number N] [--threads N]
        [--rounds N] [--output FILE]

The paper (Wu et al. 2021, "Performance-Efficiency Trade-offs in Unsupervised Pre-training for Speech Recognition")
pairs sizes of both families, and finds SEW 1.9 times as fast as wav2vec 2.0 base at a lower word error rate. Of wav2vec
2.0 here: base is the published one, hidden size 768 and 12 layers; tiny, small and mid are it with hidden sizes 256,
384 and 512, heads of 64. SEW-D's sizes are those of `benchmarks.model`. Both in transformers clip by clip, and SEW-D in
packs, in turns; all ratios are to wav2vec 2.0 within a round. Weights and waveforms are random. Needs the development
dependencies.
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
from benchmarks.workload import RATE, SIZES, timed, waveforms
from sewd_model import SEWDConfig, SEWDForCTC
from sewd_model.packed import PackedModel

HIDDEN = {"tiny": 256, "small": 384, "mid": 512, "base+": 768}  # of the wav2vec 2.0 that each size is paired with
NAMES = {size: f"wav2vec 2.0 {size.removesuffix('+')}" for size in HIDDEN}


def main(
    sizes: Annotated[str, typer.Option(help="Of SEW-D, with commas.")] = ",".join(HIDDEN),
    clips: Annotated[str, typer.Option(help="Lengths: librispeech, or seconds; several with commas.")] = (
        "librispeech,10"
    ),
    number: Annotated[int, typer.Option(help="Of clips of LibriSpeech's lengths; as much audio of others.")] = 6,
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
        ways = make_ways(size, threads)
        for lengths, figures in found.items():
            figures[size] = measure(ways, waveforms(lengths, number), rounds)
    output.write_text(json.dumps({**about, "clips": found}, indent=1))
    for lengths, figures in found.items():
        show(lengths, figures)


def make_ways(size: str, threads: int) -> dict[str, Way]:
    """A pair of models, the first of them wav2vec 2.0."""
    torch.manual_seed(0)
    hidden = HIDDEN[size]
    wav2vec2 = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=hidden // 64, num_hidden_layers=12
        )
    ).eval()
    theirs = transformers.SEWDForCTC(transformers.SEWDConfig(**SIZES[size])).eval()
    ours = SEWDForCTC(SEWDConfig(**SIZES[size])).eval()
    ours.load_state_dict(theirs.state_dict())
    packed = PackedModel([ours], threads=threads)

    def clip_by_clip(model: torch.nn.Module) -> Way:
        def run(clips: list[torch.Tensor]) -> list[torch.Tensor]:
            torch.set_num_threads(threads)
            return [model(clip[None]).logits[0] for clip in clips]

        return run

    def in_packs(clips: list[torch.Tensor]) -> list[torch.Tensor]:
        torch.set_num_threads(1)
        return [output.logits[0] for output in packed(clips)]

    return {
        NAMES[size]: clip_by_clip(wav2vec2),
        f"SEW-D {size}": clip_by_clip(theirs),
        f"SEW-D {size}, packed": in_packs,
    }


def measure(ways: dict[str, Way], clips: list[torch.Tensor], rounds: int) -> dict[str, Any]:
    """Let the ways take turns over the clips; the first is what the others are compared with."""
    audio_s = sum(map(len, clips)) / RATE
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for way in ways.values():
            way(clips)  # warms up
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(timed(lambda way=way: way(clips)))  # type: ignore[misc]
    base, *_ = ways
    return {
        "number": len(clips),
        "audio_s": audio_s,
        "ways": {
            name: {
                "seconds": statistics.median(seconds[name]),
                "times_real_time": audio_s / statistics.median(seconds[name]),
                "times_as_fast": statistics.median(a / b for a, b in zip(seconds[base], seconds[name], strict=True)),
            }
            for name in ways
        },
        "rounds_s": seconds,
    }


def show(lengths: str, found: dict[str, Any]) -> None:
    """Print the table of one set of clips."""
    table = Table("", "times real time", "times as fast as wav2vec 2.0", title=lengths)
    for figures in found.values():
        for name, values in figures["ways"].items():
            table.add_row(name, f"{values['times_real_time']:.1f}", f"{values['times_as_fast']:.2f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
