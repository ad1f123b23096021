"""The log of a driver: warnings for the person in front of it, and each event as a JSON object in a file."""

from __future__ import annotations

import logging
from pathlib import Path

from pythonjsonlogger.json import JsonFormatter
from rich.logging import RichHandler

from jobs.console import err
from pipeline.errors import UsageError


def log_to(file: Path | None) -> None:
    """Say warnings on standard error; append what happens to `file`, an object a line, with ids of parts and rows.

    Raises:
        UsageError: it cannot be written.
    """
    logger = logging.getLogger("sewd")
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    words = RichHandler(logging.WARNING, err, show_time=False, show_level=False, show_path=False)
    logger.addHandler(words)
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
