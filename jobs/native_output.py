"""What libraries write to standard error by themselves: it goes to the log, and not to the terminal.

Ray's core, Hadoop's loader and others write to file descriptor 2. Inside `native_output_to_log` that descriptor is a
temporary file, and Python's `sys.stderr` is the terminal. Warnings, and log records for which nobody has set a handler,
such as those of the object stores' clients, go to the same file. At the end the lines are logged. A bug, which is
raised with a traceback, shows them too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Final

STDERR: Final = 2
MAX_BYTES: Final = 1 << 20  # of the end of what was written

log = logging.getLogger("sewd")


@contextlib.contextmanager
def native_output_to_log(*expected: type[BaseException]) -> Iterator[None]:
    """Keep what libraries write to standard error from the terminal, and log it at the end.

    Args:
        expected: exceptions that the caller reports in one line; for others, the lines are printed too.
    """
    before = sys.stderr
    if not _is_standard_error(before):
        yield
        return
    with tempfile.TemporaryFile() as spool:
        before.flush()
        terminal = os.dup(STDERR)
        sys.stderr = open(os.dup(terminal), "w", buffering=1, encoding=before.encoding, errors="backslashreplace")  # noqa: SIM115, PTH123
        os.dup2(spool.fileno(), STDERR)
        is_bug = False
        try:
            with _records_to_descriptor():
                yield
        except expected:
            raise
        except Exception:
            is_bug = True
            raise
        finally:
            sys.stderr.close()
            sys.stderr = before
            os.dup2(terminal, STDERR)
            os.close(terminal)
            _report(spool, is_bug)


@contextlib.contextmanager
def _records_to_descriptor() -> Iterator[None]:
    """Write Python's warnings, and log records without a handler, to the descriptor in place of `sys.stderr`."""
    with open(STDERR, "w", closefd=False, encoding="utf-8", errors="backslashreplace") as stream:
        handler = logging.StreamHandler(stream)
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        warnings_log = logging.getLogger("py.warnings")  # of captureWarnings, which else drops them
        before, logging.lastResort = logging.lastResort, handler
        warnings_log.addHandler(handler)
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            warnings_log.removeHandler(handler)
            logging.lastResort = before


def _is_standard_error(stream: object) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == STDERR
    except (OSError, ValueError):
        return False


def _report(spool: IO[bytes], is_bug: bool) -> None:
    size = spool.seek(0, os.SEEK_END)
    spool.seek(max(0, size - MAX_BYTES))
    for line in spool.read().decode(errors="replace").splitlines():
        if line.strip():
            log.info("output of a library", extra={"line": line})
            if is_bug:
                sys.stderr.write(line + "\n")
