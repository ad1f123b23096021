"""`sewd recordings`: the transcripts of whole recordings, joined from their segments."""

from __future__ import annotations

from typing import Annotated

import typer

import pipeline
from jobs.console import Exit, out, single
from pipeline.errors import UsageError
from pipeline.report.formats import plural
from pipeline.runs.recordings import RECORDINGS_FILE, write_recordings
from pipeline.runs.status import RunStatus
from pipeline.storage import uris


def recordings(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help=f"A .parquet file. Default: RUN/{RECORDINGS_FILE}."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Print the text of each recording, or why it has none, and write nothing.")
    ] = False,
) -> int:
    """Write the recordings of a run, their segments joined in order, as one Parquet file: one row for each channel.

    Exit codes: 0 done, 1 failed, 2 usage.
    """
    opened = pipeline.Run.open(run)
    if text and output:
        raise UsageError("text: it is printed, and --output is for a Parquet file: choose one of them")
    if text:
        _print_texts(opened)
        return Exit.DONE
    target = output or uris.join(opened.uri, RECORDINGS_FILE)
    if not target.lower().endswith(".parquet"):
        raise UsageError(f"cannot write recordings to {target}: its name must end in .parquet")
    rows = write_recordings(opened, uris.absolute(target))
    if opened.status != RunStatus.DONE:
        out.print(f"the run is not done ({opened.status}): these are its rows so far", style="yellow")
    out.print(f"{plural(rows, 'row')}: {target}", markup=False, soft_wrap=True)
    return Exit.DONE


def _print_texts(run: pipeline.Run) -> None:
    for table in pipeline.recordings(run):
        for row in table.select(["recording", "channel", "text", "segments", "errors"]).to_pylist():
            channel = "" if row["channel"] is None else f", channel {row['channel']}"
            failed = [f"({error['code']}: {error['message']})" for error in row["errors"]]
            texts = [row["text"] or "(nothing was recognised)"] if row["segments"] else []
            out.print(f"{row['recording']}{channel}: {' '.join([*texts, *failed])}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    single(recordings)
