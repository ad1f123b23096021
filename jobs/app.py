"""The application of the console script `sewd`: all verbs under one name."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Annotated

import typer

from jobs.verbs import GROUPS, VERBS, application


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
    for name in GROUPS if verb is None or verb not in VERBS else ():
        _add_group(app, name, is_imported=verb in (None, name))
    app.callback()(_options)
    return app


def application_to_complete(environment: Mapping[str, str]) -> typer.Typer:
    """The application for a shell that asks how a command line may continue: only its verb is imported."""
    words = (environment.get("COMP_WORDS") or environment.get("_TYPER_COMPLETE_ARGS") or "").split()
    verbs = [verb for verb in words[1:2] if verb in VERBS]
    app = application(verbs, names=[verb for verb in VERBS if verb not in verbs], add_completion=True)
    for name in GROUPS:
        _add_group(app, name, is_imported=words[1:2] == [name])
    app.callback()(_options)
    return app


def _add_group(app: typer.Typer, name: str, *, is_imported: bool) -> None:
    """Add the verbs of a group, or only its name and what they do."""
    group = importlib.import_module(f"jobs.{GROUPS[name].module}").app if is_imported else typer.Typer()
    app.add_typer(group, name=name, help=GROUPS[name].help)


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
