"""From INPUTs to the plan: list what there is to read and cut it into parts, without decoding any audio."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.corpus.input_formats import check_format
from pipeline.corpus.layout import chain_parts
from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.listings import Choice, listings
from pipeline.corpus.parts import Duplicate, Part, plan_table
from pipeline.corpus.registry import layout_of
from pipeline.corpus.unknown import check_known
from pipeline.errors import StorageError, UsageError
from pipeline.storage import objects, uris

MAX_REASONS: Final = 3  # that a message names
NO_COLUMNS: Final[Mapping[str, str]] = MappingProxyType({})


def check_inputs(inputs: Iterable[str], input_format: str | None = None) -> None:
    """Refuse local INPUTs that `plan` would refuse for what they are. It takes no time, and loads no model.

    Raises:
        UsageError: an INPUT is a table, a list or an archive of a kind that is not read, or not of the format.
    """
    for uri in inputs:
        if "://" not in uri and (input_format or layout_of(uri) is None):
            with contextlib.suppress(FileNotFoundError, StorageError):  # `plan` reports these
                if (named := objects.stat(uri)) is not None:
                    check_format(named, input_format) if input_format else check_known(named)


def plan(
    inputs: Iterable[str],
    part_bytes: int,
    limit: int | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
    input_format: str | None = None,
) -> pa.Table:
    """List every INPUT and cut it into parts of about `part_bytes`.

    Args:
        inputs: files, directories, globs, manifests (.jsonl), tar shards, Parquet files; any fsspec URI.
        part_bytes: a part is closed at this size; a row group of a Parquet file, or a shard that is compressed, small,
            or one of many, is not divided.
        limit: plan only the first `limit` utterances.
        columns: names that tables and manifests have for keys of a manifest, by these keys.
        input_format: what each INPUT is, a name of `pipeline.corpus.input_formats.FORMATS`; None: each shows it.

    Returns:
        A table of schema `PLAN`, in the order of the inputs and of the paths below each. Among files and manifests,
        whose ids are known without reading the audio, rows whose utt_id is taken are marked. Its metadata says what was
        passed over (`pipeline.corpus.left_out`).

    Raises:
        UsageError: an INPUT does not exist, holds no audio, or is a table or list of a kind that is not read.
        StorageError: an INPUT could not be reached.
    """
    return plan_parts(inputs, part_bytes, limit, columns, input_format).table()


class PlannedParts(NamedTuple):
    """What `plan` makes, with what is known of the parts only while they are planned."""

    parts: list[Part]
    left_out: LeftOut

    def table(self) -> pa.Table:
        """The plan, see `plan`."""
        table = plan_table(self.parts)
        return table.replace_schema_metadata({**(table.schema.metadata or {}), **self.left_out.to_metadata()})


def plan_parts(
    inputs: Iterable[str],
    part_bytes: int,
    limit: int | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
    input_format: str | None = None,
    known: Mapping[str, Sequence[Part]] = MappingProxyType({}),
) -> PlannedParts:
    """As `plan`; `known` are parts of manifests whose borders are kept, see `Listing`."""
    choice = Choice(columns, input_format)
    parts: dict[str, Part] = {}
    remaining = limit
    left_out = LeftOut()
    for uri in dict.fromkeys(uris.absolute(uri) for uri in inputs):
        if remaining is not None and remaining <= 0:
            break
        is_empty = True
        noted = len(left_out.notes)
        found = listings(uri, left_out, choice, count_texts=remaining is None)
        planners = (
            functools.partial(layout.plan, replace(listing, known=known), part_bytes) for layout, listing in found
        )
        for part in chain_parts(planners, remaining):
            is_empty = False
            read_id = part.unlimited_id
            if read_id in parts:
                continue  # INPUTs overlap: equal ids are equal reads
            parts[read_id] = part
            if remaining is not None:
                remaining -= part.rows or 0
        if is_empty:
            raise UsageError(no_audio(uri, left_out.notes[noted:], choice))
    return PlannedParts(mark_duplicates(list(parts.values())), left_out)


def no_audio(uri: str, notes: Sequence[str], choice: Choice) -> str:
    """Why an INPUT without any part is refused, in words."""
    why = "".join(f"; {note}" for note in notes[:MAX_REASONS])
    if choice.input_format is not None:
        return f"nothing of the format {choice.input_format}, which --input-format asks for, in {uri}{why}"
    return f"no audio in {uri}: looked for audio files, .tar shards, .parquet files, manifests and tables{why}"


def mark_duplicates(parts: list[Part]) -> list[Part]:
    """The parts, with their rows whose key an earlier row has (`Part.duplicates`)."""
    ends = np.cumsum([len(part.keys) for part in parts])
    keys = np.concatenate(
        [np.zeros(0, np.uint64), *(np.frombuffer(part.keys, np.uint64) for part in parts if part.keys)]
    )
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    first = first[inverse]
    found: dict[int, list[Duplicate]] = {}
    for position in np.flatnonzero(first != np.arange(len(keys))).tolist():
        ordinal, row = _locate(position, ends)
        first_ordinal, first_row = _locate(int(first[position]), ends)
        found.setdefault(ordinal, []).append(Duplicate(row, parts[first_ordinal].row_location(first_row)))
    return [
        replace(part, duplicates=tuple(found[ordinal])) if ordinal in found else part
        for ordinal, part in enumerate(parts)
    ]


def _locate(position: int, ends: np.ndarray) -> tuple[int, int]:
    """(ordinal of the part, row in it) of a position among the keys of all parts."""
    ordinal = int(np.searchsorted(ends, position, side="right"))  # skips parts without keys
    return ordinal, position - int(ends[ordinal - 1] if ordinal else 0)
