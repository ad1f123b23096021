"""Sums of counts by key, as Arrow tables: figures of any number of rows are added and never averaged.

A table of sums has key columns (`key_...`) and summed columns. `sum_by_key` makes one from rows, `merge_sums` one from
several such tables. Any split of the rows and any order give the same sums, so a batch, a file or a machine can be
summed on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

COUNT_NAMES: Final = ("hits", "substitutions", "deletions", "insertions")
SUM_COLUMNS: Final = (
    "utterances",
    "scored",
    "sentence_errors",
    *COUNT_NAMES,
    *(f"char_{name}" for name in COUNT_NAMES),
    "audio_s",
    "confident",
    "confidence",
)
KEY_PREFIX: Final = "key_"
_EMPTY_IS_ZERO: Final = pc.ScalarAggregateOptions(min_count=0)


def row_summands(table: pa.Table, counts: Mapping[str, pa.Array]) -> pa.Table:
    """The values of each row that are summed.

    Args:
        table: rows with `duration_s` and `confidence`.
        counts: the columns of `pipeline.scoring.rules.score`; null where there is no reference.

    Returns:
        The columns of `SUM_COLUMNS`, and word and character errors and reference lengths for the units of intervals.
    """
    errors = _errors(counts, "")
    columns = {
        "utterances": pa.repeat(pa.scalar(1, pa.int64()), table.num_rows),
        "scored": pc.is_valid(counts["hits"]).cast(pa.int64()),
        "sentence_errors": pc.greater(errors, 0).cast(pa.int64()),
        **{name: counts[name] for name in SUM_COLUMNS if name in counts},
        "audio_s": table["duration_s"],
        "confident": pc.is_valid(table["confidence"]).cast(pa.int64()),
        "confidence": table["confidence"].cast(pa.float64()),
        "word_errors": errors,
        "char_errors": _errors(counts, "char_"),
        "ref_words": counts["ref_words"],
        "ref_chars": counts["ref_chars"],
    }
    return pa.table(columns)


def _errors(counts: Mapping[str, pa.Array], prefix: str) -> pa.Array:
    substitutions, deletions, insertions = (counts[prefix + name] for name in COUNT_NAMES[1:])
    return pc.add(pc.add(substitutions, deletions), insertions)


def as_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one contiguous array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def sum_by_key(summands: pa.Table, keys: Mapping[str, pa.Array], columns: Sequence[str] = SUM_COLUMNS) -> pa.Table:
    """Sums of `columns` over the rows with equal keys.

    Args:
        summands: the rows, see `row_summands`.
        keys: key columns by name, without their prefix; null is a key like any other. Without keys the result has
            one row.
        columns: what to sum.
    """
    table = summands.select(list(columns))
    for name, values in keys.items():
        table = table.append_column(f"{KEY_PREFIX}{name}", values)
    return merge_sums([table])


def merge_sums(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of sums from several with the same columns."""
    names = tables[0].column_names
    keys = [name for name in names if name.startswith(KEY_PREFIX)]
    summed = [name for name in names if not name.startswith(KEY_PREFIX)]
    table = pa.concat_tables([part.select([*keys, *summed]) for part in tables])
    return _grouped(table, keys, summed) if keys else _total(table, summed)


def _grouped(table: pa.Table, keys: list[str], summed: list[str]) -> pa.Table:
    dictionaries: dict[str, pa.Array] = {}
    for key in keys:  # grouping by integers is several times as fast as grouping by strings
        kind = table.schema.field(key).type
        if pa.types.is_string(kind) or pa.types.is_dictionary(kind):
            column = as_array(table[key])
            encoded = column if pa.types.is_dictionary(kind) else column.dictionary_encode()
            dictionaries[key] = encoded.dictionary
            table = table.set_column(table.column_names.index(key), key, encoded.indices)
    grouped = table.group_by(keys).aggregate([(name, "sum", _EMPTY_IS_ZERO) for name in summed])
    grouped = grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names])
    for key, dictionary in dictionaries.items():
        grouped = grouped.set_column(grouped.column_names.index(key), key, dictionary.take(as_array(grouped[key])))
    return grouped


def _total(table: pa.Table, summed: list[str]) -> pa.Table:
    return pa.table({name: [pc.sum(table[name], options=_EMPTY_IS_ZERO).as_py()] for name in summed})
