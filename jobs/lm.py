"""`sewd lm`: build language models, and find what they should count."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import posixpath
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

import pipeline
from jobs.console import Exit, err, out, run
from jobs.decoding import Beam, Hotwords, HotwordWeight
from jobs.evaluate import new_table, percent
from jobs.verbs import GROUPS
from pipeline.decoding.settings import HOTWORD_WEIGHT, requested
from pipeline.errors import UsageError
from pipeline.language_models.build import build as build_model
from pipeline.language_models.texts import sentences
from pipeline.report.formats import duration
from pipeline.scoring.normalize import DEFAULT_NORMALIZER, normalize, resolve
from pipeline.storage import objects, uris

if TYPE_CHECKING:
    from pipeline.evaluation.decoder_weights import Tuning

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=GROUPS["lm"].help)


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
    if Path(target).is_dir():
        raise UsageError(f"output: {target} is a directory; name a file")
    with _interrupted_by_sigterm(), tempfile.TemporaryDirectory(prefix="sewd-lm-") as folder:
        path = Path(folder) / posixpath.basename(target)
        built = build_model(lines, path, order, list(map(int, limits)), memory)
        objects.put_file(target, path)
        size = path.stat().st_size
    entries = " + ".join(f"{count:,}" for count in built.ngrams)
    out.print(f"{built.sentences:,} sentences, {built.words:,} words: {entries} n-grams, {size / 1e6:.1f} MB")
    out.print(f"language model: {target}", markup=False, soft_wrap=True)
    return Exit.DONE


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM raises here, so that gigabytes of temporary files are removed."""

    def interrupt(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def tune(
    run_uri: Annotated[
        str, typer.Argument(metavar="RUN", help="Run that was transcribed with --keep-posteriors, with references.")
    ],
    lm: Annotated[str, typer.Option("--lm", metavar="FILE", help="Language model, as of sewd transcribe.")],
    hotwords: Hotwords = None,
    beam: Beam = None,
    hotword_weight: HotwordWeight = HOTWORD_WEIGHT,
    weights: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Weights of the language model to try.")
    ] = "0.25 0.5 0.75 1 1.25",
    bonuses: Annotated[str, typer.Option(metavar="NUMBERS", help="Scores of each word to try.")] = "0 1 2 3 4",
    max_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="Decode at most so much audio, drawn from the run.")
    ] = 3600.0,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the error rates as a plot (PNG) to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Find the weights of a language model: the word error rate of a run's references with each of them.

    The figure of the best weights is too good, since they are chosen by it. The cross-validated one is that of new
    speakers: each fold is decoded with the weights that are best on the others.
    """
    from pipeline.evaluation import decoder_weights  # noqa: PLC0415 - loads the model's package

    decoder = requested(
        lm=uris.absolute(lm),
        hotwords=hotwords and uris.absolute(hotwords),
        beam=beam,
        hotword_weight=hotword_weight,
    )
    opened = pipeline.Run.open(run_uri)
    tuning = decoder_weights.tune(
        opened, decoder, _numbers("weights", weights, 0), _numbers("bonuses", bonuses, -100), max_seconds, _step
    )
    if as_json:
        values = asdict(tuning) | {
            "errors": [{"lm_weight": w, "word_bonus": b, "errors": n} for (w, b), n in tuning.errors.items()]
        }
        typer.echo(json.dumps(values))
    else:
        _show(tuning)
    if plot is not None:  # last: the figures took long
        objects.put(uris.absolute(plot), decoder_weights.draw(tuning))
    return Exit.DONE


def _numbers(option: str, text: str, least: float, most: float = 100) -> list[float]:
    """Numbers in the range that `sewd transcribe` takes."""
    try:
        numbers = [float(number) for number in text.split()]
    except ValueError as error:
        raise UsageError(f"{option}: {text!r} are not numbers, such as '0.5 1'") from error
    if not all(least <= number <= most for number in numbers):
        raise UsageError(f"{option}: {text!r} are not all from {least:g} to {most:g}")
    return numbers


def _step(what: str) -> None:
    if err.is_terminal:
        err.print(what, end="\r")


def _show(tuning: Tuning) -> None:
    rates = {weights: errors / tuning.words for weights, errors in tuning.errors.items()}
    bonuses = sorted({bonus for _, bonus in rates})
    table = new_table("word error rate by weight and word bonus", "", *(f"{bonus:g}" for bonus in bonuses))
    for weight in sorted({weight for weight, _ in rates}):
        table.add_row(f"{weight:g}", *(percent(rates[weight, bonus]) for bonus in bonuses))
    out.print(table)
    units = "speakers" if tuning.by_speaker else "utterances"
    out.print(f"{tuning.utterances:,} utterances, {duration(tuning.audio_s)}, {tuning.words:,} words of references")
    out.print(f"greedy: {percent(tuning.greedy / tuning.words)}")
    weight, bonus = tuning.best
    out.print(f"best: {percent(rates[tuning.best])} with --lm-weight {weight:g} --word-bonus {bonus:g}")
    if tuning.cross_validated is not None:
        rate = percent(tuning.cross_validated / tuning.words)
        out.print(f"cross-validated, {tuning.folds} folds of {units}: {rate}")


if __name__ == "__main__":
    run(app)
