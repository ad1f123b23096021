"""JSON-lines manifests in the keys that NeMo made common: one row per utterance, its audio at `audio_filepath`.

A part is a byte range of the manifest. The object itself has no planned version: a manifest may grow, and the rows that
were planned are compared by their digest, which is in the part's id.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import posixpath
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.corpus.layout import Layout, Listing, chain_parts
from pipeline.corpus.left_out import LeftOut
from pipeline.corpus.metadata import ManifestRow, estimated_bytes, manifest_utt_id, parse_meta, split_rows, unique_key
from pipeline.corpus.naming import suffix
from pipeline.corpus.parts import Part, cut_to_parts, key_digest, manifest_content, manifest_row_location
from pipeline.corpus.utterances import Utterance, broken_utterance, fetch_planned, row_utterance, share
from pipeline.errors import AudioError, InputChangedError, UsageError
from pipeline.storage import objects

MANIFEST_SUFFIXES = ("jsonl", "json", "ndjson")


class _PlannedRow(NamedTuple):
    """A row: its first byte, its text, digest of what must be unique, and the estimated size of its audio in bytes."""

    offset: int
    line: bytes
    key: int
    size: int


def plan_manifests(listing: Listing, part_bytes: int, limit: int | None) -> Iterator[Part]:
    """Parts of manifests; see `Layout.plan`."""
    planners = (functools.partial(_plan_manifest, manifest.uri, part_bytes, listing) for manifest in listing.objects)
    return chain_parts(planners, limit)


def _plan_manifest(uri: str, part_bytes: int, listing: Listing, limit: int | None) -> Iterator[Part]:
    rows = itertools.islice(_planned_rows(uri, listing.left_out), limit)
    for known, neighbours in _by_known_part(rows, listing.known.get(uri, ())):
        rest: Iterable[_PlannedRow] = neighbours
        if known is not None:
            rest = list(neighbours)
            part = _part(uri, rest)
            if part.part_id == known.content_id:
                yield part
                continue
        for group in cut_to_parts(rest, lambda row: row.size, part_bytes):
            yield _part(uri, group)


def _part(uri: str, rows: list[_PlannedRow]) -> Part:
    return Part(
        kind=MANIFEST.kind,
        bytes=sum(row.size for row in rows),
        uri=uri,
        start=rows[0].offset,
        end=rows[-1].offset + len(rows[-1].line),
        rows=len(rows),
        content=manifest_content(row.line for row in rows),
        keys=array("Q", [row.key for row in rows]),
        offsets=array("Q", [row.offset for row in rows]),
    )


def _by_known_part(
    rows: Iterable[_PlannedRow], known: Sequence[Part]
) -> Iterator[tuple[Part | None, Iterator[_PlannedRow]]]:
    """Neighbouring rows with the known part whose bytes they begin in, or None."""
    starts = [part.start or 0 for part in known]

    def index(row: _PlannedRow) -> int | None:
        found = bisect.bisect_right(starts, row.offset) - 1
        return found if found >= 0 and row.offset < (known[found].end or 0) else None

    for found, group in itertools.groupby(rows, index):
        yield (None if found is None else known[found]), group


def _planned_rows(uri: str, left_out: LeftOut) -> Iterator[_PlannedRow]:
    base = posixpath.dirname(uri)
    first = True
    for offset, line in _lines(uri):
        if not line.strip():
            continue
        if first:
            _check_first_row(uri, line)
            first = False
        try:
            row = parse_meta(line, "", ManifestRow)
            left_out.texts += row.text is not None
            left_out.labels_only += row.text is None and row.label is not None
        except AudioError:  # reading the row makes an error row of it
            yield _PlannedRow(offset, line, key_digest(f"\0{manifest_row_location(uri, offset)}"), 0)
        else:
            key = key_digest(unique_key(manifest_utt_id(row, base), row))
            yield _PlannedRow(offset, line, key, estimated_bytes(row))


def _lines(uri: str) -> Iterator[tuple[int, bytes]]:
    try:
        yield from objects.lines(uri)
    except FileNotFoundError as error:
        raise UsageError(f"cannot read the manifest {uri}: {error}") from error


def _check_first_row(uri: str, line: bytes) -> None:
    """Refuse what is no manifest in JSON lines, before every line of it becomes an error row.

    Raises:
        UsageError: it is a JSON array or one object over several lines.
    """
    start = line.removeprefix(b"\xef\xbb\xbf").strip()
    if start.startswith(b"[") or start == b"{":
        kind = "a JSON array" if start.startswith(b"[") else "one JSON object over several lines"
        raise UsageError(
            f"{uri} is {kind}, and a manifest has one JSON object a line: convert it, for example by "
            f"jq -c '.[]' {posixpath.basename(uri)} > manifest.jsonl"
        )


def read_manifest(part: Part) -> Iterator[Utterance]:
    """The utterances of a part of a manifest; see `Layout.read`."""
    base = posixpath.dirname(part.uri)
    rows = list(split_rows(fetch_planned(part.uri, part.start, part.end), part.start or 0))
    _check_rows(part, (line for _, line in rows))
    for index, (start, line) in enumerate(rows):
        size = share(part.bytes, index, len(rows))
        location = manifest_row_location(part.uri, start)
        try:
            row = parse_meta(line, location, ManifestRow)
        except AudioError as error:
            end = start + len(line)
            broken = broken_utterance(f"{part.uri}[{start}:{end}]", part.uri, error, size)
            yield replace(broken, byte_start=start, byte_end=end)
            continue
        yield row_utterance(row, base, size, location)


def _check_rows(part: Part, rows: Iterable[bytes]) -> None:
    """Check that `rows` are those that were planned. Rows added after them change nothing here.

    Raises:
        InputChangedError: they have changed.
    """
    content = manifest_content(rows)
    found = Part(MANIFEST.kind, 0, part.uri, start=part.start, end=part.end, content=content, update=part.update)
    if found.part_id != part.part_id:
        raise InputChangedError(f"{part.uri}: bytes {part.start} to {part.end} have changed since they were planned")


MANIFEST = Layout(
    kind="manifest",
    claims=lambda uri: suffix(uri) in MANIFEST_SUFFIXES,
    plan=plan_manifests,
    read=read_manifest,
    in_directories=lambda uri: False,  # below a directory, `.json` files describe single audio files
    plans_keys=True,
)
