"""Keys by which rows are grouped: a column, a tag, or bins of duration, confidence or error rate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.sums import as_array
from pipeline.schemas import TRANSCRIPTS

DURATION_EDGES: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0)
"""Lower ends of the bins of `duration`, seconds; the last bin has no upper end."""

RATE_EDGES: Final = tuple(step / 20 for step in range(21))
"""Lower ends of the bins of the word error rate of one utterance; the last bin, from 1 on, has no upper end."""

WHOLE_RANGE: Final = (0.0, 1.0)
"""Ends of the only bin of `confidence` where its distribution is unknown."""

COLUMNS: Final = tuple(f.name for f in TRANSCRIPTS if not pa.types.is_nested(f.type) and f.name != "tags")
"""Columns of `transcripts` that rows can be grouped by."""

SOURCE_KEYS: Final = MappingProxyType(
    {
        "audio_filepath": "uri",
        "id": "utt_id",
        "offset": "start_s",
        "speaker_id": "speaker",
        **dict.fromkeys(("transcription", "transcript", "sentence"), "reference"),
    }
)
"""The columns that hold keys of a source under another name."""

KeyValue: TypeAlias = int | str | None
"""Index of a bin, or the value of a column; None for rows without one."""


class GroupingKey(NamedTuple):
    """How rows are grouped.

    Attributes:
        columns: the columns of `transcripts` that it reads.
        keys_of: computes the key of each row of a table with these columns.
    """

    columns: tuple[str, ...]
    keys_of: Callable[[pa.Table], pa.Array]


def grouping_key(by: str, confidence_edges: Sequence[float] = WHOLE_RANGE) -> GroupingKey:
    """The key for a grouping.

    Args:
        by: `speaker`, `duration`, `confidence`, another column of plain values, or a key of the source: a tag, or one
            of `SOURCE_KEYS`. `tags.NAME` is the tag also where a column has its name.
        confidence_edges: ends of the bins of `confidence`, ascending; the last bin includes its upper end.
    """
    if by == "duration":
        return GroupingKey(("duration_s",), _duration_bins)
    if by == "confidence":
        return GroupingKey(("confidence",), lambda table: _confidence_bins(table, confidence_edges))
    if by in COLUMNS:
        return GroupingKey((by,), lambda table: as_array(table[by]).cast(pa.string()))
    if (column := SOURCE_KEYS.get(by)) is not None:  # a source that has the column's key too has this one as a tag
        return GroupingKey(
            ("tags", column),
            lambda table: pc.coalesce(_tag_values(table, by), as_array(table[column]).cast(pa.string())),
        )
    return GroupingKey(("tags",), lambda table: _tag_values(table, by.removeprefix("tags.")))


def is_own_key(by: str) -> bool:
    """Whether a grouping is named by a key of the source without `tags.`, which may also be a misspelt column."""
    return by not in ("duration", "confidence", *COLUMNS) and not by.startswith("tags.")


def group_names(by: str, keys: Sequence[KeyValue], confidence_edges: Sequence[float] = WHOLE_RANGE) -> list[str | None]:
    """Names of the groups with these keys, such as `2-5 s` for a bin of `duration`; None for rows without the key."""
    if by == "duration":
        return [_duration_name(key) if isinstance(key, int) else None for key in keys]
    if by == "confidence":
        edges = confidence_edges
        digits = next(d for d in range(3, 18) if len({round(e, d) for e in edges}) == len(set(edges)))
        names = [f"{low:.{digits}f}-{high:.{digits}f}" for low, high in itertools.pairwise(edges)]
        return [names[key] if isinstance(key, int) else None for key in keys]
    return [None if key is None else str(key) for key in keys]


def utterance_rate_bins(summands: pa.Table) -> pa.Array:
    """The bin of `RATE_EDGES` for each row's own word error rate; null without a reference word."""
    reference = summands["ref_words"].to_numpy()
    errors = summands["word_errors"].to_numpy()
    known = np.nan_to_num(reference) > 0
    rates = np.divide(errors, reference, out=np.zeros(len(errors)), where=known)
    return pa.array(np.searchsorted(RATE_EDGES, rates, "right") - 1, pa.int64(), mask=~known)


def _duration_bins(table: pa.Table) -> pa.Array:
    return _bins(as_array(table["duration_s"]), DURATION_EDGES, len(DURATION_EDGES) - 1)


def _duration_name(index: int) -> str:
    low, *following = DURATION_EDGES[index : index + 2]
    return f"{low:g}-{following[0]:g} s" if following else f"{low:g} s and more"


def _confidence_bins(table: pa.Table, edges: Sequence[float]) -> pa.Array:
    return _bins(as_array(table["confidence"]), edges, max(len(edges) - 2, 0))


def _bins(values: pa.Array, lower_ends: Sequence[float], last: int) -> pa.Array:
    """Index of the bin of each value, at most `last`; null for null."""
    numbers = np.nan_to_num(values.to_numpy(zero_copy_only=False))
    indices = np.searchsorted(lower_ends, numbers, "right") - 1
    is_null = pc.is_null(values).to_numpy(zero_copy_only=False)
    return pa.array(np.clip(indices, 0, last), pa.int64(), mask=is_null)


def _tag_values(table: pa.Table, name: str) -> pa.Array:
    """The value of one tag in each row. Each distinct JSON text is parsed once."""
    encoded = as_array(table["tags"]).dictionary_encode()
    values = [_as_text(json.loads(tags).get(name)) for tags in encoded.dictionary.to_pylist()]
    return pa.array(values, pa.string()).take(encoded.indices)


def _as_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
