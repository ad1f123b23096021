"""What is said for a process that is ended without a chance to speak.

`kill -9` and the kernel's choice for memory ask nobody; nor does Ray, whose C++ ends a driver a minute after the head
of its cluster is lost. So a small process beside it holds the other end of a pipe: where that closes before all is
said, it speaks. It is no parent: signals, the terminal and the exit code stay the driver's own.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

_ENDED: Final = "ended"
_WATCH: Final = f"import sys; sys.stdin.read() == {_ENDED!r} or print(sys.argv[1], file=sys.stderr)"


@contextlib.contextmanager
def last_words(message: str) -> Iterator[None]:
    """Have `message` written to standard error should this process end in here other than by Python's leave."""
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, message],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # out of Ctrl-C's way
    )
    try:
        yield
    finally:
        watcher.communicate(_ENDED)
