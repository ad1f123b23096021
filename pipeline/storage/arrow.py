"""Arrow's datasets over storage, with the retries and deadlines of `pipeline.storage.objects`.

Arrow's own bridge to fsspec takes every failure to look up a file for a missing file, and retries nothing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline.storage import objects, uris


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """Return the file system of `uri` as `pyarrow.dataset.dataset` takes it, and the path of `uri` in it."""
    fs, path = uris.filesystem(uri)
    return (PyFileSystem(_Handler(fs)) if "://" in uri else fs), path


class _Handler(FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """Opens files by `objects.open_read`, whose reads raise StorageError."""

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(objects.open_read(uris.uri_of(self.fs, path)), mode="r")
