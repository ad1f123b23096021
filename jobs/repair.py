"""`sewd repair`: makes again what is lost or damaged of a run, as far as that can be done. Needs no Ray."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import Exit, err, out, single
from jobs.status import how_to_resume
from pipeline.runs import repair as mend
from pipeline.runs.status import RunStatus


def repair(run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")]) -> int:
    """Make again what is lost or damaged of a run, and say what cannot be made again.

    Rows that are lost are transcribed again by the command that made the run. Nothing that is sound is removed.

    Exit codes: 0 everything was made again, or the command that made the run does the rest; 1 something cannot be made
    again (a line on stderr); 2 usage.
    """
    result = mend.repair(run)
    for line in result.made:
        out.print(line, markup=False, soft_wrap=True)
    for line in result.impossible:
        err.print(f"sewd: {line}", markup=False)
    if not result.made and not result.impossible:
        out.print("nothing to repair", markup=False)
    if result.chunks:
        out.print(f"the rows of {result.chunks:,} chunks are lost", markup=False)
    out.print(f"the run is {result.run.status}: {_parts(result)}", markup=False, soft_wrap=True)
    return Exit.FAILED if result.impossible else Exit.DONE


def _parts(result: mend.Repair) -> str:
    if result.run.status == RunStatus.DONE:
        return "all of its parts are committed"
    if result.open_parts is None:
        return "its rows and commits were left as they are"
    hint = how_to_resume(result.run.record.config.get("existing", "resume"))
    return f"{result.open_parts:,} of {result.run.record.parts:,} parts are left; {hint}"


if __name__ == "__main__":
    single(repair)
