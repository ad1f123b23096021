"""Speed, overhead and memory of the whole pipeline, from a list of files to committed Parquet.

    python -m benchmarks.pipeline [--figure a|b|c|d]... [--rounds N] [--folder DIR] [--output FILE]

There are four figures, each with a goal:

* a, speed: `pipeline.transcribe` compared with a plain script of Ray Data and transformers on the same files: decoding
  tasks, an actor with padded batches of 8 and an attention mask, `write_parquet`. Both times begin when Ray is up and
  include everything after that: starting workers and loading models.
* b, share of the model: audio per second compared with the model alone, which is warm and gets decoded audio from
  memory, in chunks as the pipeline forms them. A start takes seconds whatever the size of the corpus, so the pipeline's
  rate is the additional audio of a longer corpus over the additional time. The share with the start is printed too.
* c, overhead: CPU time per utterance, over all processes of a run, above a plain loop of soundfile over the same files.
  The model is a stand-in that returns the same logits for every clip, with as many tokens per second as speech. As for
  b, the figure is the difference between a longer corpus and one of half its length: both keep all workers busy, and
  starting the workers belongs to no utterance.
* d, memory: peaks with a longer corpus over those with a shorter one: of the driver, the largest worker, all workers,
  and the object store. The model is a stand-in that is slower than decoding, so that chunks have to wait for it.

The files are FLAC, with lengths like LibriSpeech's; longer corpora are hard links to the same files. The cases take
turns, each in its own process; the printed values are medians over the rounds, of ratios within a round. Memory is what
a process has for itself, and all pages of its object store that Ray ever touched. Needs the development dependencies,
and Linux.
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
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
# By default Ray's workers have niceness 15 and the model alone has 0, which is unfair when anything else runs.
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import pyarrow as pa
import ray
import scipy.stats
import soundfile
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

import pipeline
from benchmarks.workload import LONGEST_S, MEDIAN_S, RATE, SHORTEST_S, SIGMA
from pipeline.cluster.ray_start import connect
from pipeline.driver import dataset
from pipeline.stages.heads import Recognition
from pipeline.stages.recognize import ChunkRecognizer, RecognizeSettings
from pipeline.storage.checkpoints import checkpoint_digest
from sewd_model import CTCTokenizer, EngineStatus
from sewd_model.recognition import Decoding, Logits, Recognized, Samples, recognize
from tests.support import checkpoints, corpora

MEAN_S = 7.7  # mean length of the clips
CHUNK_S = 1200.0
PADDED = 8
SAMPLE_S = 0.5  # one sample of twenty processes costs 7 ms
SLOW_TIMES_REAL_TIME = 1000.0  # decoding is several times as fast
FRAME_SAMPLES = 320
STAND_IN_TEXT = "▁THE▁LONG▁WAY▁HOME"  # a letter every four frames: 12 per second, as in English
LETTER_FRAMES = 4

Record = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A method of transcribing, applied to a corpus of so many minutes."""

    method: str
    minutes: float


@dataclass(frozen=True)
class Goal:
    """A figure and its goal.

    Attributes:
        figure: name of the figure.
        goal: the value to reach.
        at_least: the figure must be at least `goal`; otherwise at most.
        cases: the cases to measure, given the minutes of the short, the long and the stand-in corpus.
        summarize: computes the figure and further values, by name, from the record of each case in a round.
    """

    figure: str
    goal: float
    at_least: bool
    cases: Callable[[float, float, float], list[Case]]
    summarize: Callable[..., Record]

    def is_reached(self, figure: float) -> bool:
        """Whether `figure` reaches the goal."""
        return figure >= self.goal if self.at_least else figure <= self.goal


def main(
    figure: Annotated[list[str] | None, typer.Option(help="Figure to measure: a, b, c or d; default: all.")] = None,
    minutes: Annotated[float, typer.Option(help="Audio for a and the shorter corpus of b, in minutes.")] = 20.0,
    long_minutes: Annotated[float, typer.Option(help="The longer corpus of b, in minutes.")] = 120.0,
    null_minutes: Annotated[
        float, typer.Option(help="The shorter corpus of c and the longer one of d, in minutes.")
    ] = 480.0,
    rounds: Annotated[int, typer.Option(help="Measurements of each case.")] = 3,
    folder: Annotated[
        Path | None, typer.Option(help="Directory for the corpora, which are kept and reused; default: temporary.")
    ] = None,
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("pipeline-benchmark.json"),
) -> None:
    """Measure speed, overhead and memory of the whole pipeline; print a table and a line per figure, and write JSON."""
    selected = {name: (GOALS[name], GOALS[name].cases(minutes, long_minutes, null_minutes)) for name in figure or GOALS}
    cases = list(dict.fromkeys(case for _, of_goal in selected.values() for case in of_goal))
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_corpora(root, minutes, {case.minutes for case in cases})
        records = [{case: measure(case, root) for case in cases} for _ in range(rounds)]
    figures = {}
    for name, (goal, of_goal) in selected.items():
        medians = _medians([goal.summarize(*(of_round[case] for case in of_goal)) for of_round in records])
        result = {"figure": goal.figure, "goal": goal.goal, "reached": goal.is_reached(medians[goal.figure])}
        figures[name] = result | {"medians": medians}
    by_case = [asdict(case) | _medians([of_round[case] for of_round in records]) for case in cases]
    setup = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "ray": ray.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rounds": rounds,
    }
    by_round = [[asdict(case) | record for case, record in of_round.items()] for of_round in records]
    content = {**setup, "figures": figures, "cases": by_case, "records": by_round}
    output.write_text(json.dumps(content, indent=1))
    Console().print(setup)
    print_table(by_case)
    for name, result in figures.items():
        medians, figure_name = result["medians"], result["figure"]
        others = ", ".join(f"{key} {value:.3g}" for key, value in medians.items() if key != figure_name)
        sign = ">=" if GOALS[name].at_least else "<="
        missed = "" if result["reached"] else " (not reached)"
        typer.echo(
            f"{name}. {figure_name}: {medians[figure_name]:.3g}, goal {sign} {result['goal']:g}{missed}; {others}"
        )


def _medians(records: list[Record]) -> Record:
    return {key: statistics.median(record[key] for record in records) for key in records[0]}


def make_corpora(root: Path, minutes: float, sizes: set[float]) -> None:
    """Write what is missing: the clips, the model, and for each size a corpus of links to the clips.

    Args:
        root: the directory for everything.
        minutes: audio in the clips.
        sizes: audio in each corpus, in minutes.
    """
    clips = root / "clips"
    if not (root / "model").exists():
        count = max(PADDED, round(minutes * 60 / MEAN_S))
        quantiles = np.random.default_rng(0).permutation((np.arange(count) + 0.5) / count)
        durations = scipy.stats.lognorm(SIGMA, scale=MEDIAN_S).ppf(quantiles).clip(SHORTEST_S, LONGEST_S)
        for index, duration in enumerate(durations):
            corpora.write_audio(clips / f"{index:05d}.flac", float(duration), index)
        checkpoints.write_ctc(root / "model", checkpoints.SEW_D_TINY)
    written = files(clips)
    for size in sizes:
        if not (folder := corpus(root, size)).exists():
            folder.mkdir()
            for index in range(round(len(written) * size / minutes)):
                (folder / f"{index:06d}.flac").hardlink_to(written[index % len(written)])


def corpus(root: Path, minutes: float) -> Path:
    """The directory of the corpus of this size."""
    return root / f"{minutes:g}-minutes"


def files(folder: Path) -> list[Path]:
    """The files of a corpus, by name."""
    return sorted(folder.iterdir())


# ------------------------------------------------------------------------------------------------- the figures
SPEED, SHARE = "times as fast as the plain script", "share of the model alone"
OVERHEAD, MEMORY = "ms of CPU per utterance above the soundfile loop", "memory with 8 times the corpus"


def speed(plain: Record, full: Record) -> Record:
    """Figure a, from the records of the plain script and the pipeline."""
    rates = {"times real time": _times_real_time(full), "of the plain script": _times_real_time(plain)}
    return {SPEED: plain["seconds"] / full["seconds"]} | rates


def share(short: Record, long: Record, alone: Record) -> Record:
    """Figure b, from the records of the pipeline on a short and a long corpus, and of the model alone."""
    steady = (long["audio_s"] - short["audio_s"]) / (long["seconds"] - short["seconds"])
    model = _times_real_time(alone)
    with_start = _times_real_time(long) / model
    return {SHARE: steady / model, "times real time": steady, "of the model": model, "including the start": with_start}


def overhead(short: Record, long: Record, loop: Record) -> Record:
    """Figure c, from the records of the stand-in on a short and a long corpus, and of the soundfile loop."""
    per_utterance = (long["cpu_s"] - short["cpu_s"]) / (long["utterances"] - short["utterances"])
    decoding = loop["cpu_s"] / loop["utterances"]
    with_start = long["cpu_s"] / long["utterances"]
    seconds = {
        OVERHEAD: per_utterance - decoding,
        "including the start": with_start - decoding,
        "the loop itself": decoding,
    }
    return {name: value * 1e3 for name, value in seconds.items()}


def memory(short: Record, long: Record) -> Record:
    """Figure d, the largest of the ratios of peaks, from the records of a short and a long corpus."""
    ratios = {name.removesuffix("_mb"): long[name] / short[name] for name in long if name.endswith("_mb")}
    return {MEMORY: max(ratios.values())} | ratios


GOALS = {
    "a": Goal(SPEED, 4.0, True, lambda short, _l, _n: [Case("plain script", short), Case("pipeline", short)], speed),
    "b": Goal(
        SHARE,
        0.9,
        True,
        lambda short, long, _n: [Case("pipeline", short), Case("pipeline", long), Case("model alone", long)],
        share,
    ),
    "c": Goal(
        OVERHEAD,
        1.0,
        False,
        lambda _s, _l, null: [Case("null model", null), Case("null model", 2 * null), Case("soundfile loop", 2 * null)],
        overhead,
    ),
    "d": Goal(
        MEMORY, 1.1, False, lambda _s, _l, null: [Case("slow model", null / 8), Case("slow model", null)], memory
    ),
}


def _times_real_time(record: Record) -> float:
    return record["audio_s"] / record["seconds"]


# ------------------------------------------------------------------------------------------------- the methods
@dataclass(frozen=True)
class FixedLogits:
    """An engine that computes nothing: it returns the first frames of the same logits for every clip.

    Attributes:
        logits: (frames, vocabulary), for the longest clip.
        decoding: what lies before and after the model.
        reported: the status to report.
        splits: number of batches that were halved.
    """

    logits: torch.Tensor
    decoding: Decoding
    reported: EngineStatus
    splits: int = 0

    def encode(self, waveforms: Sequence[torch.Tensor]) -> Iterator[Logits | None]:
        """See `sewd_model.engines.Engine`."""
        return ((self.logits[: len(waveform) // FRAME_SAMPLES],) for waveform in waveforms)

    def recognize(self, clips: Sequence[Samples]) -> Iterator[Recognized]:
        """See `sewd_model.engines.Engine`."""
        return recognize(self.encode, clips, self.decoding)

    def status(self) -> EngineStatus:
        """See `sewd_model.engines.Engine`."""
        return self.reported


class NullModel(ChunkRecognizer):
    """The recogniser with an encoder that computes nothing."""

    def _load(self) -> None:
        super()._load()
        tokenizer = CTCTokenizer.from_pretrained(self.settings.model)
        frames = round(LONGEST_S * RATE) // FRAME_SAMPLES
        tokens = [tokenizer.ids["|" if letter == "▁" else letter] for letter in STAND_IN_TEXT]
        logits = torch.zeros(frames, len(tokenizer.ids))
        logits[:, tokenizer.pad_id] = 5
        for number, frame in enumerate(range(0, frames, LETTER_FRAMES)):
            logits[frame, tokens[number % len(tokens)]] = 10
        self.encoders = [
            replace(
                encoder,
                engine=FixedLogits(
                    logits,
                    Decoding(encoder.features, tokenizer.pad_id or 0, tuple(tokenizer.drop_ids)),
                    encoder.engine.status(),
                ),
            )
            for encoder in self.encoders
        ]


class SlowModel(NullModel):
    """The same, slower than decoding."""

    def _results(self, rows: pa.StructArray) -> list[Recognition]:
        time.sleep(sum(rows.field("duration_s").to_pylist()) / SLOW_TIMES_REAL_TIME)
        return super()._results(rows)


def through_pipeline(root: Path, audio: Path, run: Path) -> Callable[[], object]:
    """This project's pipeline, up to a finished run."""
    config = pipeline.RunConfig(inputs=(audio,), output=run, model=root / "model", chunk_s=CHUNK_S)
    return lambda: pipeline.transcribe(config)


def with_stand_in(model: type[ChunkRecognizer]) -> Callable[[Path, Path, Path], Callable[[], object]]:
    """The pipeline with another model."""

    def prepare(root: Path, audio: Path, run: Path) -> Callable[[], object]:
        return mock.patch.object(dataset, "RecognizerActor", model)(through_pipeline(root, audio, run))

    return prepare


def plain_script(root: Path, audio: Path, run: Path) -> Callable[[], object]:
    """The script that a competent user would write with Ray Data and transformers."""
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

    def transcribe() -> None:
        paths = ray.data.from_items([{"path": str(path)} for path in files(audio)])
        decoded = paths.map(decode, num_cpus=0.25)
        texts = decoded.map_batches(Transcriber, batch_size=PADDED, num_cpus=1, concurrency=1)
        texts.write_parquet(str(run))

    return transcribe


def model_alone(root: Path, audio: Path, run: Path) -> Callable[[], object]:
    """The recogniser on decoded audio, a chunk at a time."""
    model = str(root / "model")
    settings = RecognizeSettings(
        model=model,
        classifiers=(),
        digests=(checkpoint_digest(model),),
        device="cpu",
        dtype="float32",
        threads=os.cpu_count() or 1,
        stop_uri=str(root / "stop"),
        run=str(run),
        deadline_s=600.0,
    )
    recognizer = ChunkRecognizer(settings)
    clips: dict[int, np.ndarray] = {}  # by inode: links to the same file are read once
    chunks: list[list[np.ndarray]] = [[]]
    for path in files(audio):
        inode = path.stat().st_ino
        if inode not in clips:
            clips[inode] = soundfile.read(path, dtype="float32")[0]
        if sum(map(len, chunks[-1])) >= CHUNK_S * RATE:
            chunks.append([])
        chunks[-1].append(clips[inode])
    recognizer.recognize(chunks[0])  # warms up
    return lambda: [recognizer.recognize(chunk) for chunk in chunks]


def soundfile_loop(_root: Path, audio: Path, _run: Path) -> Callable[[], object]:
    """A loop that only decodes."""
    return lambda: [len(soundfile.read(path, dtype="float32")[0]) for path in files(audio)]


# Whether the method needs Ray, and the function that prepares it.
METHODS: dict[str, tuple[bool, Callable[[Path, Path, Path], Callable[[], object]]]] = {
    "plain script": (True, plain_script),
    "pipeline": (True, through_pipeline),
    "model alone": (False, model_alone),
    "null model": (True, with_stand_in(NullModel)),
    "slow model": (True, with_stand_in(SlowModel)),
    "soundfile loop": (False, soundfile_loop),
}


# ------------------------------------------------------------------------------------------------- measuring
def measure(case: Case, root: Path) -> Record:
    """Run one case in its own process, and sample that process and its workers."""
    audio = files(corpus(root, case.minutes))
    with tempfile.TemporaryDirectory() as folder:
        arguments = [case.method, str(root), str(corpus(root, case.minutes)), str(Path(folder) / "run")]
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pipeline", "method", *arguments], stdout=subprocess.PIPE, text=True
        ) as process:
            sampler = Sampler(process.pid)
            ended = threading.Event()
            thread = threading.Thread(target=sampler.sample_until, args=(ended,))
            thread.start()
            lines = process.stdout or ()
            times = [(time.monotonic(), sampler.sample()) for _ in lines]  # the process prints a line at start and end
            ended.set()
            thread.join()
    if process.returncode:
        msg = f"{case.method} ended with exit code {process.returncode}"
        raise RuntimeError(msg)
    (started_at, cpu_before), (ended_at, cpu_after) = times
    audio_s = sum(soundfile.info(path).duration for path in audio)
    times_taken = {"seconds": ended_at - started_at, "cpu_s": cpu_after - cpu_before}
    return {"utterances": len(audio), "audio_s": audio_s} | times_taken | sampler.peaks


def run_method(name: str, root: Path, audio: Path, run: Path) -> None:
    """Run a method in this process; print a line when it is prepared, and one when it is done."""
    needs_ray, prepare = METHODS[name]
    with connect("local") if needs_ray else contextlib.nullcontext():
        method = prepare(root, audio, run)
        typer.echo("begin")
        method()
        typer.echo("end")


@dataclass(frozen=True)
class Sampler:
    """Samples a process and its descendants.

    Attributes:
        pid: the process.
        peaks: peaks of memory, in megabytes, by name.
        cpu_s: CPU seconds of each process when it was last seen. Ended processes count: Ray does not wait for all.
        lock: held while a sample is taken.
    """

    pid: int
    peaks: Record = field(default_factory=lambda: defaultdict(float))
    cpu_s: dict[int, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sample_until(self, ended: threading.Event) -> None:
        """Take samples until `ended` is set."""
        while not ended.wait(SAMPLE_S):
            self.sample()

    def sample(self) -> float:
        """Take a sample; returns the CPU seconds of all processes so far."""
        with self.lock:
            processes = list(process_tree(self.pid))
            self.cpu_s.update((pid, max(cpu_seconds(pid), self.cpu_s.get(pid, 0.0))) for pid in processes)
            workers = [private_mb(pid) for pid in processes if command_line(pid).startswith("ray::")]
            self._update_peak("driver_mb", private_mb(self.pid))
            self._update_peak("largest_worker_mb", max(workers, default=0.0))
            self._update_peak("workers_mb", sum(workers))
            self._update_peak("object_store_mb", sum(map(store_mb, processes)))
            return sum(self.cpu_s.values())

    def _update_peak(self, name: str, megabytes: float) -> None:
        self.peaks[name] = max(self.peaks[name], megabytes)


def process_tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the process has just ended
            for child in children.read_text().split():
                yield from process_tree(int(child))


def command_line(pid: int) -> str:
    """The command line of a process, which Ray's workers set to what they do; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def private_mb(pid: int) -> float:
    """Anonymous memory of a process, in MB: without shared libraries and the object store."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1000
    return 0.0


def store_mb(pid: int) -> float:
    """Pages ever touched of the object store of a raylet, in MB: an unnamed file whose pages stay; 0 for others."""
    if "raylet/raylet" not in command_line(pid):
        return 0.0
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if "plasma" in str(descriptor.readlink()):
                return descriptor.stat().st_blocks * 512 / 1e6
    return 0.0


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, without its descendants."""
    with contextlib.suppress(OSError):
        ticks = map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        return sum(ticks) / os.sysconf("SC_CLK_TCK")
    return 0.0


def print_table(by_case: list[dict[str, Any]]) -> None:
    """Print the medians of each case."""
    table = Table()
    for key in by_case[0]:
        table.add_column(key.replace("_", " "), justify="left" if key == "method" else "right")
    for values in by_case:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in values.values()))
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["method"]:
        name, *paths = sys.argv[2:]
        run_method(name, *map(Path, paths))
    else:
        typer.run(main)
