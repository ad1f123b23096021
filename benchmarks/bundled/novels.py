"""Text as readers of audio books read it: Jane Austen's six novels, in the public domain, in pieces of some words.

They come in the Debian package r-cran-janeaustenr; its files `Rdata.rdx` and `Rdata.rdb` are read without R, by the pip
package `rdata`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
import rdata

WORDS = (4, 34)  # of a piece
TITLES = {"Mr.": "Mister", "Mrs.": "Missus", "Dr.": "Doctor", "St.": "Saint", "Esq.": "Esquire", "Messrs.": "Messieurs"}
SENTENCE = re.compile(r"(?<=[.!?;])\s+")
SPEAKABLE = re.compile(r"[A-Za-z' ,;:.?!-]+")


def read_novels(directory: Path) -> list[list[str]]:
    """Runs of sentences that follow each other, out of the package's `data` directory.

    A sentence that holds more than letters and stops (numbers, letters with marks, dots for names) ends a run.
    """
    index = rdata.conversion.convert(rdata.parser.parse_data(gzip.decompress((directory / "Rdata.rdx").read_bytes())))
    packed = (directory / "Rdata.rdb").read_bytes()
    runs: list[list[str]] = [[]]
    for start, length in index["variables"].values():
        # Four bytes of its length unpacked, then deflate.
        raw = zlib.decompress(packed[start + 4 : start + length])
        lines = rdata.conversion.convert(rdata.parser.parse_data(raw))
        for paragraph in "\n".join(lines).split("\n\n"):
            for sentence in SENTENCE.split(plain(paragraph)):
                if SPEAKABLE.fullmatch(sentence) and not sentence.isupper():
                    runs[-1].append(sentence)
                elif runs[-1]:
                    runs.append([])
    return [run for run in runs if run]


def plain(paragraph: str) -> str:
    """Without marks of emphasis and quotation; titles as they are spoken; dashes as commas."""
    text = " ".join(paragraph.split()).replace("_", "").replace('"', "")
    text = re.sub(r"\s*--+\s*", ", ", text)
    for short, spoken in TITLES.items():
        text = text.replace(short, spoken)
    return text


def draw_piece(rng: np.random.Generator, runs: list[list[str]], words: tuple[int, int] = WORDS) -> str:
    """So many neighbouring words out of a run, from where a sentence begins; may end inside of one."""
    wanted = int(rng.integers(words[0], words[1] + 1))
    while True:
        run = runs[rng.integers(len(runs))]
        text = " ".join(run[int(rng.integers(len(run))) :]).split()[:wanted]
        if len(text) >= words[0]:
            return " ".join(text)
