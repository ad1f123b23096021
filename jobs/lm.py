"""`sewd lm`: build language models."""

from __future__ import annotations

import functools
import importlib.util
import posixpath
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Exit, out, run
from jobs.verbs import GROUPS
from pipeline.errors import UsageError
from pipeline.language_models.build import build as build_model
from pipeline.language_models.texts import sentences
from pipeline.scoring.normalize import DEFAULT_NORMALIZER, normalize, resolve
from pipeline.storage import objects, uris

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=GROUPS["lm"].help)


@app.callback()
def _group() -> None:
    """Makes a group of one verb a group."""


@app.command()
def build(
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Text files, one sentence a line; `.gz` is read, too.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="ARPA file to write; compressed if it ends in .gz.")
    ],
    order: Annotated[int, typer.Option(help="Words of the longest n-grams.")] = 3,
    prune: Annotated[
        str,
        typer.Option(
            metavar="COUNTS",
            help="For each order, leave out n-grams with at most this count; the last is for higher orders, too.",
        ),
    ] = "0 0 1",
    normalizer: Annotated[
        str,
        typer.Option(help="How the text is normalised: as what the model writes. Its case does not matter."),
    ] = DEFAULT_NORMALIZER,
    memory: Annotated[str, typer.Option(help="Memory for counts; what does not fit goes to temporary files.")] = "1GB",
) -> int:
    """Build an n-gram language model for `sewd transcribe --lm`: modified Kneser-Ney, interpolated."""
    if importlib.util.find_spec("duckdb") is None:
        raise UsageError("lm build: duckdb not found: pip install 'sewd-pipeline[lm]'")
    normalizer = resolve(normalizer)
    limits = prune.split()
    if not all(limit.isdecimal() for limit in limits):
        raise UsageError(f"prune: {prune!r} are not counts, such as '0 0 1'")
    lines = sentences(map(uris.absolute, texts), functools.partial(normalize, normalizer=normalizer))
    target = uris.absolute(output)
    with tempfile.TemporaryDirectory(prefix="sewd-lm-") as folder:
        path = Path(folder) / posixpath.basename(target)
        built = build_model(lines, path, order, list(map(int, limits)), memory)
        objects.put_file(target, path)
        size = path.stat().st_size
    entries = " + ".join(f"{count:,}" for count in built.ngrams)
    out.print(f"{built.sentences:,} sentences, {built.words:,} words: {entries} n-grams, {size / 1e6:.1f} MB")
    out.print(f"language model: {target}", markup=False, soft_wrap=True)
    return Exit.DONE


if __name__ == "__main__":
    run(app)
