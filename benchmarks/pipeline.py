"""The whole way, from a list of files to committed Parquet, against a plain script and against the model alone.

    python -m benchmarks.pipeline [--figure a|b|c|d]... [--rounds N] [--folder DIR] [--output FILE]

Four figures with their goals:

* a, speed: `pipeline.transcribe` over a plain script of Ray Data and transformers, on the same files: decoding tasks,
  an actor with padded batches of 8 with a mask, `write_parquet`. Both clocks begin when Ray is up, and take in all
  that follows: workers that start, models that load.
* b, share of the model: audio a second over that of the model alone, which finds its audio decoded in memory, in chunks
  as the pipeline forms them, and is warm. A start takes seconds whatever the corpus, so the pipeline's rate is that of
  the audio that a longer corpus has beyond a shorter one, in the time that it takes beyond it; the share with the
  start counted is told beside it.
* c, overhead: CPU an utterance, of all processes of a run, above a plain loop of soundfile over the same files; the
  model is a stand-in whose encoder gives the same logits for all, as many tokens a second as speech. From a longer
  corpus and one of half its length in the same way: both keep all workers busy, whose starts are no utterance's.
* d, memory: the peaks of a longer corpus over those of a shorter one: the driver's, the largest worker's, all workers',
  and the object store's. The model is a stand-in that is slower than decoding, so that chunks wait for it.

The files are FLAC, of lengths that are spread like LibriSpeech's; longer corpora are links to the same ones. Ways take
turns, each in a process of its own; what is told are medians over the turns, of ratios within a turn. Memory is what a
process has for itself, and what of its object store Ray ever touched. Needs the development dependencies, and Linux.
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
# Ray gives its workers niceness 15. The model alone has 0: where anything else runs, they would not be alike.
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
from pipeline.stages.recognize import Recognition, Recognizer, RecognizeSettings
from pipeline.storage.checkpoints import checkpoint_digest
from sewd_model import CTCTokenizer, EngineStatus
from sewd_model.engines import Logits
from tests.support import checkpoints, corpora

MEAN_S = 7.7  # of the workload's lengths
CHUNK_S = 1200.0
PADDED = 8
SAMPLE_S = 0.5  # a look at twenty processes costs 7 ms
SLOW = 1000.0  # seconds of audio that the slow model gets through in a second: decoding is several times as fast
FRAME = 320  # samples
SAID = "▁THE▁LONG▁WAY▁HOME"  # by the stand-ins, a letter every four frames: 12 a second, as in English
LETTER_FRAMES = 4

Record = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A way, over a corpus of so many minutes."""

    way: str
    minutes: float


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
        figure: what it is.
        goal: that the figure is to reach: at least, or at most.
        cases: that are measured for it, given the minutes of the short, the long and the null corpora.
        of_turn: the figure, and what stands beside it, by name, from the record of each case.
    """

    figure: str
    goal: float
    at_least: bool
    cases: Callable[[float, float, float], list[Case]]
    of_turn: Callable[..., Record]

    def reached(self, figure: float) -> bool:
        """Is it."""
        return figure >= self.goal if self.at_least else figure <= self.goal


def main(
    figure: Annotated[list[str] | None, typer.Option(help="Which: a, b, c, d; all by default.")] = None,
    minutes: Annotated[float, typer.Option(help="Audio for a, and the shorter corpus of b.")] = 20.0,
    long_minutes: Annotated[float, typer.Option(help="The longer corpus of b.")] = 120.0,
    null_minutes: Annotated[float, typer.Option(help="The shorter corpus of c, and the longer one of d.")] = 480.0,
    rounds: Annotated[int, typer.Option(help="Turns that each way gets.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Where to make the corpus; kept, and used again.")] = None,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("pipeline-benchmark.json"),
) -> None:
    """Make the corpora, measure, print a table and a line for each figure, write JSON."""
    wanted = {name: (GOALS[name], GOALS[name].cases(minutes, long_minutes, null_minutes)) for name in figure or GOALS}
    cases = list(dict.fromkeys(case for _, of_goal in wanted.values() for case in of_goal))
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make(root, minutes, {case.minutes for case in cases})
        turns = [{case: measured(case, root) for case in cases} for _ in range(rounds)]
    figures = {}
    for name, (goal, of_goal) in wanted.items():
        medians = _medians([goal.of_turn(*(turn[case] for case in of_goal)) for turn in turns])
        what = {"figure": goal.figure, "goal": goal.goal, "reached": goal.reached(medians[goal.figure])}
        figures[name] = what | {"medians": medians}
    ways = [asdict(case) | _medians([turn[case] for turn in turns]) for case in cases]
    about = {
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "ray": ray.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rounds": rounds,
    }
    every = [[asdict(case) | record for case, record in turn.items()] for turn in turns]
    output.write_text(json.dumps({**about, "figures": figures, "ways": ways, "turns": every}, indent=1))
    Console().print(about)
    show(ways)
    for name, found in figures.items():
        medians, of = found["medians"], found["figure"]
        beside = ", ".join(f"{key} {value:.3g}" for key, value in medians.items() if key != of)
        sign = ">=" if GOALS[name].at_least else "<="
        missed = "" if found["reached"] else " (not reached)"
        typer.echo(f"{name}. {of}: {medians[of]:.3g}, goal {sign} {found['goal']:g}{missed}; {beside}")


def _medians(records: list[Record]) -> Record:
    return {key: statistics.median(record[key] for record in records) for key in records[0]}


def make(root: Path, minutes: float, sizes: set[float]) -> None:
    """Write what is not there yet: the clips, the model, and of each size a corpus of links to the clips."""
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
    """Where the one of a size lies."""
    return root / f"{minutes:g}-minutes"


def files(folder: Path) -> list[Path]:
    """Of a corpus, in order."""
    return sorted(folder.iterdir())


# ------------------------------------------------------------------------------------------------- the figures
SPEED, SHARE = "times as fast as the plain script", "share of the model alone"
OVERHEAD, MEMORY = "ms of CPU an utterance above the soundfile loop", "memory of 8 times the corpus"


def speed(plain: Record, ours: Record) -> Record:
    """See the module, and so on."""
    rates = {"times real time": _rate(ours), "the plain script's": _rate(plain)}
    return {SPEED: plain["seconds"] / ours["seconds"]} | rates


def share(short: Record, long: Record, alone: Record) -> Record:
    """Of the model alone."""
    steady = (long["audio_s"] - short["audio_s"]) / (long["seconds"] - short["seconds"])
    rates = {"times real time": steady, "the model's": _rate(alone)}
    return {SHARE: steady / _rate(alone), "with the start": _rate(long) / _rate(alone)} | rates


def overhead(short: Record, long: Record, loop: Record) -> Record:
    """An utterance's."""
    each = (long["cpu_s"] - short["cpu_s"]) / (long["utterances"] - short["utterances"])
    decoding = loop["cpu_s"] / loop["utterances"]
    raw = long["cpu_s"] / long["utterances"]
    found = {OVERHEAD: each - decoding, "with the start": raw - decoding, "the loop itself": decoding}
    return {name: seconds * 1e3 for name, seconds in found.items()}


def memory(short: Record, long: Record) -> Record:
    """The largest of the ratios, and all of them."""
    peaks = {name.removesuffix("_mb"): long[name] / short[name] for name in long if name.endswith("_mb")}
    return {MEMORY: max(peaks.values())} | peaks


GOALS = {
    "a": Goal(SPEED, 4.0, True, lambda s, _m, _n: [Case("plain script", s), Case("pipeline", s)], speed),
    "b": Goal(
        SHARE, 0.9, True, lambda s, m, _n: [Case("pipeline", s), Case("pipeline", m), Case("model alone", m)], share
    ),
    "c": Goal(
        OVERHEAD,
        1.0,
        False,
        lambda _s, _m, n: [Case("null model", n), Case("null model", 2 * n), Case("soundfile loop", 2 * n)],
        overhead,
    ),
    "d": Goal(MEMORY, 1.1, False, lambda _s, _m, n: [Case("slow model", n / 8), Case("slow model", n)], memory),
}


def _rate(record: Record) -> float:
    return record["audio_s"] / record["seconds"]


# ---------------------------------------------------------------------------------------------------- the ways
class NullModel(Recognizer):
    """All of the recogniser but the encoder."""

    def _load(self) -> None:
        super()._load()
        tokenizer = CTCTokenizer.from_pretrained(self.settings.model)
        frames = round(LONGEST_S * RATE) // FRAME
        said = [tokenizer.ids["|" if letter == "▁" else letter] for letter in SAID]
        scores = torch.zeros(frames, len(tokenizer.ids))
        scores[:, self.blank] = 5
        for number, frame in enumerate(range(0, frames, LETTER_FRAMES)):
            scores[frame, said[number % len(said)]] = 10

        self.encoders = [
            replace(encoder, engine=FixedScores(scores, encoder.engine.status())) for encoder in self.encoders
        ]


@dataclass(frozen=True)
class FixedScores:
    """An engine that returns the first rows of `scores` (frames, vocabulary) for every clip."""

    scores: torch.Tensor
    of_model: EngineStatus
    splits: int = 0

    def encode(self, waveforms: Sequence[torch.Tensor]) -> Iterator[Logits | None]:
        """See `sewd_model.engines.Engine`."""
        return ((self.scores[: len(waveform) // FRAME],) for waveform in waveforms)

    def status(self) -> EngineStatus:
        """See `sewd_model.engines.Engine`."""
        return self.of_model


class SlowModel(NullModel):
    """The same, for which chunks wait."""

    def _results(self, rows: pa.StructArray) -> list[Recognition]:
        time.sleep(sum(rows.field("duration_s").to_pylist()) / SLOW)
        return super()._results(rows)


def through_pipeline(root: Path, audio: Path, run: Path) -> Callable[[], object]:
    """Our own, up to a finished run."""
    config = pipeline.RunConfig(inputs=(audio,), output=run, model=root / "model", chunk_s=CHUNK_S)
    return lambda: pipeline.transcribe(config)


def with_stand_in(model: type[Recognizer]) -> Callable[[Path, Path, Path], Callable[[], object]]:
    """The same with another model."""

    def prepare(root: Path, audio: Path, run: Path) -> Callable[[], object]:
        return mock.patch.object(dataset, "Recognizer", model)(through_pipeline(root, audio, run))

    return prepare


def plain_script(root: Path, audio: Path, run: Path) -> Callable[[], object]:
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
        dataset = ray.data.from_items([{"path": str(path)} for path in files(audio)])
        decoded = dataset.map(decode, num_cpus=0.25)
        texts = decoded.map_batches(Transcriber, batch_size=PADDED, num_cpus=1, concurrency=1)
        texts.write_parquet(str(run))

    return run_it


def model_alone(root: Path, audio: Path, run: Path) -> Callable[[], object]:
    """The recogniser over decoded audio, in as much as a chunk holds at a time."""
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
    recognizer = Recognizer(settings)
    clips: dict[int, np.ndarray] = {}  # of links to one file, one
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
    """Decoding alone."""
    return lambda: [len(soundfile.read(path, dtype="float32")[0]) for path in files(audio)]


WAYS: dict[str, tuple[bool, Callable[[Path, Path, Path], Callable[[], object]]]] = {  # (needs Ray, what prepares it)
    "plain script": (True, plain_script),
    "pipeline": (True, through_pipeline),
    "model alone": (False, model_alone),
    "null model": (True, with_stand_in(NullModel)),
    "slow model": (True, with_stand_in(SlowModel)),
    "soundfile loop": (False, soundfile_loop),
}


# ------------------------------------------------------------------------------------------------- measuring
def measured(case: Case, root: Path) -> Record:
    """Run one way in a process of its own and watch it and its workers."""
    audio = files(corpus(root, case.minutes))
    with tempfile.TemporaryDirectory() as folder:
        arguments = [case.way, str(root), str(corpus(root, case.minutes)), str(Path(folder) / "run")]
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pipeline", "way", *arguments], stdout=subprocess.PIPE, text=True
        ) as process:
            watch = Watch(process.pid)
            ended = threading.Event()
            watcher = threading.Thread(target=watch.until, args=(ended,))
            watcher.start()
            lines = process.stdout or ()
            times = [(time.monotonic(), watch.look()) for _ in lines]  # the clock's begin and end
            ended.set()
            watcher.join()
    if process.returncode:
        msg = f"{case.way} ended with {process.returncode}"
        raise RuntimeError(msg)
    (began, before), (ended_at, after) = times
    audio_s = sum(soundfile.info(path).duration for path in audio)
    took = {"seconds": ended_at - began, "cpu_s": after - before}
    return {"utterances": len(audio), "audio_s": audio_s} | took | watch.peaks


def run_way(name: str, root: Path, audio: Path, run: Path) -> None:
    """In the process of its own: a line when all is prepared, and one when it is done."""
    needs_ray, prepare = WAYS[name]
    with connect("local") if needs_ray else contextlib.nullcontext():
        way = prepare(root, audio, run)
        typer.echo("begin")
        way()
        typer.echo("end")


@dataclass(frozen=True)
class Watch:
    """Of a process and its descendants: peaks of memory, and the CPU seconds of all, those that ended included."""

    pid: int
    peaks: Record = field(default_factory=lambda: defaultdict(float))
    cpu_s: dict[int, float] = field(default_factory=dict)  # of each process, as last seen: Ray does not wait for all
    lock: threading.Lock = field(default_factory=threading.Lock)

    def until(self, ended: threading.Event) -> None:
        """Look again and again."""
        while not ended.wait(SAMPLE_S):
            self.look()

    def look(self) -> float:
        """Gives the CPU seconds so far."""
        with self.lock:
            processes = list(tree(self.pid))
            self.cpu_s.update((one, max(cpu_seconds(one), self.cpu_s.get(one, 0.0))) for one in processes)
            workers = [private_mb(one) for one in processes if command(one).startswith("ray::")]
            self._see("driver_mb", private_mb(self.pid))
            self._see("largest_worker_mb", max(workers, default=0.0))
            self._see("workers_mb", sum(workers))
            self._see("object_store_mb", sum(map(store_mb, processes)))
            return sum(self.cpu_s.values())

    def _see(self, name: str, megabytes: float) -> None:
        self.peaks[name] = max(self.peaks[name], megabytes)


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            for child in children.read_text().split():
                yield from tree(int(child))


def command(pid: int) -> str:
    """What a process calls itself."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def private_mb(pid: int) -> float:
    """What a process has for itself: anonymous memory, without shared libraries and the object store."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1000
    return 0.0


def store_mb(pid: int) -> float:
    """What was ever touched of the object store that a process keeps: a file without a name, whose pages stay."""
    if "raylet/raylet" not in command(pid):
        return 0.0
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if "plasma" in str(descriptor.readlink()):
                return descriptor.stat().st_blocks * 512 / 1e6
    return 0.0


def cpu_seconds(pid: int) -> float:
    """Of a process, without its descendants."""
    with contextlib.suppress(OSError):
        ticks = map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        return sum(ticks) / os.sysconf("SC_CLK_TCK")
    return 0.0


def show(ways: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table()
    for key in ways[0]:
        table.add_column(key.replace("_", " "), justify="left" if key == "way" else "right")
    for values in ways:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in values.values()))
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["way"]:
        name, *paths = sys.argv[2:]
        run_way(name, *map(Path, paths))
    else:
        typer.run(main)
