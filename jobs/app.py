"""The application of the console script `sewd`: all verbs under one name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Annotated

import typer

from jobs.verbs import VERBS, application


def application_for(verb: str | None = None) -> typer.Typer:
    """The application; with the name of a verb only that verb, since importing all of them takes seconds."""
    app = application([verb] if verb in VERBS else VERBS, add_completion=True)
    if verb not in VERBS:
        from jobs.ray_jobs import app as ray_jobs  # noqa: PLC0415

        app.add_typer(ray_jobs, name="jobs")
    app.callback()(_options)
    return app


def application_to_complete(environment: Mapping[str, str]) -> typer.Typer:
    """The application for a shell that asks how a command line may continue: only its verb is imported."""
    words = (environment.get("COMP_WORDS") or environment.get("_TYPER_COMPLETE_ARGS") or "").split()
    verbs = [verb for verb in words[1:2] if verb in VERBS]
    app = application(verbs, names=[verb for verb in VERBS if verb not in verbs], add_completion=True)
    if words[1:2] == ["jobs"]:
        from jobs.ray_jobs import app as ray_jobs  # noqa: PLC0415

        app.add_typer(ray_jobs, name="jobs")
    else:
        app.add_typer(typer.Typer(), name="jobs")
    app.callback()(_options)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sewd-pipeline {importlib.metadata.version('sewd-pipeline')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that belong to no verb."""
