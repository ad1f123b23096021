"""From INPUTs to the plan: list what there is to read and cut it into parts, without decoding any audio."""

from __future__ import annotations

import contextlib
import functools
import itertools
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from pipeline.corpus.layout import Layout, Listing, chain_parts, odd_texts
from pipeline.corpus.layouts.files import FILES, reference_uri
from pipeline.corpus.layouts.manifest import MANIFEST
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.layouts.table import TABLE, audio_of, kind_of
from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.naming import is_hidden, relative_path, suffix
from pipeline.corpus.parts import Duplicate, Part, plan_table
from pipeline.corpus.registry import layout_of
from pipeline.corpus.tables.kaldi import KALDI_FILES
from pipeline.corpus.tables.lhotse import LHOTSE
from pipeline.corpus.unknown import check_known
from pipeline.errors import StorageError, UsageError
from pipeline.storage import globs, objects, uris
from pipeline.storage.objects import Object

MAX_REASONS = 3  # that a message names
# The files by which a run of this program is recognised (`pipeline.runs`).
_RUN_RECORD, _RUN_PLAN = "run.json", "plan.parquet"


def check_inputs(inputs: Iterable[str]) -> None:
    """Refuse local INPUTs that `plan` would refuse for what they are. It takes no time, and loads no model.

    Raises:
        UsageError: an INPUT is a table, a list or an archive of a kind that is not read.
    """
    for uri in inputs:
        if "://" not in uri and layout_of(uri) is None:
            with contextlib.suppress(FileNotFoundError, StorageError):  # `plan` reports these
                if (named := objects.stat(uri)) is not None:
                    check_known(named)


def plan(
    inputs: Iterable[str], part_bytes: int, limit: int | None = None, columns: Mapping[str, str] = MappingProxyType({})
) -> pa.Table:
    """List every INPUT and cut it into parts of about `part_bytes`.

    Args:
        inputs: files, directories, globs, manifests (.jsonl), tar shards, Parquet files; any fsspec URI.
        part_bytes: a part is closed at this size; a row group of a Parquet file, or a shard that is compressed, small,
            or one of many, is not divided.
        limit: plan only the first `limit` utterances.
        columns: names that tables and manifests have for keys of a manifest, by these keys.

    Returns:
        A table of schema `PLAN`, in the order of the inputs and of the paths below each. Among files and manifests,
        whose ids are known without reading the audio, rows whose utt_id is taken are marked. Its metadata says what was
        passed over (`pipeline.corpus.left_out`).

    Raises:
        UsageError: an INPUT does not exist, holds no audio, or is a table or list of a kind that is not read.
        StorageError: an INPUT could not be reached.
    """
    parts: dict[str, Part] = {}
    remaining = limit
    left_out = LeftOut()
    for uri in dict.fromkeys(uris.absolute(uri) for uri in inputs):
        if remaining is not None and remaining <= 0:
            break
        is_empty = True
        noted = len(left_out.notes)
        for part in _input_parts(uri, part_bytes, remaining, left_out, columns):
            is_empty = False
            read_id = part.unlimited_id
            if read_id in parts:
                continue  # INPUTs overlap: equal ids are equal reads
            parts[read_id] = part
            if remaining is not None:
                remaining -= part.rows or 0
        if is_empty:
            why = "".join(f"; {note}" for note in left_out.notes[noted:][:MAX_REASONS])
            raise UsageError(
                f"no audio in {uri}: looked for audio files, .tar shards, .parquet files, manifests and tables{why}"
            )
    table = plan_table(_with_duplicates(list(parts.values())))
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **left_out.to_metadata()})


def _input_parts(
    uri: str, part_bytes: int, limit: int | None, left_out: LeftOut, columns: Mapping[str, str]
) -> Iterator[Part]:
    listings = _with_columns(_listings(uri, left_out, columns, count_texts=limit is None), columns)
    planners = (functools.partial(layout.plan, listing, part_bytes) for layout, listing in listings)
    yield from chain_parts(planners, limit)


def _with_columns(
    listings: Iterable[tuple[Layout, Listing]], columns: Mapping[str, str]
) -> Iterator[tuple[Layout, Listing]]:
    """The listings with the names of columns; manifests are read as tables where they have other names."""
    for layout, listing in listings:
        if columns and layout is PARQUET:
            raise UsageError(
                f"{listing.objects[0].uri}: other names of columns are read from CSV, TSV and JSON lines, not from "
                "Parquet: rename its columns"
            )
        yield (TABLE if columns and layout is MANIFEST else layout), replace(listing, columns=columns)


def _listings(
    uri: str, left_out: LeftOut, columns: Mapping[str, str], count_texts: bool
) -> Iterator[tuple[Layout, Listing]]:
    """The objects that one INPUT names, in path order; a listing ends where the layout changes."""
    try:
        named = objects.stat(uri)
    except FileNotFoundError as error:
        if not globs.is_glob(uri):
            why = "is a dangling link or not a regular file" if uris.is_irregular(uri) else ""
            raise UsageError(f"{uri} {why}" if why else f"no such file or directory: {uri}") from error
        matched, beside = globs.expand_glob(uri)
        layout = layout_of(uri)
        if layout is not None and not layout.in_directories(uri):
            yield layout, Listing(globs.glob_root(uri), matched, left_out=left_out)
        else:
            yield from _by_layout(matched, beside, globs.glob_root(uri), left_out, columns, count_texts)
        return
    if named is None:
        yield from _by_layout(objects.list_objects(uri), [], uri, left_out, columns, count_texts)
        return
    layout = layout_of(uri)
    if layout is None:
        check_known(named)
        layout = FILES  # a single audio file needs no extension
    elif layout is MANIFEST and kind_of(named) is LHOTSE:
        layout = TABLE
    yield layout, Listing(posixpath.dirname(uri), [named], left_out=left_out)


def _by_layout(
    found: Sequence[Object],
    beside: Sequence[Object],
    root: str,
    left_out: LeftOut,
    columns: Mapping[str, str],
    count_texts: bool,
) -> Iterator[tuple[Layout, Listing]]:
    """Listings of the visible objects that have a layout; others are counted, unless they are references of audio."""
    listed = frozenset(item.uri for item in (*found, *beside))
    runs = _runs_in(listed)
    for run in runs:
        left_out.note(f"passed over {run}: it is an earlier run")
    # Objects without a layout are removed before grouping: references are between the audio files, in path order, and
    # would end a part each.
    claimed: list[tuple[Layout, Object]] = []
    others: list[str] = []
    for item in found:
        layout = layout_of(item.uri)
        if is_hidden(relative_path(item.uri, root)):
            if layout is FILES:
                left_out.hidden += 1
        elif layout is None or not layout.in_directories(item.uri):
            others.append(item.uri)
        elif layout is FILES or not any(item.uri.startswith(f"{run}/") for run in runs):
            claimed.append((layout, item))
    claimed = _without_audio_of_tables(claimed, left_out, columns)
    audio = [item for layout, item in claimed if layout is FILES]
    texts = odd_texts(listed, (item.uri for item in audio))
    for layout, group in itertools.groupby(claimed, key=lambda pair: pair[0]):
        yield layout, Listing(root, [item for _, item in group], listed, left_out, odd_texts=texts)
    used = frozenset[str]()
    if count_texts:
        listing = Listing(root, audio, listed, left_out, odd_texts=texts)
        used = frozenset(filter(None, (reference_uri(item.uri, listing) for item in audio)))
    kaldi = {posixpath.dirname(item.uri) for layout, item in claimed if posixpath.basename(item.uri) == "wav.scp"}
    for uri in others:
        is_text = suffix(uri) == "txt"
        if posixpath.dirname(uri) in kaldi and posixpath.basename(uri) in KALDI_FILES:
            continue
        if not any(uri.startswith(f"{run}/") for run in runs) and uri not in used and (count_texts or not is_text):
            left_out.add_file(uri)


def _without_audio_of_tables(
    claimed: list[tuple[Layout, Object]], left_out: LeftOut, columns: Mapping[str, str]
) -> list[tuple[Layout, Object]]:
    """The objects without audio files that a table among them names, and without tables that name no audio."""
    named: set[str] = set()
    unread: set[str] = set()
    for layout, item in claimed:
        if layout is TABLE:
            try:
                named |= audio_of(item, columns)
            except UsageError as error:
                left_out.note(f"passed over {error}")
                unread.add(item.uri)
    return [
        (layout, item)
        for layout, item in claimed
        if not ((layout is FILES and item.uri in named) or (layout is TABLE and item.uri in unread))
    ]


def _runs_in(listed: frozenset[str]) -> list[str]:
    """The directories among the listed objects that hold a run of this program."""
    records = (uri.removesuffix(f"/{_RUN_RECORD}") for uri in listed if uri.endswith(f"/{_RUN_RECORD}"))
    return sorted(run for run in records if f"{run}/{_RUN_PLAN}" in listed)


def _with_duplicates(parts: list[Part]) -> list[Part]:
    """The parts, with their rows whose key an earlier row has."""
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
