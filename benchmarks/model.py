"""Speed of the model on this machine's CPU: packed clips against transformers and ONNX Runtime.

    python -m benchmarks.model [--size tiny|small|mid|base+] [--clips librispeech,10,30] [--threads N] [--rounds N]
        [--output FILE]

transformers runs clip by clip; in padded batches with an attention mask, of clips sorted by length and unsorted; and as
its speech recognition pipeline, clip by clip and in batches, which returns texts instead of logits. ONNX Runtime runs
the graph of transformers' model clip by clip, in float32 and with int8 products (dynamic, one scale per channel).
Weights and waveforms are random, which does not change the time. Model sizes are SEW-D's; clips have lengths like
LibriSpeech's, or a fixed length. The methods take turns, and all ratios are computed within a round, so that other load
on the machine affects all of them alike. transformers gets torch's threads, which sleep while they wait (spinning
threads would be ten times slower under other load); packed clips, in float32 and in int8, get the same number of their
own threads. The peak is the rate of a large float32 product by the faster of MKL and oneDNN, measured in each round.
Needs the development dependencies.
"""

import json
import os
import platform
import statistics
import string
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded

import onnxruntime
import torch
import transformers
import typer
from onnxruntime.quantization import quantize_dynamic
from rich.console import Console
from rich.table import Table

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
from sewd_model import SEWDConfig, SEWDForCTC
from sewd_model.packed.cpu import PackedModel
from sewd_model.packed.products import product

CLIPS = 16
PADDED = 8
PACKED = "packed"  # this project's model, in float32

Method = Callable[[list[torch.Tensor]], Logits | None]  # None: it does not return logits


def main(
    size: Annotated[str, typer.Option(help="Size of the model: tiny, small, mid or base+.")] = "tiny",
    clips: Annotated[
        str, typer.Option(help="Lengths of the clips: librispeech, or seconds; separate several by commas.")
    ] = "librispeech,10,30",
    threads: Annotated[int, typer.Option(help="Number of threads; 0 for all.")] = 0,
    rounds: Annotated[int, typer.Option(help="Measurements of each method.")] = 3,
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("model-benchmark.json"),
) -> None:
    """Time the model on this machine's CPU against transformers and ONNX Runtime; print tables and write JSON."""
    threads = threads or torch.get_num_threads()
    config = SEWDConfig(**SIZES[size])
    setup = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "onnxruntime": onnxruntime.__version__,
        "size": size,
        "threads": threads,
        "rounds": rounds,
    }
    Console().print(setup)
    methods = make_methods(config, threads)
    figures = {
        lengths: measure(methods, waveforms(lengths, CLIPS), config, threads, rounds) for lengths in clips.split(",")
    }
    output.write_text(json.dumps({**setup, "clips": figures}, indent=1))
    for lengths, of_lengths in figures.items():
        print_table(lengths, of_lengths)


def measure(
    methods: dict[str, Method], clips: list[torch.Tensor], config: SEWDConfig, threads: int, rounds: int
) -> dict[str, Any]:
    """Time the methods in turns over the clips, and compare each with the first method and with `PACKED`."""
    audio_s = sum(map(len, clips)) / RATE
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    peaks = []
    with torch.inference_mode():
        logits = {name: method(clips) for name, method in methods.items()}  # also warms up
        for _ in range(rounds):
            for name, method in methods.items():
                seconds[name].append(timed(lambda method=method: method(clips)))  # type: ignore[misc]
            peaks.append(sgemm_peak(threads))
    operations = sum(flop_count(config, len(clip)) for clip in clips)
    reference, *_ = methods
    reference_logits = logits[reference]
    assert reference_logits is not None
    figures = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "times_real_time": audio_s / statistics.median(seconds[name]),
            "times_as_fast": statistics.median(a / b for a, b in zip(seconds[reference], seconds[name], strict=True)),
            "times_packed": statistics.median(a / b for a, b in zip(seconds[PACKED], seconds[name], strict=True)),
            "share_of_sgemm_peak": statistics.median(
                operations / method_s / peak for method_s, peak in zip(seconds[name], peaks, strict=True)
            ),
            "share_of_different_frames": (
                None if of_method is None else share_of_different_frames(of_method, reference_logits)
            ),
        }
        for name, of_method in logits.items()
    }
    return {
        "number": len(clips),
        "audio_s": audio_s,
        "gflop_per_audio_s": operations / audio_s / 1e9,
        "sgemm_peak_gflop_per_s": statistics.median(peaks) / 1e9,
        "methods": figures,
        "rounds_s": seconds,
    }


def make_methods(config: SEWDConfig, threads: int) -> dict[str, Method]:
    """The methods of running one model over clips, by name; the first is transformers, clip by clip."""
    torch.manual_seed(0)
    sizes = {name: getattr(config, name) for name in SIZES["tiny"]}
    reference = transformers.SEWDForCTC(transformers.SEWDConfig(**sizes)).eval()
    model = SEWDForCTC(config).eval()
    model.load_state_dict(reference.state_dict())
    packed, in_int8 = (PackedModel([model], threads=threads, dtype=dtype) for dtype in ("float32", "int8"))

    def one_by_one(clips: list[torch.Tensor]) -> Logits:
        torch.set_num_threads(threads)
        return [reference(clip[None]).logits[0] for clip in clips]

    def in_padded_batches(by_length: bool) -> Method:
        def run(clips: list[torch.Tensor]) -> Logits:
            torch.set_num_threads(threads)
            return run_padded(reference, clips, PADDED, config, by_length)

        return run

    def in_packs(model: PackedModel) -> Method:
        def run(clips: list[torch.Tensor]) -> Logits:
            torch.set_num_threads(1)
            return [output.logits[0] for output in model(clips)]

        return run

    return {
        "transformers": one_by_one,
        f"padded by {PADDED}, sorted": in_padded_batches(by_length=True),
        f"padded by {PADDED}, unsorted": in_padded_batches(by_length=False),
        "pipeline": pipeline_method(reference, threads, batch=1),
        f"pipeline by {PADDED}": pipeline_method(reference, threads, batch=PADDED),
        **onnx_methods(reference, threads),
        PACKED: in_packs(packed),
        f"{PACKED} int8": in_packs(in_int8),
    }


def pipeline_method(model: transformers.SEWDForCTC, threads: int, batch: int) -> Method:
    """The speech recognition pipeline of transformers, from prepared clips (which it prepares again) to texts."""
    blank, delimiter = "<pad>", "|"
    characters = string.ascii_letters + string.digits
    names = [blank, delimiter, *characters][: model.config.vocab_size]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.json"
        vocabulary.write_text(json.dumps({name: label for label, name in enumerate(names)}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(
            str(vocabulary), bos_token=None, eos_token=None, unk_token=delimiter, pad_token=blank
        )
    recognize = transformers.pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=tokenizer,
        feature_extractor=transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        device="cpu",
    )

    def run(clips: list[torch.Tensor]) -> None:
        torch.set_num_threads(threads)
        texts = recognize([clip.numpy() for clip in clips], batch_size=batch)
        assert len(texts) == len(clips)

    return run


def onnx_methods(model: torch.nn.Module, threads: int) -> dict[str, Method]:
    """ONNX Runtime on the model's graph, in float32 and with int8 products."""

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, waveform: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(waveform).logits
            return logits

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter warns, but is the only one that can export this model
        float32, int8 = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(
            Graph().eval(),
            (torch.randn(1, 4 * RATE),),
            float32,
            input_names=["waveform"],
            output_names=["logits"],
            dynamic_axes={"waveform": {1: "samples"}},
            opset_version=17,
            dynamo=False,
        )
        # The convolutions stay in float32: int8 convolutions of ONNX Runtime are slower.
        quantize_dynamic(float32, int8, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
        return {
            "ONNX Runtime": onnx_method(float32, threads),
            "ONNX Runtime int8": onnx_method(int8, threads),
        }


def onnx_method(graph: Path, threads: int) -> Method:
    """ONNX Runtime on one graph, clip by clip."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning is slow under other load
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(clips: list[torch.Tensor]) -> Logits:
        return [torch.from_numpy(session.run(None, {"waveform": clip[None].numpy()})[0][0]) for clip in clips]

    return run


def sgemm_peak(threads: int, size: int = 1536) -> float:
    """Floating point operations per second of a large float32 product, the best of five by each library."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size)
    return 2.0 * size**3 / min(timed(multiply) for _ in range(5) for multiply in (lambda: a @ b, lambda: product(a, b)))


def print_table(lengths: str, figures: dict[str, Any]) -> None:
    """Print the figures of one set of clips."""
    table = Table(
        title=f"{lengths}: {figures['number']} clips, {figures['audio_s']:.0f} s, "
        f"{figures['gflop_per_audio_s']:.2f} GFLOP per second of audio, "
        f"peak {figures['sgemm_peak_gflop_per_s']:.0f} GFLOP/s"
    )
    table.add_column("", no_wrap=True)
    for name in next(iter(figures["methods"].values())):
        table.add_column(name.replace("_", " "), justify="right")
    for name, values in figures["methods"].items():
        cells = [
            "" if value is None else f"{value:.1%}" if key.startswith("share") else f"{value:.2f}"
            for key, value in values.items()
        ]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
