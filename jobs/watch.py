"""`sewd watch`: one process that updates a run again and again, until it is stopped."""

from __future__ import annotations

import inspect
import re
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from jobs.console import err, out, single
from jobs.logs import log_to
from jobs.status import audio_of
from jobs.transcribe import configuration, stoppable, transcribe
from pipeline.corpus.plan import check_inputs
from pipeline.errors import UsageError
from pipeline.runs.status import RunStatus

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# Options of `transcribe` that are no options here.
_FIXED: Final = {
    "new_run": False,
    "overwrite": False,
    "update": True,
    "errors_ok": False,
    "add_classifier": None,
    "prediction": None,
    "retry_errors": None,
}


def watch(every: str, **options: Any) -> int:
    """Transcribe INPUT into a run, and update the run whenever INPUT has changed, until this process is stopped.

    A line is printed for each round. A round that fails because storage cannot be reached is tried again.

    Exit codes: stopped by a signal: 143 SIGTERM, 130 Ctrl-C, 129 SIGHUP; 1 failed; 2 usage.
    """
    from pipeline.driver import watch as driver  # noqa: PLC0415 - Ray takes a second to load

    every_s = seconds(every)
    config = configuration({**options, **_FIXED})
    check_inputs(config.inputs, config.input_format)
    log_to(options["log"])
    with stoppable(config, options["grace"]) as stop:
        driver.watch(config, every_s, stop.requested, _print)
    return stop.exit_code


def seconds(text: str) -> float:
    """The seconds of a time such as `90s`, `10m`, `1.5h` or `1d`.

    Raises:
        UsageError: it is not such a time, or not positive.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    if match is None or not float(match[1]):
        raise UsageError(f"every: {text!r} is not a time such as 90s, 10m or 1h")
    return float(match[1]) * _UNITS[match[2]]


def _print(done: Any) -> None:
    """Print a line about a round, a `pipeline.driver.watch.Round`."""
    head = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} round {done.number}: "
    if done.run is None:
        err.print(f"{head}{' '.join(done.problem.split())}; next try in {done.retry_s:.0f} s", markup=False)
        return
    changes = done.changes.numbers or ("nothing has changed" if done.number > 1 else "first round")
    totals = done.run.record.totals or done.run.totals()
    failed = f", {totals.errors:,} failed" if totals.errors else ""
    state = "" if done.run.status == RunStatus.DONE else f"; {done.run.status}"
    out.print(
        f"{head}{changes}; {totals.utterances:,} transcripts of {audio_of(totals)}{failed}{state}",
        markup=False,
        soft_wrap=True,
    )


def _signature() -> inspect.Signature:
    """The options of `transcribe`, and how often."""
    of_transcribe = inspect.signature(transcribe, eval_str=True)
    kept = [parameter for name, parameter in of_transcribe.parameters.items() if name not in _FIXED]
    option = typer.Option(metavar="TIME", help="From the start of one round to the next: 90s, 10m, 1h.")
    every = inspect.Parameter(
        "every", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="10m", annotation=Annotated[str, option]
    )
    required = [parameter for parameter in kept if parameter.default is inspect.Parameter.empty]
    return of_transcribe.replace(parameters=[*required, every, *kept[len(required) :]])


watch.__signature__ = _signature()  # type: ignore[attr-defined]  # where typer finds the options

if __name__ == "__main__":
    single(watch)
