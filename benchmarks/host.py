"""Cost of a chunk around the encoder: from decoded samples to the table of their tokens, without the encoder.

    python -m benchmarks.host [--rounds N] [--against CHECKOUT] [--output FILE]

The engine is that of GPUs, on the CPU, without what a GPU computes: clips are laid out and copied as for a device, and
the numbers that it would return are made beforehand. What remains is the work of the processor around each chunk:
samples, index tables, tokens, Arrow. Launches and copies to a GPU are not in it.

There are two chunks of 20 minutes, int16: 100 clips of 12 s and 600 of 2 s. Another checkout of the project, which has
this benchmark too, is measured in turns with this one, in processes of their own, and what they recognise is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.schemas import READ_CHUNK, one_chunk
from pipeline.stages.recognize import ChunkRecognizer, RecognizeSettings
from pipeline.stages.rows import ReadRow, read_rows
from sewd_model import CTCTokenizer, SEWDForCTC
from sewd_model.engines import _OnDevice
from sewd_model.files import BUNDLED
from sewd_model.packed.gpu_batches import MAX_BUDGET_S
from sewd_model.packed.gpu_layout import Batch
from sewd_model.packed.gpu_recognition import RecognitionRunner, best_tokens
from sewd_model.recognition import Decoding

RATE = 16_000
CHUNK_S = 1200
CHUNKS = {"100 clips of 12 s": (100, 12), "600 clips of 2 s": (600, 2)}
REPEATS = 9  # of each chunk in a process, whose median counts
GOAL_S = 0.025
FRAME_SAMPLES = 320
LETTER_FRAMES = 4  # 12 letters per second, as in English


def main() -> int:
    """Measure, print a table, write JSON; returns the exit code, 1 if the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes for each checkout, in turns")
    parser.add_argument("--against", type=Path, help="another checkout, to be measured too")
    parser.add_argument("--output", type=Path, default=Path("host-benchmark.json"), help="JSON file for the figures")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of one checkout: where it writes
    options = parser.parse_args()
    if options.measure:
        options.measure.write_text(json.dumps(measure()))
        return 0
    checkouts = {"this": Path(__file__).parents[1]} | ({"other": options.against} if options.against else {})
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            {name: _in_process(path.resolve(), Path(folder) / "figures.json") for name, path in checkouts.items()}
            for _ in range(options.rounds)
        ]
    figures = {
        chunk: _figures([{name: found[chunk] for name, found in of_round.items()} for of_round in rounds])
        for chunk in CHUNKS
    }
    for chunk, of_chunk in figures.items():
        for name in checkouts:
            values = of_chunk[name]
            sys.stdout.write(
                f"{chunk}, {name}: {1e3 * values['seconds']:.1f} ms, {values['us_per_audio_s']:.1f} us for a second of "
                f"audio: at most {values['times_real_time']:,.0f} times real time\n"
            )
        if "agreement" in of_chunk:
            sys.stdout.write(f"{chunk}: {json.dumps(of_chunk['agreement'])}\n")
    options.output.write_text(json.dumps(figures, indent=1))
    return 0 if all(of_chunk["this"]["seconds"] <= GOAL_S for of_chunk in figures.values()) else 1


def _in_process(checkout: Path, output: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.host", "--measure", str(output)]
    subprocess.run(command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def _figures(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in rounds[0]:
        seconds = statistics.median(found[name]["seconds"] for found in rounds)
        figures[name] = {
            "seconds": seconds,
            "us_per_audio_s": 1e6 * seconds / CHUNK_S,
            "times_real_time": CHUNK_S / seconds,
        }
    if "other" in rounds[0]:
        one, other = rounds[0]["this"], rounds[0]["other"]
        figures["ratio"] = statistics.median(found["other"]["seconds"] / found["this"]["seconds"] for found in rounds)
        difference = np.abs(np.array(one["probabilities"]) - np.array(other["probabilities"])).max()
        figures["agreement"] = {"same_tokens": one["tokens"] == other["tokens"], "probabilities": float(difference)}
    return figures


def measure() -> dict[str, dict[str, Any]]:
    """For each chunk, the median time around the encoder, the tokens and their probabilities."""
    torch.set_num_threads(1)
    recognizer = stub_recognizer()
    found = {}
    for name, (number, seconds) in CHUNKS.items():
        chunk = chunk_of(number, seconds)
        taken = []
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            table = recognizer(chunk)
            taken.append(time.perf_counter() - started)
        rows = table.to_pylist()[0]["rows"]
        found[name] = {
            "seconds": statistics.median(taken[1:]),
            "tokens": [(row["token_ids"], row["start_frames"], row["end_frames"], row["num_frames"]) for row in rows],
            "probabilities": [probability for row in rows for probability in row["probabilities"]],
        }
    return found


def chunk_of(number: int, seconds: int) -> pa.Table:
    """A chunk of clips of noise, int16."""
    rng = np.random.default_rng(0)
    rows = [
        ReadRow(
            *(f"clip-{index:04d}", "clip.wav", 0.0, float(seconds), None, None, None, None, None, None, None),
            samples=rng.integers(-3000, 3000, seconds * RATE, np.int16),
        )
        for index in range(number)
    ]
    head = {"part_id": "p", "chunk": 0, "first_row": 0, "last": False, "audio_s": float(number * seconds)}
    head |= {"source_bytes": 1, "reader": "r", "read_s": 0.0, "read_at": time.time()}
    return one_chunk(READ_CHUNK, head, read_rows(rows, RATE))


def stub_recognizer() -> ChunkRecognizer:
    """The recogniser with the bundled model and the engine for GPUs, whose device returns numbers made here."""
    common = (str(BUNDLED), (), (), "cpu", "float32", 1)
    settings = RecognizeSettings(*common, deadline_s=600.0, stop_uri="/no/stop", run="/no")
    recognizer = ChunkRecognizer(settings)
    (encoder,) = recognizer.encoders
    head = SEWDForCTC.from_pretrained(BUNDLED).eval()
    decoding = Decoding(encoder.features, head.blank, tuple(CTCTokenizer.from_pretrained(BUNDLED).drop_ids))
    on_device: Any = _OnDevice([head], torch.device("cpu"), "float32", decoding)
    on_device._engine._recognition = _Stub(on_device._engine._recognition)
    on_device._engine.budget_s = MAX_BUDGET_S
    recognizer.encoders = [type(encoder)(encoder.features, encoder.positions, on_device)]
    return recognizer


class _Stub(RecognitionRunner):
    """Lays out batches, and returns the best tokens of random logits with as many letters as speech."""

    def __init__(self, runner: RecognitionRunner) -> None:
        super().__init__(runner.model, runner.decoding)
        (head,) = runner.model.heads
        frames = round(MAX_BUDGET_S * RATE) // FRAME_SAMPLES
        self.numbers = best_tokens(logits_like_speech(frames, head.num_outputs, runner.decoding.blank), 1)

    def compute(self, batch: Batch) -> torch.Tensor:
        return self.numbers[:, : sum(batch.num_frames_list)].flatten()


def logits_like_speech(frames: int, vocabulary: int, blank: int) -> torch.Tensor:
    """Random logits `(frames, vocabulary)` with a letter every `LETTER_FRAMES` frames."""
    logits = torch.randn(frames, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[:, blank] += 8.0
    letters = torch.arange(0, frames, LETTER_FRAMES)
    logits[letters, letters // LETTER_FRAMES % vocabulary] += 16.0
    return logits


if __name__ == "__main__":
    sys.exit(main())
