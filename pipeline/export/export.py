"""Write a run in the format of other programs, recording by recording: memory is that of a piece of the run.

A file is written under another name, or on local disk, and put in place when it is complete. A directory must be
empty, so that nothing of an earlier export is taken for a part of this one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.evaluation.calibration import ConfidenceMap, calibrated
from pipeline.export import clips
from pipeline.export.clips import Clip
from pipeline.export.manifests import HOLDING, NAMED
from pipeline.export.names import file_name
from pipeline.export.texts import OF_A_RECORDING, OF_ALL, SUFFIXES, TextSettings
from pipeline.export.tracks import COLUMNS, RecordingTracks, tracks_of
from pipeline.export.where import Condition, parse
from pipeline.runs.recordings import IDENTITY, distributed_rows, recordings_in
from pipeline.runs.run import Run
from pipeline.schemas import ERRORS
from pipeline.storage import objects, uris
from pipeline.storage.concurrently import ordered_map

FORMATS: Final = (*OF_A_RECORDING, *OF_ALL, *NAMED, *HOLDING)
"""The names of the formats."""

AudioMode = Literal["reference", "cut"]

_SELECTED: Final = "selected"  # the column that says which rows a condition takes
_WRITERS: Final = 16  # files of recordings that are written at a time
_NO_ERRORS: Final = ERRORS.empty_table().append_column("key", pa.array([], pa.string()))


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is exported, and how.

    Attributes:
        format: one of `FORMATS`.
        audio: of data sets for training: named (`reference`) or cut out; None: the first that the format has.
        calibration: what is applied to the confidences of words and of utterances, by kind, before the condition is
            evaluated.
        where: a condition over the utterances, see `pipeline.export.where`; None: all.
        texts: how recordings become texts.

    Raises:
        UsageError: there is no such format, or it has no such audio.
    """

    format: str
    audio: AudioMode | None = None
    calibration: Mapping[str, ConfidenceMap] = field(default_factory=dict)
    where: str | None = None
    texts: TextSettings = field(default_factory=TextSettings)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"there is no format {self.format!r}: choose one of {', '.join(FORMATS)}")
        if self.audio is not None and (self.format not in (*NAMED, *HOLDING)):
            raise UsageError(f"audio: {self.format} has none")
        if self.audio == "reference" and self.format in HOLDING:
            raise UsageError(f"audio: {self.format} holds the audio itself: use --audio cut")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported.

    Attributes:
        files: number of files.
        recordings: number of recordings.
        utterances: rows of `transcripts` that were exported.
        not_selected: rows that the condition did not take.
        failed: rows of `errors`, which are not exported.
        left_out: rows that were selected, and whose audio could not be read, by the reason.
    """

    files: int = 0
    recordings: int = 0
    utterances: int = 0
    not_selected: int = 0
    failed: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


def export(run: Run, settings: ExportSettings, output: str) -> Exported:
    """Write the committed rows of a run in another format.

    Args:
        run: the run.
        settings: what is exported, and how.
        output: URI of the file for the formats of `OF_ALL`; for the others, of an empty directory.

    Raises:
        UsageError: the condition cannot be read, or the directory is not empty.
        StorageError: the run could not be read, or the export not written.
        DamagedRunError: a file that the run names is lost or was changed.
    """
    condition = None if settings.where is None else parse(settings.where, tuple(run.record.classifier_digests))
    counts = _Counts(calibration=settings.calibration)
    if settings.format not in OF_ALL:
        _check_empty(output)
    if settings.format in OF_A_RECORDING:
        files = _write_each(_recordings(run, condition, counts), settings, output)
    elif settings.format in OF_ALL:
        files = _write_all(_recordings(run, condition, counts), settings, output)
    else:
        is_cut = settings.audio == "cut" or settings.format in HOLDING
        writer = {**NAMED, **HOLDING}[settings.format]
        files = writer(_clips(run, condition, counts, is_cut=is_cut), output, counts.left_out)
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


def _write_all(recordings: Iterator[RecordingTracks], settings: ExportSettings, output: str) -> int:
    with tempfile.TemporaryDirectory(prefix="sewd-export-") as folder:
        path = Path(folder, "export")
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(OF_ALL[settings.format](recording, settings.texts) for recording in recordings)
        objects.put_file(output, path)
    return 1


def _check_empty(uri: str) -> None:
    if objects.is_object(uri) or objects.list_objects(uri):
        raise UsageError(f"{uri} is not empty: name a directory that is, so that nothing old remains in the export")


@dataclass
class _Counts:
    calibration: Mapping[str, ConfidenceMap]
    recordings: int = 0
    utterances: int = 0
    not_selected: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def exported(self) -> Exported:
        return Exported(
            recordings=self.recordings,
            utterances=self.utterances - self.left_out.total(),
            not_selected=self.not_selected,
            left_out=dict(self.left_out),
        )


def _recordings(run: Run, condition: Condition | None, counts: _Counts) -> Iterator[RecordingTracks]:
    for rows in _pieces(run, COLUMNS, condition, counts):
        for recording in recordings_in(rows, _NO_ERRORS):
            if (found := tracks_of(recording, _SELECTED)) is not None:
                counts.recordings += 1
                yield found


def _clips(run: Run, condition: Condition | None, counts: _Counts, *, is_cut: bool) -> Iterator[Clip]:
    keys = _parts if is_cut else None
    for rows in _pieces(run, clips.COLUMNS, condition, counts, keys):
        selected = rows.filter(rows[_SELECTED])
        yield from clips.cut_out(run, selected, counts.left_out) if is_cut else clips.references(run, selected)


def _parts(rows: pa.RecordBatch) -> list[str]:
    found: list[str] = rows["part_id"].to_pylist()
    return found


def _pieces(
    run: Run,
    columns: tuple[str, ...],
    condition: Condition | None,
    counts: _Counts,
    keys: Callable[[pa.RecordBatch], list[str]] | None = None,
) -> Iterator[pa.Table]:
    """The rows of `transcripts` in pieces, all of them, and whether the condition holds in the column `_SELECTED`."""
    wanted = {"transcripts": tuple(dict.fromkeys([*columns, *(condition.columns if condition else ())]))}
    if condition is not None and condition.tasks:
        wanted["labels"] = (*IDENTITY, "part_id", "task", "label", "score")
    for tables in distributed_rows(run, wanted, keys=keys):
        rows = calibrated(tables["transcripts"], counts.calibration)
        if condition is None:
            selected = pa.chunked_array([pa.repeat(pa.scalar(True), len(rows))])
        else:
            selected = condition.holds(rows, tables.get("labels"))
        taken = pc.sum(selected, min_count=0).as_py()
        counts.utterances += taken
        counts.not_selected += len(rows) - taken
        yield rows.append_column(_SELECTED, selected)
