"""The verbs of the command line, each in a module of its name, which is imported when the verb is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Final

import typer

# That can be submitted, here or as a job on a cluster.
SUBMITTABLE: Final = (
    "doctor",
    "plan",
    "transcribe",
    "watch",
    "evaluate",
    "compare",
    "report",
    "recordings",
    "status",
    "verify",
    "repair",
    "finetune",
)
VERBS: Final = (*SUBMITTABLE, "submit", "demo")


def function(verb: str) -> Callable[..., int]:
    """The function of a verb."""
    found: Callable[..., int] = getattr(importlib.import_module(f"jobs.{verb}"), verb)
    return found


def application(verbs: Iterable[str]) -> typer.Typer:
    """A Typer application with these verbs."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Transcribe speech corpora with SEW-D, and measure the errors.",
    )
    for verb in verbs:
        app.command()(function(verb))
    return app
