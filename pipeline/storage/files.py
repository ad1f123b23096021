"""Large files in storage that a library reads from disk: the digest of one, and a local copy on every machine."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from filelock import FileLock

from pipeline.errors import InputChangedError
from pipeline.storage import objects
from pipeline.storage.checkpoints import COPIES, HASH_BLOCK_BYTES


def file_digest(uri: str) -> str:
    """Return the SHA-256 of the content of an object, in hex.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: it could not be read.
    """
    digest = hashlib.sha256()
    with objects.open_read(uri) as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def local_file(uri: str, digest: str, copies: Path = COPIES) -> str:
    """Return the path of a local file with the content of an object: its own, or a copy for all of the machine.

    Args:
        uri: of the object.
        digest: its expected `file_digest`, which is also the name of the copy. A file of this machine is checked, too:
            another machine may have another at its path, and a run takes long.
        copies: directory of the copies. They stay until the system cleans up its temporary files.

    Raises:
        InputChangedError: the object has another digest by now, or is gone.
        StorageError: it could not be read.
    """
    try:
        if "://" in uri:
            return _copied(uri, digest, copies)
        if file_digest(uri) != digest:
            raise _changed(uri)
    except FileNotFoundError as error:
        raise InputChangedError(f"{uri} is gone") from error
    return uri


def _changed(uri: str) -> InputChangedError:
    return InputChangedError(f"{uri} is not the file that the run was started with")


def _copied(uri: str, digest: str, copies: Path) -> str:
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = copies / f"{digest}.file"
    with FileLock(copies / f"{digest}.lock"):
        if copy.exists():
            return str(copy)
        partial = copies / f"{digest}.partial-file"
        try:
            with objects.open_read(uri) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target, HASH_BLOCK_BYTES)
            if file_digest(str(partial)) != digest:
                raise _changed(uri)
            partial.rename(copy)
        finally:
            partial.unlink(missing_ok=True)
    return str(copy)
