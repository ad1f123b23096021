"""Manifests whose rows name members of tar shards: what a kind of them is."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.corpus.naming import composed, stem
from pipeline.corpus.tables.kind import Row
from pipeline.storage.reads import Object

ListDirectory = Callable[[str], Sequence[Object]]
"""The objects directly in a directory, in path order."""


class MemberRow(NamedTuple):
    """A row of a manifest, with the shard that holds its audio.

    Attributes:
        values: the row, with the name of its audio at `audio_filepath`; or what is wrong with it.
        shard: None where something is wrong with the row.
        keys: the member is the first that has one of these among its `member_keys`.
    """

    values: Row
    shard: Object | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardKind:
    """One kind of manifest.

    Attributes:
        key: its name for `--input-format`.
        name: as messages call it.
        recognises: (manifest, its first bytes, decompressed) -> is it one?
        rows: (manifest, list_directory) -> its rows, in order. Raises UsageError where it has no shards at all.
    """

    key: str
    name: str
    recognises: Callable[[Object, bytes], bool]
    rows: Callable[[Object, ListDirectory], Iterator[MemberRow]]


def name_key(name: str) -> str:
    """The key of the member with this name."""
    return composed(posixpath.normpath(name).lstrip("/"))


def stem_key(name: str) -> str:
    """The key of a member that has this name and any extension."""
    return name_key(name) + "\0"  # which no name has


def is_stem(key: str) -> bool:
    """Whether a key leaves the extension open."""
    return key.endswith("\0")


def member_keys(name: str) -> tuple[str, str]:
    """The keys of a member of a shard."""
    return name_key(name), stem_key(stem(name))
