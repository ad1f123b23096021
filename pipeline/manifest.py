"""JSON-lines manifests in the keys that NeMo made common, and what an utterance is called.

`utt_id` is the manifest's own id if it gives one, else the audio's path relative to the INPUT without its extension: the
same for the same audio in a directory, a shard or a manifest.
"""

from __future__ import annotations

import json
import posixpath
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipeline import storage
from pipeline.errors import AudioError, ErrorCode

Name = Annotated[str, StringConstraints(min_length=1)]


class UtteranceMeta(BaseModel):
    """What a manifest line, a tar's `.json` or a Parquet row may say of its audio. Keys we do not know are kept as tags."""

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
        return json.dumps(extra, ensure_ascii=False, sort_keys=True, default=str) if extra else None

    @property
    def span(self) -> tuple[float, float | None] | None:
        """(offset, duration) in seconds where the row asks for a part of its recording, None for the whole.

        A row without the key `offset` means the whole file: manifests state `duration` for planning.
        """
        return None if self.offset is None else (self.offset, self.duration)


class ManifestRow(UtteranceMeta):
    """One line of a manifest."""

    audio_filepath: Name


def parse_meta(data: bytes | dict[str, Any], where: str, kind: type[UtteranceMeta] = UtteranceMeta) -> Any:
    """Read one row into `kind`.

    Raises:
        AudioError: BAD_ROW with the field that is wrong.
    """
    try:
        return kind.model_validate_json(data) if isinstance(data, bytes) else kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise AudioError(ErrorCode.BAD_ROW, f"{where}: {place + ': ' if place else ''}{first['msg']}") from error


def stem(path: str) -> str:
    """`path` without its last extension; a dot that begins a name is no extension."""
    return posixpath.splitext(path)[0]


def resolve(path: str, base: str) -> str:
    """The URI of `path` as a manifest in the directory `base` means it."""
    if "://" in path or posixpath.isabs(path):
        return path
    return storage.join(base, path)


def manifest_utt_id(row: ManifestRow, base: str) -> str:
    """The row's own id, else its path relative to the manifest without extension."""
    if row.utt_id is not None:
        return row.utt_id
    path = row.audio_filepath.removeprefix(base.rstrip("/") + "/")
    return stem(path if "://" in path else posixpath.normpath(path))
