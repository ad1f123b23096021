"""The log of a driver: warnings on standard error, and each event as a JSON object in a file."""

from __future__ import annotations

import logging
from pathlib import Path

from pythonjsonlogger.json import JsonFormatter
from rich.logging import RichHandler

from jobs.console import err
from pipeline.errors import UsageError


def log_to(file: Path | None) -> None:
    """Show warnings on standard error, and append each event to `file` as JSON Lines.

    Raises:
        UsageError: `file` cannot be written.
    """
    logger = logging.getLogger("sewd")
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = RichHandler(logging.WARNING, err, show_time=False, show_level=False, show_path=False)
    logger.addHandler(console)
    if file is None:
        return
    try:
        events = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"log: {error}") from error
    names = ["asctime", "levelname", "message"]
    events.setFormatter(
        JsonFormatter(names, rename_fields={"asctime": "time", "levelname": "level", "message": "event"})
    )
    logger.addHandler(events)
    logger.setLevel(logging.INFO)
