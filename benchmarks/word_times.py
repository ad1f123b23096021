"""Errors of the starts and ends of words, with the bundled model, on speech whose word times are known.

    python -m benchmarks.word_times DATA [--texts 120] [--seed 1]

Two sets. Digits: recordings of single digits (DATA/spoken-digits), joined with 20 to 500 ms of near silence between
them; a digit begins and ends where it is 35 dB below its loudest 10 ms. Sentences: orders, digits and read sentences
(texts of DATA) spoken by flite (https://github.com/festvox/flite, not part of this project), which prints the end of
each sound; words follow each other without a pause. Only words that were recognised count. Prints bias and errors in ms
of the times of tokens (before they are extended) and of words.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import typer

import pipeline
from pipeline.stages import texts
from pipeline.stages.word_ends import sound_starts

RATE = 16_000
VOICES = ("slt", "rms", "awb")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Spoken(NamedTuple):
    """A word and its times, seconds."""

    word: str
    start_s: float
    end_s: float


def main() -> None:
    """Make the recordings, transcribe them and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    recognizer = pipeline.Recognizer.from_pretrained("bundled")
    with tempfile.TemporaryDirectory() as folder:
        sets = {"digits": digits(arguments.data, arguments.texts, arguments.seed)}
        if shutil.which("flite"):
            sets["sentences"] = sentences(arguments.data, Path(folder), arguments.texts, arguments.seed)
        for name, items in sets.items():
            print_errors(name, items, recognizer, Path(folder, "x.wav"))


def print_errors(
    name: str, items: Iterator[tuple[np.ndarray, list[Spoken]]], recognizer: pipeline.Recognizer, path: Path
) -> None:
    """Print the errors of one set."""
    errors: dict[str, list[float]] = {f"{kind} {edge}": [] for kind in ("token", "word") for edge in ("start", "end")}
    spoken = 0
    for samples, truth in items:
        soundfile.write(path, samples, RATE, subtype="PCM_16")
        tokens, words = recognized(recognizer, path)
        spoken += len(truth)
        said = [each.word for each in truth]
        matcher = difflib.SequenceMatcher(None, said, [word.word.lower() for word in words], autojunk=False)
        for first, found, length in matcher.get_matching_blocks():
            for k in range(length):
                known = truth[first + k]
                for kind, times in (("token", tokens[found + k]), ("word", words[found + k])):
                    errors[f"{kind} start"].append(times.start_s - known.start_s)
                    errors[f"{kind} end"].append(times.end_s - known.end_s)
    typer.echo(f"{name}: {len(errors['word start'])} of {spoken} words")
    for kind, values in errors.items():
        ms = 1000 * np.array(values)
        typer.echo(
            f"  {kind:11s} bias {np.median(ms):5.0f} ms, error: median {np.median(np.abs(ms)):4.0f}, "
            f"95 % {np.percentile(np.abs(ms), 95):4.0f}"
        )


def recognized(recognizer: pipeline.Recognizer, path: Path) -> tuple[list[Spoken], list[Spoken]]:
    """The words by the times of their tokens, and by their own."""
    tokens: list[Spoken] = []

    def spy(words, levels):  # noqa: ANN001, ANN202 - as `sound_starts`
        tokens.extend(Spoken(word.word, word.start_s, word.end_s) for word in words)
        return sound_starts(words, levels)

    texts.sound_starts = spy
    words = [Spoken(word.word, word.start_s, word.end_s) for word in recognizer.transcribe(path).words]
    return tokens, words


def digits(data: Path, number: int, seed: int) -> Iterator[tuple[np.ndarray, list[Spoken]]]:
    """Digits of one speaker in a row, with their times."""
    rng = np.random.default_rng(seed)
    rows = list(map(json.loads, (data / "spoken-digits" / "manifest.jsonl").read_text().splitlines()))
    speakers = sorted({row["speaker"] for row in rows})
    for index in range(number):
        own = [row for row in rows if row["speaker"] == speakers[index % len(speakers)]]
        pieces, truth = [np.zeros(int(rng.uniform(0.1, 0.7) * RATE))], []
        for _ in range(int(rng.integers(5, 12))):
            row = own[rng.integers(len(own))]
            samples, rate = soundfile.read(data / "spoken-digits" / row["audio_filepath"])
            samples = soxr.resample(samples, rate, RATE)
            before = sum(map(len, pieces))
            loud = loud_part(samples)
            truth.append(Spoken(row["text"], *((before + edge) / RATE for edge in loud)))
            pieces += [samples, np.zeros(int(rng.uniform(0.02, 0.5) * RATE))]
        joined = np.concatenate(pieces)
        yield joined + rng.normal(0, 1e-4, len(joined)), truth


def loud_part(samples: np.ndarray) -> tuple[int, int]:
    """First and last sample that are less than 35 dB below the loudest 10 ms, to 10 ms."""
    step = RATE // 100
    number = len(samples) // step
    power = (samples[: number * step].reshape(number, step) ** 2).mean(1)
    loud = np.flatnonzero(power > power.max() * 10**-3.5)
    return int(loud[0]) * step, int(loud[-1] + 1) * step


def sentences(data: Path, folder: Path, number: int, seed: int) -> Iterator[tuple[np.ndarray, list[Spoken]]]:
    """Texts as flite speaks them, with the times that it prints."""
    rng = random.Random(seed)
    orders = map(json.loads, (data / "coffee-orders" / "manifest.jsonl").read_text().splitlines())
    read = map(json.loads, (data / "librispeech-dev-clean" / "manifest.jsonl").read_text().splitlines())
    found = rng.sample([row["text"].lower() for row in orders if row.get("verified")], number // 2)
    found += [" ".join(rng.choices(DIGITS, k=rng.randint(4, 8))) for _ in range(number // 5)]
    found += rng.sample([row["text"].lower() for row in read if len(row["text"].split()) < 18], number // 4)
    for index, text in enumerate(found):
        voice = VOICES[index % len(VOICES)]
        path = folder / "flite.wav"
        printed = speak(voice, "-psdur", text, path)
        edges = [0.0, *(float(each.rpartition(":")[2]) for each in printed)]
        sounds = [k for k, each in enumerate(printed) if not each.startswith("pau:")]
        counts = [number_of_sounds(voice, word, str(folder)) for word in text.split()]
        if sum(counts) != len(sounds):  # a word sounds different in its sentence
            continue
        ends = np.cumsum(counts)
        truth = [
            Spoken(word, edges[sounds[end - count]], edges[sounds[end - 1] + 1])
            for word, count, end in zip(text.split(), counts, ends, strict=True)
        ]
        samples, rate = soundfile.read(path)
        yield soxr.resample(samples, rate, RATE), truth


def speak(voice: str, option: str, text: str, path: Path) -> list[str]:
    """What flite prints of the sounds of a text, which it writes to a file."""
    command = ["flite", "-voice", voice, option, "-t", text, "-o", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@functools.cache
def number_of_sounds(voice: str, word: str, folder: str) -> int:
    """How many sounds a word has."""
    return sum(sound != "pau" for sound in speak(voice, "-ps", word, Path(folder, "word.wav")))


if __name__ == "__main__":
    main()
