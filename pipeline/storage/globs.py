"""Glob patterns over storage: `*`, `?`, `[...]` within a name, and `**` for any number of directories."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.objects import in_path_order, list_children, walk
from pipeline.storage.reads import Object
from pipeline.storage.retry import is_transient, retried
from pipeline.storage.uris import escaped, filesystem, uri_of


class GlobMatches(NamedTuple):
    """Objects found by a pattern, each list in path order.

    Attributes:
        matched: objects that the pattern names; a directory that it names stands for all objects below it.
        beside: the other objects of the directories that were listed on the way.
    """

    matched: list[Object]
    beside: list[Object]


def is_glob(uri: str) -> bool:
    """Return whether `uri` is a pattern. A web address never is: `?` begins its query, and nothing can be listed."""
    return not uri.startswith(("http://", "https://")) and any(mark in uri for mark in "*?[")


def glob_root(pattern: str) -> str:
    """Return the deepest directory of `pattern` above its first wildcard."""
    return pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)].rpartition("/")[0] or "/"


@retried
def expand_glob(pattern: str) -> GlobMatches:
    """Find the objects that `pattern` names. Where nothing matches, both lists may be empty.

    Raises:
        StorageError: a directory could not be listed.
    """
    fs, path = filesystem(pattern)
    root = glob_root(path)
    segments = [segment for segment in path.removeprefix(root).split("/") if segment]
    matched: list[Object] = []
    beside: list[Object] = []
    try:
        for item, is_match in _candidates(fs, root, segments):
            (matched if is_match else beside).append(item)
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_transient(error):
            raise
    return GlobMatches(in_path_order(matched), in_path_order(beside))


def _candidates(fs: Any, directory: str, segments: list[str]) -> Iterator[tuple[Object, bool]]:
    """Yield the objects of every directory that the pattern leads to, and whether the pattern names each."""
    first, rest = segments[0], segments[1:]
    if first == "**":
        base = escaped(directory) if isinstance(fs, LocalFileSystem) else uri_of(fs, directory)
        for item in walk(fs, directory):
            yield item, _is_match(item.uri.removeprefix(base).strip("/").split("/"), segments)
        return
    directories, objects = list_children(fs, directory)
    if not rest:
        yield from ((item, fnmatchcase(posixpath.basename(item.uri), first)) for item in objects)
    for child in directories:
        if fnmatchcase(posixpath.basename(child.rstrip("/")), first):
            if rest:
                yield from _candidates(fs, child, rest)
            else:
                yield from ((item, True) for item in walk(fs, child))


def _is_match(names: list[str], segments: list[str]) -> bool:
    """Return whether a leading part of `names` matches `segments`: the pattern names the path or a directory above."""
    if not segments:
        return True
    if segments[0] == "**":
        return _is_match(names, segments[1:]) or (bool(names) and _is_match(names[1:], segments))
    return bool(names) and fnmatchcase(names[0], segments[0]) and _is_match(names[1:], segments[1:])
