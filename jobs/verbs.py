"""The verbs of the command line, each in a module of its name, which is imported when the verb is needed."""

from __future__ import annotations

import ast
import importlib
import importlib.resources
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import typer

# That can be submitted, here or as a job on a cluster.
SUBMITTABLE: Final = (
    "doctor",
    "plan",
    "transcribe",
    "watch",
    "redecode",
    "evaluate",
    "compare",
    "report",
    "recordings",
    "export",
    "calibrate",
    "align",
    "segment",
    "search",
    "status",
    "verify",
    "repair",
    "finetune",
)
# That take their options from a file, too.
WITH_CONFIG: Final = ("transcribe", "watch", "redecode", "evaluate", "compare", "report", "finetune")
VERBS: Final = (*SUBMITTABLE, "submit", "demo")


class Group(NamedTuple):
    """Verbs under a common name: the module in `jobs` that has them, and the help of the name."""

    module: str
    help: str


GROUPS: Final = {
    "jobs": Group("ray_jobs", "List, follow and stop jobs of a cluster."),
    "lm": Group("lm", "Build language models, and tune what they weigh."),
}


def function(verb: str) -> Callable[..., int]:
    """The function of a verb."""
    found: Callable[..., int] = getattr(importlib.import_module(f"jobs.{verb}"), verb)
    return configured(found)


def configured(verb: Callable[..., int]) -> Callable[..., int]:
    """The verb, with `--config` if it is one that has it."""
    if verb.__name__ not in WITH_CONFIG:
        return verb
    from jobs.config_file import configurable  # noqa: PLC0415 - the names of the verbs are completed without it

    return configurable(verb)


def summary(verb: str) -> str:
    """The help of a verb, which is not imported: the docstring of its function in the source of its module."""
    source = importlib.resources.files("jobs").joinpath(f"{verb}.py").read_text("utf-8")
    found = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == verb)
    return ast.get_docstring(next(found)) or ""


def _nothing() -> int:
    return 0


def application(verbs: Iterable[str], *, names: Iterable[str] = (), add_completion: bool = False) -> typer.Typer:
    """A Typer application.

    Args:
        verbs: its verbs, which are imported.
        names: further verbs by name and summary alone, to complete and to list them.
        add_completion: add `--install-completion` and `--show-completion`.
    """
    app = typer.Typer(
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        help="Transcribe speech corpora with SEW-D, and measure the errors.",
    )
    for verb in verbs:
        app.command()(function(verb))
    for name in names:
        app.command(name, help=summary(name))(_nothing)
    return app
