"""What all verbs share: exit codes, consoles, and errors as one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from jobs.native_output import native_output_to_log
from pipeline import RunFailedError, StorageError, UsageError
from pipeline.cluster.job_environment import check_environment, check_local_arguments

_CONTROL = dict.fromkeys(code for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n") | {0x1B: "\ufffd"}


class _Console(Console):
    """A console for untrusted text, whose reader may go.

    Texts and labels come from manifests and checkpoints: their control characters, which can change the terminal, are
    not printed. And if the reader goes, as `head` does, nothing more is printed, and the verb continues.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of something to print: Rich's own codes, and text without any."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else segment.text.translate(_CONTROL)
            yield segment if text == segment.text else segment._replace(text=text)

    def on_broken_pipe(self) -> None:
        """Print nothing more; Rich would end the process."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), self.file.fileno())  # else Python reports what it cannot flush at its end


out = _Console(highlight=False)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    DONE_WITH_ERRORS = 3
    GATE = 4
    STOPPED = 130  # what shells report after Ctrl-C


def check_start() -> None:
    """Check, before a verb runs, its arguments and the variables that its job requires.

    Raises:
        UsageError: an argument looks like a secret, or a variable is missing.
    """
    check_local_arguments(sys.argv[1:])
    check_environment()


def run(app: typer.Typer, before: Callable[[], None] = lambda: None) -> NoReturn:
    """Run a Typer application and exit. Bad usage, storage errors and failed runs are one line, not a traceback."""
    expected = (UsageError, StorageError, RunFailedError, typer.TyperException, typer.Exit, typer.Abort)
    try:
        with native_output_to_log(*expected):
            before()
            code = app(standalone_mode=False)
    except UsageError as error:
        code = _print_error(str(error), Exit.USAGE)
    except typer.TyperException as error:
        code = _print_error(error.format_message(), Exit.USAGE)
    except typer.Exit as error:
        code = error.exit_code
    except (StorageError, RunFailedError) as error:
        code = _print_error(str(error), Exit.FAILED)
    except (KeyboardInterrupt, typer.Abort):
        code = _print_error("interrupted", Exit.STOPPED)
    sys.exit(int(code or 0))


def _print_error(message: str, code: Exit) -> Exit:
    err.print("sewd: " + " ".join(message.split()), markup=False)
    return code


def single(verb: Callable[..., int]) -> NoReturn:
    """Run one verb as its own program: `python -m jobs.VERB`."""
    from jobs.verbs import configured  # noqa: PLC0415 - the verbs import this module

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(configured(verb))
    run(app, before=check_start)


def shortened(text: str, characters: int = 80) -> str:
    """A text on one line, cut if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"


def warn(warnings: Iterable[str]) -> None:
    """Print each warning as a line on standard error."""
    for warning in warnings:
        err.print(f"warning: {warning}", markup=False)
