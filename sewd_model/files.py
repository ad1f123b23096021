"""Small files of a checkpoint, read from and written to a directory or any fsspec URI.

Only two outcomes are told apart here, because the callers act on them differently: a file that is absent or
whose bytes are wrong raises `CheckpointError` (trying again will not help); a store that cannot be reached
raises whatever `OSError` fsspec raises (trying again may help).

One checkpoint is at hand wherever this package is: `bundled`. Its name is resolved where it is read, not where it was
given, so that it means the same on every machine of a cluster.
"""

import json
import os
import re
import uuid
from pathlib import Path
from typing import Any, Final

from fsspec.core import url_to_fs

Location = str | os.PathLike[str]

BUNDLED: Final = "bundled"  # a directory of this name is `./bundled`


class CheckpointError(ValueError):
    """A checkpoint is incomplete, malformed, or does not fit the model; the message says where."""


def located(location: Location) -> str:
    """Return the directory or URI that `location` means: itself, but for the name of the bundled model."""
    # A path object is none of it: `Path("./bundled")` has lost its dot.
    return str(Path(__file__).with_name(BUNDLED)) if location == BUNDLED else os.fspath(location)


def shown(location: Location) -> str:
    """Return the location as it may stand in a message: without user names and keys of the form
    `s3://user:key@host`."""
    return re.sub(r"(?<=://)[^/@]*@", "", os.fspath(location))


def read_bytes(location: Location, name: str) -> bytes | None:
    """Read the file `name` in the directory or URI `location`; return None if there is no such file.

    Raises:
        OSError: The store could not be read for another reason than the file's absence.
    """
    fs, root = url_to_fs(located(location))
    try:
        return bytes(fs.cat_file(f"{root.rstrip('/')}/{name}"))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        msg = f"{shown(location)} is not a directory"
        raise CheckpointError(msg) from error


def read_json(location: Location, name: str) -> dict[str, Any] | None:
    """Read the JSON object in the file `name`; return None if there is no such file.

    Raises:
        CheckpointError: The file is not UTF-8 JSON, or not an object.
    """
    data = read_bytes(location, name)
    if data is None:
        return None
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{name} in {shown(location)} is not JSON: {error}"
        raise CheckpointError(msg) from error
    if not isinstance(value, dict):
        msg = f"{name} in {shown(location)} holds a JSON {type(value).__name__}, not an object"
        raise CheckpointError(msg)
    return value


def local_path(location: Location, name: str) -> Path | None:
    """Return the path of an existing file on a local disk, or None (absent, or in a remote store)."""
    fs, root = url_to_fs(located(location))
    protocols = fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)
    path = Path(root) / name
    return path if "file" in protocols and path.is_file() else None


def write_bytes(location: Location, name: str, data: bytes) -> None:
    """Write the file `name` whole: one PUT in a store, a temporary name and a rename on a local disk.

    Raises:
        CheckpointError: `location` is the bundled model's name.
    """
    if location == BUNDLED:
        msg = f"{BUNDLED} is the name of the model in the package; a directory of that name is ./{BUNDLED}"
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
    """Write `value` as indented UTF-8 JSON with sorted keys, as transformers does."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_bytes(location, name, text.encode("utf-8"))
