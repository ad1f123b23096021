"""Throughput and share of the machine's peak by the clips' length, drawn from what `benchmarks.model` wrote.

    python -m benchmarks.picture FIGURES.json PICTURE.png

FIGURES holds clips of several lengths (`--clips 2,5,10,20,30`); spreads of lengths in it are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer

COLOURS = {"packed": "#0b6e99", "packed int8": "#5ab4d6", "transformers": "#c25b12", "ONNX Runtime": "#6b6b6b"}
COLOURS |= {"padded by 8, sorted": "#e5a36f", "ONNX Runtime int8": "#b5b5b5"}


def main(
    figures: Annotated[Path, typer.Argument(help="What benchmarks.model wrote.")],
    picture: Annotated[Path, typer.Argument(help="Where the picture goes.")],
) -> None:
    """Draw."""
    told = json.loads(figures.read_text())
    clips = {float(lengths): found for lengths, found in told["clips"].items() if lengths.replace(".", "").isdigit()}
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    made, (speed, share) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines(speed, clips, "times_real_time")
    speed.set(title="Throughput", xlabel="Length of the clips, s", ylabel="Times real time", ylim=(0, None))
    lines(share, clips, "share_of_sgemm_peak")
    share.set(title="Share of the peak in float32", xlabel="Length of the clips, s", ylim=(0, None))
    share.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    handles, names = speed.get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    made.suptitle(f"SEW-D-{told['size']}, {told['threads']} threads, {told['machine']}", fontsize=9, color="#666666")
    made.savefig(picture, dpi=150)


def lines(axes: Any, clips: dict[float, Any], figure: str) -> None:
    """A line a way that has a colour."""
    lengths = sorted(clips)
    for name, colour in COLOURS.items():
        if name not in clips[lengths[0]]["ways"]:
            continue
        values = [clips[length]["ways"][name][figure] for length in lengths]
        style = {"linewidth": 2.5} if name == "packed" else {"linewidth": 1.5}
        axes.plot(lengths, values, marker="o", markersize=4, label=name, color=colour, **style)


if __name__ == "__main__":
    typer.run(main)
