"""How a stop reaches the stages, which may run on other machines: by an object below the run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from pipeline.errors import StorageError, UsageError
from pipeline.runs.lease import own_attempt, release_lease
from pipeline.runs.run import Run
from pipeline.runs.status import RunStatus
from pipeline.storage import objects, uris

RECORD_S: Final = 1.0
_POLL_S: Final = 0.2


def stop_uri(run: str, attempt: str) -> str:
    """The object that tells the stages of one start of the driver to stop.

    Args:
        run: URI of the run.
        attempt: id of the start.
    """
    return uris.join(run, "control", f"stop-{attempt}")


def record_stop(run: str) -> None:
    """Record in a run that this process works on that it is stopped, and release its lease.

    For a process that ends at once: it takes `RECORD_S` at most, also where storage does not answer. Then the run keeps
    the status `running`, and its lease expires.

    Args:
        run: URI of the run.
    """
    recorder = threading.Thread(target=_record_stop, args=(run,), name="sewd-record-stop", daemon=True)
    recorder.start()
    recorder.join(RECORD_S)


def _record_stop(uri: str) -> None:
    with contextlib.suppress(StorageError, UsageError, FileNotFoundError):
        if (attempt := own_attempt(uri)) is None:
            return
        with contextlib.suppress(UsageError):  # no run yet
            run = Run.open(uri)
            if run.status == RunStatus.RUNNING:
                run.save(status=RunStatus.STOPPED)
        objects.delete([stop_uri(uri, attempt)])
        release_lease(uri, attempt)


@contextlib.contextmanager
def stop_marker(uri: str, stop: threading.Event) -> Iterator[None]:
    """Put an object at `uri` once `stop` is set, and remove it at the end. The stages look for it before each chunk."""
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
