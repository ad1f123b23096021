"""`sewd verify`: checks a run against its commits, byte by byte. Needs no Ray."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import Exit, err, out, single
from pipeline import Run
from pipeline.runs import verify as check


def verify(run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")]) -> int:
    """Check every commit, file, checksum and count of a run, and how much of its plan is committed.

    Exit codes: 0 if what is committed is complete and unchanged (the last line reports how much that is); 1 if not.
    Each problem is a line on stderr.
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
    if found.problems:
        err.print(f"`sewd repair {opened.uri}` makes again what can be made again, and says what cannot", markup=False)
    return Exit.FAILED if found.problems else Exit.DONE


if __name__ == "__main__":
    single(verify)
