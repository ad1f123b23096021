"""How a stop reaches the stages, which may run on other machines: by an object below the run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from pipeline.errors import StorageError
from pipeline.storage import objects, uris

_POLL_S: Final = 0.2


def stop_uri(run: str, attempt: str) -> str:
    """The object that tells the stages of one start of the driver to stop.

    Args:
        run: URI of the run.
        attempt: id of the start.
    """
    return uris.join(run, "control", f"stop-{attempt}")


@contextlib.contextmanager
def stop_marker(uri: str, stop: threading.Event | None) -> Iterator[None]:
    """Put an object at `uri` once `stop` is set, and remove it at the end. The stages look for it before each chunk."""
    if stop is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if stop.wait(_POLL_S):
                with contextlib.suppress(StorageError):  # transient: try again
                    objects.put(uri, b"")
                    return

    watcher = threading.Thread(target=watch, name="sewd-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        if stop.is_set():
            objects.delete([uri])
