"""`sewd align`: the words of known texts in their audio, with times and scores."""

from __future__ import annotations

import heapq
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from jobs.console import Exit, out, shortened, single
from jobs.kept_posteriors import DEFAULT_MODEL, Model, Source, Text, Workers, run_of, warn_of_unknown
from pipeline.alignment.align import Alignment, alignments, write_alignments
from pipeline.errors import UsageError
from pipeline.report.formats import plural
from pipeline.runs.status import RunStatus
from pipeline.storage import uris


def align(
    source: Source,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="A .parquet file.")],
    text: Text = None,
    model: Model = DEFAULT_MODEL,
    workers: Workers = 1,
    show: Annotated[int, typer.Option(metavar="N", min=0, help="Print the N texts with the lowest scores.")] = 10,
) -> int:
    """Align texts to their audio: a row for each text, with its words, their times, and how well the text fits.

    A text that was not said has a low score. The text of a recording that was cut into segments may lack passages of
    the audio, and have passages that the audio lacks; that of an utterance may not.

    Exit codes: 0 done, 1 failed, 2 usage, 3 done, but some texts could not be aligned.
    """
    if not output.lower().endswith(".parquet"):
        raise UsageError(f"output: {output}: its name must end in .parquet")
    run = run_of(source, output, model)
    rows = texts = words = missing = problems = 0

    def count(number: int) -> None:
        nonlocal rows
        rows += number

    lowest: list[tuple[float, int, Alignment]] = []
    for found in write_alignments(alignments(run, text, count, warn_of_unknown, workers), uris.absolute(output)):
        texts += 1
        words += len(found.words)
        missing += sum(word.start_s is None for word in found.words)
        problems += found.problem is not None
        if found.score is not None:
            (heapq.heappush if len(lowest) < show else heapq.heappushpop)(lowest, (-found.score, texts, found))
    if not texts:
        raise UsageError(f"align: {plural(rows, 'utterance')}, and none has a text: give them with --text")
    if lowest:
        out.print(_lowest_table([alignment for _, _, alignment in sorted(lowest, reverse=True)]))
    if run.status != RunStatus.DONE:
        out.print(f"the run is not done ({run.status}): these are its rows so far", style="yellow")
    out.print(
        f"{plural(texts, 'text')} for {plural(rows, 'row')} of the run: {plural(words, 'word')}, "
        f"{missing:,} of them not in the audio",
        markup=False,
    )
    if problems:
        out.print(f"{plural(problems, 'text')} not aligned: see the column `problem`", style="yellow")
    out.print(f"alignments: {output}", markup=False, soft_wrap=True)
    return Exit.DONE_WITH_ERRORS if problems else Exit.DONE


def _lowest_table(alignments: list[Alignment]) -> Table:
    table = Table(title="lowest scores", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("utterance", overflow="fold")
    table.add_column("text", overflow="fold")
    for alignment in alignments:
        table.add_row(f"{alignment.score:.3f}", escape(alignment.identity["utt_id"]), escape(shortened(alignment.text)))
    return table


if __name__ == "__main__":
    single(align)
