"""The application of the console script `sewd`: all verbs under one name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Annotated

import typer

from jobs.verbs import JOBS, VERBS, application


def application_for(verb: str | None = None) -> typer.Typer:
    """The application with one verb, since importing all of them takes seconds; else with all by name and summary.

    Args:
        verb: the first word of the command line, which may be no verb; None: every verb is imported.
    """
    if verb is None:
        app = application(VERBS, add_completion=True)
    elif verb in VERBS:
        app = application([verb], add_completion=True)
    else:
        app = application([], names=VERBS, add_completion=True)
    if verb in (None, "jobs"):
        from jobs.ray_jobs import app as ray_jobs  # noqa: PLC0415

        app.add_typer(ray_jobs, name="jobs")
    elif verb not in VERBS:
        app.add_typer(typer.Typer(), name="jobs", help=JOBS)
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
