"""How fast the model reads on a GPU: packed batches against transformers' padded ones and clip by clip, in one dtype.

    python -m benchmarks.gpu [--size tiny|small|mid|base+] [--dtype bfloat16] [--clips librispeech,10,30] [--number N]
        [--batches 8,32,128] [--rounds N] [--speech DIR] [--output FILE]

transformers' batches are of clips of like length, sorted, with an attention mask; the best of the batch sizes
counts. Weights and waveforms are random (neither changes the time), the sizes are SEW-D's, the lengths are spread like
LibriSpeech's, or so many seconds each. The ways take turns, and ratios are taken within a round. Copies to the GPU and
of the logits back are in the time; reading files is not. Floors: the operations that are needed at the rate of a large
product in the dtype, measured here; the bytes of weights and of the widest activations, each written and read once, at
the rate of a large copy; and, for what the CPU adds, reading the best tokens of the logits.

The texts of the bundled model, on pieces of the WAV files (16-bit, mono) in DIR, are compared with those of
float32. Needs torch, transformers and a CUDA device; without one it ends with exit code 2.
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

from benchmarks.workload import RATE, SIZES, Logits, flops, padded, timed, unlike, waveforms
from sewd_model import CTCTokenizer, FeatureExtractor, SEWDConfig, SEWDForCTC, greedy_path
from sewd_model.files import BUNDLED
from sewd_model.packed.gpu import PackedDeviceModel
from sewd_model.packed.gpu_batches import DeviceEngine, probed_budget_s, stream

Way = Callable[[list[torch.Tensor]], Logits]
SPEECH = Path(__file__).parents[1] / "jobs" / "demo_corpus" / "audio"
PIECES_S = (1.5, 2.5, 4.0, 7.0)


def main() -> int:
    """Measure, print a table, write JSON."""
    options = arguments()
    if not torch.cuda.is_available():
        sys.stderr.write("benchmarks.gpu: there is no CUDA device that torch can use\n")
        return 2
    device, dtype = torch.device("cuda"), getattr(torch, options.dtype)
    config = SEWDConfig(**SIZES[options.size])
    ways, budget = make_ways(config, options.dtype, device, options.batches)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "size": options.size,
        "dtype": options.dtype,
        "budget_s": budget,
        "rounds": options.rounds,
        "product_flop_per_s": product_rate(device, dtype),
        "copy_byte_per_s": copy_rate(device),
    }
    tell(json.dumps(found, indent=1))
    found["clips"] = {}
    for lengths in options.clips.split(","):
        figures = measure(ways, waveforms(lengths, options.number), config, found, options.rounds)
        found["clips"][lengths] = figures
        show(lengths, figures)
    found["texts"] = texts(options.speech, options.dtype, device)
    tell(f"texts of the bundled model, against float32: {json.dumps(found['texts'])}")
    options.output.write_text(json.dumps(found, indent=1))
    return 0


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--clips", default="librispeech,10,30", help="librispeech, or seconds; several with commas")
    parser.add_argument("--number", type=int, default=512, help="of LibriSpeech's clips; as much audio of the others")
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speech", type=Path, default=SPEECH)
    parser.add_argument("--output", type=Path, default=Path("gpu-benchmark.json"))
    return parser.parse_args()


def make_ways(config: SEWDConfig, dtype: str, device: torch.device, batches: list[int]) -> tuple[dict[str, Way], float]:
    """The ways to run one model over clips, transformers' first, and the seconds of audio of a packed batch."""
    torch.manual_seed(0)
    theirs = transformers.SEWDForCTC(transformers.SEWDConfig.from_dict(config.to_dict())).eval()
    ours = SEWDForCTC(config).eval()
    ours.load_state_dict(theirs.state_dict())
    engine = DeviceEngine(PackedDeviceModel([ours], device=device, dtype=dtype))
    budget = probed_budget_s(engine) if device.type == "cuda" else 30.0
    theirs = theirs.to(device, getattr(torch, dtype))

    def in_padded_batches(size: int) -> Way:
        return lambda clips: padded(theirs, clips, size, config)

    def one_by_one(clips: list[torch.Tensor]) -> Logits:
        return [theirs(clip[None].to(device, theirs.dtype)).logits[0].float().cpu() for clip in clips]

    def packed(clips: list[torch.Tensor]) -> Logits:
        results = list(stream(engine, clips, budget))
        return [logits[0] for logits in results if logits is not None]

    return {
        "one by one": one_by_one,
        **{f"padded by {size}": in_padded_batches(size) for size in batches},
        "packed": packed,
    }, budget


def measure(
    ways: dict[str, Way], clips: list[torch.Tensor], config: SEWDConfig, about: dict[str, Any], rounds: int
) -> dict[str, Any]:
    """Let the ways take turns over the clips; the first is what frames are compared with."""
    audio_s = sum(map(len, clips)) / RATE
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        logits = {name: way(clips) for name, way in ways.items()}  # also warms up, and compiles
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(timed(lambda way=way: way(clips)))  # type: ignore[misc]
    base = next(iter(ways))
    best_padded = min((name for name in ways if name.startswith("padded")), key=lambda n: statistics.median(seconds[n]))
    decode_s = timed(lambda: [greedy_path(one, blank=0) for one in logits["packed"]])
    work = sum(flops(config, len(clip)) for clip in clips)
    moved = activation_bytes(config, sum(map(len, clips)), about["dtype"])
    floors = {
        "operations": work / about["product_flop_per_s"],
        "bytes": moved / about["copy_byte_per_s"],
        "decode_on_cpu": decode_s,
    }
    figures = {
        name: {
            "seconds": statistics.median(taken),
            "times_real_time": audio_s / statistics.median(taken),
            "times_best_padded": statistics.median(
                other / one for one, other in zip(taken, seconds[best_padded], strict=True)
            ),
            "share_of_product_rate": work / statistics.median(taken) / about["product_flop_per_s"],
            "frames_unlike_one_by_one": unlike(logits[name], logits[base]),
        }
        for name, taken in seconds.items()
    }
    return {
        "number": len(clips),
        "audio_s": audio_s,
        "gflop_per_audio_s": work / audio_s / 1e9,
        "best_padded": best_padded,
        "floors_s": floors,
        "floors_times_real_time": {name: audio_s / floor for name, floor in floors.items()},
        "ways": figures,
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
    """Operations a second of a large product, the best of five."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / min(timed(lambda: finished(a @ b)) for _ in range(5))


def copy_rate(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes a second, read or written, of a large copy, the best of five."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / min(timed(lambda: finished(target.copy_(source))) for _ in range(5))


def finished(result: torch.Tensor) -> None:
    """Wait for the device."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)


def texts(folder: Path, dtype: str, device: torch.device) -> dict[str, Any]:
    """How many pieces, and words, of speech are the same as the bundled model's in float32 on the CPU, clip by clip."""
    model, tokenizer = SEWDForCTC.from_pretrained(BUNDLED).eval(), CTCTokenizer.from_pretrained(BUNDLED)
    features = FeatureExtractor.from_pretrained(BUNDLED)
    clips = [torch.from_numpy(features(piece)) for path in sorted(folder.glob("*.wav")) for piece in pieces(path)]

    def text(logits: torch.Tensor) -> str:
        return tokenizer.decode(greedy_path(logits, model.blank, tokenizer.drop_ids).token_ids)

    with torch.inference_mode():
        expected = [text(model(clip[None]).logits[0]) for clip in clips]
    engine = DeviceEngine(PackedDeviceModel([model], device=device, dtype=dtype))
    found = [text(logits[0]) for logits in stream(engine, clips) if logits is not None]
    words = [(one.split(), other.split()) for one, other in zip(found, expected, strict=True)]
    return {
        "pieces": len(clips),
        "equal_pieces": sum(one == other for one, other in words),
        "words": sum(len(other) for _, other in words),
        "words_in_equal_pieces": sum(len(other) for one, other in words if one == other),
    }


def pieces(path: Path) -> list[np.ndarray]:
    """Pieces of a 16-bit WAV file of one channel, of several lengths, each half over the next; resampled linearly."""
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            return []
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    times = np.arange(0, len(samples) / rate, 1 / RATE)
    samples = np.interp(times, np.arange(len(samples)) / rate, samples).astype(np.float32)
    sizes = [round(RATE * seconds) for seconds in PIECES_S]
    return [samples[start : start + size] for size in sizes for start in range(0, len(samples) - size // 2, size // 2)]


def tell(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def show(lengths: str, found: dict[str, Any]) -> None:
    """Print the table of one set of clips."""
    floors = ", ".join(f"{name} {value:,.0f}" for name, value in found["floors_times_real_time"].items())
    tell(f"\n{lengths}: {found['number']} clips, {found['audio_s']:,.0f} s. Floors, times real time: {floors}")
    names = list(next(iter(found["ways"].values())))
    tell(f"{'':16}" + "".join(f"{name:>26}" for name in names))
    for way, figures in found["ways"].items():
        tell(f"{way:16}" + "".join(f"{value:>26,.4g}" for value in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
