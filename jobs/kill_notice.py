"""A message on standard error when this process is killed.

A process gets no chance to report `kill -9`, the kernel's out-of-memory killer, or Ray, whose C++ code ends a driver a
minute after the head of its cluster is lost. So a small child process waits at the other end of a pipe, and prints the
message if the pipe closes before this process reports a normal end. As a child, it leaves signals, the terminal and the
exit code to this process.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import IO, Final

_ENDED: Final = "ended"
_WATCH: Final = f"import sys; sys.stdin.read() == {_ENDED!r} or print(sys.argv[1], file=sys.stderr)"


@contextlib.contextmanager
def kill_notice(message: str) -> Iterator[Callable[[], None]]:
    """Print `message` on standard error if this process is killed inside this context.

    Yields:
        A function to call before this process ends itself inside the context.
    """
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, message],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=_terminal(),
        text=True,
        start_new_session=True,  # Ctrl-C must not reach it
    )

    def ended() -> None:
        with contextlib.suppress(ValueError, OSError):  # it was called before, or the watcher was killed
            watcher.communicate(_ENDED)

    try:
        yield ended
    finally:
        ended()


def _terminal() -> IO[str] | None:
    """Python's standard error, which file descriptor 2 is not inside `native_output_to_log`."""
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by something that is no file
        return None
    return sys.stderr
