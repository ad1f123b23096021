"""Manifests whose rows name members of tar shards: lhotse's Shar, NeMo's tarred data sets.

A part is a shard with the rows that name its members. The rows are stored in the plan, as those of a table are; the
shard is read as a stream. Members that no row names are not read: a manifest says what its corpus is.
"""

from __future__ import annotations

import functools
import itertools
import json
import posixpath
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from pipeline.corpus.layout import Layout, Listing, chain_parts
from pipeline.corpus.layouts.table import TableRow
from pipeline.corpus.layouts.tar import TAR_ERRORS, member_opener, open_tar, tar_members
from pipeline.corpus.metadata import manifest_utt_id, parse_meta, unique_key
from pipeline.corpus.naming import suffix
from pipeline.corpus.parts import Part, key_digest, manifest_content, table_row_location
from pipeline.corpus.tables import shar
from pipeline.corpus.tables.kind import head_of
from pipeline.corpus.tables.nemo_tarred import MANIFEST_NAME, NEMO_TARRED, SHARD, SHARD_MANIFEST
from pipeline.corpus.tables.shar import SHAR
from pipeline.corpus.tables.shards import ListDirectory, MemberRow, ShardKind, is_stem, member_keys
from pipeline.corpus.utterances import AudioOpener, Utterance, broken_utterance, failing_opener, open_planned, share
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.storage import objects
from pipeline.storage.reads import Object

KINDS: Final = (SHAR, NEMO_TARRED)
_NOT_AUDIO: Final = frozenset({"json", "nometa"})  # lhotse's manifest of the member before it
_NO_AUDIO: Final = "nodata"
_LOOKED_INTO: Final = 3  # manifests of a directory: the cuts of the first may have no audio


class _PlannedRow(NamedTuple):
    """A row: its number in the manifest, as a JSON line, and the digest of what must be unique."""

    number: int
    line: bytes
    key: int


def kind_of(manifest: Object) -> ShardKind | None:
    """The kind of a manifest of this layout; None if it is another table."""
    head = head_of(manifest.uri, manifest.size)
    return next((kind for kind in KINDS if kind.recognises(manifest, head)), None)


class Found(NamedTuple):
    """What of this layout is among listed objects.

    Attributes:
        kinds: the key of its kind by the URI of a manifest.
        shards: URIs of the shards beside them, which are not read without them.
        read: URIs of those shards that have their audio, and of other files whose content the manifests' rows have.
    """

    kinds: Mapping[str, str]
    shards: frozenset[str]
    read: frozenset[str]


NOTHING: Final = Found({}, frozenset(), frozenset())


class _Group(NamedTuple):
    """Manifests that may be of a kind, by their names, and as URIs what `Found` has of them."""

    kind: ShardKind
    manifests: Sequence[Object]
    shards: Sequence[str]
    read: Sequence[str]


def find(named: Sequence[Object], beside: Sequence[Object]) -> Found:
    """The manifests of this layout among the named objects: told by names, and by the content of one in each directory.

    Their shards may be `beside` these. Where no manifest is named, shards are read as they are.
    """
    directories: dict[str, dict[str, Object]] = {}
    for item in (*named, *beside):
        if item.uri.endswith((".tar", ".tar.gz", ".tgz", ".jsonl", ".json", ".jsonl.gz", ".json.gz")):
            directory, name = posixpath.split(item.uri)
            directories.setdefault(directory, {})[name] = item
    groups = [group for place in directories for group in (_shar(place, directories), _nemo(place, directories))]
    planned = frozenset(named)
    found = [
        group
        for group in groups
        if group.shards
        and any(item in planned for item in group.manifests)
        and any(kind_of(item) is group.kind for item in group.manifests[:_LOOKED_INTO])
    ]
    return Found(
        {item.uri: group.kind.key for group in found for item in group.manifests},
        frozenset(uri for group in found for uri in group.shards),
        frozenset(uri for group in found for uri in group.read),
    )


def _shar(directory: str, directories: Mapping[str, Mapping[str, Object]]) -> _Group:
    files = [(match, item) for name, item in directories[directory].items() if (match := shar.FILE.fullmatch(name))]
    recordings = [item.uri for match, item in files if match["tar"] and match["field"] == "recording"]
    return _Group(
        kind=SHAR,
        manifests=[item for match, item in files if match["field"] == "cuts" and not match["tar"]],
        shards=[item.uri for match, item in files if match["tar"] and recordings],
        read=[*recordings, *(item.uri for match, item in files if not match["tar"] and match["field"] != "cuts")],
    )


def _nemo(directory: str, directories: Mapping[str, Mapping[str, Object]]) -> _Group:
    """The manifest of all shards in a directory; else those of each shard, beside the shards or below them."""
    names = directories[directory]
    below = directories.get(f"{directory}/sharded_manifests", {})
    shards = [item.uri for name, item in names.items() if SHARD.fullmatch(name)]
    by_shard = [item for place in (names, below) for name, item in place.items() if SHARD_MANIFEST.fullmatch(name)]
    whole = names.get(MANIFEST_NAME)
    return _Group(
        kind=NEMO_TARRED,
        manifests=by_shard if whole is None else [whole],
        shards=shards,
        read=[*shards, *(item.uri for item in by_shard)],
    )


def plan_manifests(listing: Listing, part_bytes: int, limit: int | None) -> Iterator[Part]:
    """A part for each shard of each manifest; see `Layout.plan`. A shard is never divided."""
    list_directory = functools.cache(objects.list_directory)
    planners = (functools.partial(_plan_manifest, manifest, listing, list_directory) for manifest in listing.objects)
    return chain_parts(planners, limit)


def _plan_manifest(
    manifest: Object, listing: Listing, list_directory: ListDirectory, limit: int | None
) -> Iterator[Part]:
    kind = next((kind for kind in KINDS if kind.key == listing.kind), None) or kind_of(manifest)
    if kind is None:
        raise UsageError(f"{manifest.uri}: its rows name no members of tar shards")
    rows_of: dict[Object | None, list[_PlannedRow]] = {}
    for number, row in enumerate(itertools.islice(kind.rows(manifest, list_directory), limit)):
        rows_of.setdefault(row.shard, []).append(_planned_row(row, number, manifest.uri, listing))
    for shard, rows in rows_of.items():
        yield Part(
            kind=TAR_ROWS.kind,
            bytes=shard.size if shard else 0,
            uri=shard.uri if shard else manifest.uri,
            name=manifest.uri,
            version=shard.version if shard else None,
            rows=len(rows),
            lines=zlib.compress(b"\n".join(row.line for row in rows)),
            content=manifest_content(row.line for row in rows),
            keys=array("Q", [row.key for row in rows]),
            offsets=array("Q", [row.number for row in rows]),
        )


def _planned_row(row: MemberRow, number: int, manifest: str, listing: Listing) -> _PlannedRow:
    location = table_row_location(manifest, number)
    try:
        if isinstance(row.values, AudioError):
            raise AudioError(row.values.code, f"{location}: {row.values.message}")
        meta = parse_meta(row.values, location, TableRow)
    except AudioError as error:
        problem = {"row": number, "problem": [error.code.value, error.message]}
        return _PlannedRow(number, _json(problem), key_digest(f"\0{location}"))
    listing.left_out.texts += meta.text is not None
    listing.left_out.labels_only += meta.text is None and meta.label is not None
    key = key_digest(unique_key(manifest_utt_id(meta, posixpath.dirname(manifest)), meta))
    return _PlannedRow(number, _json({"row": number, "members": row.keys, "values": row.values}), key)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode()


def stored_rows(part: Part) -> Iterator[tuple[str, str]]:
    """(name of its member, empty where it is named by its stem; code of what is wrong, else empty) of each row."""
    for line in zlib.decompress(part.lines).split(b"\n"):
        stored = json.loads(line)
        if "problem" in stored:
            yield "", stored["problem"][0]
        else:
            name = stored["members"][0]
            yield "" if is_stem(name) else name, ""


class _Row(NamedTuple):
    """A stored row: its number in the part, where it is in words, what it says, and the names of its member."""

    number: int
    location: str
    meta: TableRow
    keys: tuple[str, ...]


def read_rows(part: Part) -> Iterator[Utterance]:
    """The utterances of a part, in the order of the shard; see `Layout.read`. Rows without a member come last."""
    waiting: dict[str, dict[int, _Row]] = {}
    rows: dict[int, _Row] = {}
    for index, line in enumerate(zlib.decompress(part.lines).split(b"\n")):
        stored = json.loads(line)
        location = table_row_location(part.name, stored["row"])
        if "problem" in stored:
            code, message = stored["problem"]
            broken = broken_utterance(f"{part.name}[{stored['row']}]", part.name, AudioError(ErrorCode(code), message))
            yield replace(broken, row=index)
            continue
        meta = parse_meta(stored["values"], location, TableRow)
        rows[index] = _Row(index, location, meta, tuple(stored["members"]))
        for key in rows[index].keys:
            waiting.setdefault(key, {})[index] = rows[index]
    if not rows:
        return
    missing = AudioError(ErrorCode.MISSING, f"{part.uri} has no such member")
    done = 0
    count = len(rows)
    try:
        for member, opener in _members(part, waiting):
            end = member.offset_data + member.size
            found = [row for key in member_keys(member.name) for row in waiting.get(key, {}).values()]
            for position, row in enumerate(sorted(found)):
                del rows[row.number]
                for key in row.keys:
                    del waiting[key][row.number]
                size = share(max(end - done, 0), position, len(found))
                yield _utterance(row, part, opener, size)
            done = end if found else done
            if not rows:
                return
    except AudioError as error:  # of open_planned
        missing = error
    except TAR_ERRORS as error:
        missing = AudioError(ErrorCode.BAD_ARCHIVE, f"{part.uri}: {error or type(error).__name__}, before its member")
    for row in rows.values():
        problem = AudioError(missing.code, f"{row.location}: {missing.message}: {row.meta.audio_filepath}")
        size = max(part.bytes - done, 0) // count
        yield replace(_utterance(row, part, failing_opener(problem), size), problem=problem)


def _members(part: Part, waiting: Mapping[str, Mapping[int, _Row]]) -> Iterator[tuple[tarfile.TarInfo, AudioOpener]]:
    """The members of the shard for which a row waits, each with its audio; the others are skipped."""
    with open_planned(part) as file:
        archive, _ = open_tar(file)
        with archive:
            for member in tar_members(archive):
                kind = suffix(member.name)
                if kind in _NOT_AUDIO or not any(waiting.get(key) for key in member_keys(member.name)):
                    continue
                if kind == _NO_AUDIO:
                    problem = AudioError(ErrorCode.MISSING, f"{member.name}: the cut was stored without its audio")
                    yield member, failing_opener(problem)
                else:
                    yield member, member_opener(archive, member)


def _utterance(row: _Row, part: Part, opener: AudioOpener, size: int) -> Utterance:
    return Utterance(
        utt_id=manifest_utt_id(row.meta, posixpath.dirname(part.name)),
        uri=part.uri,
        open=opener,
        size=size,
        meta=row.meta,
        fixed_id=row.meta.utt_id is not None,
        channel=row.meta.audio_channel,
        source_location=row.location,
        row=row.number,
    )


TAR_ROWS = Layout(
    kind="tar_rows",
    claims=lambda uri: False,  # told by its content, or by what is beside it: see `kind_of` and `find`
    plan=plan_manifests,
    read=read_rows,
    in_directories=lambda uri: False,
    plans_keys=True,
)
