"""Texts like those of audio books: pieces of Jane Austen's six novels, which are in the public domain.

The novels are in the Debian package r-cran-janeaustenr. Its files `Rdata.rdx` and `Rdata.rdb` are read without R, by
the pip package `rdata`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
import rdata

WORDS = (4, 34)  # fewest and most words of a piece
TITLES = {"Mr.": "Mister", "Mrs.": "Missus", "Dr.": "Doctor", "St.": "Saint", "Esq.": "Esquire", "Messrs.": "Messieurs"}
SENTENCE = re.compile(r"(?<=[.!?;])\s+")
SPEAKABLE = re.compile(r"[A-Za-z' ,;:.?!-]+")


def read_novels(directory: Path) -> list[list[str]]:
    """Runs of consecutive sentences from the package's `data` directory.

    A sentence with other characters than letters and punctuation (digits, accented letters, dots for names) ends a
    run.
    """
    index = rdata.conversion.convert(rdata.parser.parse_data(gzip.decompress((directory / "Rdata.rdx").read_bytes())))
    packed = (directory / "Rdata.rdb").read_bytes()
    runs: list[list[str]] = [[]]
    for start, length in index["variables"].values():
        # Four bytes with the unpacked length, then deflated data.
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
    """A paragraph without marks of emphasis and quotation, with titles as spoken and dashes as commas."""
    text = " ".join(paragraph.split()).replace("_", "").replace('"', "")
    text = re.sub(r"\s*--+\s*", ", ", text)
    for short, spoken in TITLES.items():
        text = text.replace(short, spoken)
    return text


def draw_piece(rng: np.random.Generator, runs: list[list[str]], words: tuple[int, int] = WORDS) -> str:
    """Draw consecutive words from a run, starting at a sentence; the piece may end inside a sentence.

    Args:
        rng: the source of randomness.
        runs: what `read_novels` returned.
        words: fewest and most words.
    """
    count = int(rng.integers(words[0], words[1] + 1))
    while True:
        run = runs[rng.integers(len(runs))]
        text = " ".join(run[int(rng.integers(len(run))) :]).split()[:count]
        if len(text) >= words[0]:
            return " ".join(text)
