"""What one INPUT names: its objects by their layout, told from their names, from their content and from each other."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.corpus.input_formats import FORMATS, check_format
from pipeline.corpus.layout import Layout, Listing, odd_texts
from pipeline.corpus.layouts import tar_rows
from pipeline.corpus.layouts.files import FILES, reference_uri
from pipeline.corpus.layouts.manifest import MANIFEST
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.layouts.table import TABLE, audio_of, is_table
from pipeline.corpus.layouts.tar import TAR
from pipeline.corpus.layouts.tar_rows import TAR_ROWS
from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.naming import is_hidden, relative_path, suffix
from pipeline.corpus.registry import layout_of
from pipeline.corpus.tables.kaldi import KALDI_FILES
from pipeline.corpus.unknown import check_known
from pipeline.errors import UsageError
from pipeline.storage import globs, objects, uris
from pipeline.storage.reads import Object

# The files by which a run of this program is recognised (`pipeline.runs`).
_RUN_RECORD, _RUN_PLAN = "run.json", "plan.parquet"
_SHARD_FORMATS: Final = ("shar", "nemo-tarred")


@dataclass(frozen=True)
class Choice:
    """What the user says about the INPUTs of a run.

    Attributes:
        columns: names that tables have for keys of a manifest, by these keys.
        input_format: what each INPUT is, a name of `input_formats.FORMATS`; None: each shows it.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    input_format: str | None = None


def listings(uri: str, left_out: LeftOut, choice: Choice, count_texts: bool = True) -> Iterator[tuple[Layout, Listing]]:
    """The objects that one INPUT names, in path order; a listing ends where the layout changes.

    Args:
        uri: the INPUT.
        left_out: counts what is passed over.
        choice: what the user says about it.
        count_texts: count texts that are the reference of no audio too.

    Raises:
        UsageError: there is nothing at `uri`, it is of a kind that is not read, or not of the chosen format.
        StorageError: it could not be reached.
    """
    for layout, listing in _listings(uri, left_out, choice, count_texts):
        read_as = TABLE if choice.columns and layout is MANIFEST else layout
        is_named = choice.input_format is not None or layout_of(uri) is layout or listing.listed is None
        yield read_as, replace(listing, columns=choice.columns, is_named=is_named)


def _listings(uri: str, left_out: LeftOut, choice: Choice, count_texts: bool) -> Iterator[tuple[Layout, Listing]]:
    try:
        named = objects.stat(uri)
    except FileNotFoundError as error:
        if not globs.is_glob(uri):
            why = "is a dangling link or not a regular file" if uris.is_irregular(uri) else ""
            # Repositories that the token may not read are not told from those that do not exist.
            hint = " (a private or gated repository needs HF_TOKEN)" if uri.startswith("hf://") else ""
            raise UsageError(f"{uri} {why}" if why else f"no such file or directory: {uri}{hint}") from error
        matched, beside = globs.expand_glob(uri)
        layout = layout_of(uri)
        if layout is None or layout.in_directories(uri):
            yield from _by_layout(matched, beside, globs.glob_root(uri), left_out, choice, count_texts)
            return
        told = [(*_told_by_content(item, choice), item) for item in matched]
        yield from _grouped(told, Listing(globs.glob_root(uri), (), left_out=left_out))
        return
    if named is None:
        yield from _by_layout(objects.list_objects(uri), [], uri, left_out, choice, count_texts)
        return
    told = [(*_told_by_content(named, choice), named)]
    yield from _grouped(told, Listing(posixpath.dirname(uri), (), left_out=left_out))


_Told = tuple[Layout, str, Object]
"""An object, its layout, and the kind of a table that is known already, else empty."""


def _told_by_content(named: Object, choice: Choice) -> tuple[Layout, str]:
    """The layout of an object that INPUT names, and the kind of a table."""
    if choice.input_format is not None:
        chosen = check_format(named, choice.input_format)
        is_manifest = chosen.layout is MANIFEST and not named.uri.lower().endswith(".gz")
        return (MANIFEST, "") if is_manifest else (TABLE if chosen.layout is MANIFEST else chosen.layout, chosen.kind)
    layout = layout_of(named.uri)
    if layout is None:
        # A single audio file needs no extension.
        return {".tar": TAR, ".parquet": PARQUET}.get(check_known(named), FILES), ""
    if layout not in (MANIFEST, TABLE):
        return layout, ""
    # The name of a manifest says no more than that it is one.
    if (kind := tar_rows.kind_of(named)) is not None:
        return TAR_ROWS, kind.key
    return (TABLE if layout is TABLE or is_table(named) else MANIFEST), ""


def _grouped(told: Sequence[_Told], listing: Listing) -> Iterator[tuple[Layout, Listing]]:
    """`listing` with neighbours of one layout and kind each."""
    for (layout, kind), group in itertools.groupby(told, key=lambda one: one[:2]):
        yield layout, replace(listing, objects=[item for _, _, item in group], kind=kind)


def _by_layout(
    found: Sequence[Object],
    beside: Sequence[Object],
    root: str,
    left_out: LeftOut,
    choice: Choice,
    count_texts: bool,
) -> Iterator[tuple[Layout, Listing]]:
    """Listings of the visible objects that have a layout; others are counted, unless they are references of audio."""
    listed = {item.uri: item.version for item in (*found, *beside)}
    runs = _runs_in(listed)
    for run in runs:
        left_out.note(f"passed over {run}: it is an earlier run")
    of_shards = tar_rows.find(found, beside) if choice.input_format in (None, *_SHARD_FORMATS) else tar_rows.NOTHING
    # Objects without a layout are removed before grouping: references are between the audio files, in path order, and
    # would end a part each.
    claimed: list[_Told] = []
    others: list[str] = []
    for item in found:
        layout, kind = _layout_below(item.uri, of_shards, choice.input_format)
        if is_hidden(relative_path(item.uri, root)):
            if layout is FILES:
                left_out.hidden += 1
        elif layout is None:
            if item.uri not in of_shards.read:
                others.append(item.uri)
        elif layout is FILES or not any(item.uri.startswith(f"{run}/") for run in runs):
            claimed.append((layout, kind, item))
    claimed = _without_audio_of_tables(claimed, left_out, choice.columns)
    audio = [item for layout, _, item in claimed if layout is FILES]
    texts = odd_texts(listed, (item.uri for item in audio))
    yield from _grouped(claimed, Listing(root, (), listed, left_out, odd_texts=texts))
    used = frozenset[str]()
    if count_texts:
        listing = Listing(root, audio, listed, left_out, odd_texts=texts)
        used = frozenset(filter(None, (reference_uri(item.uri, listing) for item in audio)))
    kaldi = {posixpath.dirname(item.uri) for _, _, item in claimed if posixpath.basename(item.uri) == "wav.scp"}
    for uri in others:
        is_text = suffix(uri) == "txt"
        if posixpath.dirname(uri) in kaldi and posixpath.basename(uri) in KALDI_FILES:
            continue
        if not any(uri.startswith(f"{run}/") for run in runs) and uri not in used and (count_texts or not is_text):
            left_out.add_file(uri)


def _layout_below(uri: str, of_shards: tar_rows.Found, input_format: str | None) -> tuple[Layout | None, str]:
    """The layout of an object below a directory, None if it is not read there, and the kind of a table."""
    if (kind := of_shards.kinds.get(uri)) is not None and input_format in (None, kind):
        return TAR_ROWS, kind
    if input_format is not None:
        chosen = FORMATS[input_format]
        if not chosen.in_directories(uri):
            return None, ""
        return TABLE if chosen.layout is MANIFEST and uri.lower().endswith(".gz") else chosen.layout, chosen.kind
    layout = layout_of(uri)
    if layout is None or not layout.in_directories(uri) or uri in of_shards.shards:
        return None, ""
    return layout, ""


def _without_audio_of_tables(claimed: list[_Told], left_out: LeftOut, columns: Mapping[str, str]) -> list[_Told]:
    """The objects without audio files that a table among them names, and without tables that name no audio."""
    named: set[str] = set()
    unread: set[str] = set()
    for layout, kind, item in claimed:
        if layout is TABLE:
            try:
                named |= audio_of(item, columns, kind)
            except UsageError as error:
                left_out.note(f"passed over {error}")
                unread.add(item.uri)
    return [
        (layout, kind, item)
        for layout, kind, item in claimed
        if not ((layout is FILES and item.uri in named) or (layout is TABLE and item.uri in unread))
    ]


def _runs_in(listed: Mapping[str, str]) -> list[str]:
    """The directories among the listed objects that hold a run of this program."""
    records = (uri.removesuffix(f"/{_RUN_RECORD}") for uri in listed if uri.endswith(f"/{_RUN_RECORD}"))
    return sorted(run for run in records if f"{run}/{_RUN_PLAN}" in listed)
