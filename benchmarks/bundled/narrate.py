"""Novels read aloud: one good voice that costs little, hibari-tts, made into others by WORLD.

    python benchmarks/bundled/narrate.py NOVELS OUT [COUNT]

NOVELS is the `data` directory of the Debian package r-cran-janeaustenr (`novels.py`); needs the pip packages of
`revoice.py`, `hibari-tts` and `rdata`. OUT receives WAV files of 16 kHz and `novels.jsonl`, COUNT rows, each read in a
voice of its own but for a fifth, which is hibari's. The same command goes on where it was interrupted.
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

AS_IT_IS = 0.2  # of the rows
FRAME_MS = 8.0  # WORLD's, coarser than its 5 ms: time goes with it


def main() -> None:
    """Read aloud."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("novels", type=Path, metavar="NOVELS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("count", type=int, metavar="COUNT", nargs="?", default=4000)
    places = parser.parse_args()
    runs = read_novels(places.novels)
    reader = Hibari()
    folder = places.out / "novels"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = places.out / "novels.jsonl"
    done = len(manifest.read_text("utf-8").splitlines()) if manifest.exists() else 0
    with manifest.open("a", encoding="utf-8") as lines:
        for number in range(done, places.count):
            rng = np.random.default_rng([83, number])
            text = draw_piece(rng, runs)
            speech = reader(text, speed=float(rng.uniform(0.9, 1.2)), seed=number)
            samples = soxr.resample(speech.astype(float), reader.sample_rate, RATE)
            if rng.random() >= AS_IT_IS:
                samples = revoice(rng, samples, draw_voice(rng), FRAME_MS)
            path = folder / f"{number:05}.wav"
            soundfile.write(path, samples, RATE, subtype="PCM_16")
            row = {"audio_filepath": str(path.resolve()), "duration": len(samples) / RATE, "text": text}
            lines.write(json.dumps(row) + "\n")
            lines.flush()
    typer.echo(f"{manifest}: {places.count} rows")


if __name__ == "__main__":
    main()
