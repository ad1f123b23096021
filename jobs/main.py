"""The console script `sewd`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn


def main() -> NoReturn:
    """Parse the command line, run the verb, exit with its code."""
    with ended_by_ctrl_c():
        from jobs.app import application_for, application_to_complete  # noqa: PLC0415 - takes a second

        if "_SEWD_COMPLETE" in os.environ:
            application_to_complete(os.environ)(prog_name="sewd")
        from jobs.console import check_start, run  # noqa: PLC0415 - takes seconds

        if len(sys.argv) == 1:
            sys.argv.append("--help")
        first = [word for word in sys.argv[1:] if word != "--"]
        app = application_for(first[0] if first else "")

    run(app, before=check_start)


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process at once, as SIGTERM does, and not by a traceback of what is being imported."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # ignored, as in a shell's background, or another's
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


if __name__ == "__main__":
    main()
