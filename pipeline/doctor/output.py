"""Where runs are written: an object is written, read and deleted, and conditional writes are tried."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Final

from pipeline.doctor.check import Check, failure, ok, warning
from pipeline.errors import StorageError, UsageError
from pipeline.storage import conditional, objects, uris

PROBE_BYTES: Final = 2**20  # about what a small chunk writes
MIN_FREE_GIB: Final = 1.0
# What storage raises that cannot be written to: `ImportError` where its client is not installed.
_REFUSALS: Final = (StorageError, UsageError, NotImplementedError, ImportError)


def output_checks(uri: str) -> list[Check]:
    """Try the storage at a URI; nothing is left there.

    Args:
        uri: where a run is to be written. A local directory need not exist: the nearest one above it is tried.
    """
    place = uris.absolute(uri)
    if "://" not in place:
        try:
            path = _existing(Path(place))
            if not path.is_dir():
                kind = "a file" if path.exists() else "a link without a target"
                return [_not_a_directory(f"{path} is {kind}")]
            free = shutil.disk_usage(path).free
        except OSError as error:
            message = f"{place}: {error.strerror}"
            return [failure("output", message, _advice(message))]
        place = str(path)
        if free < PROBE_BYTES:
            return [
                failure("output", f"no space: {place} has {free:,} bytes free", "remove files, or choose another disk")
            ]
    probe = uris.join(place, f".sewd-doctor-{uuid.uuid4().hex}")
    try:
        if "://" in place and objects.is_object(place):
            return [_not_a_directory(f"{place} is an object")]
        return [_write_read_delete(place, probe), _conditional_write(place, probe)]
    except _REFUSALS as error:
        return [failure("output", str(error) or f"{place} cannot be written to", _advice(str(error)))]
    finally:
        with contextlib.suppress(FileNotFoundError, *_REFUSALS):
            objects.delete([probe])


def _not_a_directory(what: str) -> Check:
    return failure("output", f"{what}; a run is a directory or prefix", "choose another place")


def _existing(path: Path) -> Path:
    """The path, or the nearest one above it that exists."""
    while True:
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        else:
            return path


def _advice(message: str) -> str:
    if "access was refused" in message or "denied" in message.lower():
        return "check the credentials, and that they may read, write, list and delete below this place"
    if "No space" in message:
        return "remove files, or choose another disk"
    return "check the name, the network and the endpoint (AWS_ENDPOINT_URL and the like)"


def _write_read_delete(place: str, probe: str) -> Check:
    data = os.urandom(PROBE_BYTES)
    objects.put(probe, data)
    try:
        read = objects.fetch(probe)
    except FileNotFoundError:
        read = b""
    objects.delete([probe])
    if read != data or objects.exists(probe):
        return failure(
            "output", f"{place} does not give back what was written, or keeps what was deleted", "use another storage"
        )
    message = f"{place}: an object was written, read and deleted"
    if "://" in place:
        return ok("output", message)
    free = shutil.disk_usage(place).free / 2**30
    if free < MIN_FREE_GIB:
        return warning("output", f"{message}; {free:.2f} GiB free", "remove files, or choose another disk")
    return ok("output", f"{message}; {free:,.1f} GiB free")


def _conditional_write(place: str, probe: str) -> Check:
    """Write an object twice on the condition that it is absent: the second one must be refused."""
    name = "conditional writes"
    advice = "start one driver at a time on a run: two that start at the same moment may not notice each other at once"
    if not conditional.has_conditions(place):
        return warning(name, f"{place.partition('://')[0]} has none", advice)
    first, second = (conditional.replace(probe, data, None) for data in (b"first", b"second"))
    objects.delete([probe])
    if not first:
        return failure(name, "an object that is absent could not be written on that condition", "use another storage")
    if second:
        return warning(name, "the server ignores the condition", advice)
    return ok(name, "honoured")
