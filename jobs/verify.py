"""`sewd verify`: is everything there that a run's commits promise, byte by byte; asks no Ray."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import Exit, err, out, single
from pipeline import Run
from pipeline import verify as check


def verify(run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")]) -> int:
    """Check every commit, file, checksum and count of a run, and that all of its plan is committed.

    Exit codes: 0 sound, 1 not; each problem is a line on stderr.
    """
    opened = Run.open(run)
    found = check.verify(opened)
    for problem in found.problems:
        err.print(f"{problem.path}: {problem.message}", markup=False)
    verdict = "sound" if not found.problems else f"{len(found.problems)} problems"
    out.print(
        f"{verdict}: {found.parts:,} parts, {found.commits:,} commits, {found.files:,} files, {found.rows:,} rows, "
        f"{found.size / 2**20:,.1f} MiB read; the run is {opened.status}",
        markup=False,
    )
    return Exit.FAILED if found.problems else Exit.DONE


if __name__ == "__main__":
    single(verify)
