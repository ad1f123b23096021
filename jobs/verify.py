"""`sewd verify`: is everything there that a run's commits promise, byte by byte; asks no Ray."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import Exit, err, out, single
from pipeline import Run
from pipeline.runs import verify as check


def verify(run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")]) -> int:
    """Check every commit, file, checksum and count of a run, and how much of its plan is committed.

    Exit codes: 0 sound as far as it goes, which the last line says; 1 not, and each problem is a line on stderr; one
    more says of a done run how to have what it has lost.
    """
    opened = Run.open(run)
    found = check.verify(opened)
    for problem in found.problems:
        err.print(f"{problem.path}: {problem.message}", markup=False)
    problems = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
    out.print(
        f"{problems if found.problems else 'sound'}: {found.parts_done:,} of {found.parts:,} parts are committed, in "
        f"{found.commits:,} chunks; {found.files:,} files, {found.rows:,} rows, {found.size / 2**20:,.1f} MiB; "
        f"the run is {opened.status}",
        markup=False,
        soft_wrap=True,
    )
    if found.problems and opened.status == "done":
        err.print("what a done run has lost is not made again: to have it, transcribe the inputs into another --output")
    return Exit.FAILED if found.problems else Exit.DONE


if __name__ == "__main__":
    single(verify)
