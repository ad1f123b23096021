"""Sums of counts by group, as Arrow columns: figures of any number of rows are added and never averaged.

A tally is a table of key columns (`key_...`) and sums. `tally` makes one of rows, `merge` one of tallies; any cut
of the rows and any order give the same sums. So a batch, a file or a machine can be tallied by itself.

Beside the group, a tally keeps the *unit* apart: what the confidence interval of a rate draws from. Utterances of one
speaker err together, so the unit is the speaker where he is known, else the recording where the utterance is a piece of
one, else the utterance. Single utterances would be as many groups as rows; those with equal errors and equal length are
one group with a multiplicity, and a corpus of millions comes to some thousand groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.schemas import TRANSCRIPTS

COUNT_NAMES: Final = ("hits", "substitutions", "deletions", "insertions")
SUMS: Final = (
    "utterances",
    "scored",
    "sentence_errors",
    *COUNT_NAMES,
    *(f"char_{name}" for name in COUNT_NAMES),
    "audio_s",
    "confident",
    "confidence",
)
UNIT_KEYS: Final = ("unit_kind", "unit", "unit_errors", "unit_reference")
UNITS: Final = ("speaker", "recording", "utterance")
KEY: Final = "key_"
_EMPTY_IS_ZERO: Final = pc.ScalarAggregateOptions(min_count=0)

DURATION_EDGES: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0)
"""Lower ends of the bins of `duration`, seconds; the last has no upper end."""

RATE_EDGES: Final = tuple(step / 20 for step in range(21))
"""Lower ends of the bins of an utterance's own word error rate; the last, from 1 on, has no upper end."""

_PIECE: Final = r"#(c\d+|\d+-\d+)(#\d+-\d+)?$"  # what the pipeline puts behind a recording's id for a piece of it


def counted(table: pa.Table, counts: dict[str, pa.Array]) -> pa.Table:
    """The summands of each row: the columns of `SUMS`, and word and character errors and lengths for the units.

    Args:
        table: rows with `duration_s` and `confidence`.
        counts: the columns of `pipeline.scoring.counts.count_rows`; null where there is no reference.
    """
    scored = pc.is_valid(counts["hits"])
    errors = _errors(counts, "")
    columns = {
        "utterances": pa.repeat(pa.scalar(1, pa.int64()), table.num_rows),
        "scored": scored.cast(pa.int64()),
        "sentence_errors": pc.greater(errors, 0).cast(pa.int64()),
        **{name: counts[name] for name in SUMS if name in counts},
        "audio_s": table["duration_s"],
        "confident": pc.is_valid(table["confidence"]).cast(pa.int64()),
        "confidence": table["confidence"].cast(pa.float64()),
        "word_errors": errors,
        "char_errors": _errors(counts, "char_"),
        "ref_words": counts["ref_words"],
        "ref_chars": counts["ref_chars"],
    }
    return pa.table({name: columns[name] for name in columns})


def _errors(counts: dict[str, pa.Array], prefix: str) -> pa.Array:
    substitutions, deletions, insertions = (counts[prefix + name] for name in COUNT_NAMES[1:])
    return pc.add(pc.add(substitutions, deletions), insertions)


def units_of(table: pa.Table, unit: str, by_object: bool = False) -> tuple[pa.Array, pa.Array]:
    """The unit of each row: its kind, an index of `UNITS`, and its name, coded; null where the utterance is its own.

    Args:
        table: rows, with the columns of `unit_sources(unit, by_object)`.
        unit: `auto`, or one of `UNITS` to make every row one of those: rows without it are units of their own.
        by_object: utterances are pieces of the objects that hold them, as a manifest with offsets has them: then the
            object is the recording, unless it is a shard of many.
    """
    names = pa.nulls(table.num_rows, pa.string())
    kinds = pa.repeat(pa.scalar(UNITS.index("utterance"), pa.int8()), table.num_rows)
    if unit == "recording" or (unit == "auto" and table["speaker"].null_count):
        names = _recordings(table["utt_id"])
        if by_object:
            names = pc.coalesce(names, _objects(table["uri"]))
        if unit == "recording":
            names = pc.coalesce(names, _plain(table["utt_id"]))
        kinds = pc.if_else(pc.is_valid(names), pa.scalar(UNITS.index("recording"), pa.int8()), kinds)
    if unit in ("auto", "speaker"):
        speakers = _plain(table["speaker"])
        speakers = pc.if_else(pc.equal(speakers, ""), None, speakers)  # an empty name is nobody's
        names = pc.coalesce(speakers, names)
        kinds = pc.if_else(pc.is_valid(speakers), pa.scalar(UNITS.index("speaker"), pa.int8()), kinds)
    return kinds, names.dictionary_encode()


def unit_keys(kinds: pa.Array, names: pa.Array, errors: pa.Array, reference: pa.Array) -> dict[str, pa.Array]:
    """The columns of `UNIT_KEYS`: utterances that are their own units are told apart by errors and length only."""
    alone = pc.is_null(names)
    return {
        "unit_kind": kinds,
        "unit": names,
        "unit_errors": pc.if_else(alone, errors, None),
        "unit_reference": pc.if_else(alone, reference, None),
    }


def unit_sources(unit: str, by_object: bool = False) -> tuple[str, ...]:
    """The columns that `units_of` reads of the rows."""
    recording = ("utt_id", "uri") if by_object else ("utt_id",)
    return {"auto": (*recording, "speaker"), "speaker": ("speaker",), "recording": recording}.get(unit, ())


def _recordings(utt_ids: pa.ChunkedArray) -> pa.Array:
    """The recording that each utterance is a piece of, as its id tells; null where it is none."""
    ids = _plain(utt_ids)
    whole = pc.replace_substring_regex(ids, _PIECE, "")
    return pc.if_else(pc.equal(whole, ids), None, whole)


def _objects(uris: pa.ChunkedArray) -> pa.Array:
    """The objects that hold the utterances; null for shards, which hold many recordings."""
    coded = _plain(uris).dictionary_encode()
    objects = coded.dictionary
    return pc.if_else(pc.match_substring_regex(objects, r"\.(tar|parquet)$"), None, objects).take(coded.indices)


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _by_duration(table: pa.Table) -> pa.Array:
    seconds = _plain(table["duration_s"])
    index = np.searchsorted(DURATION_EDGES, np.nan_to_num(seconds.to_numpy(zero_copy_only=False)), "right") - 1
    return pa.array(index, pa.int64(), mask=pc.is_null(seconds).to_numpy(zero_copy_only=False))


def _by_confidence(edges: Sequence[float]) -> Callable[[pa.Table], pa.Array]:
    def keys(table: pa.Table) -> pa.Array:
        values = _plain(table["confidence"])
        bins = np.searchsorted(edges, np.nan_to_num(values.to_numpy(zero_copy_only=False)), "right") - 1
        last = max(len(edges) - 2, 0)
        return pa.array(bins.clip(0, last), pa.int64(), mask=pc.is_null(values).to_numpy(zero_copy_only=False))

    return keys


def _by_tag(name: str) -> Callable[[pa.Table], pa.Array]:
    def keys(table: pa.Table) -> pa.Array:
        """Parses each different text of tags once."""
        coded = _plain(table["tags"]).dictionary_encode()
        values = [_text(json.loads(text).get(name)) for text in coded.dictionary.to_pylist()]
        return pa.array(values, pa.string()).take(coded.indices)

    return keys


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_column(name: str) -> Callable[[pa.Table], pa.Array]:
    return lambda table: _plain(table[name]).cast(pa.string())


def key_of(by: str, confidence_edges: Sequence[float] = (0.0, 1.0)) -> tuple[str, Callable[[pa.Table], pa.Array]]:
    """What `by` groups by: the column of `transcripts` that it reads, and how keys are made of it.

    Args:
        by: `speaker`, `duration`, `confidence`, `tags.NAME`, or another column of plain values.
        confidence_edges: ends of the bins of `confidence`, rising; the last bin has its upper end.

    Raises:
        UsageError: nothing of that name can be grouped by.
    """
    if by == "duration":
        return "duration_s", _by_duration
    if by == "confidence":
        return "confidence", _by_confidence(confidence_edges)
    if by.startswith("tags."):
        return "tags", _by_tag(by.removeprefix("tags."))
    plain = [f.name for f in TRANSCRIPTS if not pa.types.is_nested(f.type) and f.name != "tags"]
    if by in plain:
        return by, _by_column(by)
    raise UsageError(f"cannot group by {by!r}: choose speaker, duration, confidence, tags.NAME or a column: {plain}")


def own_rate_bins(summands: pa.Table) -> pa.Array:
    """The bin of `RATE_EDGES` that each row's own word error rate falls in; null without a reference word."""
    reference = summands["ref_words"].to_numpy()
    errors = summands["word_errors"].to_numpy()
    known = np.nan_to_num(reference) > 0
    rates = np.divide(errors, reference, out=np.zeros(len(errors)), where=known)
    return pa.array(np.searchsorted(RATE_EDGES, rates, "right") - 1, pa.int64(), mask=~known)


def tally(summands: pa.Table, keys: dict[str, pa.Array], sums: Sequence[str] = SUMS) -> pa.Table:
    """Sums of the rows with equal keys; null is a key like any other. Without keys: one row."""
    table = summands.select(list(sums))
    for name, values in keys.items():
        table = table.append_column(f"{KEY}{name}", values)
    return merge([table])


def merge(tallies: Sequence[pa.Table], keys: Sequence[str] | None = None) -> pa.Table:
    """One tally of several with the same columns.

    Args:
        tallies: of `tally`.
        keys: those to keep, which sums over the others; None: all.
    """
    columns = tallies[0].column_names
    names = [c for c in columns if c.startswith(KEY)] if keys is None else [f"{KEY}{key}" for key in keys]
    sums = [c for c in columns if not c.startswith(KEY)]
    table = pa.concat_tables([t.select([*names, *sums]) for t in tallies])
    return _grouped(table, names, sums) if names else _total(table, sums)


def _grouped(table: pa.Table, names: list[str], sums: list[str]) -> pa.Table:
    words: dict[str, pa.Array] = {}
    for name in names:  # numbers are grouped several times as fast as texts
        kind = table.schema.field(name).type
        if pa.types.is_string(kind) or pa.types.is_dictionary(kind):
            column = _plain(table[name])
            coded = column if pa.types.is_dictionary(kind) else column.dictionary_encode()
            words[name] = coded.dictionary
            table = table.set_column(table.column_names.index(name), name, coded.indices)
    grouped = table.group_by(names).aggregate([(name, "sum", _EMPTY_IS_ZERO) for name in sums])
    grouped = grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names])
    for name, dictionary in words.items():
        grouped = grouped.set_column(grouped.column_names.index(name), name, dictionary.take(_plain(grouped[name])))
    return grouped


def _total(table: pa.Table, sums: list[str]) -> pa.Table:
    return pa.table({name: [pc.sum(table[name], options=_EMPTY_IS_ZERO).as_py()] for name in sums})
