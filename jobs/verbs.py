"""The verbs that can be submitted, here or as a job on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import typer

from jobs.compare import compare
from jobs.evaluate import evaluate
from jobs.finetune import finetune
from jobs.recordings import recordings
from jobs.repair import repair
from jobs.report import report
from jobs.status import status
from jobs.transcribe import transcribe
from jobs.verify import verify

SUBMITTABLE: Final[tuple[Callable[..., int], ...]] = (
    transcribe,
    evaluate,
    compare,
    report,
    recordings,
    status,
    verify,
    repair,
    finetune,
)


def application(verbs: Iterable[Callable[..., int]]) -> typer.Typer:
    """A Typer application with these verbs."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Transcribe speech corpora with SEW-D, and measure the errors.",
    )
    for verb in verbs:
        app.command()(verb)
    return app
