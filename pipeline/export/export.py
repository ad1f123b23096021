"""Write a run in the format of other programs, recording by recording: memory is that of a piece of the run.

A file is written under another name, or on local disk, and put in place when it is complete. A directory must be
empty, so that nothing of an earlier export is taken for a part of this one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.export.names import file_name
from pipeline.export.texts import OF_A_RECORDING, OF_ALL, SUFFIXES, TextSettings
from pipeline.export.tracks import COLUMNS, RecordingTracks, tracks_of
from pipeline.export.where import Condition, parse
from pipeline.runs.recordings import IDENTITY, distributed_rows, recordings_in
from pipeline.runs.run import Run
from pipeline.schemas import ERRORS
from pipeline.storage import objects, uris
from pipeline.storage.concurrently import ordered_map

FORMATS: Final = (*OF_A_RECORDING, *OF_ALL)
"""The names of the formats."""

_SELECTED: Final = "selected"  # the column that says which rows a condition takes
_WRITERS: Final = 16  # files of recordings that are written at a time
_NO_ERRORS: Final = ERRORS.empty_table().append_column("key", pa.array([], pa.string()))


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is exported, and how.

    Attributes:
        format: one of `FORMATS`.
        where: a condition over the utterances, see `pipeline.export.where`; None: all.
        texts: how recordings become texts.

    Raises:
        UsageError: there is no such format.
    """

    format: str
    where: str | None = None
    texts: TextSettings = field(default_factory=TextSettings)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"there is no format {self.format!r}: choose one of {', '.join(FORMATS)}")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported.

    Attributes:
        files: number of files.
        recordings: number of recordings.
        utterances: rows of `transcripts` that were exported.
        not_selected: rows that the condition did not take.
        failed: rows of `errors`, which are not exported.
    """

    files: int = 0
    recordings: int = 0
    utterances: int = 0
    not_selected: int = 0
    failed: int = 0


def export(run: Run, settings: ExportSettings, output: str) -> Exported:
    """Write the committed rows of a run in another format.

    Args:
        run: the run.
        settings: what is exported, and how.
        output: URI of the file; of an empty directory for the formats of `OF_A_RECORDING`.

    Raises:
        UsageError: the condition cannot be read, or the directory is not empty.
        StorageError: the run could not be read, or the export not written.
        DamagedRunError: a file that the run names is lost or was changed.
    """
    condition = None if settings.where is None else parse(settings.where, tuple(run.record.classifier_digests))
    counts = _Counts()
    found = _recordings(run, condition, counts)
    if settings.format in OF_A_RECORDING:
        check_empty(output)
        files = _write_each(found, settings, output)
    else:
        _write_all(found, settings, output)
        files = 1
    return replace(counts.exported(), files=files, failed=run.rows("errors"))


def _write_each(recordings: Iterator[RecordingTracks], settings: ExportSettings, output: str) -> int:
    writer, suffix = OF_A_RECORDING[settings.format], SUFFIXES[settings.format]

    def write(item: tuple[str, RecordingTracks]) -> None:
        name, recording = item
        objects.put(uris.join(output, name), writer(recording, settings.texts).encode())

    named = _named(recordings, suffix)
    return sum(1 for _ in ordered_map(write, named, _WRITERS if "://" in output else 0))


def _named(recordings: Iterator[RecordingTracks], suffix: str) -> Iterator[tuple[str, RecordingTracks]]:
    """Each recording with the name of its file. Ids are those of a corpus and may repeat; names do not."""
    taken: Counter[int] = Counter()  # by the hash of an id: of a million, two are equal with a probability of 3e-8
    for recording in recordings:
        key = hash(recording.recording)
        taken[key] += 1
        number = f"%{taken[key]}" if taken[key] > 1 else ""
        yield file_name(recording.recording, number + suffix), recording


def _write_all(recordings: Iterator[RecordingTracks], settings: ExportSettings, output: str) -> None:
    with tempfile.TemporaryDirectory(prefix="sewd-export-") as folder:
        path = Path(folder, "export")
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(OF_ALL[settings.format](recording, settings.texts) for recording in recordings)
        objects.put_file(output, path)


def check_empty(uri: str) -> None:
    """Raise UsageError if there is an object at `uri` or anything below it."""
    if objects.is_object(uri) or objects.list_objects(uri):
        raise UsageError(f"{uri} is not empty: name a directory that is, so that nothing old remains in the export")


@dataclass
class _Counts:
    recordings: int = 0
    utterances: int = 0
    not_selected: int = 0

    def exported(self) -> Exported:
        return Exported(recordings=self.recordings, utterances=self.utterances, not_selected=self.not_selected)


def _recordings(run: Run, condition: Condition | None, counts: _Counts) -> Iterator[RecordingTracks]:
    for rows in _pieces(run, COLUMNS, condition, counts):
        for recording in recordings_in(rows, _NO_ERRORS):
            if (found := tracks_of(recording, _SELECTED)) is not None:
                counts.recordings += 1
                yield found


def _pieces(run: Run, columns: tuple[str, ...], condition: Condition | None, counts: _Counts) -> Iterator[pa.Table]:
    """The rows of `transcripts` in pieces, all of them, and whether the condition holds in the column `_SELECTED`."""
    wanted = {"transcripts": tuple(dict.fromkeys([*columns, *(condition.columns if condition else ())]))}
    if condition is not None and condition.tasks:
        wanted["labels"] = (*IDENTITY, "task", "label", "score")
    for tables in distributed_rows(run, wanted):
        rows = tables["transcripts"]
        selected = (
            pa.repeat(pa.scalar(True), len(rows)) if condition is None else condition.holds(rows, tables.get("labels"))
        )
        taken = pc.sum(selected, min_count=0).as_py()
        counts.utterances += taken
        counts.not_selected += len(rows) - taken
        yield rows.append_column(_SELECTED, selected)
