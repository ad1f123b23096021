"""`sewd doctor`: whether this machine, its storage and its cluster are ready for a run."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Final

import typer
from rich.text import Text

from jobs.console import Exit, out, single
from pipeline.config import RunConfig, make_config
from pipeline.doctor.check import Check, Outcome
from pipeline.doctor.examine import examine
from pipeline.settings import default_of

_STYLES: Final = {Outcome.OK: "green", Outcome.WARNING: "yellow", Outcome.FAILURE: "bold red"}
_INDENT: Final = 9


def doctor(
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Checkpoint that a run is to use: it is loaded and tried.")
    ] = default_of(RunConfig, "model"),
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="URI", help="Where a run is to be written: an object is written and deleted."
        ),
    ] = None,
    address: Annotated[str, typer.Option(help="As of sewd transcribe.")] = default_of(RunConfig, "address"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Check the machine, versions, the model, storage and Ray. Each line is ok, a warning or a failure with what to do.

    Exit codes: 0 if nothing failed, warnings included; 1 if something failed; 2 usage.
    """
    # No input is read and no run written: the names only fill the settings.
    config = make_config(inputs=(".",), output="." if output is None else output, model=model, address=address)
    checks = []
    for check in examine(config, output):
        checks.append(check)
        if not as_json:
            _print(check)
    if as_json:
        values = {"checks": [dataclasses.asdict(check) for check in checks]}
        out.print(json.dumps(values, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
    return Exit.FAILED if any(check.outcome is Outcome.FAILURE for check in checks) else Exit.DONE


def _print(check: Check) -> None:
    out.print(
        Text.assemble((f"{check.outcome:{_INDENT}}", _STYLES[check.outcome]), f"{check.name}: {check.message}"),
        soft_wrap=True,
    )
    if check.advice:
        out.print(Text(" " * _INDENT + check.advice), soft_wrap=True)


if __name__ == "__main__":
    single(doctor)
