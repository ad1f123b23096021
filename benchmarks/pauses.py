"""Measure long recordings with pauses, and the ends of words, with the bundled model.

    python -m benchmarks.pauses DATA WORK [--orders 152] [--digits 80] [--seed 24]

DATA holds the sets `coffee-orders` and `spoken-digits`, each with a `manifest.jsonl`. Spoken orders are joined with
pauses of 0.3 to 60 s into one recording, about an hour for 152 orders, once with digital silence in the pauses and
once with white noise at -50 and at -35 dBFS. Digits are cut where they are 35 dB below their loudest 5 ms, so that
their ends are known, and joined six at a time, 0.15 to 0.8 s apart. All of it is one run below WORK. Prints, for each
recording, the word error rate of its joined texts, audio computed and skipped, and the longest word; then the errors
of the ends of words.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import soundfile
import soxr
import typer

import pipeline
from pipeline.scoring.normalize import NORMALIZERS

RATE = 16_000
NOISES_DBFS = {"silence": None, "noise-50": -50.0, "noise-35": -35.0}


@dataclass(frozen=True)
class Figures:
    """Of one recording of orders.

    Attributes:
        wer: word error rate of its joined texts.
        minutes: of audio.
        skipped: minutes of it that were not computed.
        longest_word_s: duration of its longest word.
    """

    wer: float
    minutes: float
    skipped: float
    longest_word_s: float


def main() -> None:
    """Make the recordings, transcribe them and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--orders", type=int, default=152)
    parser.add_argument("--digits", type=int, default=80)
    parser.add_argument("--seed", type=int, default=24)
    arguments = parser.parse_args()
    orders, ends = measure(arguments.data, arguments.work, arguments.orders, arguments.digits, arguments.seed)
    for name, figures in orders.items():
        typer.echo(
            f"{name}: WER {figures.wer:.2%}, {figures.minutes:.1f} min, of which {figures.skipped:.1f} min skipped "
            f"and {figures.minutes - figures.skipped:.1f} min computed; longest word {figures.longest_word_s:.2f} s"
        )
    low, high = np.percentile(ends, [2.5, 97.5])
    typer.echo(
        f"ends of {len(ends)} digits: median of the absolute errors {np.median(np.abs(ends)) * 1000:.0f} ms, 95 % of "
        f"them below {np.percentile(np.abs(ends), 95) * 1000:.0f} ms; median {np.median(ends) * 1000:+.0f} ms, "
        f"95 % from {low * 1000:+.0f} to {high * 1000:+.0f} ms"
    )


def measure(data: Path, work: Path, orders: int, digits: int, seed: int) -> tuple[dict[str, Figures], np.ndarray]:
    """Figures by recording of orders, and the error of the end of each digit that was recognised, in seconds."""
    work.mkdir(parents=True, exist_ok=True)
    texts = {name: write_orders(data, work / f"{name}.wav", orders, level, seed) for name, level in NOISES_DBFS.items()}
    spoken = write_digits(data, work, digits, seed)
    run = pipeline.transcribe(
        pipeline.RunConfig((work / "*.wav",), work / "run", existing="overwrite", max_error_rate=0.0)
    )
    columns = ["uri", "start_s", "duration_s", "skipped_s", "text", "words"]
    rows = sorted(run.dataset("transcripts").to_table(columns=columns).to_pylist(), key=lambda row: row["start_s"])
    by_name: dict[str, list[dict]] = {}
    for row in rows:
        by_name.setdefault(Path(row["uri"]).stem, []).append(row)
    errors = [error for name, said in spoken.items() for error in end_errors(by_name[name], said)]
    return {name: figures_of(by_name[name], text) for name, text in texts.items()}, np.array(errors)


def figures_of(rows: list[dict], reference: str) -> Figures:
    """The figures of a recording, from its rows in the order of time."""
    normalize = NORMALIZERS["basic"]
    text = " ".join(row["text"] for row in rows)
    words = [word["end_s"] - word["start_s"] for row in rows for word in row["words"]]
    return Figures(
        wer=jiwer.wer(normalize(reference), normalize(text)),
        minutes=sum(row["duration_s"] for row in rows) / 60,
        skipped=sum(row["skipped_s"] for row in rows) / 60,
        longest_word_s=max(words, default=0.0),
    )


def end_errors(rows: list[dict], said: list[tuple[str, float]]) -> list[float]:
    """Recognised end - true end of each word; none where a word of the recording is wrong."""
    words = [word for row in rows for word in row["words"]]
    if [word["word"].lower() for word in words] != [text for text, _ in said]:
        return []
    return [word["end_s"] - end_s for word, (_, end_s) in zip(words, said, strict=True)]


def write_orders(data: Path, path: Path, count: int, noise_dbfs: float | None, seed: int) -> str:
    """Write a recording of orders; returns its text."""
    rng = np.random.default_rng(seed)
    rows = [row for row in read_manifest(data / "coffee-orders") if row["verified"]]
    chosen = [rows[index] for index in rng.permutation(len(rows))[:count]]
    pieces = []
    for row in chosen:
        # Cubed: many pauses are short, and 152 orders make an hour.
        pause = round((0.3 + 59.7 * rng.random() ** 3) * RATE)
        noise = rng.standard_normal(pause)
        pieces += [read(data / "coffee-orders", row), noise * (0 if noise_dbfs is None else 10 ** (noise_dbfs / 20))]
    soundfile.write(path, np.concatenate(pieces[:-1]), RATE, "PCM_16")
    return " ".join(row["text"] for row in chosen)


def write_digits(data: Path, folder: Path, count: int, seed: int) -> dict[str, list[tuple[str, float]]]:
    """Write recordings of six digits each; returns the words of each with their ends, in seconds."""
    rng = np.random.default_rng(seed)
    rows = read_manifest(data / "spoken-digits")
    order = rng.permutation(len(rows))[: 6 * count].reshape(count, 6)
    spoken = {}
    for number, indices in enumerate(order):
        pieces, said = [np.zeros(round(0.4 * RATE))], []
        for index in indices:
            pieces.append(trimmed(read(data / "spoken-digits", rows[index])))
            said.append((rows[index]["text"], sum(map(len, pieces)) / RATE))
            pieces.append(np.zeros(round(rng.uniform(0.15, 0.8) * RATE)))
        name = f"digits-{number:03}"
        soundfile.write(folder / f"{name}.wav", np.concatenate(pieces), RATE, "PCM_16")
        spoken[name] = said
    return spoken


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Samples at half of full scale, without what is 35 dB below the loudest 5 ms at both ends."""
    size = RATE // 200
    samples = samples / np.abs(samples).max() / 2
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    powers = frames.var(axis=1)
    loud = np.flatnonzero(powers > powers.max() * 10**-3.5)
    return samples[loud[0] * size : (loud[-1] + 1) * size]


def read_manifest(folder: Path) -> list[dict]:
    """The rows of a set."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]


def read(folder: Path, row: dict) -> np.ndarray:
    """The samples of a row at `RATE`, mono."""
    samples, rate = soundfile.read(folder / row["audio_filepath"], always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, RATE)


if __name__ == "__main__":
    main()
