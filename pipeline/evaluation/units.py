"""Sampling units of confidence intervals: speaker, recording or utterance.

Utterances of one speaker have correlated errors, so the unit is the speaker where known, else the recording where the
utterance is a piece of one, else the utterance. Single utterances would need as many keys as there are rows; those with
equal errors and equal length share one key with a multiplicity, so a corpus of millions has some thousand keys.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.layouts.tar import TAR_SUFFIXES
from pipeline.evaluation.intervals import Interval, rate_interval
from pipeline.evaluation.sums import as_array

UNITS: Final = ("speaker", "recording", "utterance")
_SPEAKER, _RECORDING, _UTTERANCE = (pa.scalar(index, pa.int8()) for index in range(3))
# Of shards, which hold many recordings: the suffixes of the layouts `tar` and `parquet`.
_SHARD: Final = r"(?i)\.(" + "|".join(re.escape(suffix[1:]) for suffix in (*TAR_SUFFIXES, ".parquet")) + ")$"
_PIECE: Final = r"#(c\d+|\d+-\d+)(#\d+-\d+)?$"  # suffix that the pipeline appends to a recording's id for a piece of it


class RowUnits(NamedTuple):
    """The unit of each row.

    Attributes:
        kinds: index into `UNITS`, int8.
        names: name of the unit, dictionary-encoded; null where the utterance is its own unit.
    """

    kinds: pa.Array
    names: pa.Array


def row_units(table: pa.Table, unit: str, objects_are_recordings: bool = False) -> RowUnits:
    """The unit of each row.

    Args:
        table: rows, with the columns of `unit_columns(unit, objects_are_recordings)`.
        unit: `auto`, or one of `UNITS` for every row; rows without that one are units of their own.
        objects_are_recordings: utterances are pieces of the objects that store them, as in a manifest with offsets.
            The object is then the recording, unless it is a shard of many recordings.
    """
    names = pa.nulls(table.num_rows, pa.string())
    kinds = pa.repeat(_UTTERANCE, table.num_rows)
    if unit == "recording" or (unit == "auto" and table["speaker"].null_count):
        names = _recording_ids(table["utt_id"])
        if objects_are_recordings:
            names = pc.coalesce(names, _object_uris(table["uri"]))
        if unit == "recording":
            names = pc.coalesce(names, as_array(table["utt_id"]))
        kinds = pc.if_else(pc.is_valid(names), _RECORDING, kinds)
    if unit in ("auto", "speaker"):
        speakers = as_array(table["speaker"])
        speakers = pc.if_else(pc.equal(speakers, ""), None, speakers)  # an empty name identifies nobody
        names = pc.coalesce(speakers, names)
        kinds = pc.if_else(pc.is_valid(speakers), _SPEAKER, kinds)
    return RowUnits(kinds, names.dictionary_encode())


def utterance_units(num_rows: int) -> RowUnits:
    """Units where every utterance is its own."""
    return RowUnits(pa.repeat(_UTTERANCE, num_rows), pa.nulls(num_rows, pa.string()))


def unit_columns(unit: str, objects_are_recordings: bool = False) -> tuple[str, ...]:
    """The columns that `row_units` reads."""
    recording = ("utt_id", "uri") if objects_are_recordings else ("utt_id",)
    return {"auto": (*recording, "speaker"), "speaker": ("speaker",), "recording": recording}.get(unit, ())


def unit_keys(units: RowUnits, errors: pa.Array, reference: pa.Array) -> dict[str, pa.Array]:
    """Key columns by unit, for `pipeline.evaluation.sums.sum_by_key`.

    Utterances that are their own units are distinguished only by their errors and reference length.
    """
    is_single = pc.is_null(units.names)
    return {
        "unit_kind": units.kinds,
        "unit": units.names,
        "unit_errors": pc.if_else(is_single, errors, None),
        "unit_reference": pc.if_else(is_single, reference, None),
    }


def unit_interval(sums: pa.Table, errors: str, reference: str, num_rows: str, level: float) -> Interval | None:
    """Confidence interval of the rate errors / reference.

    Args:
        sums: sums by `unit_keys`.
        errors: column of the numerator.
        reference: column of the denominator. Where it is `num_rows`, the rate is a share of the rows.
        num_rows: column with the number of rows; units without a row are ignored.
        level: nominal coverage.

    Returns:
        None where there are too few units, see `rate_interval`.
    """
    sums = sums.filter(pc.greater(sums[num_rows], 0))
    is_single = pc.equal(sums["key_unit_kind"], _UTTERANCE).to_numpy()
    multiplicity = np.where(is_single, sums[num_rows].to_numpy(), 1)
    wrong, length = (sums[name].to_numpy() / multiplicity for name in (errors, reference))
    return rate_interval(wrong, length, multiplicity, level=level, share=reference == num_rows)


def describe_units(kinds: pa.ChunkedArray) -> str:
    """The kinds of unit in a column of indices into `UNITS`, as words: `speaker or recording`."""
    return " or ".join(UNITS[kind] for kind in sorted(pc.unique(kinds).drop_null().to_pylist())) or "utterance"


def _recording_ids(utt_ids: pa.ChunkedArray) -> pa.Array:
    """The recording that each utterance is a piece of, according to its id; null for an utterance that is no piece."""
    ids = as_array(utt_ids)
    recordings = pc.replace_substring_regex(ids, _PIECE, "")
    return pc.if_else(pc.equal(recordings, ids), None, recordings)


def _object_uris(uris: pa.ChunkedArray) -> pa.Array:
    """The objects that store the utterances; null for shards, which hold many recordings."""
    encoded = as_array(uris).dictionary_encode()
    objects = encoded.dictionary
    return pc.if_else(pc.match_substring_regex(objects, _SHARD), None, objects).take(encoded.indices)
