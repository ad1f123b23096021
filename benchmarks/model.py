"""How fast the model reads on this machine's processor: packed clips against transformers and ONNX Runtime.

    python -m benchmarks.model [--size tiny|small|mid|base+] [--clips librispeech,10,30] [--threads N] [--rounds N]
        [--output FILE]

transformers runs clip by clip, in padded batches with an attention mask, of clips of like length and of clips as they
come, and as its pipeline for speech recognition, clip by clip and batched, whose frames are not seen: it gives texts.
ONNX Runtime runs transformers' graph clip by clip, in float32 and with int8 products (dynamic, a scale a channel).
Weights and waveforms are random (neither changes the time), the sizes are SEW-D's, and the lengths are spread like
LibriSpeech's, or so many seconds each. The ways take turns, and all ratios are taken within a round, so that other
load on the machine weighs on all alike. transformers gets torch's threads, which sleep where they wait, or other load
would slow it tenfold; packed clips, in float32 and in int8, get as many threads of their own. The peak is that of a
large product in float32, by MKL or oneDNN, whichever is faster, taken in each round. Needs the development
dependencies.
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

from benchmarks.workload import RATE, SIZES, Logits, flops, padded, timed, unlike, waveforms
from sewd_model import SEWDConfig, SEWDForCTC
from sewd_model.packed.cpu import PackedModel
from sewd_model.packed.products import product

CLIPS = 16
PADDED = 8
PACKED = "packed"  # ours, in float32

Way = Callable[[list[torch.Tensor]], Logits | None]  # None: it does not give them


def main(
    size: Annotated[str, typer.Option(help="tiny, small, mid or base+.")] = "tiny",
    clips: Annotated[str, typer.Option(help="Lengths: librispeech, or seconds; several with commas.")] = (
        "librispeech,10,30"
    ),
    threads: Annotated[int, typer.Option(help="Threads; 0: all.")] = 0,
    rounds: Annotated[int, typer.Option(help="Turns that each way gets.")] = 3,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("model-benchmark.json"),
) -> None:
    """Measure, print a table, write JSON."""
    threads = threads or torch.get_num_threads()
    config = SEWDConfig(**SIZES[size])
    about = {
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "onnxruntime": onnxruntime.__version__,
        "size": size,
        "threads": threads,
        "rounds": rounds,
    }
    Console().print(about)
    ways = make_ways(config, threads)
    found = {lengths: measure(ways, waveforms(lengths, CLIPS), config, threads, rounds) for lengths in clips.split(",")}
    output.write_text(json.dumps({**about, "clips": found}, indent=1))
    for lengths, figures in found.items():
        show(lengths, figures)


def measure(
    ways: dict[str, Way], clips: list[torch.Tensor], config: SEWDConfig, threads: int, rounds: int
) -> dict[str, Any]:
    """Let the ways take turns over the clips; the first is what the others are compared with, and ours in float32."""
    audio_s = sum(map(len, clips)) / RATE
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = []
    with torch.inference_mode():
        logits = {name: way(clips) for name, way in ways.items()}  # also warms up
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(timed(lambda way=way: way(clips)))  # type: ignore[misc]
            peaks.append(sgemm_peak(threads))
    work = sum(flops(config, len(clip)) for clip in clips)
    base, *_ = ways
    alone = logits[base]
    assert alone is not None
    figures = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "times_real_time": audio_s / statistics.median(seconds[name]),
            "times_as_fast": statistics.median(a / b for a, b in zip(seconds[base], seconds[name], strict=True)),
            "times_packed": statistics.median(a / b for a, b in zip(seconds[PACKED], seconds[name], strict=True)),
            "share_of_sgemm_peak": statistics.median(
                work / s / peak for s, peak in zip(seconds[name], peaks, strict=True)
            ),
            "frames_unlike_alone": None if found is None else unlike(found, alone),
        }
        for name, found in logits.items()
    }
    return {
        "number": len(clips),
        "audio_s": audio_s,
        "gflop_per_audio_s": work / audio_s / 1e9,
        "sgemm_peak_gflop_per_s": statistics.median(peaks) / 1e9,
        "ways": figures,
        "rounds_s": seconds,
    }


def make_ways(config: SEWDConfig, threads: int) -> dict[str, Way]:
    """The ways to run one model over clips."""
    torch.manual_seed(0)
    sizes = {name: getattr(config, name) for name in SIZES["tiny"]}
    theirs = transformers.SEWDForCTC(transformers.SEWDConfig(**sizes)).eval()
    ours = SEWDForCTC(config).eval()
    ours.load_state_dict(theirs.state_dict())
    packed, in_int8 = (PackedModel([ours], threads=threads, dtype=dtype) for dtype in ("float32", "int8"))

    def one_by_one(clips: list[torch.Tensor]) -> Logits:
        torch.set_num_threads(threads)
        return [theirs(clip[None]).logits[0] for clip in clips]

    def in_padded_batches(by_length: bool) -> Way:
        def run(clips: list[torch.Tensor]) -> Logits:
            torch.set_num_threads(threads)
            return padded(theirs, clips, PADDED, config, by_length)

        return run

    def in_packs(model: PackedModel) -> Way:
        def run(clips: list[torch.Tensor]) -> Logits:
            torch.set_num_threads(1)
            return [output.logits[0] for output in model(clips)]

        return run

    return {
        "transformers": one_by_one,
        f"padded by {PADDED}, sorted": in_padded_batches(by_length=True),
        f"padded by {PADDED}, unsorted": in_padded_batches(by_length=False),
        "pipeline": pipeline_way(theirs, threads, batch=1),
        f"pipeline by {PADDED}": pipeline_way(theirs, threads, batch=PADDED),
        **onnx_ways(theirs, threads),
        PACKED: in_packs(packed),
        f"{PACKED} int8": in_packs(in_int8),
    }


def pipeline_way(model: transformers.SEWDForCTC, threads: int, batch: int) -> Way:
    """The pipeline of transformers, from prepared clips, which it prepares once more, to texts."""
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


def onnx_ways(model: torch.nn.Module, threads: int) -> dict[str, Way]:
    """ONNX Runtime on the model's graph, in float32 and with int8 products."""

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, waveform: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(waveform).logits
            return logits

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tracing exporter, the only one of torch's that takes this model
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
        # Its int8 convolutions are slower than those in float32.
        quantize_dynamic(float32, int8, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
        return {
            "ONNX Runtime": onnx_way(float32, threads),
            "ONNX Runtime int8": onnx_way(int8, threads),
        }


def onnx_way(graph: Path, threads: int) -> Way:
    """One graph, clip by clip."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other load would slow those that spin
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(clips: list[torch.Tensor]) -> Logits:
        return [torch.from_numpy(session.run(None, {"waveform": clip[None].numpy()})[0][0]) for clip in clips]

    return run


def sgemm_peak(threads: int, size: int = 1536) -> float:
    """Operations a second of a large float32 product, the best of five by each library."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size)
    return 2.0 * size**3 / min(timed(way) for _ in range(5) for way in (lambda: a @ b, lambda: product(a, b)))


def show(lengths: str, found: dict[str, Any]) -> None:
    """Print the table of one set of clips."""
    table = Table(
        title=f"{lengths}: {found['number']} clips, {found['audio_s']:.0f} s, "
        f"{found['gflop_per_audio_s']:.2f} GFLOP a second of audio, peak {found['sgemm_peak_gflop_per_s']:.0f} GFLOP/s"
    )
    figures = found["ways"]
    table.add_column("", no_wrap=True)
    for name in next(iter(figures.values())):
        table.add_column(name.replace("_", " "), justify="right")
    for name, values in figures.items():
        cells = [
            "" if value is None else f"{value:.1%}" if "unlike" in key or "share" in key else f"{value:.2f}"
            for key, value in values.items()
        ]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
