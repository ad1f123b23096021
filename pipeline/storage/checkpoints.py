"""Checkpoints in storage: what they are, told by a digest, and a copy on every machine that computes with them."""

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
from pipeline.storage.objects import Object
from sewd_model.files import located

# What of a checkpoint its results depend on; optimizer states and READMEs lie beside it.
_CHECKPOINT_FILE = re.compile(
    r"(config|vocab|(pre)?processor_config|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json"
)
HASH_BLOCK_BYTES = 16 * 2**20
COPIES = Path(tempfile.gettempdir()) / f"sewd-checkpoints-{os.getuid()}"


def checkpoint_digest(uri: str) -> str:
    """SHA-256 over the files of a checkpoint that its results depend on, and their names.

    Raises:
        UsageError: there is no checkpoint at `uri`.
    """
    found = _files(uri)
    if not any(posixpath.basename(o.uri) == "config.json" for o in found):
        raise UsageError(f"no model at {uri}: there is no config.json")
    digest = hashlib.sha256()
    for item in found:
        digest.update(f"{posixpath.basename(item.uri)}\0{item.size}\0".encode())
        with objects.open_read(item.uri) as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _files(uri: str) -> list[Object]:
    """What its digest is of. What lies deeper, such as a trainer's own checkpoints, is none of it."""
    found = objects.list_directory(located(uri))
    return [item for item in found if _CHECKPOINT_FILE.fullmatch(posixpath.basename(item.uri))]


def local_copy(uri: str, digest: str, copies: Path = COPIES) -> str:
    """A checkpoint on this machine's disk: `uri` itself, or a copy that all processes of the machine share.

    Args:
        uri: directory or URI.
        digest: that it has by `checkpoint_digest`; the copy lies under this name.
        copies: where copies lie, for as long as the system keeps its temporary files.

    Raises:
        InputChangedError: what lies at `uri` now has another digest.
        StorageError: it could not be reached.
    """
    if "://" not in uri:
        return uri
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = copies / digest
    with FileLock(copies / f"{digest}.lock"):
        if not copy.exists() or checkpoint_digest(str(copy)) != digest:  # cleaners of temporary files take single ones
            partial = copies / f"{digest}.partial"
            for old in (copy, partial):
                shutil.rmtree(old, ignore_errors=True)
            partial.mkdir()
            try:
                for item in _files(uri):
                    (partial / posixpath.basename(item.uri)).write_bytes(objects.fetch(item.uri))
                if checkpoint_digest(str(partial)) != digest:
                    raise InputChangedError(f"{uri} is not the checkpoint that the run was started with")
                partial.rename(copy)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return str(copy)
