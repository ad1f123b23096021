"""The application of the console script `sewd`: all verbs under one name."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from jobs.demo import demo
from jobs.ray_jobs import app as ray_jobs
from jobs.submit import submit
from jobs.verbs import SUBMITTABLE, application

app = application((*SUBMITTABLE, submit, demo))
app.add_typer(ray_jobs, name="jobs")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sewd-pipeline {importlib.metadata.version('sewd-pipeline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that belong to no verb."""
