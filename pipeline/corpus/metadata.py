"""What a source states about an utterance, in NeMo's manifest keys: text, speaker, label, offset, duration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from pipeline.corpus.naming import relative_id
from pipeline.errors import AudioError, ErrorCode

# Bytes that a second of audio counts for when parts are sized: 16 bits at 16 kHz.
BYTES_PER_SECOND = 32_000
# A row without `duration` counts for ten seconds.
UNKNOWN_ROW_BYTES = 10 * BYTES_PER_SECOND
MAX_ROW_SECONDS = 1e6  # an upper bound on a stated duration, which may be nonsense

Name = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]


class UtteranceMeta(BaseModel):
    """Metadata of an utterance in a manifest row, a `.json` file of a shard or a Parquet row. Unknown keys become tags.

    Attributes:
        utt_id: the id that the source gives it; None if it gives none.
        text: the reference transcript; empty if nothing was said, None if the source has none.
        speaker: as the source names the speaker.
        label: the reference label of classifiers.
        offset: where the utterance begins in its recording, seconds; see `span`.
        duration: seconds.
    """

    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    utt_id: Name | None = Field(None, validation_alias=AliasChoices("utt_id", "id"))
    text: str | None = Field(None, validation_alias=AliasChoices("text", "transcription", "transcript", "sentence"))
    speaker: str | None = Field(None, validation_alias=AliasChoices("speaker", "speaker_id"))
    label: str | None = None
    offset: float | None = None
    duration: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _nan_is_null(cls, values: Any) -> Any:
        """NaN is how pandas writes a missing value, also of texts. (An offset of NaN is an error: where to begin?)"""
        if not isinstance(values, dict):
            return values
        missing = [key for key, value in values.items() if isinstance(value, float) and math.isnan(value)]
        return {**values, **dict.fromkeys(key for key in missing if key != "offset")} if missing else values

    @property
    def tags(self) -> str | None:
        """The unknown keys as one JSON object; None if there are none."""
        extra = self.__pydantic_extra__
        return json.dumps(_finite(extra), ensure_ascii=False, sort_keys=True, default=str) if extra else None

    @property
    def span(self) -> tuple[float, float | None] | None:
        """(offset, duration) in seconds if the row asks for a segment of its recording, None for the whole recording.

        A row without the key `offset` means the whole recording: manifests state `duration` for planning only.
        """
        return None if self.offset is None else (self.offset, self.duration)


class ManifestRow(UtteranceMeta):
    """One row of a manifest: the metadata and the path of the audio."""

    audio_filepath: Name


Meta = TypeVar("Meta", bound=UtteranceMeta)


def parse_meta(data: bytes | dict[str, Any], where: str, kind: type[Meta]) -> Meta:
    """Read one row, as JSON or as a dictionary, into `kind`.

    Args:
        data: the row.
        where: the place of the row, for the error message.
        kind: the model that the row must fit.

    Raises:
        AudioError: BAD_ROW; its message names the place and the key that is wrong.
    """
    try:
        if isinstance(data, bytes):
            return kind.model_validate_json(data.removeprefix(b"\xef\xbb\xbf"))  # the BOM of a file's first line
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(name) for name in first["loc"])
        raise AudioError(ErrorCode.BAD_ROW, f"{where}: {key + ': ' if key else ''}{first['msg']}") from error


def _finite(value: Any) -> Any:
    """`value` with null for NaN and infinities, which pandas writes and JSON does not allow."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def split_rows(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Split the bytes of a JSON-lines manifest, which begin at byte `start` of it, as `storage.objects.lines` does.

    Yields:
        (byte offset in the manifest, row) of each row that is not blank.
    """
    for line in data.split(b"\n"):
        if line.strip():
            yield start, line
        start += len(line) + 1


def manifest_utt_id(row: ManifestRow, base: str) -> str:
    """The row's own id, else the path of its audio relative to `base`, the manifest's directory, without extension."""
    return row.utt_id if row.utt_id is not None else relative_id(row.audio_filepath, base)


def estimated_bytes(row: UtteranceMeta) -> int:
    """Bytes that the audio of a row counts for when parts are sized, by the duration that it states."""
    if row.duration is None:
        return UNKNOWN_ROW_BYTES
    return int(min(max(row.duration, 0.0), MAX_ROW_SECONDS) * BYTES_PER_SECOND)


def unique_key(utt_id: str, meta: UtteranceMeta) -> str:
    """The key that no two utterances may share.

    Usually the utt_id. Segments of one recording without ids of their own share it before they are read: their final
    ids end in #start-end, so the key includes the span.
    """
    return utt_id if meta.utt_id is not None or meta.span is None else f"{utt_id}\0{meta.span}"
