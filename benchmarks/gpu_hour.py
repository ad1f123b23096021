"""The first measurements on a GPU: what agrees with the reference, which kernel, batch and number of processes is best.

    python -m benchmarks.gpu_hour [--device cuda|cpu] [--sizes tiny,base+] [--dtypes float32,bfloat16,float16]
        [--clips N] [--budgets 60,150,300,600] [--processes 1,2,4] [--minutes 9] [--output FOLDER]

Writes gpu.json and gpu.md, with the table for docs/performance.md, to the folder. A step that fails is reported, and
the next ones run; none starts after the minutes have passed. The first size is measured in all ways, the others last.
Weights and waveforms are random, but for the step of the texts: speech, and the bundled model. On a CPU choose small
numbers: the figures then say nothing about a GPU, and the step of the kernels is left out.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import SPEECH, activation_bytes, compare_texts, copy_rate, product_rate
from benchmarks.workload import RATE, SIZES, flop_count, timed, waveforms
from sewd_model import SEWDConfig, SEWDForCTC
from sewd_model.packed import gpu_attention, gpu_check
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_batches import DeviceEngine, stream

Rows = list[dict[str, Any]]
HALF = ((128, 64, 8, 3), (64, 64, 4, 3), (128, 64, 8, 2), (64, 32, 4, 3))  # queries, keys, warps, stages
SINGLE = ((64, 32, 4, 2), (128, 32, 8, 2))


def main() -> int:
    """Measure, write the files; returns the exit code."""
    options = parse_arguments()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("benchmarks.gpu_hour: there is no CUDA device that torch can use\n")
        return 2
    figures = measure(options, device)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu.json").write_text(json.dumps(figures, indent=1))
    (options.output / "gpu.md").write_text(markdown(figures))
    sys.stdout.write(markdown(figures))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_hour", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--sizes", type=names, default=list(SIZES), help="sizes of the model")
    parser.add_argument("--dtypes", type=names, default=["float32", "bfloat16", "float16"], help="data types")
    parser.add_argument("--clips", type=int, default=512, help="clips with LibriSpeech's lengths, for each measurement")
    parser.add_argument("--budgets", type=numbers, default=[60, 150, 300, 600], help="seconds of audio in a batch")
    parser.add_argument("--processes", type=numbers, default=[1, 2, 4], help="processes that share the device")
    parser.add_argument("--minutes", type=float, default=9, help="no step starts after them")
    parser.add_argument("--product-size", type=int, default=8192, help="rows of the large product")
    parser.add_argument("--copy-bytes", type=int, default=1 << 30, help="bytes of the large copy")
    parser.add_argument("--output", type=Path, default=Path("gpu-hour"), help="folder for gpu.json and gpu.md")
    return parser.parse_args()


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Take all measurements; the results by step, each a list of rows."""
    begin = time.perf_counter()
    until = begin + 60 * options.minutes
    size, *other_sizes = options.sizes
    fast = "bfloat16" if "bfloat16" in options.dtypes else options.dtypes[0]
    clips = waveforms("librispeech", options.clips)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU: no figures of a GPU",
        "torch": torch.__version__,
        "copy_byte_per_s": copy_rate(device, options.copy_bytes),
        "product_flop_per_s": {
            dtype: product_rate(device, getattr(torch, dtype), options.product_size) for dtype in options.dtypes
        },
    }

    def speeds(size: str) -> Rows:
        return [
            row(partial(agreement_and_speed, size, dtype, device, clips, figures), until, size=size, dtype=dtype)
            for dtype in options.dtypes
        ]

    figures["speed"] = speeds(size)
    figures["texts"] = [
        row(partial(compare_texts, SPEECH, dtype, device), until, dtype=dtype) for dtype in options.dtypes
    ]
    figures["kernels"] = kernels(size, options.dtypes, device, clips, until) if device.type == "cuda" else []

    def with_budget(budget: float) -> dict[str, Any]:
        return {"times_real_time": speed(packed(size, fast, device)[0], clips, budget)}

    figures["budgets"] = [row(partial(with_budget, budget), until, budget_s=budget) for budget in options.budgets]
    best = fastest(figures["budgets"])["budget_s"]
    figures["processes"] = [
        row(partial(shared_speed, count, size, fast, device, options.clips, best), until, processes=count)
        for count in options.processes
    ]
    figures["best_budget_s"] = best
    figures["best_processes"] = fastest(figures["processes"])["processes"]
    figures["speed"] += [entry for other in other_sizes for entry in speeds(other)]
    figures["minutes"] = (time.perf_counter() - begin) / 60
    return figures


def fastest(rows: Rows) -> dict[str, Any]:
    """The row with the highest speed."""
    return max(rows, key=lambda entry: entry.get("times_real_time", 0.0))


def row(step: Callable[[], dict[str, Any]], until: float, **name: Any) -> dict[str, Any]:
    """The figures of a step under its name, or the error of the device or compiler that ended it; a bug is raised."""
    if time.perf_counter() > until:
        return {**name, "error": "no time left"}
    try:
        return {**name, **step()}
    except gpu_check.CHECK_ERRORS as error:
        return {**name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


def packed(size: str, dtype: str, device: torch.device) -> tuple[PackedDeviceModel, SEWDForCTC]:
    """A packed model with random weights, and its reference."""
    torch.manual_seed(0)
    reference = SEWDForCTC(SEWDConfig(**SIZES[size])).eval()
    return PackedDeviceModel([reference], device=device, dtype=dtype), reference


def speed(model: PackedDeviceModel, clips: list[torch.Tensor], budget_s: float) -> float:
    """Seconds of audio per second; the best of two passes after one that warms up."""
    engine = DeviceEngine(model)
    return (
        sum(map(len, clips)) / RATE / min([timed(lambda: list(stream(engine, clips, budget_s))) for _ in range(3)][1:])
    )


def agreement_and_speed(
    size: str, dtype: str, device: torch.device, clips: list[torch.Tensor], rates: dict[str, Any]
) -> dict[str, Any]:
    """Check a packed model against the reference on the CPU, and time it beside the lower bounds of the device."""
    model, reference = packed(size, dtype, device)

    def in_float32(waveforms: Any) -> Iterator[tuple[torch.Tensor, ...]]:
        with torch.inference_mode():
            yield from ((reference(clip[None]).logits[0],) for clip in waveforms)

    begin = time.perf_counter()
    gpu_check.check(model, in_float32, dtype)
    check_s = time.perf_counter() - begin
    audio_s = sum(map(len, clips)) / RATE
    operations = sum(flop_count(model.config, len(clip)) for clip in clips) / audio_s
    moved = activation_bytes(model.config, sum(map(len, clips)), dtype) / audio_s
    times = speed(model, clips, 300)
    return {
        "check_s": check_s,
        "times_real_time": times,
        "bound_by_operations": rates["product_flop_per_s"][dtype] / operations,
        "bound_by_bytes": rates["copy_byte_per_s"] / moved,
        "share_of_product_rate": times * operations / rates["product_flop_per_s"][dtype],
    }


def kernels(size: str, dtypes: list[str], device: torch.device, clips: list[torch.Tensor], until: float) -> Rows:
    """Time variants of the attention kernel, each in the whole model."""
    rows, before = [], dict(gpu_attention.KERNEL)

    def whole_model(dtype: str) -> dict[str, Any]:
        return {"times_real_time": speed(packed(size, dtype, device)[0], clips, 300)}

    try:
        for dtype in dtypes:
            options = before[getattr(torch, dtype)]
            for queries, keys, warps, stages in SINGLE if dtype == "float32" else HALF:
                shape = {"BLOCK_M": queries, "BLOCK_N": keys, "num_warps": warps, "num_stages": stages}
                gpu_attention.KERNEL[getattr(torch, dtype)] = {**options, **shape}
                torch.compiler.reset()
                rows.append(row(partial(whole_model, dtype), until, dtype=dtype, **shape))
    finally:
        gpu_attention.KERNEL.update(before)
        torch.compiler.reset()
    return rows


def shared_speed(
    count: int, size: str, dtype: str, device: torch.device, clips: int, budget_s: float
) -> dict[str, Any]:
    """The speed of several processes together on one device, all measured at once."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    with context.Pool(count, _keep, (barrier,)) as pool:
        seconds = pool.starmap(_one_process, [(size, dtype, str(device), clips, budget_s)] * count, chunksize=1)
    audio_s = sum(map(len, waveforms("librispeech", clips))) / RATE
    return {"times_real_time": count * audio_s / max(seconds)}


def _keep(barrier: Any) -> None:
    globals()["_barrier"] = barrier


def _one_process(size: str, dtype: str, device: str, number: int, budget_s: float) -> float:
    engine, clips = DeviceEngine(packed(size, dtype, torch.device(device))[0]), waveforms("librispeech", number)
    list(stream(engine, clips, budget_s))
    globals()["_barrier"].wait(120)
    return timed(lambda: list(stream(engine, clips, budget_s)))


def markdown(figures: dict[str, Any]) -> str:
    """The report: the device, and a table for each step."""
    parts = [f"# {figures['device']}, torch {figures['torch']}\n"]
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in figures["product_flop_per_s"].items())
    parts.append(f"Large products: {rates}. Large copy: {figures['copy_byte_per_s'] / 1e9:.4g} GB/s.")
    parts.append(f"Best: {figures['best_budget_s']} s in a batch, {figures['best_processes']} processes.")
    parts.append(f"Measured in {figures['minutes']:.1f} minutes.\n")
    for step in ("speed", "texts", "kernels", "budgets", "processes"):
        parts += [f"## {step.capitalize()}\n", table(figures[step])] if figures[step] else []
    return "\n".join(parts) + "\n"


def table(rows: Rows) -> str:
    """Rows as a Markdown table."""
    names = list(dict.fromkeys(name for entry in rows for name in entry))
    cells = [
        [f"{value:,.4g}" if isinstance(value, float) else str(value) for value in (entry.get(n, "") for n in names)]
        for entry in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *cells]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
