"""Confidences that are probabilities: what `sewd calibrate` learned on a run with references, applied to others.

The confidence of a word becomes the probability that the word is correct, that of an utterance the probability that it
has no word error. The column `confidence` of a run is not changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.evaluation.sums import as_array
from pipeline.runs.run import Run
from pipeline.storage import objects, uris

CALIBRATION_FILE: Final = "calibration.json"  # of a run
VERSION: Final = 1
KINDS: Final = ("word", "utterance")


@dataclass(frozen=True)
class ConfidenceMap:
    """A function from confidences to probabilities: straight lines between points, constant beyond the first and last.

    Attributes:
        confidences: ascending.
        probabilities: of the same number, ascending.

    Raises:
        ValueError: the points are not ascending, or not numbers from 0 to 1.
    """

    confidences: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        for values in (self.confidences, self.probabilities):
            array = np.array(values)
            if not (len(array) == len(self.confidences) > 0 and np.all((array >= 0) & (array <= 1))):
                raise ValueError("a calibration has as many confidences as probabilities, from 0 to 1")
            if np.any(np.diff(array) < 0):
                raise ValueError("the points of a calibration are ascending")

    def of(self, confidence: pa.Array) -> pa.Array:
        """The probabilities of confidences, as float64; null stays null."""
        values = confidence.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return pa.array(np.interp(values, self.confidences, self.probabilities), mask=np.isnan(values))


def calibrated(transcripts: pa.Table, calibration: Mapping[str, ConfidenceMap]) -> pa.Table:
    """Rows of `transcripts` with their confidences under a calibration, where they have the columns."""
    names, table = transcripts.column_names, transcripts.combine_chunks()
    if "confidence" in names and "utterance" in calibration:
        column = calibration["utterance"].of(as_array(table["confidence"])).cast(pa.float32())
        table = table.set_column(names.index("confidence"), "confidence", column)
    if "words" in names and "word" in calibration:
        lists = as_array(table["words"])
        words = lists.flatten()
        columns = {field.name: words.field(field.name) for field in words.type}
        columns["confidence"] = calibration["word"].of(columns["confidence"]).cast(pa.float32())
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))])
        structs = pa.StructArray.from_arrays(list(columns.values()), fields=list(words.type))
        made = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)
        table = table.set_column(names.index("words"), transcripts.schema.field("words"), made.cast(lists.type))
    return table


def read_calibration(uri: str | os.PathLike[str]) -> dict[str, ConfidenceMap]:
    """The calibration in a file, by kind.

    Raises:
        UsageError: there is no such file, or it holds no calibration.
        StorageError: it could not be reached.
    """
    values = _content(uri)
    try:
        return {
            kind: ConfidenceMap(tuple(values[kind]["confidence"]), tuple(values[kind]["probability"]))
            for kind in KINDS
            if kind in values
        }
    except (ValueError, KeyError, TypeError) as error:
        raise _not_one(uri, error) from error


def calibration_warnings(uri: str | os.PathLike[str], run: Run) -> list[str]:
    """What was different when a calibration was learned: confidences of a run made otherwise mean something else.

    Raises:
        UsageError, StorageError: see `read_calibration`.
    """
    values, record = _content(uri), run.record
    differences = []
    if values.get("model") != record.model_digest:
        differences.append("with another model")
    if values.get("decoding", record.decoding) != record.decoding:
        differences.append(f"under other decoding ({values['decoding']}, and the run: {record.decoding})")
    return [f"the calibration {uri} was learned {difference}" for difference in differences]


def _content(uri: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(objects.fetch(uris.absolute(os.fspath(uri))))
        version = values["sewd_calibration"]
    except FileNotFoundError as error:
        raise UsageError(f"calibration: there is no file {uri}; `sewd calibrate RUN` writes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _not_one(uri, error) from error
    if version != VERSION:
        raise UsageError(f"calibration: {uri} is of version {version}, not {VERSION}")
    return values


def _not_one(uri: str | os.PathLike[str], error: Exception) -> UsageError:
    return UsageError(f"calibration: {uri} is none that `sewd calibrate` wrote ({error})")
