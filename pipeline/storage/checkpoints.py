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

from pipeline.errors import InputChangedError, UsageError
from pipeline.storage import objects
from pipeline.storage.reads import Object
from sewd_model.files import located

# The files that a checkpoint's results depend on; optimizer states and READMEs are stored beside them.
_CHECKPOINT_FILE = re.compile(
    r"(config|vocab|(pre)?processor_config|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json"
)
HASH_BLOCK_BYTES = 16 * 2**20
COPIES = Path(tempfile.gettempdir()) / f"sewd-checkpoints-{os.getuid()}"


def checkpoint_digest(uri: str) -> str:
    """Return the SHA-256, in hex, of the names and contents of the files that a checkpoint's results depend on.

    Raises:
        UsageError: there is no checkpoint at `uri`.
        StorageError: it could not be read.
    """
    files = _checkpoint_files(uri)
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


def _checkpoint_files(uri: str) -> list[Object]:
    """Return the files that the digest covers. Subdirectories, such as a trainer's own checkpoints, are not part."""
    files = objects.list_directory(located(uri))
    return [file for file in files if _CHECKPOINT_FILE.fullmatch(posixpath.basename(file.uri))]


def local_copy(uri: str, digest: str, copies: Path = COPIES) -> str:
    """Return a local directory that holds the checkpoint: `uri` itself, or a copy shared by the machine's processes.

    Args:
        uri: directory or URI of the checkpoint.
        digest: its expected `checkpoint_digest`, which is also the name of the copy.
        copies: directory of the copies. They stay until the system cleans up its temporary files.

    Raises:
        InputChangedError: the checkpoint at `uri` has another digest by now.
        StorageError: it could not be read.
    """
    if "://" not in uri:
        return uri
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = copies / digest
    with FileLock(copies / f"{digest}.lock"):
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
