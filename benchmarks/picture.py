"""Draw throughput and share of the machine's peak by clip length, from the figures of `benchmarks.model`.

    python -m benchmarks.picture FIGURES.json PICTURE.png

FIGURES holds clips of several fixed lengths (`--clips 2,5,10,20,30`); clips with LibriSpeech's lengths are ignored.
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
    figures: Annotated[Path, typer.Argument(help="JSON file that benchmarks.model wrote.")],
    picture: Annotated[Path, typer.Argument(help="PNG file to write.")],
) -> None:
    """Draw throughput and share of the machine's peak by clip length."""
    content = json.loads(figures.read_text())
    by_length = {float(key): values for key, values in content["clips"].items() if key.replace(".", "").isdigit()}
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (speed, share) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    draw_lines(speed, by_length, "times_real_time")
    speed.set(title="Throughput", xlabel="Length of the clips, s", ylabel="Times real time", ylim=(0, None))
    draw_lines(share, by_length, "share_of_sgemm_peak")
    share.set(title="Share of the peak in float32", xlabel="Length of the clips, s", ylim=(0, None))
    share.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    handles, names = speed.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    subtitle = f"SEW-D-{content['size']}, {content['threads']} threads, {content['machine']}"
    figure.suptitle(subtitle, fontsize=9, color="#666666")
    figure.savefig(picture, dpi=150)


def draw_lines(axes: Any, by_length: dict[float, Any], key: str) -> None:
    """Draw a line for each method that has a colour.

    Args:
        axes: matplotlib's axes.
        by_length: the figures of `benchmarks.model` for each clip length in seconds.
        key: which figure to draw.
    """
    lengths = sorted(by_length)
    for name, colour in COLOURS.items():
        if name not in by_length[lengths[0]]["methods"]:
            continue
        values = [by_length[length]["methods"][name][key] for length in lengths]
        style = {"linewidth": 2.5} if name == "packed" else {"linewidth": 1.5}
        axes.plot(lengths, values, marker="o", markersize=4, label=name, color=colour, **style)


if __name__ == "__main__":
    typer.run(main)
