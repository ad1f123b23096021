"""From the INPUTs of a training to clips, by the readers of `sewd transcribe`.

Every utterance is decoded once, before the first step, and stays in memory as int16. What cannot be read becomes a row
of `ERRORS`, as in a run; the batches of a training depend on the clips that are left, so they are known at the start.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schemas
from pipeline.audio.decode import AudioSettings, LastRecording
from pipeline.audio.samples import to_float32
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.corpus.utterances import Utterance
from pipeline.errors import AudioError, ErrorCode, RunFailedError, UsageError
from pipeline.scoring.normalize import normalize
from pipeline.stages.rows import ReadRow, RowError, RowSettings, utterance_rows
from pipeline.storage.parquet import encode_table
from pipeline.training.data import Clip, ClipStore

DEFAULT_ERROR_RATE: Final = 0.05
_MIN_ROWS_FOR_RATE: Final = 1000  # for the default; a limit that was given holds for any number of rows
_MAX_CLIP_S: Final = 3600.0  # longer than any clip, so that no clip is cut into segments
_PART_BYTES: Final = 8 * 2**20
_READERS: Final = 8  # threads: decoders and storage release the interpreter's lock

ERRORS: Final = pa.schema(
    [
        schemas.field("set", pa.string(), "`train`, or `valid` and the name of the validation set", nullable=False),
        *(column for column in schemas.ERRORS if column.name != "chunk"),
    ],
    metadata=schemas.ERRORS.metadata,
)
"""The errors of a training: those of a run, without chunks, and with the set that the row belongs to."""


@dataclass(frozen=True)
class ClipSet:
    """What the INPUTs of one set hold.

    Attributes:
        name: `train`, or `valid` and the name of the set.
        store: the clips that can be used, in the order of the INPUTs.
        errors: a row of `ERRORS` for each utterance that cannot.
    """

    name: str
    store: ClipStore
    errors: Sequence[Mapping[str, Any]] = ()

    @property
    def rows(self) -> int:
        """Number of utterances, with those that failed."""
        return len(self.store) + len(self.errors)

    @property
    def error_codes(self) -> dict[str, int]:
        """Number of failed utterances by code."""
        return dict(sorted(Counter(str(row["code"]) for row in self.errors).items()))


def check_inputs(inputs: Sequence[str]) -> None:
    """Check that each INPUT exists and is of a known layout, without reading all of it.

    Raises:
        UsageError: an INPUT does not exist, or holds no audio.
        StorageError: an INPUT could not be reached.
    """
    for uri in inputs:
        plan([uri], _PART_BYTES, limit=1)


def read_set(name: str, inputs: Sequence[tuple[str, float]], allow_any_path: bool = False) -> ClipSet:
    """Read the INPUTs of one set: (URI, how often an epoch takes each of its rows).

    Manifests in a store may name objects outside it under `allow_any_path`.

    A row is used with its text, its label, or both. Ids may repeat: a training has no results to tell apart.

    Raises:
        UsageError: an INPUT does not exist or holds no audio, or no row can be used.
        StorageError: an INPUT could not be reached, or changed while it was read.
    """
    clips: list[Clip] = []
    samples: list[NDArray[np.int16]] = []
    errors: list[dict[str, Any]] = []
    for uri, weight in inputs:
        parts = [Part.from_row(row) for row in plan([uri], _PART_BYTES).to_pylist()]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:
            for read in pool.map(lambda part: list(_read_part(part, allow_any_path)), parts):
                for clip in read:
                    if isinstance(clip, _Decoded):
                        clips.append(replace(clip.clip, weight=weight))
                        samples.append(clip.samples)
                    else:
                        errors.append({"set": name} | clip)
    found = ClipSet(name, ClipStore(clips, samples), errors)
    if not clips:
        where = " ".join(uri for uri, _ in inputs)
        raise UsageError(f"{name}: no row of {where} can be used{_described(found)}")
    return found


def check_error_rate(found: ClipSet, limit: float | None) -> None:
    """Check how many rows of a set failed.

    Args:
        found: the set.
        limit: largest share of failed rows; None: 5 %, for sets of 1,000 rows or more.

    Raises:
        RunFailedError: more failed.
    """
    if limit is None and found.rows < _MIN_ROWS_FOR_RATE:
        return
    allowed = DEFAULT_ERROR_RATE if limit is None else limit
    if len(found.errors) > allowed * found.rows:
        raise RunFailedError(
            f"{found.name}: {len(found.errors)} of {found.rows} rows failed, more than --max-error-rate "
            f"{allowed:g}{_described(found)}"
        )


def error_table(sets: Sequence[ClipSet]) -> bytes:
    """The errors of all sets as a Parquet file of schema `ERRORS`."""
    return encode_table(pa.Table.from_pylist([dict(row) for found in sets for row in found.errors], ERRORS))


def describe_errors(found: ClipSet) -> str:
    """One line about the failed rows of a set; empty if there are none."""
    if not found.errors:
        return ""
    return f"{found.name}: {len(found.errors)} of {found.rows} rows cannot be used{_described(found)}"


def _described(found: ClipSet) -> str:
    if not found.errors:
        return ""
    first = found.errors[0]
    codes = ", ".join(f"{code} {number}" for code, number in found.error_codes.items())
    return f" ({codes}); the first: {first['code']} {first['uri']}: {first['message']}"


@dataclass(frozen=True, eq=False)
class _Decoded:
    clip: Clip
    samples: NDArray[np.int16]


def _read_part(part: Part, allow_any_path: bool) -> Iterator[_Decoded | dict[str, Any]]:
    """A clip, or the row of an error, for each utterance of a part."""
    audio = AudioSettings(max_segment_s=600.0, max_duration_s=_MAX_CLIP_S)
    settings = RowSettings(audio, min_samples=1)  # the model's shortest clip is made of a shorter one by padding
    with contextlib.closing(LastRecording()) as last:
        uri = ""
        for utterance in read_part(part, allow_any_path):
            if utterance.problem is None and utterance.uri != uri:
                last.close()  # before the next recording is fetched
                uri = utterance.uri
            yield _read_utterance(_usable(utterance), part, settings, last)


def _usable(utterance: Utterance) -> Utterance:
    """The utterance without the problem of an id that is taken, with one if it has nothing to learn from."""
    problem = utterance.problem
    if problem is not None and problem.code is ErrorCode.DUPLICATE_ID:
        problem = None
    if problem is None and utterance.meta.text is None and utterance.meta.label is None:
        message = f"{utterance.where}: a training row needs a text, a label, or both"
        problem = AudioError(ErrorCode.BAD_ROW, message)
    return replace(utterance, problem=problem)


def _read_utterance(
    utterance: Utterance, part: Part, settings: RowSettings, last: LastRecording
) -> _Decoded | dict[str, Any]:
    rows = list(utterance_rows(utterance, settings, last))
    failed = next((row for row in rows if row.error is not None), None)
    if failed is not None and failed.error is not None:  # a part of it would not be what its text says
        return _error(failed, failed.error, part)
    waveform = np.concatenate([to_float32(row.samples) for row in rows if row.samples is not None])
    meta = utterance.meta
    clip = Clip(
        utt_id=utterance.utt_id,
        duration_s=len(waveform) / settings.audio.sample_rate,
        text=None if meta.text is None else normalize(meta.text, "basic"),
        label=meta.label,
        speaker=meta.speaker,
    )
    return _Decoded(clip, np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.int16))


def _error(row: ReadRow, error: RowError, part: Part) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ERRORS.names if hasattr(row, name)}
    return values | error._asdict() | {"part_id": part.part_id}
