"""Write the manifests on which the bundled model is trained and validated, from a directory of recordings.

    python benchmarks/bundled/prepare.py DATA OUT

DATA holds the sets that the model card names, each with a `manifest.jsonl`. Writes `NAME.jsonl` and `NAME-valid.jsonl`
with absolute paths, and the digit strings for validation, to OUT.

Held out for validation: the digit speaker jackson (from all stages of training but the last), and recordings 0 to 4 of
each digit by every speaker; some speakers of read English; some synthetic voices (mixtures of held-out and training
voices are used on neither side); and, by a hash of the file's name, some orders and keywords, whose speakers are not
known.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import typer

Row = dict[str, Any]

HELD_OUT_DIGITS = {"jackson"}
HELD_OUT_READERS = {"2277", "2412"}
HELD_OUT_VOICES = {"af_sky", "am_puck", "bf_emma", "bm_george"}
SPOKEN = {"view_glass": "view glass", "smart_mirror": "smart mirror"}
STRINGS = 60


def main() -> None:
    """Write all manifests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in {
        **digits(arguments.data / "spoken-digits", arguments.out),
        **orders(arguments.data / "coffee-orders"),
        **keywords(arguments.data / "keywords"),
        **read_english(arguments.data / "librispeech-dev-clean"),
        **synthetic(arguments.data / "synthetic"),
    }.items():
        write(arguments.out / f"{name}.jsonl", rows)
        typer.echo(f"{name}: {len(rows)} rows, {sum(row['duration'] for row in rows) / 3600:.2f} h")


def rows_of(directory: Path) -> list[Row]:
    """The rows of a set's manifest, with absolute paths."""
    lines = (directory / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{**row, "audio_filepath": str((directory / row["audio_filepath"]).resolve())} for row in rows]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write a manifest, one row per line."""
    kept = ("audio_filepath", "duration", "text", "label", "speaker")
    lines = [json.dumps({key: row[key] for key in kept if row.get(key) is not None}) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def is_valid(name: str, share: float) -> bool:
    """Whether a file is in the validation split; depends on its name alone, so that the split never changes."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10_000 < share * 10_000


def digits(directory: Path, out: Path) -> dict[str, list[Row]]:
    """Single digits for training, and strings of 3 to 7 for validation, by a new speaker and by known ones."""
    rows = [{**row, "label": None} for row in rows_of(directory)]
    new = [row for row in rows if row["speaker"] in HELD_OUT_DIGITS]
    known = [row for row in rows if row["speaker"] not in HELD_OUT_DIGITS]
    return {
        "digits": [row for row in known if not is_early(row)],
        "digits-five": [row for row in rows if not is_early(row)],
        "strings-new-valid": strings(new, out / "strings-new"),
        "strings-known-valid": strings(list(filter(is_early, known)), out / "strings-known"),
        "strings-fifth-valid": strings(list(filter(is_early, new)), out / "strings-fifth"),
    }


def is_early(row: Row) -> bool:
    """Whether a recording is one of the first five of its digit and speaker."""
    return int(Path(row["audio_filepath"]).stem.rsplit("_", 1)[1]) < 5


def strings(rows: list[Row], out: Path) -> list[Row]:
    """Join recordings of one speaker to strings of 3 to 7, with pauses of 0.05 to 0.5 s; writes WAV files to `out`."""
    out.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    speakers = sorted({row["speaker"] for row in rows})
    made = []
    for number in range(STRINGS):
        speaker = speakers[number % len(speakers)]
        by_speaker = [row for row in rows if row["speaker"] == speaker]
        chosen = [by_speaker[i] for i in rng.integers(len(by_speaker), size=rng.integers(3, 8))]
        pieces: list[np.ndarray] = []
        for row in chosen:
            samples, rate = soundfile.read(row["audio_filepath"], dtype="float32")
            pieces += [samples, 3e-4 * rng.standard_normal(int(rng.uniform(0.05, 0.5) * rate)).astype(np.float32)]
        joined = np.concatenate(pieces)
        path = out / f"{number:03}.wav"
        soundfile.write(path, joined, 8000)
        text = " ".join(row["text"] for row in chosen)
        made.append({"audio_filepath": str(path), "duration": len(joined) / 8000, "text": text, "speaker": speaker})
    return made


def orders(directory: Path) -> dict[str, list[Row]]:
    """Orders with a verified text."""
    rows = [row for row in rows_of(directory) if row["verified"]]
    return split(rows, "orders", 0.15)


def keywords(directory: Path) -> dict[str, list[Row]]:
    """Keywords, with their words as text."""
    rows = [{**row, "text": SPOKEN.get(row["label"], row["label"])} for row in rows_of(directory)]
    return split(rows, "keywords", 0.15)


def split(rows: list[Row], name: str, share: float) -> dict[str, list[Row]]:
    """Rows for training and for validation, by `is_valid`."""
    held = [row for row in rows if is_valid(Path(row["audio_filepath"]).name, share)]
    return {name: [row for row in rows if row not in held], f"{name}-valid": held}


def read_english(directory: Path) -> dict[str, list[Row]]:
    """Read English, with short and long utterances in separate manifests."""
    rows = rows_of(directory)
    train = [row for row in rows if row["speaker"] not in HELD_OUT_READERS]
    valid = [row for row in rows if row["speaker"] in HELD_OUT_READERS]
    return {
        "read-short": [row for row in train if row["duration"] < 8],
        "read-long": [row for row in train if 8 <= row["duration"] < 20],
        "read-valid": [row for row in valid if row["duration"] < 12][::2],
    }


def synthetic(directory: Path) -> dict[str, list[Row]]:
    """Synthetic speech by kind; validation has only voices that are in no training mixture."""
    train: dict[str, list[Row]] = {}
    valid = []
    for row in rows_of(directory):
        voices = set(row["speaker"].split("+"))
        if voices <= HELD_OUT_VOICES:
            if row["kind"] != "read":
                valid.append(row)
        elif not voices & HELD_OUT_VOICES:
            train.setdefault(f"synthetic-{row['kind']}", []).append(row)
    return {**train, "synthetic-valid": valid}


if __name__ == "__main__":
    main()
