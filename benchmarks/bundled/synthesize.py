"""Make synthetic speech for training with two small engines: orders, digit strings, keywords, times, sentences.

    python benchmarks/bundled/synthesize.py DATA CORPUS OUT [COUNT]

Needs `flite`, `espeak-ng`, `bible` and WordNet's dictionary (Debian packages flite, espeak-ng, bible-kjv, dict-wn).
Writes WAV files of 16 kHz, `flite.jsonl`, `espeak.jsonl` and `sentences.jsonl` to OUT, with COUNT, a third of COUNT,
and two and a half times COUNT utterances. Pitch, its range and the tempo are drawn for each utterance; the trainer
augments them further.

The sentences are, a third each: those of the training readers in CORPUS (the output of `prepare.py`), usage examples
from WordNet, and verses of the King James Bible. None is from a held-out reader.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import typer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty")
KEYWORDS = {
    "alexa": "alexa",
    "computer": "computer",
    "jarvis": "jarvis",
    "smart_mirror": "smart mirror",
    "snowboy": "snowboy",
    "view_glass": "view glass",
}
FLITE = {"slt": 170, "awb": 110, "rms": 95, "kal16": 105}  # mean pitch of each voice, in Hz
ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029")
VARIANTS = ("", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7")
RATE = 16_000
WORDNET = Path("/usr/share/dictd/wn.dict.dz")
MAX_WORDS = 14
SPEAKABLE = re.compile(r"[A-Za-z' ,;:.?!-]{12,}")

Text = tuple[str, str | None]  # the text and, for a keyword, its label


def main() -> None:
    """Write all three sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("count", type=int, metavar="COUNT", nargs="?", default=2500)
    arguments = parser.parse_args()
    grammar = (arguments.data / "coffee-orders" / "grammar_corpus.txt").read_text(encoding="utf-8").split("\n")
    orders = [line.strip().lower() for line in grammar if line.strip()]
    sources = [read_texts(arguments.corpus), wordnet_examples(), verses()]
    for name, engine, count, draw in (
        ("flite", flite, arguments.count, lambda rng: draw_text(rng, orders)),
        ("espeak", espeak, arguments.count // 3, lambda rng: draw_text(rng, orders)),
        ("sentences", flite, arguments.count * 5 // 2, lambda rng: (draw_sentence(rng, sources), None)),
    ):
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(7)
        rows = []
        for number in range(count):
            text, label = draw(rng)
            path = folder / f"{number:05}.wav"
            speaker = engine(rng, text, path)
            seconds = trim(path)
            row = {"audio_filepath": str(path.resolve()), "duration": seconds, "text": text, "speaker": speaker}
            rows.append(row if label is None else row | {"label": label})
        manifest = arguments.out / f"{name}.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        typer.echo(f"{name}: {count} rows, {sum(row['duration'] for row in rows) / 3600:.2f} h")


def read_texts(corpus: Path) -> list[str]:
    """The texts of the training readers."""
    lines = [line for name in ("short", "long") for line in (corpus / f"read-{name}.jsonl").read_text().splitlines()]
    return [json.loads(line)["text"].lower() for line in lines]


def wordnet_examples() -> list[str]:
    """Usage examples from the definitions of WordNet 3: quoted, with five words or more."""
    text = " ".join(gzip.decompress(WORDNET.read_bytes()).decode("utf-8").split())
    quoted = sorted(set(re.findall(r'"([^"]{15,120})"', text)))
    return [line for line in quoted if SPEAKABLE.fullmatch(line) and len(line.split()) >= 5]


def verses() -> list[str]:
    """Clauses of the King James Bible."""
    printed = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True).stdout
    clauses = [part.strip(" .") for line in printed.splitlines() for part in re.split(r"[:;]", line.split(" ", 1)[1])]
    return [line for line in clauses if SPEAKABLE.fullmatch(line) and len(line.split()) >= 5]


def draw_sentence(rng: np.random.Generator, sources: list[list[str]]) -> str:
    """Draw a sentence; from a long one, `MAX_WORDS` consecutive words."""
    source = sources[rng.integers(len(sources))]
    words = source[rng.integers(len(source))].split()
    start = int(rng.integers(max(1, len(words) - MAX_WORDS + 1)))
    return " ".join(words[start : start + MAX_WORDS])


def draw_text(rng: np.random.Generator, orders: list[str]) -> Text:
    """Draw a text: 30 % orders, 30 % short and 10 % long digit strings, 15 % keywords, 15 % times."""
    kinds: list[Callable[[], Text]] = [
        lambda: (str(rng.choice(orders)), None),
        lambda: (" ".join(rng.choice(DIGITS, size=rng.integers(1, 8))), None),
        lambda: _keyword(rng),
        lambda: (" ".join(rng.choice(DIGITS, size=rng.choice([7, 10]))), None),
        lambda: (_time(rng), None),
    ]
    return kinds[rng.choice(5, p=[0.3, 0.3, 0.15, 0.1, 0.15])]()


def _keyword(rng: np.random.Generator) -> Text:
    label = str(rng.choice(list(KEYWORDS)))
    return KEYWORDS[label], label


def _time(rng: np.random.Generator) -> str:
    hour = str(rng.choice([*DIGITS[1:], *TEENS[:3]]))
    minute = int(rng.integers(0, 60))
    if minute == 0:
        spoken = "o'clock"
    elif minute < 10:
        spoken = f"oh {DIGITS[minute]}"
    elif minute < 20:
        spoken = TEENS[minute - 10]
    else:
        spoken = TENS[minute // 10 - 2] + (f" {DIGITS[minute % 10]}" if minute % 10 else "")
    return f"{hour} {spoken}" + str(rng.choice(["", " a m", " p m"]))


def flite(rng: np.random.Generator, text: str, path: Path) -> str:
    """Synthesise with one of flite's four voices; returns the name of the voice."""
    voice = str(rng.choice(list(FLITE)))
    settings = {
        "duration_stretch": f"{rng.uniform(0.8, 1.3):.2f}",
        "int_f0_target_mean": f"{FLITE[voice] * rng.uniform(0.8, 1.3):.0f}",
        "int_f0_target_stddev": f"{rng.uniform(8, 25):.0f}",
    }
    options = [part for key, value in settings.items() for part in ("--setf", f"{key}={value}")]
    subprocess.run(["flite", "-voice", voice, *options, "-t", text, "-o", str(path)], check=True)
    return f"flite-{voice}"


def espeak(rng: np.random.Generator, text: str, path: Path) -> str:
    """Synthesise with one of espeak-ng's English voices; returns the name of the voice."""
    voice = str(rng.choice(ACCENTS)) + str(rng.choice(VARIANTS))
    options = ["-s", str(rng.integers(120, 190)), "-p", str(rng.integers(20, 80))]
    subprocess.run(["espeak-ng", "-v", voice, *options, "-w", str(path), text], check=True)
    return f"espeak-{voice}"


def trim(path: Path) -> float:
    """Resample a file to 16 kHz and leave at most 0.3 s of silence at each end; returns its seconds."""
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    margin = int(0.3 * RATE)
    if len(loud):
        samples = samples[max(0, loud[0] - margin) : loud[-1] + margin]
    soundfile.write(path, samples, RATE)
    return len(samples) / RATE


if __name__ == "__main__":
    main()
