"""Checkpoints in storage: the digest that identifies one, and a local copy on every machine that computes with it."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from pipeline.errors import InputChangedError, StorageError, UsageError
from pipeline.storage import objects, retry
from pipeline.storage.reads import Object
from sewd_model import hub
from sewd_model.files import FEATURE_FILES, TOKENIZER_FILES, CheckpointError, located

# The files that a checkpoint's results depend on; optimizer states and READMEs are stored beside them.
_CHECKPOINT_FILE = re.compile(
    r"(config|vocab|(pre)?processor_config|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json"
)
HASH_BLOCK_BYTES = 16 * 2**20
COPIES = Path(tempfile.gettempdir()) / f"sewd-checkpoints-{os.getuid()}"


def pinned(uri: str) -> str:
    """Return a checkpoint's URI; for one on the hub, download it to this machine, and name the commit instead.

    Args:
        uri: directory or URI of the checkpoint, or its name on the hub.

    Returns:
        `uri`, or `hf://ORG/NAME@COMMIT`, which means the same at any time and on every machine.

    Raises:
        UsageError: the hub has no such checkpoint, or refuses access to it; or it is of another architecture.
        StorageError: the hub cannot be reached, and its cache on this machine lacks the checkpoint.
    """
    name = hub.hub_name(uri)
    if name is None:
        return uri
    return hub.HubName(name.repo, _hub_files(name, uri)[0].parent.name).uri


def _hub_files(name: hub.HubName, shown: str, *, every_copy: bool = False) -> list[Path]:
    """Return the files of a checkpoint on the hub that its results depend on, in the hub's cache on this machine.

    Raises:
        UsageError, StorageError: see `pinned`; the message begins with `shown`.
    """
    try:
        return _fetched(name, every_copy=every_copy)
    except CheckpointError as error:
        raise UsageError(f"cannot load the model {shown}: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot load the model {shown}: {error}") from error


def _fetched(name: hub.HubName, *, every_copy: bool = False) -> list[Path]:
    return hub.fetch(name, (*FEATURE_FILES, *TOKENIZER_FILES), weights=True, every_copy=every_copy)


def checkpoint_digest(uri: str, *, every_copy: bool = False) -> str:
    """Return the SHA-256, in hex, of the names and contents of the files that a checkpoint's results depend on.

    Args:
        uri: directory or URI of the checkpoint, or its name on the hub.
        every_copy: of one on the hub, cover the weights in every format, as version 0.1.0 did.

    Raises:
        UsageError: there is no checkpoint at `uri`.
        StorageError: it could not be read.
    """
    files = _checkpoint_files(uri, every_copy=every_copy)
    if not any(posixpath.basename(file.uri) == "config.json" for file in files):
        raise UsageError(f"no model at {uri}: there is no config.json")
    digest = hashlib.sha256()
    for item in files:
        if item.version == objects.ABSENT:
            raise UsageError(f"no model at {uri}: {item.uri} is a dangling link or not a regular file")
        digest.update(f"{posixpath.basename(item.uri)}\0{item.size}\0".encode())
        with objects.open_read(item.uri) as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _checkpoint_files(uri: str, *, every_copy: bool = False) -> list[Object]:
    """Return the files that the digest covers. Subdirectories, such as a trainer's own checkpoints, are not part."""
    if (name := hub.hub_name(uri)) is not None:
        # Not all that the directory holds: other programs may have downloaded more of the same commit.
        paths = sorted(_hub_files(name, uri, every_copy=every_copy), key=lambda path: path.name)
        found = (objects.stat(str(path)) for path in paths)
        return [item for item in found if item is not None]
    files = objects.list_directory(located(uri))
    return [file for file in files if _CHECKPOINT_FILE.fullmatch(posixpath.basename(file.uri))]


def local_copy(uri: str, digest: str, copies: Path = COPIES) -> str:
    """Return a local directory that holds the checkpoint: `uri` itself, or a copy shared by the machine's processes.

    Args:
        uri: directory or URI of the checkpoint, or its name on the hub, which keeps the copy in its own cache.
        digest: its expected `checkpoint_digest`, which is also the name of the copy.
        copies: directory of the copies. They stay until the system cleans up its temporary files.

    Raises:
        InputChangedError: the checkpoint at `uri` has another digest by now.
        StorageError: it could not be read.
    """
    name = hub.hub_name(uri)
    if "://" not in uri and name is None:
        return uri
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = copies / digest
    with FileLock(copies / f"{digest}.lock"):
        if name is not None:
            return _verified(name, digest)
        # A cleaner of temporary files may have removed single files: existence of the directory proves nothing.
        if not copy.exists() or checkpoint_digest(str(copy)) != digest:
            partial = copies / f"{digest}.partial"
            for stale in (copy, partial):
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir()
            try:
                for file in _checkpoint_files(uri):
                    (partial / posixpath.basename(file.uri)).write_bytes(objects.fetch(file.uri))
                if checkpoint_digest(str(partial)) != digest:
                    raise InputChangedError(f"{uri} is not the checkpoint that the run was started with")
                partial.rename(copy)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return str(copy)


def _verified(name: hub.HubName, digest: str) -> str:
    """Return the directory of a checkpoint in the hub's cache on this machine, downloaded if it is not there yet."""
    try:
        # On the driver, a hub that cannot be reached is reported at once. Here a run is under way.
        folder = str(retry.with_retries(name.uri, lambda: _fetched(name))[0].parent)
    except CheckpointError as error:  # for example: this machine has no token
        raise StorageError(f"{name.uri}: {error}") from error
    if checkpoint_digest(name.uri) != digest:
        raise InputChangedError(f"{folder} is not the checkpoint that the run was started with: remove it")
    return folder
