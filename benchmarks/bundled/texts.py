"""Write the texts of language models for the bundled model: one file a source, one sentence a line.

    python benchmarks/bundled/texts.py CORPUS NOVELS OUT

CORPUS is the output of `prepare.py`. NOVELS is the `data` directory of the Debian package r-cran-janeaustenr
(`novels.py`, which needs the pip package `rdata`). Needs `bible` and WordNet's dictionary too (Debian packages
bible-kjv, dict-wn). The texts of recordings are those of training only: none is from a held-out reader.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path

import typer
from novels import SENTENCE, plain, read_novels
from synthesize import WORDNET, verses

SPOKEN = {
    "read": ("read-short", "read-long"),
    "orders": ("orders", "synthetic-coffee"),
    "digits": ("digits-five", "synthetic-digits"),
    "keywords": ("keywords", "synthetic-keyword"),
}


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, metavar="CORPUS")
    parser.add_argument("novels", type=Path, metavar="NOVELS")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, lines in {
        **{name: spoken(arguments.corpus, manifests) for name, manifests in SPOKEN.items()},
        "novels": [sentence for run in read_novels(arguments.novels) for sentence in run],
        "verses": verses(),
        "wordnet": glosses(),
    }.items():
        (arguments.out / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        typer.echo(f"{name}: {len(lines):,} lines, {sum(len(line.split()) for line in lines):,} words")


def spoken(corpus: Path, manifests: tuple[str, ...]) -> list[str]:
    """The texts of training sets."""
    paths = [path for name in manifests if (path := corpus / f"{name}.jsonl").exists()]
    return [json.loads(line)["text"] for path in paths for line in path.read_text("utf-8").splitlines()]


def glosses() -> list[str]:
    """The definitions and the examples of WordNet 3, without cross-references."""
    text = re.sub(r"\[[^]]*\]|\{|\}", "", gzip.decompress(WORDNET.read_bytes()).decode("utf-8"))
    senses = re.split(r"\n\s+(?:[a-z]+ )?\d*:|\n\S", text)
    pieces = (piece for sense in senses for piece in re.split(r'[;"]', plain(sense)))
    return [line for piece in pieces for line in SENTENCE.split(piece.strip()) if len(line.split()) >= 4]


if __name__ == "__main__":
    main()
