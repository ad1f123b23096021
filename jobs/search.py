"""`sewd search`: where a phrase was said in a run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich import box
from rich.markup import escape
from rich.table import Table

import pipeline
from jobs.console import Exit, out, shortened, single
from pipeline.alignment.search import DEFAULT_MIN_SCORE, HITS, search_posteriors, search_texts
from pipeline.errors import UsageError
from pipeline.report.formats import plural
from pipeline.runs.status import RunStatus
from pipeline.storage import objects, uris
from pipeline.storage.parquet import encode_table


class Where(StrEnum):
    """What is searched."""

    POSTERIORS = "posteriors"
    TEXT = "text"


def search(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")],
    phrase: Annotated[str, typer.Argument(metavar="PHRASE", help="One word, or several that follow each other.")],
    where: Annotated[
        Where | None,
        typer.Option(
            "--in",
            help="posteriors: what the model may have heard, whatever it wrote; text: the words of the transcripts. "
            "Default: posteriors, if the run has them.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write all hits to this .parquet file.")
    ] = None,
    min_score: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Leave out hits with a lower score.")
    ] = DEFAULT_MIN_SCORE,
    limit: Annotated[int, typer.Option(min=0, help="Print this many hits, the best.")] = 20,
) -> int:
    """Find a phrase in a run: times in the recordings and a score, the best hits first.

    Exit codes: 0 done, 1 failed, 2 usage.
    """
    opened = pipeline.Run.open(run)
    if output is not None and not output.lower().endswith(".parquet"):
        raise UsageError(f"output: {output}: its name must end in .parquet")
    if where is None:
        where = Where.TEXT if opened.record.acoustics is None else Where.POSTERIORS
    rows = 0

    def count(number: int) -> None:
        nonlocal rows
        rows += number

    if where == Where.TEXT:
        found = [hit for hit in search_texts(opened, phrase, count) if hit["score"] >= min_score]
    else:
        found = list(search_posteriors(opened, phrase, min_score, count))
    hits = sorted(found, key=lambda hit: (-hit["score"], hit["utt_id"], hit["start_s"]))
    if hits and limit:
        out.print(_table(hits[:limit]))
    if opened.status != RunStatus.DONE:
        out.print(f"the run is not done ({opened.status}): these are its rows so far", style="yellow")
    out.print(f"{plural(len(hits), 'hit')} in the {where} of {plural(rows, 'utterance')}", markup=False)
    if output is not None:
        objects.put(uris.absolute(output), encode_table(pa.Table.from_pylist(hits, HITS)))
        out.print(f"hits: {output}", markup=False, soft_wrap=True)
    return Exit.DONE


def _table(hits: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("score", "start", "end"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("utterance", overflow="fold")
    table.add_column("transcript", overflow="fold")
    for hit in hits:
        times = [f"{hit['start_s']:.2f}", f"{hit['end_s']:.2f}"]
        table.add_row(f"{hit['score']:.3f}", *times, escape(hit["utt_id"]), escape(shortened(hit["text"])))
    return table


if __name__ == "__main__":
    single(search)
