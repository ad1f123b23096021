"""The whole way, from a list of files to committed Parquet, against a plain script and against the model alone.

    python -m benchmarks.pipeline [--minutes N] [--rounds N] [--folder DIR] [--output FILE]

The ways take turns over the same FLAC files, whose lengths are spread like LibriSpeech's, each in a process of its own
that has started Ray before its clock runs:

* pipeline: `pipeline.transcribe`.
* plain script: Ray Data and transformers as one would write it: decoding tasks, an actor with padded batches of 8 with
  a mask, `write_parquet`.
* model alone: decoded audio in memory through packed batches, in chunks as the pipeline forms them.
* null model: the pipeline with a model of next to no work.
* soundfile loop: decoding alone, file after file.

CPU seconds and memory are sums over the processes of a way; memory is the peak of what each has for itself, and of the
driver alone. Needs the development dependencies.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded

import numpy as np
import ray
import scipy.stats
import soundfile
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

import pipeline
from pipeline.checkpoints import checkpoint_digest
from pipeline.cluster import connect
from pipeline.recognize import Recognizer, RecognizeSettings
from tests import checkpoints, corpora

NULL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
NULL |= {"conv_dim": (8,) * 13, "num_conv_pos_embeddings": 31, "num_conv_pos_embedding_groups": 4}
MEDIAN_S, SIGMA, SHORTEST_S, LONGEST_S = 6.2, 0.65, 2.0, 30.0  # log-normal; the mean is 7.7 s
MEAN_S = 7.7
CHUNK_S = 600.0
PADDED = 8
SAMPLE_S = 0.2


def main(
    minutes: Annotated[float, typer.Option(help="Audio in the corpus.")] = 30.0,
    rounds: Annotated[int, typer.Option(help="Turns that each way gets.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Where to make the corpus; kept, and used again.")] = None,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("pipeline-benchmark.json"),
) -> None:
    """Make the corpus, measure, print a table, write JSON."""
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (root / "null").exists():
            make(root, minutes)
        number = len(files(root))
        audio_s = sum(soundfile.info(path).duration for path in files(root))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
        for turn in range(rounds):
            for name, records in found.items():
                records.append(measured(name, root, turn))
    loop = "soundfile loop"
    figures = {
        name: {key: statistics.median(record[key] for record in records) for key in records[0]}
        | {
            "times_real_time": audio_s / statistics.median(record["seconds"] for record in records),
            "times_as_fast_as_plain": statistics.median(
                b["seconds"] / a["seconds"] for a, b in zip(records, found["plain script"], strict=True)
            ),
            "cpu_ms_an_utterance_above_loop": statistics.median(
                (a["cpu_s"] - b["cpu_s"]) / number * 1e3 for a, b in zip(records, found[loop], strict=True)
            ),
        }
        for name, records in found.items()
    }
    about = {
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "ray": ray.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "audio_s": audio_s,
        "utterances": number,
        "rounds": rounds,
    }
    output.write_text(json.dumps({**about, "ways": figures, "turns": found}, indent=1))
    Console().print(about)
    show(figures)


def make(root: Path, minutes: float) -> None:
    """Write the corpus, the model and the null model; the last says that all are there."""
    count = max(PADDED, round(minutes * 60 / MEAN_S))
    quantiles = np.random.default_rng(0).permutation((np.arange(count) + 0.5) / count)
    durations = scipy.stats.lognorm(SIGMA, scale=MEDIAN_S).ppf(quantiles).clip(SHORTEST_S, LONGEST_S)
    for index, duration in enumerate(durations):
        corpora.write_audio(root / "corpus" / f"{index:05d}.flac", float(duration), index)
    checkpoints.write_ctc(root / "model", checkpoints.SEW_D_TINY)
    checkpoints.write_ctc(root / "null", NULL)


def files(root: Path) -> list[Path]:
    """The corpus."""
    return sorted((root / "corpus").iterdir())


# ---------------------------------------------------------------------------------------------------- the ways
def through_pipeline(root: Path, model: str, run: Path) -> Callable[[], object]:
    """Our own, up to a finished run."""
    config = pipeline.RunConfig(inputs=(root / "corpus",), output=run, model=root / model, chunk_s=CHUNK_S)
    return lambda: pipeline.transcribe(config)


def plain_script(root: Path, run: Path) -> Callable[[], object]:
    """What a competent user writes with Ray Data and transformers."""
    threads = max(1, (os.cpu_count() or 1) - 1)

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        samples, rate = soundfile.read(row["path"], dtype="float32")
        return {"path": row["path"], "samples": samples, "rate": rate}

    class Transcriber:
        def __init__(self) -> None:
            torch.set_num_threads(threads)
            self.features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(root / "model")
            self.tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(root / "model")
            self.model = transformers.SEWDForCTC.from_pretrained(root / "model").eval()

        @torch.inference_mode()
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            inputs = self.features(
                list(batch["samples"]),
                sampling_rate=16_000,
                padding=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
            tokens = self.model(**inputs).logits.argmax(-1)
            return {"path": batch["path"], "text": np.array(self.tokenizer.batch_decode(tokens), dtype=object)}

    def run_it() -> None:
        dataset = ray.data.from_items([{"path": str(path)} for path in files(root)])
        decoded = dataset.map(decode, num_cpus=0.25)
        texts = decoded.map_batches(Transcriber, batch_size=PADDED, num_cpus=1, concurrency=1)
        texts.write_parquet(str(run))

    return run_it


def model_alone(root: Path) -> Callable[[], object]:
    """The recogniser over decoded audio, in as much as a chunk holds at a time."""
    model = str(root / "model")
    settings = RecognizeSettings(
        model,
        (),
        (checkpoint_digest(model),),
        device="cpu",
        dtype="float32",
        threads=os.cpu_count() or 1,
        stop_uri=str(root / "stop"),
        run=str(root),
        deadline_s=600.0,
    )
    recognizer = Recognizer(settings)
    chunks: list[list[np.ndarray]] = [[]]
    for path in files(root):
        if sum(map(len, chunks[-1])) >= CHUNK_S * 16_000:
            chunks.append([])
        chunks[-1].append(soundfile.read(path, dtype="float32")[0])
    recognizer.recognize(chunks[0][:PADDED])  # warms up
    return lambda: [recognizer.recognize(chunk) for chunk in chunks]


def soundfile_loop(root: Path) -> Callable[[], object]:
    """Decoding alone."""
    return lambda: [len(soundfile.read(path, dtype="float32")[0]) for path in files(root)]


WAYS: dict[str, tuple[bool, Callable[[Path, Path], Callable[[], object]]]] = {  # (needs Ray, what prepares it)
    "plain script": (True, plain_script),
    "pipeline": (True, lambda root, run: through_pipeline(root, "model", run)),
    "model alone": (False, lambda root, run: model_alone(root)),
    "null model": (True, lambda root, run: through_pipeline(root, "null", run)),
    "soundfile loop": (False, lambda root, run: soundfile_loop(root)),
}


# ------------------------------------------------------------------------------------------------- measuring
def measured(name: str, root: Path, turn: int) -> dict[str, float]:
    """Run one way in a process of its own and watch it and its workers."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, "-m", "benchmarks.pipeline", "way", name, str(root), str(Path(folder) / f"{turn}")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            ended = threading.Event()
            peaks: dict[str, float] = {"driver_peak_mb": 0.0, "all_peak_mb": 0.0}
            watcher = threading.Thread(target=watch, args=(process.pid, ended, peaks))
            watcher.start()
            out, _ = process.communicate()
            ended.set()
            watcher.join()
    if process.returncode:
        msg = f"{name} ended with {process.returncode}"
        raise RuntimeError(msg)
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found | peaks


def run_way(name: str, root: Path, run: Path) -> None:
    """In the process of its own: prepare, then measure wall and CPU seconds, and print them."""
    needs_ray, prepare = WAYS[name]
    with connect("local") if needs_ray else contextlib.nullcontext():
        way = prepare(root, run)
        before, began = cpu_seconds(os.getpid()), time.monotonic()
        way()
        seconds, after = time.monotonic() - began, cpu_seconds(os.getpid())
    typer.echo(json.dumps({"seconds": seconds, "cpu_s": after - before}))


def watch(pid: int, ended: threading.Event, peaks: dict[str, float]) -> None:
    """Keep the peaks of what the driver, and all of its processes together, have for themselves."""
    while not ended.wait(SAMPLE_S):
        sizes = {one: private_mb(one) for one in tree(pid)}
        peaks["driver_peak_mb"] = max(peaks["driver_peak_mb"], sizes.get(pid, 0.0))
        peaks["all_peak_mb"] = max(peaks["all_peak_mb"], sum(sizes.values()))


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            for child in children.read_text().split():
                yield from tree(int(child))


def private_mb(pid: int) -> float:
    """What a process has for itself: anonymous memory, without shared libraries and the object store."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1000
    return 0.0


def cpu_seconds(pid: int) -> float:
    """Of a process and its descendants, those that ended and were waited for included."""
    ticks = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def show(figures: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table("")
    for key in next(iter(figures.values())):
        table.add_column(key.replace("_", " "), justify="right")
    for name, values in figures.items():
        table.add_row(name, *(f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in values.values()))
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["way"]:
        run_way(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        typer.run(main)
