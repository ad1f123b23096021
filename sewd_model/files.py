"""Read and write the small files of a checkpoint, in a directory or under any fsspec URI.

Errors are of two kinds, because callers act on them differently. A file that is missing or malformed raises
`CheckpointError`: a retry will not help. A store that cannot be reached raises the `OSError` of fsspec: a retry may
help.

One checkpoint is part of this package: `bundled`. Its name is resolved where the checkpoint is read, so that it means
the same on every node of a cluster.
"""

import json
import os
import re
import uuid
from pathlib import Path
from typing import Any, Final

from fsspec.core import url_to_fs

Location = str | os.PathLike[str]

BUNDLED: Final = "bundled"  # for a directory of this name, write `./bundled`

# The files of a checkpoint.
CONFIG_FILE: Final = "config.json"
FEATURES_FILE: Final = "preprocessor_config.json"
PROCESSOR_FILE: Final = "processor_config.json"
FEATURE_FILES: Final = (FEATURES_FILE, PROCESSOR_FILE)
VOCAB_FILE: Final = "vocab.json"
TOKENIZER_FILE: Final = "tokenizer_config.json"
SPECIAL_TOKENS_FILE: Final = "special_tokens_map.json"
ADDED_TOKENS_FILE: Final = "added_tokens.json"
TOKENIZER_FILES: Final = (VOCAB_FILE, TOKENIZER_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
SAFETENSORS_FILE: Final = "model.safetensors"
PICKLE_FILE: Final = "pytorch_model.bin"
WEIGHT_FILES: Final = (SAFETENSORS_FILE, PICKLE_FILE)  # the preferred one first
MAX_JSON_BYTES: Final = 2**26  # the largest that are published, vocabularies of text models, have some ten million

_SNAPSHOT = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{12})[0-9a-f]{28}", re.ASCII)


class CheckpointError(ValueError):
    """A checkpoint is incomplete, malformed, or does not fit the model; the message names the file or tensors."""


def located(location: Location) -> str:
    """Return the directory or URI of a location: the package's directory for `bundled`, otherwise itself."""
    # Only a string can be the name: `Path("./bundled")` has lost its dot.
    return str(Path(__file__).with_name(BUNDLED)) if location == BUNDLED else os.fspath(location)


def shown(location: Location) -> str:
    """Return the location for messages and logs: without the credentials of URIs such as `s3://user:key@host`.

    A directory of the hub's cache is shown as the name on the hub, with the commit.
    """
    text = os.fspath(location)
    if (cached := _SNAPSHOT.fullmatch(text)) is not None:
        return f"{cached[1]}/{cached[2]}@{cached[3]}"
    return re.sub(r"(?<=://)[^/@]*@", "", text)


def read_bytes(location: Location, name: str) -> bytes | None:
    """Read the file `name` in the directory or URI `location`; return None if it does not exist.

    Raises:
        CheckpointError: `location` is a file, or the file is a pipe or a device.
        OSError: the store cannot be read.
    """
    fs, root = url_to_fs(located(location))
    check_regular(fs, f"{root.rstrip('/')}/{name}", f"{name} in {shown(location)}")
    try:
        return bytes(fs.cat_file(f"{root.rstrip('/')}/{name}"))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        msg = f"{shown(location)} is not a directory"
        raise CheckpointError(msg) from error


def check_regular(fs: Any, path: str, name: str) -> None:
    """Raise `CheckpointError` if a local file is a pipe, a device or a socket: reading it would block or never end."""
    protocols = fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)
    local = Path(path)
    if "file" in protocols and local.exists() and not (local.is_file() or local.is_dir()):
        msg = f"{name} is not a regular file"
        raise CheckpointError(msg)


def too_large(name: str, where: str, size: int) -> str:
    """Return the message for a JSON file of more than `MAX_JSON_BYTES`."""
    return f"{name} in {where} has {size:,} bytes, too many for a JSON file of a checkpoint"


def file_size(location: Location, name: str) -> int | None:
    """Return the size of the file `name` in bytes; None if it does not exist, or the store does not tell.

    Raises:
        OSError: the store cannot be read.
    """
    fs, root = url_to_fs(located(location))
    try:
        size = fs.info(f"{root.rstrip('/')}/{name}").get("size")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if size is None else int(size)


def read_json(location: Location, name: str) -> dict[str, Any] | None:
    """Read the JSON object in the file `name`; return None if the file does not exist.

    Raises:
        CheckpointError: the file is not UTF-8 JSON, not an object, or larger than `MAX_JSON_BYTES`.
        OSError: the store cannot be read.
    """
    if (size := file_size(location, name) or 0) > MAX_JSON_BYTES:
        raise CheckpointError(too_large(name, shown(location), size))
    data = read_bytes(location, name)
    if data is None:
        return None
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{name} in {shown(location)} is not JSON: {error}"
        raise CheckpointError(msg) from error
    if not isinstance(value, dict):
        msg = f"{name} in {shown(location)} contains a JSON {type(value).__name__}, not an object"
        raise CheckpointError(msg)
    return value


def local_path(location: Location, name: str) -> Path | None:
    """Return the path of a file on a local disk; None if it does not exist, or is in a remote store."""
    fs, root = url_to_fs(located(location))
    protocols = fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)
    path = Path(root) / name
    return path if "file" in protocols and path.is_file() else None


def write_bytes(location: Location, name: str, data: bytes) -> None:
    """Write the file `name` atomically: with one PUT in a store, with a temporary name and a rename on a local disk.

    Raises:
        CheckpointError: `location` is the name of the bundled model.
        OSError: the store cannot be written.
    """
    if location == BUNDLED:
        msg = f"{BUNDLED} is the name of the model in the package; for a directory of that name, write ./{BUNDLED}"
        raise CheckpointError(msg)
    fs, root = url_to_fs(os.fspath(location))
    protocols = fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)
    fs.makedirs(root, exist_ok=True)
    if "file" not in protocols:
        fs.pipe_file(f"{root.rstrip('/')}/{name}", data)
        return
    target = Path(root) / name
    temporary = target.with_name(f".{name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(location: Location, name: str, value: dict[str, Any]) -> None:
    """Write `value` as indented UTF-8 JSON with sorted keys, as transformers does.

    Raises:
        CheckpointError, OSError: as `write_bytes`.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_bytes(location, name, text.encode("utf-8"))
