"""The console script `sewd`: the verbs under one name."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated, NoReturn

import typer

from jobs.compare import compare
from jobs.console import run
from jobs.demo import demo
from jobs.evaluate import evaluate
from jobs.finetune import finetune
from jobs.ray_jobs import app as ray_jobs
from jobs.report import report
from jobs.status import status
from jobs.submit import submit
from jobs.transcribe import transcribe
from jobs.verify import verify
from pipeline.cluster.job_environment import check_environment

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Transcribe speech corpora with SEW-D, and measure how well.",
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sewd-pipeline {importlib.metadata.version('sewd-pipeline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Say the version.")
    ] = False,
) -> None:
    """Options of no verb."""


for _verb in (transcribe, evaluate, compare, report, status, verify, finetune, submit, demo):
    app.command()(_verb)
app.add_typer(ray_jobs, name="jobs")


def main() -> NoReturn:
    """Parse the command line, run the verb, exit with its code."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    run(app, before=check_environment)


if __name__ == "__main__":
    main()
