"""JSON-lines manifests in the keys that NeMo made common, and what an utterance is called.

`utt_id` is the manifest's own id if it gives one, else the audio's path relative to the INPUT without its extension:
the same for the same audio in a directory, a shard or a manifest.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipeline.errors import AudioError, ErrorCode

Name = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]


class UtteranceMeta(BaseModel):
    """What a manifest line, a tar's `.json` or a Parquet row may say of its audio; unknown keys are kept as tags."""

    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    utt_id: Name | None = Field(None, validation_alias=AliasChoices("utt_id", "id"))
    text: str | None = Field(None, validation_alias=AliasChoices("text", "transcription", "transcript", "sentence"))
    speaker: str | None = Field(None, validation_alias=AliasChoices("speaker", "speaker_id"))
    label: str | None = None
    offset: float | None = None
    duration: float | None = None

    @property
    def tags(self) -> str | None:
        """The keys that are not ours, as one JSON object; None where there are none."""
        extra = self.__pydantic_extra__
        return json.dumps(_finite(extra), ensure_ascii=False, sort_keys=True, default=str) if extra else None

    @property
    def span(self) -> tuple[float, float | None] | None:
        """(offset, duration) in seconds where the row asks for a part of its recording, None for the whole.

        A row without the key `offset` means the whole file: manifests state `duration` for planning.
        """
        return None if self.offset is None else (self.offset, self.duration)


class ManifestRow(UtteranceMeta):
    """One line of a manifest."""

    audio_filepath: Name


def _finite(value: Any) -> Any:
    """`value` with null for NaN and infinities, which pandas writes and JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_meta(data: bytes | dict[str, Any], where: str, kind: type[UtteranceMeta] = UtteranceMeta) -> Any:
    """Read one row into `kind`.

    Raises:
        AudioError: BAD_ROW with the field that is wrong.
    """
    try:
        if isinstance(data, bytes):
            return kind.model_validate_json(data.removeprefix(b"\xef\xbb\xbf"))  # the BOM of a file's first line
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise AudioError(ErrorCode.BAD_ROW, f"{where}: {place + ': ' if place else ''}{first['msg']}") from error


def split_rows(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """The rows of a manifest's bytes from `start` on, each with its own first byte; as `storage.lines` cuts them."""
    for line in data.split(b"\n"):
        if line.strip():
            yield start, line
        start += len(line) + 1


def stem(path: str) -> str:
    """`path` without its last extension; a dot that begins a name is no extension."""
    return posixpath.splitext(path)[0]


def resolve(path: str, base: str) -> str:
    """The URI of `path` as a manifest in the directory `base` means it."""
    path = path.removeprefix("file://")
    if "://" in path or posixpath.isabs(path):
        return path
    if "://" not in base:
        return str(PurePosixPath(base, path))  # any `..` is left to the file system, which knows of links
    # In an object store's key a dot is a letter like any other.
    scheme, _, directory = base.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(directory, path))}"


def relative_id(path: str, base: str) -> str:
    """What audio without a name is called by a source in the directory `base`: its path from there, without extension.

    However the path is written; with the whole URI only where no path leads there, because it is in another store.
    """
    if not posixpath.isabs(path) and "://" not in path and ".." not in path:
        return stem(posixpath.normpath(path))
    uri = resolve(path, base)
    (store, key), (base_store, base_key) = _split_store(uri), _split_store(base)
    return stem(posixpath.relpath(key, base_key) if store == base_store else uri)


def _split_store(uri: str) -> tuple[str, str]:
    """("s3://bucket", "/key") of a URI; ("", path) of a local path."""
    scheme, mark, rest = uri.rpartition("://")
    if not mark:
        return "", uri
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", f"/{key}"


def manifest_utt_id(row: ManifestRow, base: str) -> str:
    """The row's own id, else its path relative to the manifest without extension."""
    return row.utt_id if row.utt_id is not None else relative_id(row.audio_filepath, base)


def unique_key(utt_id: str, meta: UtteranceMeta) -> str:
    """What no two utterances may share: pieces of one recording get ids ending in #start-end once they are read."""
    return utt_id if meta.utt_id is not None or meta.span is None else f"{utt_id}\0{meta.span}"
