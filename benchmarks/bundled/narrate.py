"""Synthesise novels being read aloud: the good, cheap voice of hibari-tts, changed into other voices by WORLD.

    python benchmarks/bundled/narrate.py NOVELS OUT [COUNT]

NOVELS is the `data` directory of the Debian package r-cran-janeaustenr (`novels.py`). Needs the pip packages of
`revoice.py`, `hibari-tts` and `rdata`. Writes WAV files of 16 kHz and `novels.jsonl` with COUNT rows to OUT. A fifth of
the rows has hibari's voice, each of the others a different one. The same command resumes after an interruption.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import soxr
import typer
from hibari import Hibari
from novels import draw_piece, read_novels
from revoice import RATE, draw_voice, revoice

UNCHANGED = 0.2  # share of the rows with the original voice
FRAME_MS = 8.0  # of WORLD; longer than its default of 5 ms, because the time it takes depends on the number of frames


def main() -> None:
    """Draw pieces of the novels and synthesise them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("novels", type=Path, metavar="NOVELS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("count", type=int, metavar="COUNT", nargs="?", default=4000)
    arguments = parser.parse_args()
    runs = read_novels(arguments.novels)
    reader = Hibari()
    folder = arguments.out / "novels"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = arguments.out / "novels.jsonl"
    done = len(manifest.read_text("utf-8").splitlines()) if manifest.exists() else 0
    with manifest.open("a", encoding="utf-8") as lines:
        for number in range(done, arguments.count):
            rng = np.random.default_rng([83, number])
            text = draw_piece(rng, runs)
            speech = reader(text, speed=float(rng.uniform(0.9, 1.2)), seed=number)
            samples = soxr.resample(speech.astype(float), reader.sample_rate, RATE)
            if rng.random() >= UNCHANGED:
                samples = revoice(rng, samples, draw_voice(rng), FRAME_MS)
            path = folder / f"{number:05}.wav"
            soundfile.write(path, samples, RATE, subtype="PCM_16")
            row = {"audio_filepath": str(path.resolve()), "duration": len(samples) / RATE, "text": text}
            lines.write(json.dumps(row) + "\n")
            lines.flush()
    typer.echo(f"{manifest}: {arguments.count} rows")


if __name__ == "__main__":
    main()
