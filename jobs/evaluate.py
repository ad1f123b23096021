"""`sewd evaluate`: WER and CER of a run, from sums of counts, with what they cover."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

import pipeline
from jobs.console import Exit, out, single
from pipeline.counts import ErrorCounts


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")],
    normalizer: Annotated[
        str | None, typer.Option(help="Score under this one (basic, none); without it, the run's own.")
    ] = None,
) -> int:
    """Word and character error rate of a run, with their counts; written to RUN/metrics too."""
    opened = pipeline.Run.open(run)
    evaluation = pipeline.evaluate_run(opened, normalizer)
    out.print(_table(evaluation))
    out.print(
        f"coverage {_percent(evaluation.coverage)}: {evaluation.scored} scored, "
        f"{evaluation.no_reference} without a reference, {evaluation.failed} failed"
    )
    if opened.status != "done":
        out.print(
            f"the run is not done ({opened.status}): these figures are of what is committed so far", style="yellow"
        )
    out.print(f"metrics: {pipeline.write_metrics(opened, evaluation)}", markup=False, soft_wrap=True)
    return Exit.DONE


def _table(evaluation: pipeline.Evaluation) -> Table:
    table = Table(title=f"errors, normalizer {evaluation.normalizer}", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("rate", "errors", "sub", "del", "ins", "reference"):
        table.add_column(name, justify="right", no_wrap=True)
    rows: list[tuple[str, ErrorCounts]] = [
        ("WER (words)", evaluation.words),
        ("CER (characters)", evaluation.chars),
        ("SER (sentences)", evaluation.sentence_counts),
    ]
    for name, counts in rows:
        split = (counts.substitutions, counts.deletions, counts.insertions)
        shown = [f"{n:,}" for n in split] if counts is not evaluation.sentence_counts else ["", "", ""]
        table.add_row(name, _percent(counts.error_rate), f"{counts.errors:,}", *shown, f"{counts.reference:,}")
    return table


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2%}"


if __name__ == "__main__":
    single(evaluate)
