"""A plot of a training's log: losses, error rates and the learning rate by step."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable

import numpy as np

_SMOOTHED_OVER = 50  # steps


def draw_loss_curve(lines: Iterable[str]) -> bytes:
    """Plot the lines of `log.jsonl` as a PNG: losses above, validation errors below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - takes a second, and few runs plot
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = [json.loads(line) for line in lines]
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "valid" in row]
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    losses, errors = figure.subplots(2, 1, sharex=True)
    x = np.array([row["step"] for row in steps])
    for name, label in (("ctc", "CTC, per character"), ("label", "cross-entropy"), ("mel", "log-mel regression")):
        y = np.array([row[name] for row in steps])
        if y.any():
            (line,) = losses.plot(x, _smooth(y), label=label)
            losses.plot(x, y, alpha=0.25, linewidth=0.7, color=line.get_color())
    losses.set_yscale("log")
    losses.set_ylabel("loss")
    losses.legend()
    rate = losses.twinx()
    rate.plot(x, [row["lr"] for row in steps], color="grey", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)")
    for name in sorted({name for row in validations for name in row["valid"]}):
        for metric in ("wer", "accuracy"):
            points = [(row["step"], row["valid"][name].get(metric)) for row in validations if name in row["valid"]]
            points = [
                (step, 1 - value if metric == "accuracy" else value) for step, value in points if value is not None
            ]
            if points:
                shown = "WER" if metric == "wer" else "wrong labels"
                errors.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"{name}: {shown}")
    errors.set_xlabel("step")
    errors.set_ylabel("error rate")
    errors.set_ylim(0, 1.05)
    errors.grid(alpha=0.3)
    if errors.lines:
        errors.legend(fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean of the last `_SMOOTHED_OVER` values, of fewer at the start."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - _SMOOTHED_OVER)
    smoothed: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return smoothed
