"""For verbs that read kept posteriors of RUN|INPUT: the run, or one that is made of the input and kept."""

from __future__ import annotations

from typing import Annotated

import typer

import pipeline
from jobs.console import err, warn
from pipeline.config import make_config
from pipeline.corpus.naming import stem
from pipeline.corpus.plan import check_inputs
from pipeline.errors import RunFailedError
from pipeline.report.formats import plural
from pipeline.runs.run import RECORD
from pipeline.runs.status import RunStatus
from pipeline.scoring.references import MAX_EXAMPLES
from pipeline.settings import default_of
from pipeline.storage import objects, uris

Source = Annotated[
    str,
    typer.Argument(
        metavar="RUN|INPUT",
        help="A run with kept posteriors; or audio, as for `sewd transcribe`, of which such a run is made beside FILE "
        "(its name with .run) and used again next time.",
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        metavar="TEXTS",
        help="A .txt file for one recording; a directory of .txt files named as the recordings are; or a table of "
        "texts, as --refs of `sewd evaluate`. Default: the references of the inputs.",
    ),
]
Model = Annotated[str, typer.Option(help="For INPUT: checkpoint with a CTC head, as for `sewd transcribe`.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that align, each a recording at a time.")]
DEFAULT_MODEL = default_of(pipeline.RunConfig, "model")


def warn_of_unknown(names: list[str]) -> None:
    """Say which texts are of no recording of the run."""
    shown = ", ".join(names[:MAX_EXAMPLES]) + (", ..." if len(names) > MAX_EXAMPLES else "")
    warn([f"{plural(len(names), 'text')} of --text not used, since the run has no such recording: {shown}"])


def run_of(source: str, output: str, model: str) -> pipeline.Run:
    """The run at `source`, or one of the audio there, with posteriors.

    Raises:
        UsageError: there is no such audio, or the run keeps no posteriors.
        RunFailedError: the audio could not be transcribed, or it was stopped.
        StorageError: storage could not be reached.
    """
    is_run = objects.exists(uris.join(uris.absolute(source), RECORD))
    run = pipeline.Run.open(source) if is_run else _transcribed(source, f"{stem(uris.absolute(output))}.run", model)
    _ = run.acoustics  # a run without posteriors is refused before anything is read
    return run


def _transcribed(source: str, output: str, model: str) -> pipeline.Run:
    from jobs.transcribe import GRACE_S, ProgressDisplay, stoppable  # noqa: PLC0415 - it loads Ray

    check_inputs((source,))
    config = make_config(inputs=(source,), output=output, model=model, keep_posteriors=True)
    with ProgressDisplay() as show, stoppable(config, GRACE_S) as stop:
        run = pipeline.transcribe(config, show, stop.requested, on_step=show.step)
    err.print(f"run: {run.uri}", markup=False)
    if run.status != RunStatus.DONE:
        raise RunFailedError(f"stopped before all of {source} was transcribed: the same command continues")
    return run
