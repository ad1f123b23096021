"""Lost and damaged objects of a run: one line that names the object and says what can be done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import pyarrow as pa

from pipeline.errors import DamagedRunError
from pipeline.runs.commit import DataFile
from pipeline.storage import objects, uris

# What Arrow raises for bytes that are no Parquet file, or not the one that is expected.
NOT_PARQUET: Final = (pa.ArrowException, OSError, ValueError, KeyError)


def damaged(run: str, path: str, problem: str) -> DamagedRunError:
    """The error for an object of a run.

    Args:
        run: URI of the run.
        path: the object, relative to the run or absolute.
        problem: what is wrong with it, as the rest of a sentence that begins with its name.
    """
    return DamagedRunError(
        f"{uris.join(run, path)} {problem}; "
        f"`sewd repair {run}` makes again what can be made again, and says what cannot"
    )


def first_lost_file(run: str, files: Iterable[DataFile]) -> DamagedRunError | None:
    """The error for the first of `files` that is not stored with the size that it was written with; reads no data."""
    for file in files:
        try:
            stored = objects.stat(uris.join(run, file.path))
        except FileNotFoundError:
            return damaged(run, file.path, "is lost")
        if stored is not None and stored.size != file.size:
            return damaged(run, file.path, f"has {stored.size} bytes, but was written with {file.size}")
    return None


def first_damaged_file(run: str, files: Iterable[DataFile]) -> DamagedRunError | None:
    """The error for the first of `files` that is lost or was changed; reads them."""
    files = list(files)
    if (error := first_lost_file(run, files)) is not None:
        return error
    for file in files:
        if content_problem(objects.fetch(uris.join(run, file.path)), file):
            return damaged(run, file.path, "was changed after it was written")
    return None


def content_problem(data: bytes, file: DataFile) -> str | None:
    """What is wrong with the content of a data file; None if it is what was written."""
    if len(data) != file.size:
        return f"has {len(data)} bytes, but was written with {file.size}"
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return "was changed after it was written: its SHA-256 differs"
    return None
