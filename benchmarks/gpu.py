"""Speed of the model on a GPU: packed batches against padded batches and single clips in transformers, in one dtype.

    python -m benchmarks.gpu [--size tiny|small|mid|base+] [--dtype bfloat16] [--clips librispeech,10,30] [--number N]
        [--batches 8,32,128] [--rounds N] [--speech DIR] [--output FILE]

The batches of transformers hold clips of similar length (sorted), with an attention mask; the best of the batch sizes
counts. Weights and waveforms are random, which does not change the time. Model sizes are SEW-D's; clips have lengths
like LibriSpeech's, or a fixed length. The methods take turns, and ratios are computed within a round. The time includes
copies to the GPU and of the logits back, but not reading files.

Lower bounds of the time: the necessary operations at the rate of a large product in the dtype, measured here; the bytes
of weights and of the widest activations, each written and read once, at the rate of a large copy; and on the CPU,
finding the best tokens in the logits.

The bundled model's texts for pieces of the WAV files (16-bit, mono) in DIR are compared with its texts in float32.
Needs torch, transformers and a CUDA device; without a device it exits with code 2.
"""

import argparse
import json
import statistics
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.workload import (
    RATE,
    SIZES,
    Logits,
    flop_count,
    run_padded,
    share_of_different_frames,
    timed,
    waveforms,
)
from sewd_model import CTCTokenizer, FeatureExtractor, SEWDConfig, SEWDForCTC, greedy_path
from sewd_model.files import BUNDLED
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_batches import DeviceEngine, probed_budget_s, stream

Method = Callable[[list[torch.Tensor]], Logits]
SPEECH = Path(__file__).parents[1] / "jobs" / "demo_corpus" / "audio"
PIECES_S = (1.5, 2.5, 4.0, 7.0)


def main() -> int:
    """Measure, print a table, write JSON; returns the exit code."""
    options = parse_arguments()
    if not torch.cuda.is_available():
        sys.stderr.write("benchmarks.gpu: there is no CUDA device that torch can use\n")
        return 2
    device, dtype = torch.device("cuda"), getattr(torch, options.dtype)
    config = SEWDConfig(**SIZES[options.size])
    methods, budget_s = make_methods(config, options.dtype, device, options.batches)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "size": options.size,
        "dtype": options.dtype,
        "budget_s": budget_s,
        "rounds": options.rounds,
        "product_flop_per_s": product_rate(device, dtype),
        "copy_byte_per_s": copy_rate(device),
    }
    print_line(json.dumps(figures, indent=1))
    figures["clips"] = {}
    for lengths in options.clips.split(","):
        clips = waveforms(lengths, options.number)
        figures["clips"][lengths] = measure(methods, clips, config, figures, options.rounds)
        print_table(lengths, figures["clips"][lengths])
    figures["texts"] = compare_texts(options.speech, options.dtype, device)
    print_line(f"texts of the bundled model, against float32: {json.dumps(figures['texts'])}")
    options.output.write_text(json.dumps(figures, indent=1))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny", help="size of the model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="data type")
    parser.add_argument(
        "--clips", default="librispeech,10,30", help="lengths: librispeech, or seconds; separate several by commas"
    )
    parser.add_argument(
        "--number", type=int, default=512, help="clips with LibriSpeech's lengths; other sets have as much audio"
    )
    parser.add_argument(
        "--batches",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[8, 32, 128],
        help="sizes of padded batches, separated by commas",
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each method")
    parser.add_argument(
        "--speech", type=Path, default=SPEECH, help="directory of WAV files for the comparison of texts"
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-benchmark.json"), help="JSON file for the figures")
    return parser.parse_args()


def make_methods(
    config: SEWDConfig, dtype: str, device: torch.device, batches: list[int]
) -> tuple[dict[str, Method], float]:
    """The methods of running one model over clips, those of transformers first.

    Args:
        config: the model's configuration.
        dtype: name of the data type.
        device: where the model runs.
        batches: sizes of padded batches.

    Returns:
        The methods by name, and the budget of a packed batch in seconds of audio.
    """
    torch.manual_seed(0)
    reference = transformers.SEWDForCTC(transformers.SEWDConfig.from_dict(config.to_dict())).eval()
    model = SEWDForCTC(config).eval()
    model.load_state_dict(reference.state_dict())
    engine = DeviceEngine(PackedDeviceModel([model], device=device, dtype=dtype))
    budget_s = probed_budget_s(engine) if device.type == "cuda" else 30.0
    reference = reference.to(device, getattr(torch, dtype))

    def in_padded_batches(size: int) -> Method:
        return lambda clips: run_padded(reference, clips, size, config)

    def one_by_one(clips: list[torch.Tensor]) -> Logits:
        return [reference(clip[None].to(device, reference.dtype)).logits[0].float().cpu() for clip in clips]

    def packed(clips: list[torch.Tensor]) -> Logits:
        results = list(stream(engine, clips, budget_s))
        return [logits[0] for logits in results if logits is not None]

    return {
        "one by one": one_by_one,
        **{f"padded by {size}": in_padded_batches(size) for size in batches},
        "packed": packed,
    }, budget_s


def measure(
    methods: dict[str, Method], clips: list[torch.Tensor], config: SEWDConfig, setup: dict[str, Any], rounds: int
) -> dict[str, Any]:
    """Time the methods in turns over the clips; frames are compared with those of the first method.

    Args:
        methods: what `make_methods` returned.
        clips: float32 `(num_samples,)` each.
        config: the model's configuration.
        setup: at least `dtype`, `product_flop_per_s` and `copy_byte_per_s`.
        rounds: measurements of each method.
    """
    audio_s = sum(map(len, clips)) / RATE
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with torch.inference_mode():
        logits = {name: method(clips) for name, method in methods.items()}  # also warms up, and compiles
        for _ in range(rounds):
            for name, method in methods.items():
                seconds[name].append(timed(lambda method=method: method(clips)))  # type: ignore[misc]
    reference = next(iter(methods))
    padded = (name for name in methods if name.startswith("padded"))
    best_padded = min(padded, key=lambda name: statistics.median(seconds[name]))
    decode_s = timed(lambda: [greedy_path(row, blank=0) for row in logits["packed"]])
    operations = sum(flop_count(config, len(clip)) for clip in clips)
    moved_bytes = activation_bytes(config, sum(map(len, clips)), setup["dtype"])
    lower_bounds = {
        "operations": operations / setup["product_flop_per_s"],
        "bytes": moved_bytes / setup["copy_byte_per_s"],
        "decode_on_cpu": decode_s,
    }
    figures = {
        name: {
            "seconds": statistics.median(taken),
            "times_real_time": audio_s / statistics.median(taken),
            "times_best_padded": statistics.median(
                padded_s / method_s for method_s, padded_s in zip(taken, seconds[best_padded], strict=True)
            ),
            "share_of_product_rate": operations / statistics.median(taken) / setup["product_flop_per_s"],
            "frames_different": share_of_different_frames(logits[name], logits[reference]),
        }
        for name, taken in seconds.items()
    }
    return {
        "number": len(clips),
        "audio_s": audio_s,
        "gflop_per_audio_s": operations / audio_s / 1e9,
        "best_padded": best_padded,
        "lower_bounds_s": lower_bounds,
        "lower_bounds_times_real_time": {name: audio_s / bound for name, bound in lower_bounds.items()},
        "methods": figures,
        "rounds_s": seconds,
    }


def activation_bytes(config: SEWDConfig, num_samples: int, dtype: str) -> float:
    """Bytes of each layer's input and output, written and read once: what has to move if nothing is fused."""
    frames, values = num_samples, 0.0
    for size, stride in zip(config.conv_dim, config.conv_stride, strict=True):
        frames //= stride
        values += frames * size
    squeezed = frames // config.squeeze_factor
    values += 2 * frames * config.hidden_size
    values += config.num_hidden_layers * squeezed * (6 * config.hidden_size + config.intermediate_size)
    return 2 * values * getattr(torch, dtype).itemsize


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """Floating point operations per second of a large matrix product, the best of five."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / min(timed(lambda: wait_for(a @ b)) for _ in range(5))


def copy_rate(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes read or written per second in a large copy, the best of five."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / min(timed(lambda: wait_for(target.copy_(source))) for _ in range(5))


def wait_for(result: torch.Tensor) -> None:
    """Wait until the device has computed `result`."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)


def compare_texts(folder: Path, dtype: str, device: torch.device) -> dict[str, Any]:
    """Count the pieces and words of speech that the bundled model transcribes as in float32 on the CPU, clip by clip.

    Args:
        folder: directory of WAV files.
        dtype: name of the data type that is compared with float32.
        device: where the packed model runs.
    """
    model, tokenizer = SEWDForCTC.from_pretrained(BUNDLED).eval(), CTCTokenizer.from_pretrained(BUNDLED)
    features = FeatureExtractor.from_pretrained(BUNDLED)
    clips = [
        torch.from_numpy(features.prepare(piece)) for path in sorted(folder.glob("*.wav")) for piece in pieces(path)
    ]

    def text(logits: torch.Tensor) -> str:
        return tokenizer.text(greedy_path(logits, model.blank, tokenizer.drop_ids).token_ids)

    with torch.inference_mode():
        expected = [text(model(clip[None]).logits[0]) for clip in clips]
    engine = DeviceEngine(PackedDeviceModel([model], device=device, dtype=dtype))
    texts = [text(logits[0]) for logits in stream(engine, clips) if logits is not None]
    words = [(piece.split(), in_float32.split()) for piece, in_float32 in zip(texts, expected, strict=True)]
    return {
        "pieces": len(clips),
        "equal_pieces": sum(piece == in_float32 for piece, in_float32 in words),
        "words": sum(len(in_float32) for _, in_float32 in words),
        "words_in_equal_pieces": sum(len(in_float32) for piece, in_float32 in words if piece == in_float32),
    }


def pieces(path: Path) -> list[np.ndarray]:
    """Pieces of a WAV file, of several lengths, each overlapping the next by half; resampled linearly to `RATE`.

    Returns:
        float32 `(num_samples,)` for each piece; none if the file is not 16-bit mono.
    """
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            return []
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    times = np.arange(0, len(samples) / rate, 1 / RATE)
    samples = np.interp(times, np.arange(len(samples)) / rate, samples).astype(np.float32)
    sizes = [round(RATE * seconds) for seconds in PIECES_S]
    return [samples[start : start + size] for size in sizes for start in range(0, len(samples) - size // 2, size // 2)]


def print_line(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def print_table(lengths: str, figures: dict[str, Any]) -> None:
    """Print the figures of one set of clips."""
    bounds = ", ".join(f"{name} {value:,.0f}" for name, value in figures["lower_bounds_times_real_time"].items())
    print_line(
        f"\n{lengths}: {figures['number']} clips, {figures['audio_s']:,.0f} s. "
        f"Lower bounds of the time, as times real time: {bounds}"
    )
    names = list(next(iter(figures["methods"].values())))
    print_line(f"{'':16}" + "".join(f"{name:>26}" for name in names))
    for method, values in figures["methods"].items():
        print_line(f"{method:16}" + "".join(f"{value:>26,.4g}" for value in values.values()))


if __name__ == "__main__":
    sys.exit(main())
